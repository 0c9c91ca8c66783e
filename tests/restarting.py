"""A run that can be killed at any moment and taken up again, for test_restart.py.

    python restarting.py DIRECTORY STEPS DRAFT

Writes a digest of every step's state to DIRECTORY/digests, and checkpoints; begins from the last
checkpoint if there is one.
"""

import hashlib
import os
import sys
from pathlib import Path

import numpy as np
import openmm
from openmm import app

from openmm_lsd import LSDIntegrator

PLATFORM = openmm.Platform.getPlatform(os.environ.get("OPENMM_LSD_TEST_PLATFORM", "Reference"))
if "Precision" in PLATFORM.getPropertyNames():
    precision = os.environ.get("OPENMM_LSD_TEST_PRECISION", "double")
    PLATFORM.setPropertyDefaultValue("Precision", precision)
BOX = 2.4 * np.eye(3)
MOLECULES = 4
COUNT = 3 * MOLECULES


def molecules(stiffness, well, *forces):
    """Bent triatomic molecules with cubic bonds and soft nonbonded forces, in a periodic box."""
    system = openmm.System()
    bonds = openmm.CustomBondForce(f"{stiffness}*(0.5*(r-0.1)^2 - 2*(r-0.1)^3)")
    bonds.setUsesPeriodicBoundaryConditions(True)
    angles = openmm.HarmonicAngleForce()
    pairs = openmm.CustomNonbondedForce(f"{well}*((0.3/r)^6-0.8*(0.3/r)^3)")
    pairs.setNonbondedMethod(openmm.CustomNonbondedForce.CutoffPeriodic)
    pairs.setCutoffDistance(0.9)
    pairs.setUseSwitchingFunction(True)
    pairs.setSwitchingDistance(0.7)
    for first in range(0, COUNT, 3):
        for mass in (16.0, 1.0, 1.0):
            system.addParticle(mass)
            pairs.addParticle([])
        bonds.addBond(first, first + 1, [])
        bonds.addBond(first, first + 2, [])
        angles.addAngle(first + 1, first, first + 2, 1.9, 0.001 * stiffness)
        for i, j in ((0, 1), (0, 2), (1, 2)):
            pairs.addExclusion(first + i, first + j)
    system.setDefaultPeriodicBoxVectors(*BOX)
    for force in (bonds, angles, pairs, *forces):
        system.addForce(force)
    return system


def topology():
    result = app.Topology()
    chain = result.addChain()
    for _ in range(MOLECULES):
        residue = result.addResidue("HOH", chain)
        oxygen, *hydrogens = [
            result.addAtom(name, app.element.get_by_symbol(name[0]), residue)
            for name in ("O", "H1", "H2")
        ]
        for hydrogen in hydrogens:
            result.addBond(oxygen, hydrogen)
    return result


def start():
    centres = 0.4 + 0.8 * np.array([[0, 0, 0], [1, 0, 0.2], [0, 1, 0.1], [1, 1, 1]])
    shape = np.array([[0.0, 0.0, 0.0], [0.1, 0.0, 0.0], [-0.03, 0.095, 0.0]])
    return (centres[:, None] + shape).reshape(-1, 3)


DRAFTS = {
    "force field": lambda: {"draft": molecules(2.3e5, 0.0)},
    "learning": lambda: {"draft": molecules(2.3e5, 0.0), "learning": True},
    "auto": lambda: {"draft": "auto", "topology": topology()},
}


def barostat():
    result = openmm.MonteCarloBarostat(500.0, 300.0, 13)
    result.setRandomNumberSeed(8)
    return result


def build(kind, *forces, seed=5, window=16, **keywords):
    integrator = LSDIntegrator(
        300,
        2,
        0.001,
        **{
            "windowLength": window,
            "randomNumberSeed": seed,
            "draftPlatform": "Reference",
            **DRAFTS[kind](),
            **keywords,
        },
    )
    target = molecules(3e5, 2.0, openmm.CMMotionRemover(4), *forces)
    simulation = app.Simulation(topology(), target, integrator, PLATFORM)
    simulation.context.setPositions(start())
    simulation.context.setVelocitiesToTemperature(300, 2)
    return simulation


def digest(context):
    state = context.getState(positions=True, velocities=True)
    parts = (
        state.getPositions(asNumpy=True)._value,
        state.getVelocities(asNumpy=True)._value,
        state.getPeriodicBoxVectors(asNumpy=True)._value,
        np.array([state.getTime()._value, context.getStepCount()]),
    )
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


class Digests:
    """A reporter: a line for every step."""

    def __init__(self, path):
        self._file = path.open("a")

    def describeNextReport(self, simulation):  # noqa: N802 (OpenMM's name)
        return {"steps": 1, "periodic": None, "include": []}

    def report(self, simulation, state):
        self._file.write(f"{simulation.currentStep} {digest(simulation.context)}\n")
        self._file.flush()


def main(directory, steps, kind):
    directory = Path(directory)
    simulation = build(kind, barostat())
    checkpoint = directory / "run.chk"
    if checkpoint.exists():
        simulation.loadCheckpoint(str(checkpoint))
    simulation.reporters.append(Digests(directory / "digests"))
    simulation.reporters.append(app.CheckpointReporter(str(checkpoint), 7))
    simulation.reporters.append(
        app.StateDataReporter(str(directory / "log.csv"), 5, step=True, potentialEnergy=True)
    )
    simulation.step(int(steps) - simulation.currentStep)
    (directory / "done").touch()


if __name__ == "__main__":
    main(*sys.argv[1:])
