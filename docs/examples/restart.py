"""A run in parts: every call continues where the last one stopped.

    python docs/examples/restart.py --steps 5000
    python docs/examples/restart.py --steps 5000

Writes run.chk and appends to run.dcd. The two calls give, to the last bit, what one call with
10000 steps gives: windowLength is a number, and the checkpoint holds all that LSD needs.
"""

import argparse
from pathlib import Path

from openmm import app, unit

from openmm_lsd import LSDIntegrator, systems

STEM = Path(__file__).resolve().parents[2] / "systems/alanine_dipeptide/alanine_dipeptide"
CHECKPOINT, TRAJECTORY = Path("run.chk"), Path("run.dcd")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=5000)
    args = parser.parse_args()

    pdb = app.PDBFile(f"{STEM}.pdb")
    system = systems.with_torch_force(pdb.topology, f"{STEM}.pt")
    integrator = LSDIntegrator(
        300 * unit.kelvin,
        1 / unit.picosecond,
        1 * unit.femtosecond,
        "auto",
        topology=pdb.topology,
        windowLength=8,
        randomNumberSeed=1,
    )
    simulation = app.Simulation(pdb.topology, system, integrator)
    goes_on = CHECKPOINT.exists()
    if goes_on:
        simulation.loadCheckpoint(str(CHECKPOINT))
        print(f"going on from step {simulation.currentStep}")
    else:
        simulation.context.setPositions(pdb.positions)
        simulation.minimizeEnergy()
        simulation.context.setVelocitiesToTemperature(300 * unit.kelvin, 1)
    simulation.reporters = [
        app.DCDReporter(str(TRAJECTORY), 10, append=goes_on),
        app.CheckpointReporter(str(CHECKPOINT), 1000),  # in case the run is killed
    ]
    simulation.step(args.steps)
    simulation.saveCheckpoint(str(CHECKPOINT))
    print(f"stopped at step {simulation.currentStep}: {integrator.statistics}")


if __name__ == "__main__":
    main()
