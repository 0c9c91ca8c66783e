"""Quantum-mechanical dynamics through ASE: GFN2-xTB, drafted by a force field made from the bonds.

    pip install "openmm-lsd[ase]" tblite
    python docs/examples/gfn2_ase.py --steps 1000

Writes gfn2.dcd and gfn2.csv. Any ASE calculator can stand in for TBLite. It evaluates state after
state; benchmarks/gfn2_ray.py does the same on several workers.
"""

import argparse
from pathlib import Path

from openmm import app, unit
from tblite.ase import TBLite

from openmm_lsd import LSDIntegrator, systems
from openmm_lsd.targets import ASETarget

STEM = Path(__file__).resolve().parents[2] / "systems/alanine_dipeptide/alanine_dipeptide"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=1000)
    args = parser.parse_args()

    pdb = app.PDBFile(f"{STEM}.pdb")
    numbers = [atom.element.atomic_number for atom in pdb.topology.atoms()]
    target = ASETarget(TBLite(method="GFN2-xTB", charge=0, verbosity=0), numbers)
    # A System with the same potential, so that minimisation and energies work as always.
    system = systems.with_target(pdb.topology, target)
    integrator = LSDIntegrator(
        300 * unit.kelvin, 1 / unit.picosecond, 1 * unit.femtosecond, "auto", topology=pdb.topology
    )
    simulation = app.Simulation(pdb.topology, system, integrator)
    simulation.context.setPositions(pdb.positions)
    simulation.minimizeEnergy(maxIterations=20)
    simulation.context.setVelocitiesToTemperature(300 * unit.kelvin)
    interval = max(1, args.steps // 100)
    simulation.reporters = [
        app.DCDReporter("gfn2.dcd", interval),
        app.StateDataReporter(
            "gfn2.csv", interval, step=True, potentialEnergy=True, temperature=True
        ),
    ]
    simulation.step(args.steps)
    print(integrator.statistics)


if __name__ == "__main__":
    main()
