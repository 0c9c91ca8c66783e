"""A periodic box of flexible TIP3P water, equilibrated: systems/amoeba_water.

python systems/make/make_water_box.py --molecules 64 --output systems/amoeba_water/amoeba_water.pdb
"""

import argparse
from pathlib import Path

import openmm
from openmm import app, unit


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--molecules", type=int, default=64)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--cutoff", type=float, default=0.6, help="nm")
    parser.add_argument("--picoseconds", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    forcefield = app.ForceField("tip3p.xml")
    modeller = app.Modeller(app.Topology(), [])
    modeller.addSolvent(forcefield, model="tip3p", numAdded=args.molecules)
    # addSolvent makes the box a little too large; 0.997 g/cm3 is that of water at 298 K.
    masses = [atom.element.mass.value_in_unit(unit.dalton) for atom in modeller.topology.atoms()]
    mass = sum(masses) * unit.gram / unit.mole / unit.AVOGADRO_CONSTANT_NA
    volume = mass / (0.997 * unit.gram / unit.centimeter**3)
    edge = volume.value_in_unit(unit.nanometer**3) ** (1 / 3)
    system = forcefield.createSystem(
        modeller.topology,
        nonbondedMethod=app.PME,
        nonbondedCutoff=args.cutoff,
        constraints=None,
        rigidWater=False,
    )
    integrator = openmm.LangevinMiddleIntegrator(300, 5, 0.0005)
    integrator.setRandomNumberSeed(args.seed)
    simulation = app.Simulation(modeller.topology, system, integrator)
    simulation.context.setPositions(modeller.positions)
    start = modeller.topology.getPeriodicBoxVectors()[0][0].value_in_unit(unit.nanometer)
    steps = round(2000 * args.picoseconds)
    for stage in range(10):  # shrink to the final box, relaxing in between
        width = start + (edge - start) * (stage + 1) / 10
        simulation.context.setPeriodicBoxVectors(
            *(width * openmm.Vec3(i == 0, i == 1, i == 2) for i in range(3))
        )
        simulation.minimizeEnergy(maxIterations=200)
    simulation.context.setVelocitiesToTemperature(300, args.seed)
    simulation.step(steps)
    state = simulation.context.getState(positions=True, enforcePeriodicBox=True)
    modeller.topology.setPeriodicBoxVectors(state.getPeriodicBoxVectors())
    with args.output.open("w") as file:
        app.PDBFile.writeFile(modeller.topology, state.getPositions(), file)
    print(f"{args.molecules} molecules, box {edge:.4f} nm, {args.picoseconds} ps at 300 K")


if __name__ == "__main__":
    main()
