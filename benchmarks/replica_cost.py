"""What moving a State between replicas costs: LSDIntegrator beside LangevinMiddleIntegrator.

Three replicas of alanine dipeptide take turns in one Context, as in
openmm.app.ReplicaExchangeSampler. Printed: milliseconds for a State that is saved and set, with and
without the steps in between; the target is the force field of the draft with bonds that are a tenth
stiffer, so that steps cost next to nothing.

    python benchmarks/replica_cost.py
"""

import argparse
import time

import numpy as np
import openmm
from openmm import app

from openmm_lsd import LSDIntegrator

STEM = "systems/alanine_dipeptide/alanine_dipeptide"
REFERENCE = openmm.Platform.getPlatform("Reference")


def stiffened(system):
    for force in system.getForces():
        if isinstance(force, openmm.HarmonicBondForce):
            for index in range(force.getNumBonds()):
                i, j, length, constant = force.getBondParameters(index)
                force.setBondParameters(index, i, j, length, 1.1 * constant)
    return system


def state_of(context):
    return context.getState(
        positions=True, velocities=True, parameters=True, integratorParameters=True
    )


def measure(context, steps, turns):
    """Median milliseconds of a move alone, and of a visit: a move with steps."""
    integrator = context.getIntegrator()
    replicas = []
    for _ in range(3):
        integrator.step(50)
        replicas.append(state_of(context))
    moves, visits = [], []
    for turn in range(10 * turns):
        begin = time.perf_counter()
        context.setState(replicas[turn % 3])
        replicas[turn % 3] = state_of(context)
        moves.append(time.perf_counter() - begin)
    for turn in range(turns):
        begin = time.perf_counter()
        context.setState(replicas[turn % 3])
        integrator.step(steps)
        replicas[turn % 3] = state_of(context)
        visits.append(time.perf_counter() - begin)
    return 1e3 * np.median(moves), 1e3 * np.median(visits)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=100, help="of a visit")
    parser.add_argument("--turns", type=int, default=300)
    args = parser.parse_args()
    prmtop = app.AmberPrmtopFile(STEM + ".prmtop")
    positions = app.AmberInpcrdFile(STEM + ".inpcrd").positions
    make = prmtop.createSystem
    integrators = {
        "plain": openmm.LangevinMiddleIntegrator(300, 1, 0.001),
        "LSD, force field, K = 8": LSDIntegrator(300, 1, 0.001, make(), windowLength=8),
        "LSD, auto, K = 8": LSDIntegrator(
            300, 1, 0.001, "auto", topology=prmtop.topology, windowLength=8
        ),
    }
    for name, integrator in integrators.items():
        context = openmm.Context(stiffened(make()), integrator, REFERENCE)
        context.setPositions(positions)
        context.setVelocitiesToTemperature(300, 1)
        move, visit = measure(context, args.steps, args.turns)
        print(f"{name:28s}{move:8.4f} ms a move, {visit:8.2f} ms with {args.steps} steps")


if __name__ == "__main__":
    main()
