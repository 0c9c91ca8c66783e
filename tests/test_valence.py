"""The valence force field: gradients, the native code, and what shares a parameter."""

import dataclasses

import numpy as np
import openmm
import pytest
from openmm import app, unit
from openmm_lsd._native import Valence

from openmm_lsd.contexts.forcecontext import ForceContext
from openmm_lsd.core.corrections import Corrections
from openmm_lsd.core.engine import NumpyEngine
from openmm_lsd.core.schemes import ABOBA, Middle
from openmm_lsd.core.window import Draws, State
from openmm_lsd.drafts.autodraft import auto_draft
from openmm_lsd.drafts.draft import LearningDraft
from openmm_lsd.drafts.learning import add_normal_equations
from openmm_lsd.drafts.molgraph import (
    MolecularGraph,
    elements_of_masses,
    graph_of_positions,
    graph_of_topology,
)
from openmm_lsd.drafts.nativeengine import NativeEngine
from openmm_lsd.drafts.valence import (
    ANGLE,
    DISTANCE,
    OUT_OF_PLANE,
    TORSION,
    ValenceTerms,
)

MOLECULES = ["alanine_dipeptide", "ibuprofen"]
TRICLINIC = np.array([[1.1, 0.0, 0.0], [0.3, 1.0, 0.0], [-0.4, 0.2, 1.2]])


def molecule(name):
    """Topology, positions (N, 3) in nm, masses (N,) and System."""
    prmtop = app.AmberPrmtopFile(f"systems/{name}/{name}.prmtop")
    positions = app.AmberInpcrdFile(f"systems/{name}/{name}.inpcrd").getPositions(asNumpy=True)
    system = prmtop.createSystem()
    masses = [system.getParticleMass(i)._value for i in range(system.getNumParticles())]
    return prmtop.topology, positions.value_in_unit(unit.nanometer), np.array(masses), system


def water(molecules):
    """A box of water as elements, bonds, positions and box."""
    modeller = app.Modeller(app.Topology(), [])
    modeller.addSolvent(app.ForceField("tip3p.xml"), model="tip3p", numAdded=molecules)
    topology = modeller.topology
    box = np.array(topology.getPeriodicBoxVectors().value_in_unit(unit.nanometer))
    return topology, np.array(modeller.positions.value_in_unit(unit.nanometer)), box


def random_terms(rng, particles=8, coordinates=30, terms=60, parameters=20):
    """All kinds of coordinates, and products of one to four of them, powers of the first too."""
    kinds = rng.permutation(np.arange(coordinates, dtype=np.int32) % 4)
    factors = rng.integers(0, coordinates, (terms, 4)).astype(np.int32)
    counts = rng.integers(1, 5, terms)
    factors[np.arange(4) >= counts[:, None]] = -1
    factors[:4] = np.where(np.tri(4, dtype=bool), 0, -1)
    return ValenceTerms(
        particles,
        kinds,
        np.array([rng.permutation(particles)[:4] for _ in kinds], dtype=np.int32),
        rng.uniform(0.3, 1, coordinates),
        np.full(coordinates, np.inf),
        factors,
        np.append(np.arange(parameters), rng.integers(0, parameters, terms - parameters)).astype(
            np.int32
        ),
    )


def native(terms):
    return Valence(*(getattr(terms, field.name) for field in dataclasses.fields(terms)))


def energy(terms, positions, parameters, box):
    values = np.append(terms.coordinates(positions, box)[0], 1.0)
    return parameters[terms.classes] @ values[terms.factors].prod(axis=1)


@pytest.mark.parametrize("box", [None, TRICLINIC], ids=["vacuum", "triclinic"])
def test_forces_are_minus_the_gradient(box):
    rng = np.random.default_rng(1)
    terms, parameters = random_terms(rng), rng.standard_normal(20)
    assert set(terms.kinds) == {DISTANCE, ANGLE, TORSION, OUT_OF_PLANE}
    positions = rng.uniform(0, 1.5, (8, 3))
    forces, step = terms.forces(positions, parameters, box), 1e-6
    for entry in range(24):
        energies = []
        for sign in (1, -1):
            moved = positions.copy()
            moved.flat[entry] += sign * step
            energies.append(energy(terms, moved, parameters, box))
        slope = (energies[0] - energies[1]) / (2 * step)
        assert abs(forces.flat[entry] + slope) < 1e-6 * np.abs(forces).max()


