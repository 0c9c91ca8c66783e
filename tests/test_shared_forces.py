"""Which forces draft and target share: against the forces themselves, as OpenMM computes them."""

import copy
from pathlib import Path

import numpy as np
import openmm
import pytest
from openmm import app, unit

from openmm_lsd.contexts.embedding import without_inner_forces
from openmm_lsd.contexts.forcecontext import ForceContext, is_empty
from openmm_lsd.contexts.sharedforces import (
    NothingSharedError,
    find_shared_forces,
    shared_system,
)
from openmm_lsd.contexts.subsets import close_subset, reduce_system, reduce_topology

REFERENCE = openmm.Platform.getPlatform("Reference")
DIPEPTIDE = Path(__file__).parents[1] / "systems" / "alanine_dipeptide" / "alanine_dipeptide.pdb"
SOLUTE = np.arange(22)


@pytest.fixture(scope="module")
def solution():
    """Alanine dipeptide in some water: a System and positions."""
    pdb = app.PDBFile(str(DIPEPTIDE))
    field = app.ForceField("amber14-all.xml", "amber14/tip4pew.xml")
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.addSolvent(field, model="tip4pew", numAdded=40)
    system = field.createSystem(
        modeller.topology,
        nonbondedMethod=app.PME,
        nonbondedCutoff=0.5 * unit.nanometer,
        rigidWater=False,
    )
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), REFERENCE)
    context.setPositions(modeller.positions)
    context.computeVirtualSites()
    positions = context.getState(positions=True).getPositions(asNumpy=True)._value
    return system, positions + 0.001 * np.random.default_rng(1).standard_normal(positions.shape)


def force_of(system, kind):
    return next(force for force in system.getForces() if isinstance(force, kind))


def pull(positions):
    return 1.0, np.ones((len(positions), 3))


def mixed(system, particles=SOLUTE):
    """As OpenMM-ML's createMixedSystem makes it; and the index of its slow force."""
    result = without_inner_forces(system, SOLUTE)
    force = openmm.PythonForce(pull)
    force.setParticles(particles.tolist())
    return result, result.addForce(force)


def nothing(system):
    return 0


def split(system):
    """One force as two, in other groups and with other names."""
    old = force_of(system, openmm.HarmonicAngleForce)
    parts = [openmm.HarmonicAngleForce() for _ in range(2)]
    for index in range(old.getNumAngles()):
        parts[index % 2].addAngle(*old.getAngleParameters(index))
    for part in parts:
        part.setForceGroup(3)
        part.setName("half of the angles")
        part.setUsesPeriodicBoundaryConditions(old.usesPeriodicBoundaryConditions())
        system.addForce(part)
    system.removeForce(list(map(type, system.getForces())).index(openmm.HarmonicAngleForce))
    return 0


def soften(system):
    """The solute's bonds, angles and charges of its 1-4 pairs."""
    bonds = force_of(system, openmm.HarmonicBondForce)
    for index in range(bonds.getNumBonds()):
        i, j, length, constant = bonds.getBondParameters(index)
        if max(i, j) < 22:
            bonds.setBondParameters(index, i, j, length, 0.7 * constant)
    nonbonded = force_of(system, openmm.NonbondedForce)
    for index in range(nonbonded.getNumExceptions()):
        i, j, charge, *rest = nonbonded.getExceptionParameters(index)
        if max(i, j) < 22:
            nonbonded.setExceptionParameters(index, i, j, 0.7 * charge, *rest)
    return 0


def restrain(system):
    """What the target knows nothing of, on atoms beyond the solute."""
    force = openmm.CustomExternalForce("100*(x^2+y^2+z^2)")
    force.addParticle(4, [])
    force.addParticle(25, [])  # the virtual site of the first water
    system.addForce(force)
    return 4  # the site and its parents


@pytest.mark.parametrize("change", [nothing, split, soften, restrain])
def test_stand_in_and_shared_forces_are_the_draft(solution, change):
    """Where the target has terms of its own for the same particles they count; else the draft's
    forces are those that are shared plus the stand-in, which acts on the subset."""
    system, positions = solution
    draft = copy.deepcopy(system)
    more = change(draft)
    target, index = mixed(system)
    found = find_shared_forces(target, {index: SOLUTE}, draft)
    assert len(found.subset) == 22 + more, found.lines
    assert found.slow == [index]
    forces = ForceContext(shared_system(target, found.shared), REFERENCE).forces(positions[None])[0]
    stand_in = ForceContext(found.stand_in, REFERENCE)
    subset = found.subset
    forces[subset] += stand_in.forces(positions[None, subset])[0]
    expected = ForceContext(draft, REFERENCE).forces(positions[None])[0]
    massive = np.array([draft.getParticleMass(k)._value for k in range(len(positions))]) > 0
    # In one of the two the solute has no cutoff, and no images of itself.
    np.testing.assert_allclose(forces[massive], expected[massive], atol=10.0, rtol=0)
    assert np.abs(expected).max() > 1000


