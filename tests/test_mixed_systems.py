"""Slow forces on some of the atoms, in all that people combine them with, through Simulations.

Without noise LSDIntegrator must give the trajectory of LangevinMiddleIntegrator, whatever the draft
and wherever the subset is; a run that is taken up again is the same bit for bit. test_subset.py and
test_law_of_mixed_systems.py are about the noise.
"""

import copy
import functools
import io
import logging
import time

import numpy as np
import openmm
import pytest
import torch
from openmm import app, unit
from particles import COLD, ON_DEVICE, PLATFORM, Cycling, lsd, needs_bits, not_on_devices
from test_rigid_molecules import create, molecules

from openmm_lsd import LSDIntegrator, TargetError, TargetMismatchError, batched, systems
from openmm_lsd.targets import BatchedTarget
from openmm_lsd.targets.torchgraph import particles_in_program
from openmm_lsd.targets.torchplugin import import_openmmtorch

TOLERANCE = 1e-4 if ON_DEVICE else 1e-7  # of positions in nm
STIFFNESS, LENGTH = 3_000.0, 0.25


def chain_forces(positions):
    """Cubic springs from each atom to the next: energies (B,) and forces (B, n, 3)."""
    apart = positions[:, 1:] - positions[:, :-1]
    length = np.linalg.norm(apart, axis=2, keepdims=True)
    stretch = length - LENGTH
    pull = (STIFFNESS * stretch / (1 + stretch**2) ** 2) * apart / length
    forces = np.zeros_like(positions)
    forces[:, :-1] += pull
    forces[:, 1:] -= pull
    energies = 0.5 * STIFFNESS * (stretch**2 / (1 + stretch**2)).sum(axis=(1, 2))
    return energies, forces


@batched
def chain(positions, box, parameters):
    return chain_forces(positions)


def one_by_one(state):
    positions = state.getPositions(asNumpy=True)._value
    energies, forces = chain_forces(positions[None])
    return energies[0], forces[0]


class Chain(torch.nn.Module):
    """chain_forces of some atoms of all; takes a batch."""

    def __init__(self, atoms):
        super().__init__()
        self.register_buffer("atoms", torch.tensor(atoms))

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        own = positions.index_select(-2, self.atoms)
        stretch = (own[..., 1:, :] - own[..., :-1, :]).pow(2).sum(-1).sqrt() - 0.25
        return 1500.0 * (stretch.pow(2) / (1 + stretch.pow(2))).sum(-1)


def python_force(atoms, function=chain):
    force = openmm.PythonForce(function)
    force.setParticles(atoms)
    return force


def chain_of(atoms):
    """A PythonForce; of some of all particles, if none are given."""
    return python_force(atoms, chain) if atoms else openmm.PythonForce(_on_all)


def torch_force(atoms):
    if PLATFORM.getName() == "OpenCL":  # on which openmmtorch ends the process
        return python_force(atoms)
    return import_openmmtorch().TorchForce(torch.jit.script(Chain(atoms).eval()))


def inside(force):
    """As a part of a CustomCVForce."""
    outer = openmm.CustomCVForce("weight*chain + (1-weight)*bond^2; weight=0.7*scale")
    outer.addCollectiveVariable("chain", force)
    bond = openmm.CustomBondForce("10*r")
    bond.addBond(8, 10)
    outer.addCollectiveVariable("bond", bond)
    outer.addGlobalParameter("scale", 1.1)
    return outer


ON_ALL = [*range(0, 40, 3), 61, 90]

