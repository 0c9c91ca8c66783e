"""Drafts of what is no molecule, or not the same one for long: crystals, reactions, new forces."""

import dataclasses

import numpy as np
import pytest
from openmm import app
from test_auto_draft import (
    SMALL_MOLECULES,
    auto,
    context_of,
    steps_per_round,
    system_without_forces,
)
from test_learning import Known

from openmm_lsd.drafts import learning
from openmm_lsd.drafts.autodraft import auto_draft
from openmm_lsd.drafts.bonds import BETWEEN_LOOKS, BondMonitor
from openmm_lsd.drafts.draft import LearningDraft
from openmm_lsd.drafts.molgraph import (
    MolecularGraph,
    graph_of_positions,
    with_contacts,
    with_missing_bonds,
)
from openmm_lsd.targets import ASETarget

NO_BONDS = np.zeros((0, 2), dtype=int)


def crystal(name, repeats=2):
    """Atomic numbers, positions in nm, box in nm."""
    build = pytest.importorskip("ase.build")
    atoms = build.bulk(name, cubic=True).repeat(repeats)
    return atoms.numbers, 0.1 * atoms.positions, 0.1 * np.array(atoms.cell[:])


# Contacts


@pytest.mark.parametrize(("name", "neighbours"), [("Cu", 12), ("Al", 12), ("Fe", 14), ("Ar", 12)])
@pytest.mark.parametrize("bonded", [True, False], ids=["bonds from distances", "no bonds"])
def test_close_pairs_of_a_crystal_are_contacts(name, neighbours, bonded):
    numbers, positions, box = crystal(name, 3)
    graph = MolecularGraph(numbers, NO_BONDS)
    if bonded:
        graph = graph_of_positions(numbers, positions, box)
    graph = with_contacts(graph, positions, box)
    assert len(graph.bonds) == 0
    counts = np.bincount(graph.contacts.ravel(), minlength=len(numbers))
    assert set(counts) == {neighbours}
    draft = auto_draft(graph, positions, box)
    # Four powers, pairs with four kinds of corners between them, and three of the square corners.
    assert draft.terms.parameters == 17 and not draft.guesses.any()


def test_covalent_crystals_and_molecules_keep_their_bonds():
    for name, neighbours in (("Si", 4), ("C", 4)):
        numbers, positions, box = crystal(name)
        graph = with_contacts(graph_of_positions(numbers, positions, box), positions, box)
        assert len(graph.contacts) == 0
        assert set(np.bincount(graph.bonds.ravel())) == {neighbours}
    numbers, positions, _ = SMALL_MOLECULES["ethanol"]
    graph = graph_of_positions(np.array(numbers), 0.1 * np.array(positions))
    assert with_contacts(graph, 0.1 * np.array(positions), None) is not None
    assert len(with_contacts(graph, 0.1 * np.array(positions), None).contacts) == 0


def test_an_ion_among_waters_has_contacts():
    numbers = np.array([11, 8, 1, 1, 8, 1, 1])
    water = np.array([[0.0, 0.0, 0.0], [0.06, 0.075, 0.0], [0.06, -0.075, 0.0]])
    shift = np.array([0.23, 0.0, 0.0])
    positions = np.concatenate([np.zeros((1, 3)), water + shift, -water - 1.04 * shift])
    graph = with_contacts(graph_of_positions(numbers, positions), positions, None)
    assert graph.contacts.tolist() == [[0, 1], [0, 4]]
    assert graph.bonds.tolist() == [[1, 2], [1, 3], [4, 5], [4, 6]]


def test_atoms_far_from_all_others_have_nothing():
    positions = np.array([[0.0, 0, 0], [1.0, 0, 0], [0, 1.1, 0]])
    graph = MolecularGraph(np.array([18, 18, 0]), NO_BONDS)
    assert len(with_contacts(graph, positions, None).contacts) == 0
    alone = MolecularGraph(np.array([18]), NO_BONDS)
    assert len(with_contacts(alone, positions[:1], None).contacts) == 0