# Of few coordinates there are powers, and products that many terms share.
@pytest.mark.parametrize("coordinates", [30, 4])
@pytest.mark.parametrize("limits", [np.inf, 0.1])
@pytest.mark.parametrize("box", [None, TRICLINIC], ids=["vacuum", "triclinic"])
def test_native_agrees_with_the_numpy_reference(box, limits, coordinates):
    rng = np.random.default_rng(2)
    terms = random_terms(rng, coordinates=coordinates, terms=120, parameters=70)
    parameters = rng.standard_normal(70)
    terms = dataclasses.replace(terms, limits=np.full(len(terms.kinds), limits))
    states = rng.uniform(0, 1.5, (5, 8, 3))
    valence = native(terms)
    valence.set_parameters(parameters)
    valence.set_box(box)
    for state, ours in zip(states, valence.forces(states, None), strict=True):
        theirs = terms.forces(state, parameters, box)
        assert np.abs(ours - theirs).max() < 1e-12 * np.abs(theirs).max()
    again = native(terms)
    again.set_box(box)
    again.set_parameters(rng.standard_normal(70))
    again.set_parameters(parameters)
    for state in states[::-1]:
        ours, same = (each.forces(state[None], None) for each in (valence, again))
        np.testing.assert_array_equal(ours, same)


@pytest.mark.parametrize("coordinates", [30, 4])
@pytest.mark.parametrize("states", [0, 1, 5, 32, 71])
@pytest.mark.parametrize("differences", [False, True])
@pytest.mark.parametrize("limits", [np.inf, 0.1])
@pytest.mark.parametrize("box", [None, TRICLINIC], ids=["vacuum", "triclinic"])
def test_native_equations_agree_with_the_numpy_reference(
    box, limits, differences, states, coordinates
):
    rng = np.random.default_rng(8)
    terms = random_terms(rng, coordinates=coordinates, parameters=40)
    terms = dataclasses.replace(terms, limits=np.full(len(terms.kinds), limits))
    positions, before = rng.uniform(0, 1.5, (2, states, 8, 3))
    valence = native(terms)
    valence.set_box(box)
    arguments = rng.standard_normal((states, 24)), rng.standard_normal(24)
    arguments += rng.standard_normal(40), rng.uniform(0.5, 2.0, states)
    sums = [(np.ones((40, 40)), np.ones(40)) for _ in range(2)]
    sites = (positions, before if differences else None)
    valence.add_normal_equations(*sites, *arguments, *sums[0])
    features = (
        None if each is None else np.array([terms.features(x, box) for x in each]) for each in sites
    )
    if states:
        add_normal_equations(*features, *arguments, *sums[1])
    for ours, theirs in zip(*sums, strict=True):
        assert np.abs(ours - theirs).max() < 1e-12 * np.abs(theirs).max()


def test_equations_that_do_not_fit_together_are_an_error():
    valence, sites = native(random_terms(np.random.default_rng(4))), np.zeros((2, 8, 3))
    good = [sites, sites, np.ones((2, 24)), np.ones(24), np.ones(20), np.ones(2)]
    good += [np.zeros((20, 20)), np.zeros(20)]
    wrong = [None, sites[:1], np.ones((1, 24)), np.ones(23), np.ones(19), np.ones(1)]
    wrong += [np.zeros((20, 19)), np.zeros(19)]
    for place in range(1, len(good)):
        arguments = [*good[:place], wrong[place], *good[place + 1 :]]
        with pytest.raises(ValueError, match="do not fit together"):
            valence.add_normal_equations(*arguments)