# name: molecules, constraints, slow forces, size of the subset, if it is not that of all
CASES = {
    "solute": ("dipeptide", None, lambda: [python_force(list(range(22)))], 22),
    "one by one": ("dipeptide", None, lambda: [python_force([4, 8, 10], one_by_one)], 3),
    "in any order": ("dipeptide", None, lambda: [python_force([10, 4, 8])], 3),
    "a closure": ("dipeptide", None, lambda: [python_force([4, 8], lambda s: one_by_one(s))], 2),
    "across the border": ("dipeptide", app.HBonds, lambda: [python_force([4, 8])], 3),
    "all bonds rigid": ("dipeptide", app.AllBonds, lambda: [python_force([4, 8])], 22),
    "several ligands": (
        "dipeptide",
        None,
        lambda: [python_force([1, 4, 8]), python_force([22, 25, 31])],
        3 + 9,  # whole waters
    ),
    "virtual site": ("TIP4P-Ew", None, lambda: [python_force([3, 4, 9])], 10),
    "TorchForce": ("dipeptide", None, lambda: [torch_force(list(range(22)))], 22),
    "TorchForce in the middle": ("dipeptide", None, lambda: [torch_force([9, 14, 15, 18])], 4),
    "two kinds": (
        "dipeptide",
        None,
        lambda: [torch_force([4, 8, 14]), python_force([5, 4])],
        4,
    ),
    "in a variable": ("dipeptide", None, lambda: [inside(python_force([4, 8]))], 3),
    "in a variable of its own": (
        "dipeptide",
        None,
        lambda: [inside(inside(python_force([4, 8])))],
        3,
    ),
    "in a variable of all": (
        "dipeptide",
        None,
        lambda: [inside(openmm.PythonForce(_on_all))],
        None,
    ),
    "into the solvent": ("dipeptide", None, lambda: [python_force(list(range(142)))], None),
    "named twice": ("dipeptide", None, lambda: [python_force([8, 4, 8])], 2),
    "unknown particles": (
        "dipeptide",
        None,
        lambda: [openmm.PythonForce(lambda state: _on_all(state))],
        None,
    ),
}


def _on_all(state):
    positions = state.getPositions(asNumpy=True)._value
    energies, forces = chain_forces(positions[None, ON_ALL])
    everywhere = np.zeros_like(positions)
    everywhere[ON_ALL] = forces[0]
    return energies[0], everywhere


@functools.cache
def box_of(kind, constraints):
    topology, positions, field = molecules(kind)
    return topology, positions, create(topology, field, constraints)


def case_of(name):
    """Topology, positions, cheap System, target, size of the subset."""
    kind, constraints, forces, size = CASES[name]
    topology, positions, cheap = box_of(kind, constraints)
    target = copy.deepcopy(cheap)
    for force in forces():
        target.addForce(force)
    return topology, positions, cheap, target, size or len(positions)


def simulation_of(target, topology, positions, integrator, temperature=300):
    integrator.setConstraintTolerance(1e-9)
    simulation = app.Simulation(topology, target, integrator, PLATFORM)
    simulation.context.setPositions(positions)
    simulation.context.applyConstraints(1e-9)
    simulation.context.setVelocitiesToTemperature(temperature, 3)
    simulation.context.applyVelocityConstraints(1e-9)
    return simulation


def state_of(simulation):
    state = simulation.context.getState(positions=True, velocities=True)
    return np.stack(
        [each(asNumpy=True)._value for each in (state.getPositions, state.getVelocities)]
    )


def without_noise(kind, *draft, **keywords):
    if kind is LSDIntegrator:
        return lsd(COLD, 1.0, 0.001, *draft, **{"windowLength": 5, **keywords})
    return openmm.LangevinMiddleIntegrator(COLD, 1.0, 0.001)