def test_atoms_without_bonds_in_a_topology_get_those_of_distances():
    numbers, positions, _ = SMALL_MOLECULES["cyclopropane"]
    positions = 0.1 * np.array(positions)
    whole = graph_of_positions(np.array(numbers), positions)
    for kept in (0, 3, len(whole.bonds)):
        part = MolecularGraph(whole.elements, whole.bonds[:kept])
        found = with_missing_bonds(part, positions, None)
        missing = set(range(9)) - set(part.bonds.ravel().tolist())
        assert not missing - set(found.bonds.ravel().tolist())
    np.testing.assert_array_equal(
        with_missing_bonds(MolecularGraph(whole.elements, NO_BONDS), positions, None).bonds,
        whole.bonds,
    )


def test_molecules_in_a_plane_have_bonds():
    corners = np.exp(2j * np.pi * np.arange(6) / 6)
    positions = np.zeros((12, 3))
    for start, radius in ((0, 0.139), (6, 0.248)):
        positions[start : start + 6, 0] = radius * corners.real
        positions[start : start + 6, 1] = radius * corners.imag
    benzene = np.repeat([6, 1], 6)
    for shift in (0.0, 1e-17 * np.arange(12)):
        positions[:, 2] = shift
        assert len(graph_of_positions(benzene, positions).bonds) == 12
    line = np.array([[0.0, 0, 0], [0, 0, 0.074]])
    assert len(graph_of_positions(np.array([1, 1]), line).bonds) == 1


def test_metals_commit_long_windows():
    """Copper by the effective medium theory, at 5 fs: without a draft it is 4.4 steps per round,
    without terms of two contacts 11.8, without their cubes 13.6."""
    emt = pytest.importorskip("ase.calculators.emt")
    numbers, positions, box = crystal("Cu")
    system = system_without_forces(numbers)
    system.setDefaultPeriodicBoxVectors(*box)
    topology = app.Topology()
    residue = topology.addResidue("CU", topology.addChain())
    for _ in numbers:
        topology.addAtom("CU", app.element.copper, residue)
    topology.setPeriodicBoxVectors(box)
    target = ASETarget(emt.EMT(), numbers)
    integrator = auto(0.005, target=target, topology=topology)
    context = context_of(system, integrator, positions)
    integrator.step(300)
    assert steps_per_round(integrator, 600) > 12.7
    assert context.getState().getStepCount() == 900


# Bonds that form


def test_bonds_are_added_and_not_taken_away():
    numbers = np.array([8, 1, 8])
    at = [np.array([[0.0, 0, 0], [x, 0, 0], [0.26, 0, 0]]) for x in (0.1, 0.16, 0.1)]
    watch = BondMonitor(graph_of_positions(numbers, at[0]), at[0], None)
    formed, bonds = [], []
    for turn, positions in enumerate(at):
        for step in (BETWEEN_LOOKS * turn, BETWEEN_LOOKS * turn + 1):
            formed.append(watch.update(step, positions, None))
        bonds.append(watch.graph_at(positions, None).bonds.tolist())
    assert formed == [False, False, True, False, False, False]
    assert bonds == [[[0, 1]], [[0, 1], [1, 2]], [[0, 1], [1, 2]]]
    # The one that is stretched has the reference of one that is not.
    terms = auto_draft(watch.graph_at(at[1], None), at[1]).terms
    assert np.all(terms.references[terms.kinds == 0] < 0.11)
    watch.reset()
    assert watch.graph_at(at[1], None).bonds.tolist() == [[0, 1]]


def test_pairs_that_were_close_from_the_start_are_not_news():
    """A Topology may leave out bonds on purpose; metals come close to everything."""
    numbers = np.array([8, 1, 1])
    water = np.array([[0.0, 0, 0], [0.096, 0, 0], [-0.024, 0.093, 0]])
    watch = BondMonitor(MolecularGraph(numbers, np.array([[0, 1]])), water, None)
    assert not watch.update(0, water, None)
    watch = BondMonitor(MolecularGraph(np.array([11, 8]), NO_BONDS), 3 * water[:2], None)
    assert not watch.update(0, 2 * water[:2], None)


