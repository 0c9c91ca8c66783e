"""A run from files to files: minimise, equilibrate, simulate, and resume after a stop."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import secrets
import sys
from pathlib import Path
from typing import Any, TextIO

import openmm
from openmm import app

from ..core.statistics import Statistics
from ..integrator.reporter import LSDReporter
from .case import Case, Log, begin, choose_platform
from .caseoptions import case_of
from .checkpoints import (
    CHECKPOINT,
    FINAL,
    LOG,
    LSD_LOG,
    TRAJECTORY,
    Checkpoints,
    go_back_to_checkpoint,
)
from .options import Options, positive_integer, whole_number, window_length
from .output import say
from .progress import Progress
from .wholemolecules import WholeMolecules

RUN_FILE = "run.json"  # the options of the first run


@dataclasses.dataclass
class Plan:
    """Lengths of a run, in steps.

    Equilibration takes 1000 steps, and none if the case has velocities to start from.
    """

    steps: int
    equilibration: int | None = None
    report_interval: int = 100
    checkpoint_interval: int = 1000


def simulate(
    case: Case,
    plan: Plan,
    output: Path,
    *,
    window: int | str = "auto",
    resume: bool = False,
    log: Log = lambda line: None,
    stream: TextIO | None = None,
) -> Statistics:
    """Run, and write trajectory, log, statistics of LSD, and checkpoints to ``output``.

    With ``resume`` the run continues from the last checkpoint: what was written after it is cut off
    and written again. On Ctrl-C a checkpoint is written first.

    Parameters
    ----------
    case : Case
        Its seed must be the same when a run is resumed.
    plan : Plan
        ``steps`` counts all steps after equilibration, those of earlier runs too.
    output : Path
        A directory.
    window : int or 'auto'
    resume : bool
    log : callable, optional
    stream : text stream, optional
        For the progress; default stderr.
    """
    integrator = case.integrator(window)
    chosen = choose_platform(case.target, case.platform)
    topology = copy.deepcopy(case.topology)  # its box is that of the files that are written
    box = case.target.getDefaultPeriodicBoxVectors() if case.is_periodic else None
    topology.setPeriodicBoxVectors(box)
    simulation = app.Simulation(topology, case.target, integrator, *chosen)
    log(case.description())
    output.mkdir(parents=True, exist_ok=True)
    if resume:
        simulation.context.setPositions(case.positions)
        go_back_to_checkpoint(simulation, output)
        log(f"resumed at step {simulation.currentStep} of {plan.steps}")
    else:
        _begin(simulation, case, plan, log)
    platform = simulation.context.getPlatform().getName()
    log(f"{case.conditions()}, platform {platform}")
    checkpoints = Checkpoints(output, plan.checkpoint_interval)
    progress = Progress(plan.steps, stream or sys.stderr)
    whole = WholeMolecules(topology, case.positions)
    files = Files(output, plan.report_interval, resume, whole, simulation.currentStep)
    simulation.reporters.extend([files, checkpoints, progress])
    if not resume:
        checkpoints.write(simulation)
    try:
        simulation.step(max(0, plan.steps - simulation.currentStep))
    except BaseException:
        progress.close()
        if files.complete(simulation):  # the state is the last committed one
            checkpoints.write(simulation)
        raise
    progress.close()
    checkpoints.write(simulation)
    frame = whole.frame(simulation.context.getState(positions=True))
    if case.is_periodic:
        topology.setPeriodicBoxVectors(frame.getPeriodicBoxVectors())
    with open(output / FINAL, "w") as file:
        app.PDBFile.writeFile(topology, frame.getPositions(), file)
    return integrator.statistics


def _begin(simulation: app.Simulation, case: Case, plan: Plan, log: Log) -> None:
    simulation.context.setPositions(case.positions)
    equilibration = plan.equilibration
    if equilibration is None:
        equilibration = 1000 if case.velocities is None else 0
    log(case.start_in_words)
    begin(simulation, case)
    if equilibration:
        log(f"equilibrating for {equilibration} steps")
        simulation.step(equilibration)
        # Step and time of what is written begin here; the integrator's random numbers go on.
        simulation.context.setStepCount(0)
        simulation.context.setTime(0.0)


class Trajectory(app.DCDReporter):
    """A DCDReporter of whole molecules."""

    def __init__(self, file: Path, interval: int, append: bool, whole: WholeMolecules) -> None:
        super().__init__(str(file), interval, append=append, enforcePeriodicBox=False)
        self._whole = whole

    def report(self, simulation: app.Simulation, state: openmm.State) -> None:
        """OpenMM's protocol."""
        super().report(simulation, self._whole.frame(state))