# A device moves molecules to where it likes, and these forces are between molecules.
BETWEEN_MOLECULES = ("several ligands", "virtual site", "in a variable of all", "into the solvent")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("draft", ["cheap", "auto"])
def test_path_without_noise(name, draft):
    if ON_DEVICE and name in BETWEEN_MOLECULES:
        pytest.skip("the forces depend on which images of the molecules a device has chosen")
    topology, positions, cheap, target, size = case_of(name)
    integrator = without_noise(LSDIntegrator, cheap if draft == "cheap" else "auto")
    ours = simulation_of(target, topology, positions, integrator)
    theirs = simulation_of(target, topology, positions, without_noise(None))
    assert len(integrator.subset) == size
    for _ in range(3):
        ours.step(7)
        theirs.step(7)
        np.testing.assert_allclose(state_of(ours)[0], state_of(theirs)[0], atol=TOLERANCE)
    np.testing.assert_allclose(state_of(ours)[1], state_of(theirs)[1], atol=1e3 * TOLERANCE)
    energies = [
        each.context.getState(energy=True).getPotentialEnergy()._value for each in (ours, theirs)
    ]
    assert abs(energies[0] - energies[1]) < 1e-3 * (1e3 if ON_DEVICE else 1)


def test_cheap_forces_are_evaluated_once_per_site():
    """K times per round, and no more; and the slow ones at K subsets."""
    topology, positions, _, target, _ = case_of("solute")
    seen = []

    @batched
    def counted(q, box, parameters):
        seen.append(q.shape)
        return chain_forces(q)

    target.removeForce(target.getNumForces() - 1)
    target.addForce(python_force(list(range(22)), counted))
    simulation = simulation_of(
        target, topology, positions, lsd(300, 1, 0.001, "auto", engine="host")
    )
    integrator = simulation.integrator
    simulation.step(20)
    shared = integrator._binding.pair.sharing.forces.context.access
    rounds = []
    integrator.round_callbacks.append(rounds.append)
    before, batches = shared.evaluations, len(seen)
    simulation.step(100)
    drafted = [each.drafted for each in rounds]
    assert len(drafted) > 5
    # Windows that lead astray end early, at a site where these forces may still be asked for.
    early = sum(each < 16 for each in drafted)
    assert 0 <= shared.evaluations - before - sum(drafted) <= early
    assert seen[batches:] == [(each, 22, 3) for each in drafted]
    # And nobody else evaluates them: not the Context of the user, nor another of ours.
    assert not integrator._binding.pair.target.built.in_contexts


def test_what_is_shared_is_logged(caplog):
    topology, positions, cheap, target, _ = case_of("solute")
    simulation = simulation_of(target, topology, positions, lsd(300, 1, 0.001, cheap))
    with caplog.at_level(logging.INFO, "openmm_lsd"):
        simulation.step(1)
    lines = [record.message for record in caplog.records if "sharing" in record.name]
    assert lines[0].startswith("draft and target share HarmonicBondForce, NonbondedForce")
    assert lines[1] == "evaluated for the target only: PythonForce"
    assert lines[2] == f"draft and target differ on 22 of {len(positions)} particles"
    caplog.clear()
    simulation = simulation_of(cheap, topology, positions, lsd(300, 1, 0.001, cheap))
    with caplog.at_level(logging.INFO, "openmm_lsd"):
        simulation.step(1)
    assert "share no forces: none of the System's forces is slow" in caplog.text
    np.testing.assert_array_equal(simulation.integrator.subset, np.arange(len(positions)))


def test_changes_between_steps():
    """Parameters of the Context, updated forces, force groups, masses in no group: as plain
    OpenMM follows them."""
    topology, positions, _, target, _ = case_of("solute")
    restraint = openmm.CustomExternalForce("weight*strength*periodicdistance(x, y, z, x0, 0, 0)^2")
    restraint.addGlobalParameter("strength", 30.0)
    restraint.addPerParticleParameter("weight")
    restraint.addPerParticleParameter("x0")
    for index in (4, 25, 60):
        restraint.addParticle(index, [1.0, 0.1])
    restraint.setForceGroup(3)
    target.addForce(restraint)
    ours, theirs = (
        simulation_of(target, topology, positions, without_noise(kind, "auto"))
        for kind in (LSDIntegrator, None)
    )

    def compare():
        for each in (ours, theirs):
            each.step(6)
        np.testing.assert_allclose(state_of(ours)[0], state_of(theirs)[0], atol=TOLERANCE)

    compare()
    for each in (ours, theirs):
        each.context.setParameter("strength", 300.0)
    compare()
    for row, index in enumerate((4, 25, 60)):
        restraint.setParticleParameters(row, index, [2.5, -0.1])
    for each in (ours, theirs):
        restraint.updateParametersInContext(each.context)
    compare()
    for each in (ours, theirs):
        each.integrator.setIntegrationForceGroups({0})
    compare()
    for each in (ours, theirs):
        each.integrator.setIntegrationForceGroups({0, 3})
        each.context.setPeriodicBoxVectors(*(1.01 * np.array(BOX) for BOX in _box(each)))
    compare()


