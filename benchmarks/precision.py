"""What rounding alone costs: the draft is the target, on a device, in each of its precisions.

    python benchmarks/precision.py --platform OpenCL --outfile docs/benchmarks/precision.json

648 atoms of flexible water with PME. Once all forces are draft and target, each in Contexts of its
own; and once a molecule has a slow force that the draft's System has as well, with both engines.
Without rounding every step would be accepted: 16 steps per round.
"""

import argparse
from pathlib import Path

import numpy as np
import openmm
from openmm import app
from results import save
from transfers import water

from openmm_lsd import LSDIntegrator, batched
from openmm_lsd.targets import ContextTarget

WINDOW, LENGTH, STIFFNESS = 16, 0.1, 50_000.0


@batched
def spring(positions, box, parameters):
    apart = positions[:, 1] - positions[:, 0]
    length = np.linalg.norm(apart, axis=1)
    forces = np.zeros_like(positions)
    forces[:, 0] = (STIFFNESS * (length - LENGTH) / length)[:, None] * apart
    forces[:, 1] = -forces[:, 0]
    return 0.5 * STIFFNESS * (length - LENGTH) ** 2, forces


def systems_of(make, is_mixed):
    """Target and draft."""
    target, draft = make(), make()
    if is_mixed:
        slow = openmm.PythonForce(spring)
        slow.setParticles([0, 1])
        target.addForce(slow)
        bond = openmm.CustomBondForce(f"{0.5 * STIFFNESS}*(r-{LENGTH})^2")  # stands in for it
        bond.addBond(0, 1)
        draft.addForce(bond)
    return target, draft


def measure(topology, positions, make, engine, platform, steps):
    target, draft = systems_of(make, engine is not None)
    # Otherwise the target may turn out faster on the Reference platform, whose PME differs by more.
    on_device = None if engine else ContextTarget(target, platforms={platform.getName(): {}})
    integrator = LSDIntegrator(
        300,
        1,
        0.0005,
        draft,
        windowLength=WINDOW,
        randomNumberSeed=1,
        draftPlatform=platform,
        target=on_device,
        engine=engine or "auto",
    )
    shifts = []
    integrator.round_callbacks.append(lambda became: shifts.extend(became.noise_shifts))
    simulation = app.Simulation(topology, target, integrator, platform)
    simulation.context.setPositions(positions)
    simulation.context.setVelocitiesToTemperature(300, 1)
    simulation.step(steps)
    return integrator.statistics.steps_per_round, float(np.mean(shifts))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--platform", default="OpenCL")
    parser.add_argument("--steps", type=int, default=640)
    parser.add_argument("--outfile", type=Path)
    args = parser.parse_args()
    rows = []
    print(f"{args.platform}, K = {WINDOW}\nprecision   what     steps/round   mean noise shift")
    for precision in ("single", "mixed", "double"):
        platform = openmm.Platform.getPlatform(args.platform)
        topology, positions, make = water(216, precision)
        platform.setPropertyDefaultValue("Precision", precision)
        for engine in (None, "host", "context"):
            steps, shift = measure(topology, positions, make, engine, platform, args.steps)
            what = "all forces" if engine is None else f"mixed, {engine}"
            row = {"precision": precision, "what": what, "steps per round": steps, "shift": shift}
            rows.append(row)
            print(f"{precision:10s}{what:16s}{steps:8.2f}{shift:14.2e}", flush=True)
    if args.outfile is not None:
        save(args.outfile, {"window": WINDOW, "rows": rows})


if __name__ == "__main__":
    main()
