"""Does a trained potential keep the molecule together? A long run with LSD, every bond watched.

python scripts/check_mlip.py systems/alanine_dipeptide --picoseconds 100
"""

import argparse
import sys
import tempfile
from pathlib import Path

import mdtraj
import numpy as np
import openmm
from openmm import app, unit

from openmm_lsd import LSDIntegrator, systems


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("system", type=Path, help="directory with prmtop, inpcrd and .pt")
    parser.add_argument("--picoseconds", type=float, default=100.0)
    parser.add_argument("--temperature", type=float, default=300.0, help="kelvin")
    parser.add_argument("--timestep", type=float, default=1.0, help="fs")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    molecule = systems.load(args.system)
    integrator = LSDIntegrator(
        args.temperature * unit.kelvin,
        1 / unit.picosecond,
        args.timestep * unit.femtosecond,
        molecule.draft,
        randomNumberSeed=args.seed,
    )
    simulation = app.Simulation(
        molecule.topology, molecule.target, integrator, openmm.Platform.getPlatform("Reference")
    )
    simulation.context.setPositions(molecule.positions)
    simulation.minimizeEnergy()
    simulation.context.setVelocitiesToTemperature(args.temperature * unit.kelvin, args.seed)
    steps = round(1e3 * args.picoseconds / args.timestep)
    with tempfile.TemporaryDirectory() as directory:
        file = str(Path(directory) / "trajectory.dcd")
        simulation.reporters = [
            app.DCDReporter(file, 20),
            app.StateDataReporter(
                sys.stdout,
                max(1, steps // 10),
                time=True,
                temperature=True,
                potentialEnergy=True,
                speed=True,
            ),
        ]
        simulation.step(steps)
        simulation.reporters.clear()
        trajectory = mdtraj.load(file, top=mdtraj.Topology.from_openmm(molecule.topology))
    print(integrator.statistics)
    pairs = [[bond.atom1.index, bond.atom2.index] for bond in trajectory.topology.bonds]
    lengths = mdtraj.compute_distances(trajectory, pairs)
    stretch = lengths / np.median(lengths, axis=0)
    worst = np.unravel_index(np.argmax(np.abs(stretch - 1)), stretch.shape)[1]
    atoms = [str(trajectory.topology.atom(index)) for index in pairs[worst]]
    print(
        f"{len(pairs)} bonds, {len(trajectory)} frames of {args.picoseconds} ps: "
        f"{stretch.min():.2f} to {stretch.max():.2f} times their median length "
        f"(worst {'-'.join(atoms)})"
    )
    for name, compute in (("phi", mdtraj.compute_phi), ("psi", mdtraj.compute_psi)):
        angles = np.degrees(compute(trajectory)[1])
        print(f"{name}: {angles.min():.0f} to {angles.max():.0f} degrees")
    if stretch.max() > 1.5 or stretch.min() < 0.6:
        raise SystemExit("a bond is broken")
    print("every bond is whole")


if __name__ == "__main__":
    main()