def proton_between_two_ammonias():
    """Atomic numbers and positions in nm of a state on the left."""

    def ammonia(z, side):
        height, radius = 0.037, 0.096
        angles = np.radians([0, 120, 240])
        hydrogens = [[radius * np.cos(a), radius * np.sin(a), z - side * height] for a in angles]
        return [[0.0, 0.0, z], *hydrogens]

    left, right = ammonia(0.0, 1), ammonia(0.27, -1)
    return [7, 1, 1, 1, 1, 7, 1, 1, 1], np.array([*left, [0.0, 0.0, 0.115], *right])


def test_a_proton_that_goes_to_and_fro():
    """Protonated ammonia dimer by GFN2-xTB; with the first bonds alone it is 2.8."""
    tblite = pytest.importorskip("tblite.ase")
    numbers, positions = proton_between_two_ammonias()
    calculator = tblite.TBLite(method="GFN2-xTB", verbosity=0, charge=1)
    integrator = auto(0.0005, target=ASETarget(calculator, numbers))
    context = context_of(system_without_forces(numbers), integrator, positions)
    integrator.step(1)
    terms = [integrator._binding.pair.draft._terms]
    integrator.step(599)
    terms.append(integrator._binding.pair.draft._terms)
    before, after = (np.count_nonzero(each.kinds == 0) for each in terms)
    assert (before, after) == (7, 8)
    assert steps_per_round(integrator, 400) > 5
    assert context.getState().getStepCount() == 1000


# Drafts that become bad


class TwoLives(Known):
    """Its target becomes another one at some step."""

    def __init__(self):
        super().__init__()
        self._other = LearningDraft(self.changed(5), self.masses)

    def change(self):
        self._target = self._other


@pytest.mark.parametrize("noticed", [True, False])
def test_a_draft_that_becomes_bad_begins_again(monkeypatch, noticed):
    """With GONE_BAD out of reach, what was learned before is what holds it back."""
    if not noticed:
        monkeypatch.setattr(learning, "GONE_BAD", np.inf)
    known = TwoLives()
    draft = known.draft()
    sampler = known.sampler(draft)
    sampler.advance(1500)
    known.change()
    sampler.advance(600)
    before = dataclasses.replace(sampler.statistics)
    sampler.advance(300)
    after = sampler.statistics
    again = (after.steps - before.steps) / (after.rounds - before.rounds)
    assert again > 10 if noticed else again < 7


def test_a_sound_draft_is_left_alone(monkeypatch):
    known = Known()
    begun = []
    forget_data = learning.Learner.forget_data
    monkeypatch.setattr(
        learning.Learner, "forget_data", lambda self: begun.append(self) or forget_data(self)
    )
    sampler = known.sampler(known.draft())
    sampler.advance(3000)
    assert not begun


def test_steps_that_were_not_seen_are_no_roughness(monkeypatch):
    """Plain steps between two windows: the discrepancy has changed, but not from step to step."""
    monkeypatch.setattr(learning, "WATCHED", 1000)
    known = Known()
    draft = known.draft()
    sites = np.repeat(known.positions[None], 8, axis=0)
    for step, level in ((0, 1.0), (8, 1.0), (50, 7.0)):
        draft.learn(step, sites, np.full(sites.shape, level))
    assert (draft._learner._roughness._sum, draft._learner._roughness._steps) == (0.0, 3 * 8 - 2)


def test_what_was_made_anew_is_forgotten_with_its_steps():
    """After a checkpoint the noise of the steps that formed the bond is used again."""
    numbers, positions = proton_between_two_ammonias()
    on_the_right = positions.copy()
    on_the_right[4, 2] = 0.155
    graph = graph_of_positions(np.array(numbers), positions)
    draft = LearningDraft(
        auto_draft(graph, positions), np.ones(9), bonds=BondMonitor(graph, positions, None)
    )
    forces = draft(positions)
    draft.start(0)
    sites = np.repeat(on_the_right[None], 8, axis=0)
    assert draft.learn(0, sites, np.zeros(sites.shape))
    assert np.abs(draft(positions) - forces).max() > 1.0
    draft.start(8)
    assert np.abs(draft(positions) - forces).max() > 1.0
    draft.start(0)
    np.testing.assert_array_equal(draft(positions), forces)
