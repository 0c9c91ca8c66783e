"""A run from files to files: minimise, equilibrate, simulate; and go on after it was stopped."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from time import perf_counter
from typing import Any, TextIO

import openmm
from openmm import app, unit

from ..integrator import LSDIntegrator
from ..reporter import SECONDS_PER_DAY, LSDReporter
from ..sampler import Statistics
from .case import Case, Notice

TRAJECTORY, LOG, LSD_LOG, CHECKPOINT = "trajectory.dcd", "log.csv", "lsd.csv", "checkpoint.chk"
FILES, FINAL = "checkpoint.json", "final.pdb"
WRITTEN = (TRAJECTORY, LOG, LSD_LOG)
HEADER = 24  # bytes of a DCD file that change as it grows


@dataclasses.dataclass
class Plan:
    """Lengths of a run, in steps."""

    steps: int
    equilibration: int = 1000
    report_interval: int = 100
    checkpoint_interval: int = 1000


def simulate(
    case: Case,
    plan: Plan,
    output: Path,
    *,
    window: int | str = "auto",
    resume: bool = False,
    notice: Notice = lambda line: None,
    stream: TextIO | None = None,
) -> Statistics:
    """Run, and write trajectory, log, statistics of LSD, and checkpoints to ``output``.

    With ``resume`` the run goes on from the last checkpoint: what was written after it is cut off
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
    notice : callable, optional
    stream : text stream, optional
        For the progress; default stderr.
    """
    integrator = case.integrator(window)
    chosen = () if case.platform is None else (openmm.Platform.getPlatform(case.platform),)
    simulation = app.Simulation(case.topology, case.target, integrator, *chosen)
    output.mkdir(parents=True, exist_ok=True)
    if resume:
        simulation.context.setPositions(case.positions)
        _go_back_to_checkpoint(simulation, output)
        notice(f"going on at step {simulation.currentStep} of {plan.steps}")
    else:
        _begin(simulation, case, plan, notice)
    platform = simulation.context.getPlatform().getName()
    notice(f"{case.conditions()}, platform {platform}")
    checkpoints = Checkpoints(output, plan.checkpoint_interval)
    progress = Progress(plan.steps, stream or sys.stderr)
    periodic = case.topology.getPeriodicBoxVectors() is not None
    files = Files(output, plan.report_interval, append=resume, periodic=periodic)
    simulation.reporters = [files, checkpoints, progress]
    if not resume:
        checkpoints.write(simulation)
    try:
        simulation.step(max(0, plan.steps - simulation.currentStep))
    except BaseException:
        progress.close()
        if not files.writing:  # the state is the last committed one, and the reports are complete
            checkpoints.write(simulation)
        raise
    progress.close()
    checkpoints.write(simulation)
    state = simulation.context.getState(positions=True, enforcePeriodicBox=True)
    with open(output / FINAL, "w") as file:
        app.PDBFile.writeFile(case.topology, state.getPositions(), file)
    return integrator.statistics


def _begin(simulation: app.Simulation, case: Case, plan: Plan, notice: Notice) -> None:
    simulation.context.setPositions(case.positions)
    notice("minimising the energy")
    simulation.minimizeEnergy()
    seed = (case.seed,) if case.seed else ()
    simulation.context.setVelocitiesToTemperature(case.temperature * unit.kelvin, *seed)
    if plan.equilibration:
        notice(f"equilibrating for {plan.equilibration} steps")
        simulation.step(plan.equilibration)
        # Step and time of what is written begin here; the integrator's random numbers go on.
        simulation.currentStep = 0
        simulation.context.setTime(0.0)


class Files:
    """Trajectory, log and statistics of LSD as one reporter that knows when it is at work."""

    def __init__(self, output: Path, interval: int, append: bool, periodic: bool) -> None:
        self._interval = interval
        self.writing = False
        columns = ["step", "time", "potentialEnergy", "kineticEnergy", "temperature"]
        columns += ["volume"] * periodic
        self._reporters: list[Any] = [
            app.DCDReporter(str(output / TRAJECTORY), interval, append=append),
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
        return {"steps": steps, "periodic": None, "include": ["positions", "energy"]}

    def report(self, simulation: app.Simulation, state: openmm.State) -> None:
        """OpenMM's protocol."""
        self.writing = True
        for reporter in self._reporters:
            reporter.report(simulation, state)
        self.writing = False


