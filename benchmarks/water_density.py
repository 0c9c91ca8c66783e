"""Constant pressure: the density of a water box and the moves of its barostat, LSD against plain.

The System is the target of water_boxes.py with a MonteCarloBarostat; LSD drafts it by itself
('auto'). Means with errors from blocks; exit status 1 if the densities, or the fractions of moves
that were accepted, differ by more than four standard errors.

    python benchmarks/water_density.py --molecules 64 --picoseconds 100
"""

import argparse
import sys
import time

import numpy as np
import openmm
from openmm import app, unit
from openmm_lsd._native import ContextAccess
from water_boxes import FRICTION, STEP_SIZE, TEMPERATURE, equilibrated

from openmm_lsd import LSDIntegrator

PRESSURE = 1.0  # bar
LENGTH = 0.03  # nm^3, of the moves
BLOCKS = 10


def run(simulation, steps, every, seed):
    """Densities (g/mL) after every so many steps, the fraction of moves accepted, seconds."""
    barostat = openmm.MonteCarloBarostat(PRESSURE, TEMPERATURE, every)
    barostat.setRandomNumberSeed(seed)
    simulation.system.addForce(barostat)
    for force in simulation.system.getForces():
        if isinstance(force, openmm.NonbondedForce):  # the box may shrink
            force.setCutoffDistance(0.85 * force.getCutoffDistance())
    simulation.context.reinitialize(preserveState=True)
    simulation.step(steps // 5)
    # Else the length of the moves, and with it how many are accepted, would depend on luck: OpenMM
    # changes it whenever ten of them happen to go too well or too badly.
    access = ContextAccess(int(simulation.integrator.this))
    step = access.get_barostat_memory()[0]
    mass = sum(
        simulation.system.getParticleMass(i).value_in_unit(unit.dalton)
        for i in range(simulation.system.getNumParticles())
    )
    volumes = []
    begin = time.perf_counter()
    for _ in range(steps // every):
        access.set_barostat_memory(np.array([step, 0, 0, LENGTH]))
        simulation.step(every)
        state = simulation.context.getState()
        volumes.append(state.getPeriodicBoxVolume().value_in_unit(unit.nanometer**3))
    seconds = time.perf_counter() - begin
    densities = mass / np.array(volumes) * 1.66053907e-3
    return densities, np.diff(volumes) != 0, seconds


def with_error(values):
    blocks = np.array([block.mean() for block in np.array_split(values, BLOCKS)])
    return values.mean(), blocks.std(ddof=1) / np.sqrt(BLOCKS)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--molecules", type=int, default=64)
    parser.add_argument("--picoseconds", type=float, default=100.0)
    parser.add_argument("--every", type=int, default=25, help="steps from move to move")
    parser.add_argument("--window", type=int, default=16)
    args = parser.parse_args()
    steps = round(args.picoseconds / STEP_SIZE)
    results = {}
    for name in ("plain", "LSD"):
        simulation, _ = equilibrated(args.molecules, 4000)
        state = simulation.context.getState(positions=True, velocities=True)
        if name == "plain":
            integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, FRICTION, STEP_SIZE)
        else:
            integrator = LSDIntegrator(
                TEMPERATURE,
                FRICTION,
                STEP_SIZE,
                "auto",
                topology=simulation.topology,
                windowLength=args.window,
                randomNumberSeed=2,
            )
        simulation = app.Simulation(simulation.topology, simulation.system, integrator)
        simulation.context.setState(state)
        densities, accepted, seconds = run(simulation, steps, args.every, seed=3)
        results[name] = with_error(densities), with_error(accepted)
        (density, error), (rate, rate_error) = results[name]
        print(
            f"{name:5s} {density:.4f} +- {error:.4f} g/mL, {100 * rate:.1f} +- "
            f"{100 * rate_error:.1f} % of {len(accepted)} moves accepted; {seconds:.0f} s",
            flush=True,
        )
        if name == "LSD":
            statistics = integrator.statistics
            print(f"      {statistics}")
    scores = [
        (ours - theirs) / np.hypot(error, other)
        for (ours, error), (theirs, other) in zip(results["LSD"], results["plain"], strict=True)
    ]
    print("differences in standard errors: density {:.1f}, accepted moves {:.1f}".format(*scores))
    return int(max(map(abs, scores)) > 4)


if __name__ == "__main__":
    sys.exit(main())
