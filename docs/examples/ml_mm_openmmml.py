"""A ligand by a potential of OpenMM-ML, in water by a force field: ibuprofen from Amber files.

    pip install "openmm-lsd[mace]"
    python docs/examples/ml_mm_openmmml.py --potential mace-off23-small --steps 5000

--model FILE takes a MACE model of your own. Writes ligand.dcd and ligand.csv.
"""

import argparse
from pathlib import Path

from openmm import app, unit
from openmmml import MLPotential

from openmm_lsd import LSDIntegrator

STEM = Path(__file__).resolve().parents[2] / "systems/ibuprofen_water/ibuprofen_water"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--potential", default="mace-off23-small")
    parser.add_argument("--model", help="file of a MACE model")
    parser.add_argument("--steps", type=int, default=5000)
    args = parser.parse_args()

    inpcrd = app.AmberInpcrdFile(f"{STEM}.inpcrd")
    prmtop = app.AmberPrmtopFile(f"{STEM}.prmtop", periodicBoxVectors=inpcrd.boxVectors)
    field = prmtop.createSystem(
        nonbondedMethod=app.PME, nonbondedCutoff=0.9 * unit.nanometer, rigidWater=True
    )
    if args.model is None:
        potential = MLPotential(args.potential)
    else:
        potential = MLPotential("mace", modelPath=args.model)
    residues = prmtop.topology.residues()
    ligand = [atom.index for atom in next(residues).atoms()]
    target = potential.createMixedSystem(prmtop.topology, field, ligand, mlLongRange=False)
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
        app.DCDReporter("ligand.dcd", interval),
        app.StateDataReporter(
            "ligand.csv", interval, step=True, potentialEnergy=True, temperature=True
        ),
    ]
    simulation.step(args.steps)
    print(f"draft and target differ on {len(integrator.subset)} atoms\n{integrator.statistics}")


if __name__ == "__main__":
    main()