class Checkpoints:
    """A reporter that writes checkpoints, and with each how long the other files were.

    Both files are replaced at once; the lengths of the checkpoint before are kept too, in case
    the process dies between the two.
    """

    def __init__(self, output: Path, interval: int) -> None:
        self._output, self._interval = output, interval
        self._lengths: dict[str, Any] = {}

    def describeNextReport(self, simulation: app.Simulation) -> dict[str, Any]:  # noqa: N802
        """OpenMM's protocol."""
        steps = self._interval - simulation.currentStep % self._interval
        return {"steps": steps, "periodic": None, "include": []}

    def report(self, simulation: app.Simulation, state: openmm.State) -> None:
        """OpenMM's protocol."""
        self.write(simulation)

    def write(self, simulation: app.Simulation) -> None:
        """Now."""
        step = str(simulation.currentStep)
        last = dict(list(self._lengths.items())[-1:])
        self._lengths = {**last, step: {name: _length(self._output / name) for name in WRITTEN}}
        _replace(self._output / FILES, json.dumps(self._lengths).encode())
        _replace(self._output / CHECKPOINT, simulation.context.createCheckpoint())


def _length(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {"size": 0, "header": ""}
    with open(file, "rb") as opened:
        return {"size": file.stat().st_size, "header": opened.read(HEADER).hex()}


def _replace(file: Path, content: bytes) -> None:
    new = file.with_name(file.name + ".new")
    with open(new, "wb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())
    os.replace(new, file)


def _go_back_to_checkpoint(simulation: app.Simulation, output: Path) -> None:
    for name in (CHECKPOINT, FILES):
        if not (output / name).is_file():
            raise FileNotFoundError(f"there is nothing to resume: {output / name} is missing")
    simulation.loadCheckpoint(str(output / CHECKPOINT))
    lengths = json.loads((output / FILES).read_text())
    try:
        lengths = lengths[str(simulation.currentStep)]
    except KeyError:
        raise ValueError(
            f"{output / FILES} does not belong to the checkpoint beside it (step "
            f"{simulation.currentStep})"
        ) from None
    for name, length in lengths.items():
        file = output / name
        if not file.is_file() or file.stat().st_size < length["size"]:
            raise ValueError(f"{file} is shorter than it was at the checkpoint; it must be whole")
    for name, length in lengths.items():
        with open(output / name, "r+b") as opened:
            opened.truncate(length["size"])
            opened.write(bytes.fromhex(length["header"]))


class Progress:
    """A reporter: one line that shows how far the run is; on a terminal it rewrites itself."""

    def __init__(self, steps: int, stream: TextIO) -> None:
        self._steps, self._stream = steps, stream
        self._live = stream.isatty()
        self._interval = max(1, steps // (500 if self._live else 20))
        self._begin: tuple[float, int, float, Statistics] | None = None
        self._shown = 0.0

    def describeNextReport(self, simulation: app.Simulation) -> dict[str, Any]:  # noqa: N802
        """OpenMM's protocol."""
        steps = self._interval - simulation.currentStep % self._interval
        return {"steps": steps, "periodic": None, "include": []}

    def report(self, simulation: app.Simulation, state: openmm.State) -> None:
        """OpenMM's protocol."""
        now = self._now(simulation)
        if self._begin is None:  # what came before the first report was not only steps
            self._begin = now
        if self._live and now[0] - self._shown < 0.2 and now[1] < self._steps:
            return
        self._shown = now[0]
        line = progress_line(self._begin, now, self._steps)
        self._stream.write(f"\r{line}\x1b[K" if self._live else line + "\n")
        self._stream.flush()

    @staticmethod
    def _now(simulation: app.Simulation) -> tuple[float, int, float, Statistics]:
        integrator = simulation.integrator
        assert isinstance(integrator, LSDIntegrator)
        step_size = integrator.getStepSize().value_in_unit(unit.nanosecond)
        return perf_counter(), simulation.currentStep, step_size, integrator.statistics

    def close(self) -> None:
        """End the line."""
        if self._live and self._shown:
            self._stream.write("\n")
            self._stream.flush()


def progress_line(
    begin: tuple[float, int, float, Statistics],
    now: tuple[float, int, float, Statistics],
    steps: int,
) -> str:
    """Share done, steps; and since ``begin`` ns/day, steps per round, time left."""
    done = now[1] / steps
    filled = round(24 * done)
    line = f"[{'#' * filled}{'.' * (24 - filled)}] {100 * done:5.1f} %  step {now[1]}/{steps}"
    seconds, advanced = now[0] - begin[0], now[1] - begin[1]
    if advanced <= 0:
        return line
    per_round = now[3].since(begin[3]).steps_per_round
    speed = advanced * now[2] * SECONDS_PER_DAY / seconds
    left = (steps - now[1]) * seconds / advanced
    return f"{line}  {speed:.3g} ns/day  {per_round:.2f} steps/round  {_clock(left)} left"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days} d " * bool(days) + f"{hours}:{minutes:02d}:{rest:02d}"