def test_terms_of_the_target_count(solution):
    """The draft's other constants for the same bonds are of no use."""
    system, _ = solution
    target = copy.deepcopy(system)
    index = target.addForce(openmm.PythonForce(pull))
    draft = copy.deepcopy(system)
    bonds = force_of(draft, openmm.HarmonicBondForce)
    for each in range(bonds.getNumBonds()):
        i, j, length, constant = bonds.getBondParameters(each)
        bonds.setBondParameters(each, i, j, length, 0.5 * constant)
    found = find_shared_forces(target, {index: SOLUTE}, draft)
    np.testing.assert_array_equal(found.subset, SOLUTE)
    assert found.stand_in.getNumForces() == 0


def change_charge(system):
    force = force_of(system, openmm.NonbondedForce)
    charge, *rest = force.getParticleParameters(0)
    force.setParticleParameters(0, 1.1 * charge, *rest)


def change_cutoff(system):
    force_of(system, openmm.NonbondedForce).setCutoffDistance(0.45)


def solvate(system):
    force = openmm.GBSAOBCForce()
    for _ in range(system.getNumParticles()):
        force.addParticle(0.1, 0.15, 0.8)
    system.addForce(force)


@pytest.mark.parametrize("change", [change_charge, change_cutoff, solvate])
def test_what_cannot_be_split(solution, change):
    """A draft of another kind is evaluated as it is, and so is the target."""
    system, _ = solution
    draft = copy.deepcopy(system)
    change(draft)
    target, index = mixed(system)
    with pytest.raises(NothingSharedError, match="the draft System has a"):
        find_shared_forces(target, {index: SOLUTE}, draft)


def test_draft_auto_shares_all_that_is_cheap(solution):
    system, _ = solution
    target, index = mixed(system)
    target.addForce(openmm.CMMotionRemover())
    found = find_shared_forces(target, {index: SOLUTE})
    assert found.shared == [
        each
        for each, force in enumerate(target.getForces())
        if each != index and type(force) is not openmm.CMMotionRemover and not is_empty(force)
    ]
    assert found.stand_in is None


def test_nothing_slow_and_nothing_cheap(solution):
    system, _ = solution
    with pytest.raises(NothingSharedError, match="none of the System's forces is slow"):
        find_shared_forces(system, {}, system)
    alone = openmm.System()
    alone.addParticle(1.0)
    alone.addForce(openmm.PythonForce(pull))
    with pytest.raises(NothingSharedError, match="all of the System's forces are slow"):
        find_shared_forces(alone, {0: None})


def test_force_groups_of_the_target_count(solution):
    system, _ = solution
    target, index = mixed(system)
    target.getForce(index).setForceGroup(5)
    assert len(find_shared_forces(target, {index: SOLUTE}).subset) == 22
    with pytest.raises(NothingSharedError, match="slow"):
        find_shared_forces(target, {index: SOLUTE}, force_groups=1)
    groups = [1] * target.getNumForces()  # when its Context was made
    assert find_shared_forces(target, {index: SOLUTE}, groups=groups, force_groups=1).slow


def test_unknown_particles_are_all(solution):
    system, _ = solution
    target, index = mixed(system)
    count = system.getNumParticles()
    assert len(find_shared_forces(target, {index: None}).subset) == count


def test_subsets_can_stand_alone(solution):
    """Constraints and virtual sites do not go across their border."""
    system, positions = solution
    constrained = copy.deepcopy(system)
    constrained.addConstraint(3, 22, 0.5)
    constrained.addConstraint(22, 23, 0.1)
    np.testing.assert_array_equal(close_subset(constrained, [3]), [3, 22, 23])
    subset = close_subset(constrained, [3, 25])
    np.testing.assert_array_equal(subset, [3, 22, 23, 24, 25])
    reduced = reduce_system(constrained, subset, [7.0])
    assert reduced.getNumParticles() == 6 and reduced.getNumConstraints() == 2
    assert reduced.getConstraintParameters(0)[:2] == [0, 1]
    assert reduced.getParticleMass(5)._value == 7.0
    context = openmm.Context(
        reduce_system(constrained, subset), openmm.VerletIntegrator(0.001), REFERENCE
    )
    context.setPositions(positions[subset] + np.eye(5, 3)[[4, 4, 4, 4, 0]] * 0.01)
    context.computeVirtualSites()
    placed = context.getState(positions=True).getPositions(asNumpy=True)._value
    whole = openmm.Context(system, openmm.VerletIntegrator(0.001), REFERENCE)
    whole.setPositions(positions)
    whole.computeVirtualSites()
    expected = whole.getState(positions=True).getPositions(asNumpy=True)._value
    np.testing.assert_allclose(placed[4], expected[25], atol=1e-6)


def test_topology_of_a_subset():
    topology = app.PDBFile(str(DIPEPTIDE)).topology
    reduced = reduce_topology(topology, np.array([4, 5, 6]))
    assert [atom.element for atom in reduced.atoms()] == [
        atom.element for atom in list(topology.atoms())[4:7]
    ]
    assert reduced.getNumBonds() == sum(
        {a.index, b.index} <= {4, 5, 6} for a, b in topology.bonds()
    )