def test_out_of_plane():
    """What is known of it: planar and rectangular centres, exchanged and mirrored neighbours."""

    def out_of_plane(positions, atoms=(0, 1, 2, 3)):
        terms = ValenceTerms(
            4,
            np.array([OUT_OF_PLANE], dtype=np.int32),
            np.array([atoms], dtype=np.int32),
            np.zeros(1),
            np.full(1, np.inf),
            np.array([[0, -1, -1, -1]], dtype=np.int32),
            np.zeros(1, dtype=np.int32),
        )
        valence = native(terms)
        valence.set_parameters(np.ones(1))
        forces = valence.forces(positions[None], None)[0]
        np.testing.assert_allclose(forces, terms.forces(positions, np.ones(1)), atol=1e-12)
        return terms.coordinates(positions)[0][0], forces

    corner = np.array([[0.1, 0, 0], [0, 0, 0], [0, 0.2, 0], [0, 0, 0.3]])
    assert out_of_plane(corner)[0] == 1.0
    angles = np.array([0.3, 0.0, 2.0, 4.5])
    planar = 0.1 * np.stack([np.cos(angles), np.sin(angles), 0.0 * angles], axis=1)
    planar[1] = 0.0
    value, forces = out_of_plane(planar)
    assert value == 0.0 and np.abs(forces[1, 2]) > 1.0 and np.abs(forces[:, :2]).max() < 1e-12
    anywhere = np.random.default_rng(9).uniform(0, 0.3, (4, 3))
    value, forces = out_of_plane(anywhere)
    assert abs(value) > 0.1
    for sign, atoms in ((-1, (2, 1, 0, 3)), (-1, (0, 1, 3, 2)), (1, (2, 1, 3, 0))):
        other, others = out_of_plane(anywhere, atoms)
        assert abs(other - sign * value) < 1e-12
        np.testing.assert_allclose(others, sign * forces, atol=1e-11)
    assert abs(out_of_plane(-anywhere)[0] + value) < 1e-12


@pytest.mark.parametrize("kind", [Middle, ABOBA])
@pytest.mark.parametrize("with_base", [False, True])
def test_native_rollout_agrees_with_the_numpy_reference(kind, with_base):
    topology, positions, masses, system = molecule("alanine_dipeptide")
    start = auto_draft(graph_of_topology(topology), positions)
    terms, guesses, _ = start
    platform = openmm.Platform.getPlatform("Reference")
    base = ForceContext(system, platform) if with_base else None
    draft = LearningDraft(start, masses, base)

    def by_hand(site):
        forces = terms.forces(site, guesses)
        return forces + base.forces(site[None])[0] if with_base else forces

    rng = np.random.default_rng(3)
    velocities = rng.standard_normal(positions.shape)
    noise = rng.standard_normal((16, *positions.shape))
    corrections = Corrections(500.0 * rng.standard_normal(noise.shape))
    draws = Draws(noise, np.zeros(16), np.arange(16) % 3 == 0)
    arguments = State(positions, velocities, 0), corrections, draws
    scheme = kind(300.0, 1.0, 0.001)
    ours = NativeEngine(scheme, masses, draft).draft(*arguments)
    theirs = NumpyEngine(scheme, masses, by_hand).draft(*arguments)
    assert len(ours.sites) == 16
    for name in ours._fields[:4]:
        expected = getattr(theirs, name)
        assert np.abs(getattr(ours, name) - expected).max() < 1e-12 * np.abs(expected).max(), name


def test_what_is_not_there_is_an_error():
    terms = random_terms(np.random.default_rng(4))
    for field, value in (("kinds", 5), ("atoms", 8), ("factors", 30), ("classes", -1)):
        wrong = getattr(terms, field).copy()
        wrong.flat[0] = value
        with pytest.raises(ValueError, match=r"coordinate|class"):
            native(dataclasses.replace(terms, **{field: wrong}))
    with pytest.raises(ValueError, match="differ in length"):
        native(dataclasses.replace(terms, limits=terms.limits[1:]))
    with pytest.raises(ValueError, match="got arrays for 7 particles"):
        native(terms).forces(np.zeros((1, 7, 3)), None)
    with pytest.raises(ValueError, match="20 parameters, not 3"):
        native(terms).set_parameters(np.zeros(3))


# Bonds


