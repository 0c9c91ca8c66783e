"""Quantum-mechanical molecular dynamics drafted by Amber: GFN2-xTB on all cores of the machine.

    pip install "openmm-lsd[ase,ray]" tblite
    python benchmarks/gfn2_ray.py --steps 1000

Each core evaluates its share of the window by tblite's ASE calculator, in a Ray worker. Writes
trajectory.dcd and log.csv to the output directory.
"""

import argparse
import os
import sys
from pathlib import Path
from time import perf_counter

import openmm
from openmm import app, unit

from openmm_lsd import LSDIntegrator
from openmm_lsd.targets.ase import ASETarget
from openmm_lsd.targets.ray import RayTarget

ALANINE = Path(__file__).resolve().parent.parent / "systems/alanine_dipeptide/alanine_dipeptide"


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--prmtop", type=Path, default=ALANINE.with_suffix(".prmtop"))
    parser.add_argument("--inpcrd", type=Path, default=ALANINE.with_suffix(".inpcrd"))
    parser.add_argument("--charge", type=int, default=0, help="of the molecule, e")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--timestep", type=float, default=1.0, help="fs")
    parser.add_argument("--window", type=int, default=16, help="steps drafted per round")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--address", default=None, help="of a running Ray cluster")
    parser.add_argument("--temperature", type=float, default=300.0, help="kelvin")
    parser.add_argument("--friction", type=float, default=1.0, help="1/ps")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--report-interval", type=int, default=10, help="steps")
    parser.add_argument("--output", type=Path, default=Path("gfn2_output"), help="directory")
    args = parser.parse_args()
    for file in (args.prmtop, args.inpcrd):
        if not file.is_file():
            parser.error(f"there is no file {file}")
    for name in ("steps", "window", "workers", "report_interval"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be positive")
    return args


def gfn2_factory(topology, charge):
    """What each worker makes its target with."""
    numbers = [atom.element.atomic_number for atom in topology.atoms()]

    def make():
        from tblite.ase import TBLite

        return ASETarget(TBLite(method="GFN2-xTB", charge=charge, verbosity=0), numbers)

    return make


def without_forces(draft):
    """The particles of ``draft``: the Context keeps the state, the target evaluates it."""
    system = openmm.System()
    for index in range(draft.getNumParticles()):
        system.addParticle(draft.getParticleMass(index))
    system.addForce(openmm.CMMotionRemover())
    return system


def simulate(args, topology, positions, draft, target):
    integrator = LSDIntegrator(
        args.temperature * unit.kelvin,
        args.friction / unit.picosecond,
        args.timestep * unit.femtosecond,
        draft,
        windowLength=args.window,
        randomNumberSeed=args.seed,
        target=target,
    )
    # Nothing is computed in this Context; Reference leaves all cores to the workers.
    platform = openmm.Platform.getPlatform("Reference")
    simulation = app.Simulation(topology, without_forces(draft), integrator, platform)
    simulation.context.setPositions(positions)
    simulation.context.setVelocitiesToTemperature(
        args.temperature * unit.kelvin, *(() if args.seed is None else (args.seed,))
    )
    args.output.mkdir(parents=True, exist_ok=True)
    columns = {"step": True, "time": True, "kineticEnergy": True, "temperature": True}
    simulation.reporters = [
        app.DCDReporter(str(args.output / "trajectory.dcd"), args.report_interval),
        app.StateDataReporter(
            str(args.output / "log.csv"), args.report_interval, speed=True, **columns
        ),
        app.StateDataReporter(
            sys.stdout,
            max(args.report_interval, args.steps // 20),
            progress=True,
            remainingTime=True,
            speed=True,
            totalSteps=args.steps,
            separator="\t",
            **columns,
        ),
    ]
    begin = perf_counter()
    simulation.step(args.steps)
    seconds = perf_counter() - begin
    print(integrator.statistics)
    print(
        f"{args.workers} workers, K = {args.window}, {args.timestep:g} fs: "
        f"{1e3 * seconds / args.steps:.1f} ms per step, "
        f"{86.4e-3 * args.timestep * args.steps / seconds:.3f} ns/day"
    )


def main():
    args = arguments()
    prmtop = app.AmberPrmtopFile(str(args.prmtop))
    positions = app.AmberInpcrdFile(str(args.inpcrd)).positions
    draft = prmtop.createSystem(nonbondedMethod=app.NoCutoff, constraints=None)
    factory = gfn2_factory(prmtop.topology, args.charge)
    print(f"{prmtop.topology.getNumAtoms()} atoms; starting {args.workers} workers", flush=True)
    with RayTarget(factory, args.workers, address=args.address) as target:
        simulate(args, prmtop.topology, positions, draft, target)
    print(f"wrote trajectory.dcd and log.csv to {args.output}")


if __name__ == "__main__":
    main()