def _box(simulation):
    return simulation.context.getState().getPeriodicBoxVectors(asNumpy=True)._value


def wall(state):
    """Quick, and on all particles, as far as anybody knows; it can be pickled."""
    positions = state.getPositions(asNumpy=True)._value
    beyond = np.maximum(positions - 1.2, 0.0)
    return 50.0 * (beyond**2).sum(), -100.0 * beyond


@batched
def slow_chain(positions, box, parameters):
    time.sleep(0.1)
    return chain_forces(positions)


@pytest.mark.parametrize("function", [wall, lambda state: wall(state)])
def test_a_quick_python_force_is_cheap(function):
    """Beside a slow one; if it can be copied."""
    topology, positions, _, target, _ = case_of("solute")
    target.removeForce(target.getNumForces() - 1)
    target.addForce(python_force([4, 8], slow_chain))
    target.addForce(openmm.PythonForce(function))
    ours = simulation_of(target, topology, positions, without_noise(LSDIntegrator, "auto"))
    assert len(ours.integrator.subset) == (2 if function is wall else len(positions))
    theirs = simulation_of(target, topology, positions, without_noise(None))
    for each in (ours, theirs):
        each.step(6)
    np.testing.assert_allclose(state_of(ours)[0], state_of(theirs)[0], atol=TOLERANCE)


def test_metadynamics_of_the_ligand():
    """The bias, on atoms of the subset and beyond, is shared; both runs see the same hills."""
    states = []
    for kind in (LSDIntegrator, None):
        topology, positions, _, target, _ = case_of("solute")
        torsion = openmm.CustomTorsionForce("theta")
        torsion.addTorsion(4, 6, 8, 14, [])
        variable = app.BiasVariable(torsion, -np.pi, np.pi, 0.35, True)
        bias = app.Metadynamics(target, [variable], 300, 5.0, 20.0, 5)
        simulation = simulation_of(target, topology, positions, without_noise(kind, "auto"))
        bias.step(simulation, 25)
        states.append(state_of(simulation)[0])
        if kind is LSDIntegrator:
            assert len(simulation.integrator.subset) == 22
    np.testing.assert_allclose(*states, atol=TOLERANCE)


@needs_bits
@pytest.mark.parametrize("barostat", [False, True])
@pytest.mark.parametrize("draft", ["cheap", "auto"])
def test_restart_bit_for_bit(draft, barostat):
    def build():
        topology, positions, cheap, target, _ = case_of("across the border")
        if barostat:
            moves = openmm.MonteCarloBarostat(1.0, 300.0, 7)
            moves.setRandomNumberSeed(4)
            target.addForce(moves)
        own = cheap if draft == "cheap" else "auto"
        integrator = lsd(300, 1.0, 0.001, own, learning=True, windowLength=6)
        return simulation_of(target, topology, positions, integrator)

    first = build()
    first.step(43)
    saved = io.BytesIO()
    first.saveCheckpoint(saved)
    first.step(40)
    second = build()
    saved.seek(0)
    second.loadCheckpoint(saved)
    second.step(40)
    np.testing.assert_array_equal(state_of(first), state_of(second))


