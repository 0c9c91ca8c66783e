"""The law in crystals, with drafts that learn: the noise that drove each committed step is N(0, I).

Contacts of a metal and of a salt, and bonds of a covalent crystal; all terms are learned from the
run that they draft. Engines with planted faults must be caught.
"""

import numpy as np
import openmm
import pytest
from openmm import app, unit

from openmm_lsd import LSDIntegrator
from openmm_lsd.commands.case import Case, Run
from openmm_lsd.commands.validation.pathnoise import noise_check
from openmm_lsd.drafts.molgraph import graph_of_positions
from openmm_lsd.drafts.nativeengine import NativeEngine

LEVEL = 1e-4  # of a false alarm
build = pytest.importorskip("ase.build")


def lattice(atoms):
    """Topology without bonds, System with the box, positions (N, 3) in nm, box (3, 3) in nm."""
    topology, system = app.Topology(), openmm.System()
    residue = topology.addResidue("X", topology.addChain())
    for number in atoms.numbers:
        element = app.Element.getByAtomicNumber(int(number))
        topology.addAtom(element.symbol, element, residue)
        system.addParticle(element.mass)
    box = 0.1 * np.array(atoms.cell[:])
    topology.setPeriodicBoxVectors(box * unit.nanometer)
    system.setDefaultPeriodicBoxVectors(*box)
    return topology, system, 0.1 * atoms.positions, box


def pair_force(energy, particles, switching, cutoff):
    """Of all pairs, cut off smoothly; nm."""
    force = openmm.CustomNonbondedForce(energy)
    for _ in range(particles):
        force.addParticle([])
    force.setNonbondedMethod(openmm.CustomNonbondedForce.CutoffPeriodic)
    force.setCutoffDistance(cutoff)
    force.setUseSwitchingFunction(True)
    force.setSwitchingDistance(switching)
    return force


def copper():
    """Morse pairs, cut off smoothly at 0.35 nm."""
    topology, system, positions, _ = lattice(build.bulk("Cu", cubic=True).repeat(2))
    system.addForce(pair_force("35*(1-exp(-14*(r-0.26)))^2", len(positions), 0.3, 0.35))
    return topology, system, positions * unit.nanometer, 0.005


def salt():
    """Charges and soft spheres, cut off at 0.5 nm."""
    topology, system, positions, _ = lattice(
        build.bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(2)
    )
    force = openmm.NonbondedForce()
    for atom in topology.atoms():
        sodium = atom.element.symbol == "Na"
        force.addParticle(1.0 if sodium else -1.0, 0.235 if sodium else 0.44, 0.4)
    force.setNonbondedMethod(openmm.NonbondedForce.Ewald)
    force.setCutoffDistance(0.5)
    system.addForce(force)
    return topology, system, positions * unit.nanometer, 0.002


def silicon():
    """Morse bonds, angles, torsions, and a repulsion of all atoms that the draft does not know."""
    topology, system, positions, box = lattice(build.bulk("Si", cubic=True).repeat(2))
    numbers = np.full(len(positions), 14)
    bonds = graph_of_positions(numbers, positions, box).bonds.tolist()
    around = [[] for _ in numbers]
    for i, j in bonds:
        around[i].append(j)
        around[j].append(i)
    morse = openmm.CustomBondForce("260*(1-exp(-15*(r-0.235)))^2")
    angles = openmm.CustomAngleForce("150*(cos(theta)+1/3)^2")
    torsions = openmm.CustomTorsionForce("2*cos(3*theta)")
    for i, j in bonds:
        morse.addBond(i, j, [])
        for k in set(around[i]) - {j}:
            for m in set(around[j]) - {i, k}:
                torsions.addTorsion(k, i, j, m, [])
    for j, ends in enumerate(around):
        for n, i in enumerate(ends):
            for k in ends[n + 1 :]:
                angles.addAngle(i, j, k, [])
    for force in (morse, angles, torsions):
        force.setUsesPeriodicBoundaryConditions(True)
    pairs = pair_force("40*exp(-18*(r-0.36))", len(numbers), 0.4, 0.5)
    for force in (morse, angles, torsions, pairs):
        system.addForce(force)
    return topology, system, positions * unit.nanometer, 0.002


CRYSTALS = {"copper": copper, "salt": salt, "silicon": silicon}


class AcceptsAll(NativeEngine):
    """The path that the draft has led, with the target's forces at its sites only."""

    def commit(self, state, window, target_forces, draws):
        always = draws._replace(log_uniforms=np.full_like(draws.log_uniforms, -np.inf))
        return super().commit(state, window, target_forces, always)


def check_noise(name, engine=None):
    """Of 600 steps after 200 in which the draft learns; steps per round too."""
    topology, target, positions, step_size = CRYSTALS[name]()
    conditions = {"step_size": step_size, "platform": "Reference", "seed": 3, "minimize": False}
    case = Case(topology, positions, "auto", target, **conditions)
    kind = LSDIntegrator
    if engine is not None:
        kind = type("Planted", (LSDIntegrator,), {"_engine": engine})
    integrator = case.integrator(16, kind=kind)
    run = Run(case, integrator, case.platform)
    run.step(200)
    before = integrator.statistics
    check = noise_check(case, run, 600, LEVEL)
    return check, integrator.statistics.since(before).steps_per_round


@pytest.mark.parametrize("name", CRYSTALS)
def test_law(name):
    check, steps_per_round = check_noise(name)
    assert check.passed, check
    assert steps_per_round > 7  # without learning 2 to 5


@pytest.mark.parametrize("name", CRYSTALS)
def test_planted_fault(name):
    check, _ = check_noise(name, AcceptsAll)
    assert not check.passed
