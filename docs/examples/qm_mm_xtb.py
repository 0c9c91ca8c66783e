"""QM/MM with mechanical embedding: GFN2-xTB on alanine dipeptide, a force field for the water.

    pip install "openmm-lsd[ase]" tblite
    python docs/examples/qm_mm_xtb.py --steps 1000

Writes qmmm.dcd and qmmm.csv. Any ASE calculator can stand in for TBLite.
"""

import argparse
from pathlib import Path

from openmm import app, unit
from tblite.ase import TBLite

from openmm_lsd import LSDIntegrator, systems
from openmm_lsd.targets import ASETarget

SYSTEMS = Path(__file__).resolve().parents[2] / "systems"
STEM = SYSTEMS / "alanine_dipeptide_water/alanine_dipeptide_water"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=1000)
    args = parser.parse_args()

    inpcrd = app.AmberInpcrdFile(f"{STEM}.inpcrd")
    prmtop = app.AmberPrmtopFile(f"{STEM}.prmtop", periodicBoxVectors=inpcrd.boxVectors)
    field = prmtop.createSystem(
        nonbondedMethod=app.PME, nonbondedCutoff=0.9 * unit.nanometer, rigidWater=True
    )
    solute = [atom for atom in prmtop.topology.atoms() if atom.residue.name not in ("HOH", "WAT")]
    numbers = [atom.element.atomic_number for atom in solute]
    quantum = ASETarget(TBLite(method="GFN2-xTB", charge=0, verbosity=0), numbers)
    target = systems.with_target(field, quantum, atoms=[atom.index for atom in solute])
    integrator = LSDIntegrator(
        300 * unit.kelvin,
        1 / unit.picosecond,
        1 * unit.femtosecond,
        "auto",
        topology=prmtop.topology,
    )
    simulation = app.Simulation(prmtop.topology, target, integrator)
    simulation.context.setPositions(inpcrd.positions)
    simulation.context.setVelocities(inpcrd.velocities)
    interval = max(1, args.steps // 100)
    simulation.reporters = [
        app.DCDReporter("qmmm.dcd", interval),
        app.StateDataReporter(
            "qmmm.csv", interval, step=True, potentialEnergy=True, temperature=True
        ),
    ]
    simulation.step(args.steps)
    print(f"draft and target differ on {len(integrator.subset)} atoms\n{integrator.statistics}")


if __name__ == "__main__":
    main()