class Files:
    """Trajectory, log and statistics of LSD as one reporter that knows when it is at work."""

    def __init__(
        self, output: Path, interval: int, append: bool, whole: WholeMolecules, step: int
    ) -> None:
        self._interval = interval
        self._last, self._writing = step, False
        columns = ["step", "time", "potentialEnergy", "kineticEnergy", "temperature"]
        columns += ["volume"] * whole.periodic
        self._reporters: list[Any] = [
            Trajectory(output / TRAJECTORY, interval, append, whole),
            app.StateDataReporter(
                str(output / LOG), interval, append=append, **dict.fromkeys(columns, True)
            ),
            LSDReporter(output / LSD_LOG, interval, append=append),
        ]

    def describeNextReport(self, simulation: app.Simulation) -> dict[str, Any]:  # noqa: N802
        """OpenMM's protocol."""
        for reporter in self._reporters:
            reporter.describeNextReport(simulation)
        steps = self._interval - simulation.currentStep % self._interval
        return {"steps": steps, "periodic": False, "include": ["positions", "energy"]}

    def report(self, simulation: app.Simulation, state: openmm.State) -> None:
        """OpenMM's protocol."""
        self._writing = True
        for reporter in self._reporters:
            reporter.report(simulation, state)
        self._last, self._writing = simulation.currentStep, False

    def complete(self, simulation: app.Simulation) -> bool:
        """Write what is due at this step, if a run was stopped before it was; whether all is there.

        It is not if the run was stopped while something was written, or the state cannot be.
        """
        if self._writing:
            return False
        if simulation.currentStep % self._interval or simulation.currentStep == self._last:
            return True
        try:
            groups = simulation.integrator.getIntegrationForceGroups()
            state = simulation.context.getState(positions=True, energy=True, groups=groups)
            self.report(simulation, state)
        except Exception:
            return False
        return True


EXAMPLES = """examples:
  openmm-lsd run --topology X.prmtop --coordinates X.inpcrd --target X.pt --steps 100000
  openmm-lsd run --topology X.pdb --target openmmml:mace-off23-small --timestep 0.5
  openmm-lsd run --topology box.prmtop --coordinates box.rst7 --ml-atoms 'resname LIG' \\
      --environment box.prmtop --target X.pt
  openmm-lsd run --resume --output-dir lsd_output --steps 200000"""


def add_options(options: Options) -> None:
    """Of ``openmm-lsd run``."""
    add = options.group("run")
    add(
        "--steps",
        type=positive_integer,
        default=10_000,
        metavar="STEPS",
        help="total number of steps, including those before --resume; default 10000",
    )
    add(
        "--window",
        type=window_length,
        default="auto",
        metavar="K",
        help="length of windows in steps, or auto, which finds the fastest; default auto",
    )
    add(
        "--equilibration",
        type=whole_number,
        metavar="STEPS",
        help="steps before anything is written; default 1000, or 0 if the coordinates come with "
        "velocities",
    )
    add(
        "--report-interval",
        type=positive_integer,
        default=100,
        metavar="STEPS",
        help="between frames of the trajectory and rows of the logs; default 100",
    )
    add(
        "--checkpoint-interval",
        type=positive_integer,
        default=1000,
        metavar="STEPS",
        help="between checkpoints; default 1000",
    )
    add(
        "--output-dir",
        type=Path,
        default=Path("lsd_output"),
        metavar="DIRECTORY",
        help="trajectory, logs and checkpoint are written there; default lsd_output",
    )
    add(
        "--resume",
        action="store_true",
        help="continue from the checkpoint in --output-dir; all other options are taken from "
        "the first run, and only --steps can be changed",
    )


def main(args: argparse.Namespace) -> int:
    """``openmm-lsd run``; returns the exit status."""
    output, resume = args.output_dir, args.resume
    if resume:
        args = _options_of_first_run(args)
    elif (output / CHECKPOINT).exists():
        raise ValueError(
            f"{output} holds a run already; continue it with --resume, or choose another "
            "--output-dir"
        )
    seed = args.seed or secrets.randbelow(2**31 - 1) + 1
    args = argparse.Namespace(**{**vars(args), "seed": seed})
    case = case_of(args)
    if not resume:
        _write_options(args, output)
    plan = Plan(args.steps, args.equilibration, args.report_interval, args.checkpoint_interval)
    statistics = simulate(case, plan, output, window=args.window, resume=resume, log=say)
    say(str(statistics))
    say(f"wrote trajectory.dcd, log.csv, lsd.csv, {CHECKPOINT} and {FINAL} to {output}")
    return 0


def _write_options(args: argparse.Namespace, output: Path) -> None:
    skipped = ("given", "resume", "output_dir", "debug", "verbose", "name")
    options = {name: value for name, value in vars(args).items() if name not in skipped}
    output.mkdir(parents=True, exist_ok=True)
    (output / RUN_FILE).write_text(json.dumps(options, indent=2, default=str) + "\n")


def _options_of_first_run(args: argparse.Namespace) -> argparse.Namespace:
    file = args.output_dir / RUN_FILE
    if not file.is_file():
        raise FileNotFoundError(f"there is nothing to resume: {file} is missing")
    others = args.given - {"name", "resume", "output_dir", "steps", "debug", "verbose"}
    if others:
        option = "--" + sorted(others)[0].replace("_", "-")
        raise ValueError(f"with --resume {option} is that of the first run; leave it out")
    options = json.loads(file.read_text())
    for name in ("system", "topology", "coordinates"):
        options[name] = None if options[name] is None else Path(options[name])
    if "steps" in args.given:
        options["steps"] = args.steps
    return argparse.Namespace(**{**vars(args), **options})
