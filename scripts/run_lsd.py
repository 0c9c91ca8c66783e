"""Molecular dynamics of a TorchScript potential, drafted by a force field or by itself.

    python scripts/run_lsd.py --prmtop X.prmtop --inpcrd X.inpcrd --target X.pt --steps 10000
    python scripts/run_lsd.py --pdb X.pdb --forcefield amber14-all.xml --target X.pt
    python scripts/run_lsd.py --pdb X.pdb --target X.pt            # needs no force field

Writes trajectory.dcd, log.csv and final.pdb to the output directory and shows the progress.
"""

import argparse
import sys
from pathlib import Path

import openmm
from openmm import app, unit

from openmm_lsd import LSDIntegrator
from openmm_lsd.systems import with_torch_force


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    structure = parser.add_argument_group("structure and draft: prmtop and inpcrd, or pdb")
    structure.add_argument("--prmtop", type=Path)
    structure.add_argument("--inpcrd", type=Path)
    structure.add_argument("--pdb", type=Path)
    structure.add_argument(
        "--forcefield", nargs="+", help="with --pdb; default: a draft that makes itself and learns"
    )
    parser.add_argument("--target", type=Path, required=True, help="TorchScript file")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--temperature", type=float, default=300.0, help="kelvin")
    parser.add_argument("--friction", type=float, default=1.0, help="1/ps")
    parser.add_argument("--timestep", type=float, default=1.0, help="fs")
    parser.add_argument("--window", type=int, default=16, help="steps drafted per round")
    parser.add_argument("--scheme", choices=["middle", "aboba"], default="middle")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--platform", default=None, help="of the target; default OpenMM's choice")
    parser.add_argument("--report-interval", type=int, default=100, help="steps")
    parser.add_argument("--output", type=Path, default=Path("lsd_output"), help="directory")
    args = parser.parse_args()
    if (args.pdb is None) == (args.prmtop is None):
        parser.error("give either --prmtop with --inpcrd, or --pdb")
    if (args.prmtop is None) != (args.inpcrd is None):
        parser.error("--prmtop and --inpcrd go together")
    for file in (args.prmtop, args.inpcrd, args.pdb, args.target):
        if file is not None and not file.is_file():
            parser.error(f"there is no file {file}")
    for name in ("steps", "report_interval", "window"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be positive")
    return args


def structure_and_draft(args):
    options = {"nonbondedMethod": app.NoCutoff, "constraints": None}
    if args.prmtop is not None:
        prmtop = app.AmberPrmtopFile(str(args.prmtop))
        positions = app.AmberInpcrdFile(str(args.inpcrd)).positions
        return prmtop.topology, positions, prmtop.createSystem(**options)
    pdb = app.PDBFile(str(args.pdb))
    if args.forcefield is None:
        return pdb.topology, pdb.positions, "auto"
    force_field = app.ForceField(*args.forcefield)
    draft = force_field.createSystem(pdb.topology, rigidWater=False, **options)
    return pdb.topology, pdb.positions, draft


def main():
    args = arguments()
    topology, positions, draft = structure_and_draft(args)
    target = with_torch_force(topology, args.target)
    integrator = LSDIntegrator(
        args.temperature * unit.kelvin,
        args.friction / unit.picosecond,
        args.timestep * unit.femtosecond,
        draft,
        windowLength=args.window,
        scheme=args.scheme,
        randomNumberSeed=args.seed,
        topology=topology,
    )
    platform = () if args.platform is None else (openmm.Platform.getPlatform(args.platform),)
    simulation = app.Simulation(topology, target, integrator, *platform)
    simulation.context.setPositions(positions)
    print(f"{topology.getNumAtoms()} atoms; minimising the energy", flush=True)
    simulation.minimizeEnergy()
    simulation.context.setVelocitiesToTemperature(args.temperature * unit.kelvin)

    args.output.mkdir(parents=True, exist_ok=True)
    interval = args.report_interval
    columns = {
        "step": True,
        "time": True,
        "potentialEnergy": True,
        "kineticEnergy": True,
        "temperature": True,
    }
    simulation.reporters = [
        app.DCDReporter(str(args.output / "trajectory.dcd"), interval),
        app.StateDataReporter(str(args.output / "log.csv"), interval, speed=True, **columns),
        app.StateDataReporter(
            sys.stdout,
            max(interval, args.steps // 20),
            step=True,
            progress=True,
            remainingTime=True,
            speed=True,
            temperature=True,
            totalSteps=args.steps,
            separator="\t",
        ),
    ]
    simulation.step(args.steps)
    state = simulation.context.getState(positions=True)
    with open(args.output / "final.pdb", "w") as file:
        app.PDBFile.writeFile(topology, state.getPositions(), file)
    print(integrator.statistics)
    print(f"wrote trajectory.dcd, log.csv and final.pdb to {args.output}")


if __name__ == "__main__":
    main()
