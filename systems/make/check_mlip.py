"""Is a trained potential sound where its own dynamics goes? A long run with LSD.

Every bond is watched, and the steps per round in every part of the run: they fall where the
potential is stiffer than any molecule. With --gfn2 its forces are compared with GFN2-xTB's, which
it was trained on, at frames of the run.

    python systems/make/check_mlip.py systems/alanine_dipeptide --picoseconds 100 --gfn2 200
"""

import argparse
import dataclasses
import sys
import tempfile
import time
from pathlib import Path

import mdtraj
import numpy as np
import openmm
from openmm import app, unit

from openmm_lsd import LSDIntegrator, systems

SEGMENTS = 20


def compare_with_gfn2(context, trajectory, frames):
    """Force errors at frames evenly spaced over the run."""
    sys.path.append(str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))
    from steps_per_round import gfn2_target

    chosen = trajectory.xyz[:: max(1, len(trajectory) // frames)].astype(float)
    reference = gfn2_target(trajectory.topology.to_openmm())(chosen)
    forces = []
    for positions in chosen:
        context.setPositions(positions)
        forces.append(context.getState(forces=True).getForces(asNumpy=True)._value)
    kcal = (1 * unit.kilojoule_per_mole / unit.nanometer) / (
        unit.kilocalorie_per_mole / unit.angstrom
    )
    errors = kcal * np.sqrt(np.mean((np.array(forces) - reference) ** 2, axis=(1, 2)))
    print(
        f"force RMSE against GFN2-xTB on {len(chosen)} frames of the run: "
        f"{np.sqrt(np.mean(errors**2)):.2f} kcal/mol/A, worst frame {errors.max():.2f}"
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("system", type=Path, help="directory with prmtop, inpcrd and .pt")
    parser.add_argument("--picoseconds", type=float, default=100.0)
    parser.add_argument("--temperature", type=float, default=300.0, help="kelvin")
    parser.add_argument("--timestep", type=float, default=1.0, help="fs")
    parser.add_argument("--gfn2", type=int, default=0, help="frames to compare with GFN2-xTB")
    parser.add_argument("--fewest", type=float, default=3.0, help="steps per round in any part")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    molecule = systems.load(args.system)
    integrator = LSDIntegrator(
        args.temperature * unit.kelvin,
        1 / unit.picosecond,
        args.timestep * unit.femtosecond,
        molecule.draft,
        windowLength=16,
        randomNumberSeed=args.seed,
    )
    simulation = app.Simulation(
        molecule.topology, molecule.target, integrator, openmm.Platform.getPlatform("Reference")
    )
    simulation.context.setPositions(molecule.positions)
    simulation.minimizeEnergy()
    simulation.context.setVelocitiesToTemperature(args.temperature * unit.kelvin, args.seed)
    segment = round(1e3 * args.picoseconds / args.timestep / SEGMENTS)
    counts = []
    print("      ps   kJ/mol   steps per round   ms per step")
    with tempfile.TemporaryDirectory() as directory:
        file = str(Path(directory) / "trajectory.dcd")
        simulation.reporters = [app.DCDReporter(file, 20)]
        for _ in range(SEGMENTS):
            before, begin = dataclasses.replace(integrator.statistics), time.perf_counter()
            simulation.step(segment)
            seconds = time.perf_counter() - begin
            done = integrator.statistics
            counts.append((done.steps - before.steps) / (done.rounds - before.rounds))
            state = simulation.context.getState(energy=True)
            print(
                f"{state.getTime() / unit.picosecond:8.2f}"
                f"{state.getPotentialEnergy() / unit.kilojoule_per_mole:9.0f}"
                f"{counts[-1]:18.2f}{1e3 * seconds / segment:14.2f}",
                flush=True,
            )
        simulation.reporters.clear()
        trajectory = mdtraj.load(file, top=mdtraj.Topology.from_openmm(molecule.topology))
    print(integrator.statistics)
    print(f"steps per round: {min(counts):.2f} to {max(counts):.2f} in {SEGMENTS} parts of the run")
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
        if angles.size:  # of a peptide
            print(f"{name}: {angles.min():.0f} to {angles.max():.0f} degrees")
    if args.gfn2:
        compare_with_gfn2(simulation.context, trajectory, args.gfn2)
    if stretch.max() > 1.5 or stretch.min() < 0.6:
        raise SystemExit("a bond is broken")
    if min(counts) < args.fewest:
        raise SystemExit(f"a part of the run committed fewer than {args.fewest} steps per round")
    print("every bond is whole")


if __name__ == "__main__":
    main()
