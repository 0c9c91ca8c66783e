"""Which forces two Systems share: against the forces themselves, as OpenMM computes them."""

import copy
from pathlib import Path

import numpy as np
import openmm
import pytest
from openmm import app, unit

from openmm_lsd.contexts.forcecontext import ForceContext
from openmm_lsd.contexts.sharedforces import find_shared_forces

REFERENCE = openmm.Platform.getPlatform("Reference")
DIPEPTIDE = Path(__file__).parents[1] / "systems" / "alanine_dipeptide" / "alanine_dipeptide.pdb"


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


def nothing(system):
    pass


def stiffen(system):
    """Of the solute."""
    force = force_of(system, openmm.HarmonicBondForce)
    for index in range(21):
        i, j, length, constant = force.getBondParameters(index)
        force.setBondParameters(index, i, j, length, 1.2 * constant)


def drop_solute(system):
    """As createMixedSystem does: no bonded terms inside the solute, nor nonbonded ones."""
    for kind, count in (
        (openmm.HarmonicBondForce, "Bonds"),
        (openmm.HarmonicAngleForce, "Angles"),
        (openmm.PeriodicTorsionForce, "Torsions"),
    ):
        old = force_of(system, kind)
        new = kind()
        new.setUsesPeriodicBoundaryConditions(old.usesPeriodicBoundaryConditions())
        read = getattr(old, f"get{count[:-1]}Parameters")
        for index in range(getattr(old, f"getNum{count}")()):
            term = read(index)
            if term[0] >= 22:
                getattr(new, f"add{count[:-1]}")(*term)
        system.removeForce(list(map(type, system.getForces())).index(kind))
        system.addForce(new)
    nonbonded = force_of(system, openmm.NonbondedForce)
    for i in range(22):
        for j in range(i):
            nonbonded.addException(i, j, 0, 1, 0, True)


def change_charge(system):
    force = force_of(system, openmm.NonbondedForce)
    charge, *rest = force.getParticleParameters(0)
    force.setParticleParameters(0, 1.1 * charge, *rest)


def change_cutoff(system):
    force_of(system, openmm.NonbondedForce).setCutoffDistance(0.45)


def restrain(system):
    force = openmm.CustomExternalForce("100*(x^2+y^2+z^2)")
    force.addParticle(4, [])
    force.addParticle(25, [])  # the virtual site of the first water
    system.addForce(force)


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


def push(system):
    force = openmm.PythonForce(lambda state: (0.0, np.ones((3, 3))))
    force.setParticles([1, 5, 7])
    system.addForce(force)


@pytest.mark.parametrize(
    ("change", "count"),
    [
        (nothing, 0),
        (split, 0),
        (stiffen, 22),
        (drop_solute, 22),
        (change_charge, 182),
        (change_cutoff, 182),
        (restrain, 5),
        (push, 3),
    ],
)
def test_the_rest_acts_on_the_subset(solution, change, count):
    """Everywhere else the forces of the two Systems are the same, whichever is the target."""
    system, positions = solution
    changed = copy.deepcopy(system)
    change(changed)
    found = find_shared_forces(changed, system)
    assert len(found.subset) == count, found.different
    np.testing.assert_array_equal(found.subset, find_shared_forces(system, changed).subset)
    assert bool(found.different) == (count > 0)
    assert bool(found.shared)
    differences = np.subtract(
        *(ForceContext(each, REFERENCE).forces(positions[None])[0] for each in (changed, system))
    )
    outside = np.setdiff1d(np.arange(len(positions)), found.subset)
    assert np.abs(differences[outside]).max(initial=0.0) < 1e-9
    if count:
        assert np.abs(differences[found.subset]).max() > 1e-3


def test_force_groups_of_the_target_count(solution):
    system, _ = solution
    target = copy.deepcopy(system)
    restrain(target)
    target.getForce(target.getNumForces() - 1).setForceGroup(5)
    assert len(find_shared_forces(target, system).subset) == 5
    assert len(find_shared_forces(target, system, 1).subset) == 0
    assert len(find_shared_forces(target, system, 1 << 5).subset) == len(_all(system))


def _all(system):
    return range(system.getNumParticles())


def test_the_same_force_twice(solution):
    """Counts twice."""
    system, positions = solution
    twice = copy.deepcopy(system)
    twice.addForce(copy.deepcopy(force_of(system, openmm.NonbondedForce)))
    assert len(find_shared_forces(twice, system).subset) == len(positions)
    again = copy.deepcopy(twice)
    assert len(find_shared_forces(twice, again).subset) == 0


def test_what_moves_particles_is_no_force(solution):
    system, _ = solution
    changed = copy.deepcopy(system)
    changed.addForce(openmm.MonteCarloBarostat(1, 300))
    assert len(find_shared_forces(changed, system).subset) == 0