@pytest.mark.parametrize("name", MOLECULES)
def test_bonds_and_elements_without_a_topology(name):
    topology, positions, masses, _ = molecule(name)
    expected = graph_of_topology(topology)
    np.testing.assert_array_equal(elements_of_masses(masses), expected.elements)
    found = graph_of_positions(expected.elements, positions)
    np.testing.assert_array_equal(found.bonds, expected.bonds)


def test_bonds_across_the_box():
    pdb = app.PDBFile("systems/amoeba_water/amoeba_water.pdb")
    positions = np.array(pdb.positions.value_in_unit(unit.nanometer))
    box = np.array(pdb.topology.getPeriodicBoxVectors().value_in_unit(unit.nanometer))
    expected = graph_of_topology(pdb.topology)
    broken = positions - np.diag(box) * np.floor(positions / np.diag(box))  # atom by atom
    assert np.abs(broken - positions).max() > 0.5
    found = graph_of_positions(expected.elements, broken, box)
    np.testing.assert_array_equal(found.bonds, expected.bonds)
    terms, guesses, _ = auto_draft(found, broken, box)
    forces = terms.forces(broken, guesses, box)
    np.testing.assert_allclose(forces, terms.forces(positions, guesses, box), atol=1e-6)


def test_massless_particles_are_no_atoms():
    numbers = elements_of_masses(np.array([15.999, 1.008, 0.0]))
    assert numbers.tolist() == [8, 1, 0]
    positions = np.array([[0, 0, 0], [0.096, 0, 0], [0.01, 0.01, 0]])
    assert graph_of_positions(numbers, positions).bonds.tolist() == [[0, 1]]


# Sharing of parameters


def test_number_of_parameters_does_not_grow_with_the_box():
    counts = []
    for molecules in (1, 8, 64):
        topology, positions, box = water(molecules)
        terms, guesses, stages = auto_draft(graph_of_topology(topology), positions, box)
        assert len(terms.classes) == (16 if molecules == 1 else 17) * molecules
        counts.append((terms.parameters, len(guesses), stages))
    # r, r^2, r^3; angle, angle^2; bond times bond, bond times angle; then r^4, angle^3 and bond
    # times angle^2; with eight of each kind of atom also bond^2 times bond^2
    assert counts == [(10, 10, (7, 10)), *[(11, 11, (7, 10, 11))] * 2]


def test_atoms_that_symmetry_exchanges_share():
    ethane = MolecularGraph(
        np.array([6, 6, 1, 1, 1, 1, 1, 1]),
        np.array([[0, 1], [0, 2], [0, 3], [0, 4], [1, 5], [1, 6], [1, 7]]),
    )
    assert ethane.colours(8) == [1, 1, 0, 0, 0, 0, 0, 0]
    positions = np.random.default_rng(5).uniform(0, 0.3, (8, 3))
    stages = auto_draft(ethane, positions).stages
    # CC and CH: 6; CCH and HCH: 4; CC CH, CH CH'; CC CCH, CC HCH, CH CCH, CH CCH', CH HCH, CH HCH';
    # CCH CCH', CCH HCH, CCH HCH', HCH HCH'; torsion, torsion times angle
    first = 6 + 4 + 2 + 6 + 4 + 2
    # CC^4, CH^4, CCH^3, HCH^3; CC CCH^2, CH CCH^2, CH HCH^2; CCH^3, CCH^2 HCH (two: HCH between
    # them or not), CCH HCH^2 (two), HCH^3 of different angles; torsion angle angle, angle angle,
    # bond angle and bond bond along it
    assert stages == (first, first + 4 + 3 + 6 + 4)


