"""A peptide with a machine-learned potential and no force field: the draft is built from bonds.

    python docs/examples/peptide.py --steps 10000

Writes peptide.dcd, peptide.csv (as any OpenMM run) and lsd.csv (how the speculation goes).
"""

import argparse
from pathlib import Path

from openmm import app, unit

from openmm_lsd import LSDIntegrator, LSDReporter, systems

STEM = Path(__file__).resolve().parents[2] / "systems/alanine_dipeptide/alanine_dipeptide"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=10_000)
    args = parser.parse_args()

    pdb = app.PDBFile(f"{STEM}.pdb")
    # The potential is a TorchScript file: positions in nm -> energy in kJ/mol.
    system = systems.with_torch_force(pdb.topology, f"{STEM}.pt")
    integrator = LSDIntegrator(
        300 * unit.kelvin,
        1 / unit.picosecond,
        1 * unit.femtosecond,
        "auto",
        topology=pdb.topology,
    )
    simulation = app.Simulation(pdb.topology, system, integrator)
    simulation.context.setPositions(pdb.positions)
    simulation.minimizeEnergy()
    simulation.context.setVelocitiesToTemperature(300 * unit.kelvin)

    interval = max(1, args.steps // 100)
    simulation.reporters = [
        app.DCDReporter("peptide.dcd", interval),
        app.StateDataReporter(
            "peptide.csv", interval, step=True, potentialEnergy=True, temperature=True
        ),
        LSDReporter("lsd.csv", interval),
    ]
    simulation.step(args.steps)
    print(integrator.statistics)


if __name__ == "__main__":
    main()
