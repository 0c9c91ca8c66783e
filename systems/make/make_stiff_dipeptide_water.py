"""Alanine dipeptide in rigid TIP3P water, equilibrated at 300 K and 1 bar:
systems/stiff_dipeptide_water.

python systems/make/make_stiff_dipeptide_water.py
"""

import argparse
from pathlib import Path

import openmm
from openmm import app, unit

SYSTEMS = Path(__file__).resolve().parent.parent
OUTPUT = SYSTEMS / "stiff_dipeptide_water" / "stiff_dipeptide_water.pdb"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split(":")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--molecules", type=int, default=759, help="of water")
    parser.add_argument("--picoseconds", type=float, default=100.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    pdb = app.PDBFile(str(SYSTEMS / "alanine_dipeptide" / "alanine_dipeptide.pdb"))
    field = app.ForceField("amber14-all.xml", "amber14/tip3p.xml")
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.addSolvent(field, model="tip3p", numAdded=args.molecules)
    system = field.createSystem(
        modeller.topology,
        nonbondedMethod=app.PME,
        nonbondedCutoff=0.9 * unit.nanometer,
        constraints=app.HBonds,
    )
    barostat = openmm.MonteCarloBarostat(1.0, 300.0, 25)
    barostat.setRandomNumberSeed(args.seed)
    system.addForce(barostat)
    integrator = openmm.LangevinMiddleIntegrator(300, 2, 0.002)
    integrator.setRandomNumberSeed(args.seed)
    simulation = app.Simulation(modeller.topology, system, integrator)
    simulation.context.setPositions(modeller.positions)
    simulation.minimizeEnergy(maxIterations=500)
    simulation.context.setVelocitiesToTemperature(300, args.seed)
    simulation.step(round(500 * args.picoseconds))
    state = simulation.context.getState(positions=True, enforcePeriodicBox=True)
    modeller.topology.setPeriodicBoxVectors(state.getPeriodicBoxVectors())
    with args.output.open("w") as file:
        app.PDBFile.writeFile(modeller.topology, state.getPositions(), file)
    edge = state.getPeriodicBoxVectors()[0][0].value_in_unit(unit.nanometer)
    print(f"{modeller.topology.getNumAtoms()} atoms, box {edge:.4f} nm")


if __name__ == "__main__":
    main()