def test_windows_of_any_length():
    """The tuner's plain steps among them."""
    topology, positions, _, target, _ = case_of("solute")
    integrator = without_noise(LSDIntegrator, "auto")
    ours = simulation_of(target, topology, positions, integrator)
    ours.step(2)
    integrator._binding.take_tuner(Cycling())
    ours.step(38)
    theirs = simulation_of(target, topology, positions, without_noise(None))
    theirs.step(40)
    np.testing.assert_allclose(state_of(ours)[0], state_of(theirs)[0], atol=TOLERANCE)
    assert integrator.statistics.rounds > 5


@batched
def centred(positions, box, parameters):
    """Springs to the centre. Changes its argument, as a function of the user's may."""
    positions -= positions.mean(axis=1, keepdims=True)
    return 5.0 * (positions**2).sum(axis=(1, 2)), -10.0 * positions


def test_a_function_that_changes_positions_is_refused():
    """It changes the sites of which draft and corrections learn, and no force tells."""
    topology, positions, cheap = box_of("dipeptide", None)
    target = copy.deepcopy(cheap)
    target.addForce(openmm.PythonForce(centred))
    simulation = simulation_of(target, topology, positions, lsd(300, 1, 0.001, cheap))
    with pytest.raises(TargetMismatchError, match="changes the positions"):
        simulation.step(1)


def test_a_force_taken_for_that_of_fewer_atoms_is_found(monkeypatch):
    """Before the first step: what is shared and the rest are not the Context's forces."""
    topology, positions, _, target, _ = case_of("solute")
    target.removeForce(target.getNumForces() - 1)
    target.addForce(torch_force([4, 18]))

    def of_one_atom(forces, settings):
        return {len(forces) - 1: np.array([4])}

    monkeypatch.setattr("openmm_lsd.integrator.sharing.find_slow_forces", of_one_atom)
    simulation = simulation_of(target, topology, positions, lsd(300, 1, 0.001, "auto"))
    with pytest.raises((TargetMismatchError, TargetError)):
        simulation.step(1)


class Hidden(torch.nn.Module):
    """Acts on three atoms, but looks at how close others are."""

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        others = positions[..., 22:, :].detach()
        near = (others - positions[..., 4:5, :]).pow(2).sum(-1) < 0.09
        weight = 1.0 + near.sum(-1)
        return weight * 100.0 * (positions[..., 4, :] - positions[..., 8, :]).pow(2).sum(-1)


@not_on_devices(reason="on OpenCL openmmtorch ends the process")
def test_a_module_that_looks_beyond_its_atoms():
    """All others matter to it, but for those that it does not choose."""
    topology, positions, _, cheap_target, _ = case_of("solute")
    cheap_target.removeForce(cheap_target.getNumForces() - 1)
    module = torch.jit.script(Hidden().eval())
    cheap_target.addForce(import_openmmtorch().TorchForce(module))
    simulation = simulation_of(
        cheap_target, topology, positions, lsd(300, 1, 0.001, "auto", windowLength=4)
    )
    assert len(simulation.integrator.subset) == len(positions) - 20


class Wall(torch.nn.Module):
    """On two atoms, and where the others are beyond a plane, on these."""

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        apart = (positions[..., 4, :] - positions[..., 8, :]).pow(2).sum(-1)
        height = positions[..., 2]
        beyond = height[height > 2.0] - 2.0
        return 100.0 * apart + 3000.0 * beyond.pow(2).sum()


