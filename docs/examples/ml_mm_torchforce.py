"""A solute by a network in water by a force field: alanine dipeptide from Amber files, PME, NPT.

    python docs/examples/ml_mm_torchforce.py --steps 5000

Writes solution.dcd and solution.csv.
"""

import argparse
from pathlib import Path

import mdtraj
from openmm import MonteCarloBarostat, app, unit

from openmm_lsd import LSDIntegrator, systems

SYSTEMS = Path(__file__).resolve().parents[2] / "systems"
STEM = SYSTEMS / "alanine_dipeptide_water/alanine_dipeptide_water"
NETWORK = SYSTEMS / "alanine_dipeptide/alanine_dipeptide.pt"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=5000)
    args = parser.parse_args()

    inpcrd = app.AmberInpcrdFile(f"{STEM}.inpcrd")
    prmtop = app.AmberPrmtopFile(f"{STEM}.prmtop", periodicBoxVectors=inpcrd.boxVectors)
    field = prmtop.createSystem(
        nonbondedMethod=app.PME, nonbondedCutoff=0.9 * unit.nanometer, rigidWater=True
    )
    solute = mdtraj.Topology.from_openmm(prmtop.topology).select("not water")
    target = systems.with_torch_force(field, NETWORK, atoms=solute)
    target.addForce(MonteCarloBarostat(1 * unit.bar, 300 * unit.kelvin))
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
        app.DCDReporter("solution.dcd", interval),
        app.StateDataReporter(
            "solution.csv",
            interval,
            step=True,
            potentialEnergy=True,
            temperature=True,
            density=True,
        ),
    ]
    simulation.step(args.steps)
    print(f"draft and target differ on {len(integrator.subset)} atoms\n{integrator.statistics}")


if __name__ == "__main__":
    main()
