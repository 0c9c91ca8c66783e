"""A crystal by a pretrained network: from a CIF file to a trajectory, without a force field.

    pip install "openmm-lsd[ase,chgnet]"
    python docs/examples/crystal.py --steps 2000
    python docs/examples/crystal.py POSCAR --repeat 3 --pressure 1

Writes crystal.dcd, crystal.csv and crystal.cif, the last structure. The file may be anything that
ASE reads.
"""

import argparse
from pathlib import Path

import ase.io
from openmm import MonteCarloBarostat, app, unit

from openmm_lsd import LSDIntegrator, systems
from openmm_lsd.targets import CHGNetTarget

SALT = Path(__file__).with_name("NaCl.cif")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("structure", nargs="?", type=Path, default=SALT, help="CIF, POSCAR, ...")
    parser.add_argument("--repeat", type=int, default=2, help="cells in each direction")
    parser.add_argument("--temperature", type=float, default=300.0, help="K")
    parser.add_argument("--pressure", type=float, help="bar; without it the volume is constant")
    parser.add_argument("--steps", type=int, default=2000)
    args = parser.parse_args()

    atoms = ase.io.read(args.structure).repeat(args.repeat)
    crystal = systems.from_ase(atoms, CHGNetTarget("0.3.0", atoms.numbers))
    if args.pressure is not None:
        crystal.target.addForce(MonteCarloBarostat(args.pressure, args.temperature))
    integrator = LSDIntegrator(
        args.temperature * unit.kelvin,
        1 / unit.picosecond,
        2 * unit.femtoseconds,
        "auto",
        topology=crystal.topology,
    )
    simulation = app.Simulation(crystal.topology, crystal.target, integrator)
    simulation.context.setPositions(crystal.positions)
    # Half of it becomes potential energy, since the atoms start from their sites.
    simulation.context.setVelocitiesToTemperature(2 * args.temperature * unit.kelvin)
    interval = max(1, args.steps // 100)
    simulation.reporters = [
        app.DCDReporter("crystal.dcd", interval),
        app.StateDataReporter(
            "crystal.csv", interval, step=True, potentialEnergy=True, temperature=True, volume=True
        ),
    ]
    simulation.step(args.steps)
    print(integrator.statistics)

    state = simulation.context.getState(positions=True)
    atoms.set_cell(state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(unit.angstrom))
    atoms.positions = state.getPositions(asNumpy=True).value_in_unit(unit.angstrom)
    ase.io.write("crystal.cif", atoms)


if __name__ == "__main__":
    main()