class ByNumbers(torch.nn.Module):
    """Rows by all that a program can hold; scaled and converted before."""

    def __init__(self):
        super().__init__()
        self.numbers = [3, 9]
        self.register_buffer("buffer", torch.tensor([5, 6]))

    def forward(self, positions: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
        scaled = (10.0 * positions).to(torch.float32)
        return (
            scaled[self.buffer].sum()
            + scaled[self.numbers].sum()
            + scaled[12:14].sum()
            + scaled[20].sum()
        )


@pytest.mark.parametrize("frozen", [False, True])
def test_particles_are_read_from_the_program(frozen):
    def read(module):
        scripted = torch.jit.script(module.eval())
        found = particles_in_program(torch.jit.freeze(scripted) if frozen else scripted, 142)
        return None if found is None else found.tolist()

    assert read(Chain([9, 4])) == [4, 9]
    assert read(Wall()) is None
    if not frozen:  # whose lists of numbers are constants of another kind
        assert read(ByNumbers()) == [3, 5, 6, 9, 12, 13, 20]


def test_with_target_of_some_atoms():
    """Mechanical embedding: nothing of the force field is left between them."""
    _, _, cheap = box_of("dipeptide", app.HBonds)
    atoms = [4, 5, 6, 7, 8, 9, 10]
    target = systems.with_target(cheap, _Chain(), atoms=atoms)
    bonds = next(f for f in target.getForces() if isinstance(f, openmm.HarmonicBondForce))
    pairs = [set(bonds.getBondParameters(k)[:2]) for k in range(bonds.getNumBonds())]
    assert pairs and not any(pair <= set(atoms) for pair in pairs)
    assert any(pair & set(atoms) for pair in pairs)
    nonbonded = next(f for f in target.getForces() if isinstance(f, openmm.NonbondedForce))
    excluded = {
        frozenset(parameters[:2])
        for parameters in map(nonbonded.getExceptionParameters, range(nonbonded.getNumExceptions()))
        if parameters[2]._value == 0 and parameters[4]._value == 0
    }
    assert {frozenset((i, j)) for i in atoms for j in atoms if i < j} <= excluded
    assert not any(
        set(target.getConstraintParameters(k)[:2]) <= set(atoms)
        for k in range(target.getNumConstraints())
    )
    force = target.getForce(target.getNumForces() - 1)
    assert list(force.getParticles()) == atoms
    for wrong, words in (
        ([3, 1000], "atoms must be some of the indices"),
        (np.arange(142) < 5, "of a mask, numpy.flatnonzero"),
        ([4.5], "atoms must be indices"),
        ([4, 8, 4], "4 is there twice"),
        ([], "atoms must be some of the indices"),
    ):
        with pytest.raises(ValueError, match=words):
            systems.with_target(cheap, _Chain(), atoms=wrong)
    with pytest.raises(ValueError, match="has a PythonForce already, which cannot be copied"):
        systems.with_target(target, _Chain(), atoms=[1, 2])
    generated = systems.with_target(cheap, _Chain(), atoms=(atom for atom in atoms))
    assert list(generated.getForce(generated.getNumForces() - 1).getParticles()) == atoms
    with pytest.raises(TypeError, match=r"must be described by the forces of an openmm\.System"):
        systems.with_target(molecules("dipeptide")[0], _Chain(), atoms=[3])


class _Chain(BatchedTarget):
    def evaluate(self, positions, box=None):
        return chain_forces(positions)


def test_offsets_of_exceptions_stay_where_they_are():
    """Those of pairs inside the atoms are left out with them."""
    cheap = copy.deepcopy(box_of("dipeptide", None)[2])
    nonbonded = next(f for f in cheap.getForces() if isinstance(f, openmm.NonbondedForce))
    nonbonded.addGlobalParameter("lam", 0.5)
    pairs = [nonbonded.getExceptionParameters(k)[:2] for k in range(nonbonded.getNumExceptions())]
    inside = next(k for k, pair in enumerate(pairs) if set(pair) <= set(range(4, 11)))
    outside = max(k for k, pair in enumerate(pairs) if min(pair) > 10 and max(pair) < 22)
    nonbonded.addExceptionParameterOffset("lam", inside, 1.0, 0, 0)
    nonbonded.addExceptionParameterOffset("lam", outside, 1.0, 0, 0)
    target = systems.with_target(cheap, _Chain(), atoms=range(4, 11))
    mixed = next(f for f in target.getForces() if isinstance(f, openmm.NonbondedForce))
    offsets = [
        mixed.getExceptionParameterOffset(k) for k in range(mixed.getNumExceptionParameterOffsets())
    ]
    assert [mixed.getExceptionParameters(each[1])[:2] for each in offsets] == [pairs[outside]]


def test_variables_with_any_names_and_tables():
    """Called like coordinates, with a tabulated function."""
    topology, positions, _, target, _ = case_of("solute")
    force = openmm.CustomCVForce("x1*table(y1) + z2")
    for name, inner in (("y1", python_force([4, 8])), ("x1", python_force([8, 10]))):
        force.addCollectiveVariable(name, inner)
    bond = openmm.CustomBondForce("10*r")
    bond.addBond(8, 14)
    force.addCollectiveVariable("z2", bond)
    table = openmm.Continuous1DFunction(np.linspace(0.0, 1.0, 20) ** 2, -10.0, 500.0)
    force.addTabulatedFunction("table", table)
    target.addForce(force)
    ours, theirs = (
        simulation_of(target, topology, positions, without_noise(kind, "auto"))
        for kind in (LSDIntegrator, None)
    )
    for each in (ours, theirs):
        each.step(8)
    np.testing.assert_allclose(state_of(ours)[0], state_of(theirs)[0], atol=TOLERANCE)


def test_an_error_names_the_atom_of_the_system():
    topology, positions, _, target, _ = case_of("solute")
    begun = []

    @batched
    def bad(q, box, parameters):
        energies, forces = chain_forces(q)
        if begun:
            forces[:, 1] = np.nan
        return energies, forces

    target.removeForce(target.getNumForces() - 1)
    target.addForce(python_force([4, 8], bad))
    simulation = simulation_of(target, topology, positions, lsd(300, 1, 0.001, "auto"))
    simulation.step(10)
    begun.append(True)
    with pytest.raises(TargetError, match="force on atom 8 is"):
        simulation.step(200)


@pytest.mark.parametrize("properties", [{}, {"draftPlatform": "CPU"}])
def test_shared_forces_are_those_of_the_context(properties):
    """On its platform, whatever the draft's: they are the target's."""
    topology, positions, _, target, _ = case_of("solute")
    integrator = LSDIntegrator(300, 1, 0.001, "auto", windowLength=4, **properties)
    simulation = simulation_of(target, topology, positions, integrator)
    simulation.step(1)
    shared = integrator._binding.pair.sharing.forces.context
    assert shared.platform in (PLATFORM.getName(), "Reference")


def test_forces_that_cannot_be_taken_apart():
    system = copy.deepcopy(box_of("dipeptide", None)[2])
    solvent = openmm.GBSAOBCForce()
    for _ in range(system.getNumParticles()):
        solvent.addParticle(0.1, 0.15, 0.8)
    system.addForce(solvent)
    with pytest.raises(ValueError, match="a GBSAOBCForce; it is not known how to leave out"):
        systems.with_target(system, _Chain(), atoms=[1, 2])


def test_subset_needs_positions():
    topology, _, _, target, _ = case_of("solute")
    simulation = app.Simulation(topology, target, lsd(300, 1, 0.001, "auto"), PLATFORM)
    with pytest.raises(openmm.OpenMMException, match="ositions"):
        _ = simulation.integrator.subset


def test_units_of_the_box_are_those_of_the_context():
    """A mixed System in its own box, of another size than the default."""
    topology, positions, _, target, _ = case_of("solute")
    simulation = simulation_of(target, topology, positions, without_noise(LSDIntegrator, "auto"))
    box = 1.05 * _box(simulation)
    simulation.context.setPeriodicBoxVectors(*box * unit.nanometer)
    other = simulation_of(target, topology, positions, without_noise(None))
    other.context.setPeriodicBoxVectors(*box * unit.nanometer)
    for each in (simulation, other):
        each.step(10)
    np.testing.assert_allclose(state_of(simulation)[0], state_of(other)[0], atol=TOLERANCE)