@pytest.mark.parametrize("name", MOLECULES)
def test_the_order_of_the_atoms_does_not_matter(name):
    topology, positions, _, _ = molecule(name)
    graph = graph_of_topology(topology)
    terms, guesses, _ = auto_draft(graph, positions)
    order = np.random.default_rng(6).permutation(len(positions))
    place = np.argsort(order)
    bonds = np.sort(place[graph.bonds], axis=1)
    shuffled = MolecularGraph(graph.elements[order], bonds[np.lexsort(bonds.T[::-1])])
    other_terms, other_guesses, _ = auto_draft(shuffled, positions[order])
    assert other_terms.parameters == terms.parameters
    moved = positions + 0.005 * np.random.default_rng(7).standard_normal(positions.shape)
    np.testing.assert_allclose(
        other_terms.forces(moved[order], other_guesses),
        terms.forces(moved, guesses)[order],
        atol=1e-8,
    )
    # and so do the shared parameters
    features, other = terms.features(moved), other_terms.features(moved[order])
    names = np.sort(np.linalg.norm(features, axis=0))
    np.testing.assert_allclose(np.sort(np.linalg.norm(other, axis=0)), names, atol=1e-9)


def test_a_large_molecule_shares_more():
    topology, positions, _, _ = molecule("ibuprofen")
    graph = graph_of_topology(topology)
    counts = [auto_draft(graph, positions, None, most).terms.parameters for most in (1000, 200, 0)]
    assert counts[0] > 200 >= counts[1] >= counts[2] > 0


@pytest.mark.parametrize("name", MOLECULES)
def test_guesses_are_as_stiff_as_a_force_field(name):
    """Second derivatives along the bonds, against those of amber or GAFF."""
    topology, positions, masses, system = molecule(name)
    graph = graph_of_topology(topology)
    draft = LearningDraft(auto_draft(graph, positions), masses)
    context = ForceContext(system, openmm.Platform.getPlatform("Reference"))
    for i, j in graph.bonds:
        along = (positions[j] - positions[i]) / np.linalg.norm(positions[j] - positions[i])
        states = np.repeat(positions[None], 2, axis=0)
        states[0, j] += 1e-4 * along
        states[1, j] -= 1e-4 * along
        theirs = along @ np.subtract(*context.forces(states)[:, j])
        ours = along @ (draft(states[0])[j] - draft(states[1])[j])
        assert 0.6 < ours / theirs < 1.6, (i, j, ours / theirs)


def test_atoms_that_overlap_have_the_length_of_their_radii():
    graph = graph_of_positions(np.array([6, 1]), np.array([[0, 0, 0], [0.11, 0, 0]]))
    terms, guesses, _ = auto_draft(graph, np.zeros((2, 3)))
    assert terms.references[0] == pytest.approx(0.107)
    forces = terms.forces(np.array([[0, 0, 0], [0.12, 0, 0]]), guesses)
    assert np.isfinite(forces).all() and forces[0, 0] > 100
    water = MolecularGraph(np.array([8, 1, 1]), np.array([[0, 1], [0, 2]]))
    terms, guesses, _ = auto_draft(water, np.array([[0, 0, 0], [0, 0, 0], [0.1, 0, 0]]))
    assert np.isfinite(terms.references).all()
    strange = dataclasses.replace(water, elements=np.array([0, 0, 0]))
    terms, guesses, _ = auto_draft(strange, np.zeros((3, 3)))
    positions = np.array([[0, 0, 0], [0.1, 0, 0], [0, 0.1, 0]])
    assert np.isfinite(terms.forces(positions, guesses)).all()


@pytest.mark.parametrize(("molecules", "waters"), [(1, 64), (8, 0)])
def test_terms_for_many_alike_cost_no_depth(molecules, waters):
    """A solute among many waters, and many molecules that already have almost all parameters."""
    graph = graph_of_topology(molecule("ibuprofen")[0])
    alone = auto_draft(graph, molecule("ibuprofen")[1]).terms.parameters
    water = MolecularGraph(np.array([8, 1, 1]), np.array([[0, 1], [0, 2]]))
    elements, bonds = [], []
    for part in [graph] * molecules + [water] * waters:
        bonds.append(part.bonds + sum(map(len, elements)))
        elements.append(part.elements)
    together = MolecularGraph(np.concatenate(elements), np.concatenate(bonds))
    positions = np.random.default_rng(1).uniform(0, 2, (len(together.elements), 3))
    draft = auto_draft(together, positions)
    assert len(draft.stages) == 2
    assert draft.terms.parameters == alone + 10 * bool(waters)
