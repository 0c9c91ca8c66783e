"""Plain dynamics against LSD on the same System, in one process, in alternating blocks."""

from __future__ import annotations

import copy
import dataclasses
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import openmm

from ..contexts.cores import allowed_cores
from ..contexts.forcecontext import fastest_context
from ..core.clock import Times
from ..core.statistics import Statistics
from ..integrator.integrator import LSDIntegrator
from ..systems import with_target
from ..targets import SystemTarget
from ..targets.base import Array, BatchedTarget, Evaluation
from .case import Case, Notice, Run
from .estimate import Estimate, estimate
from .timing import fastest_plain, seconds_per_step, settings_of

SECONDS_PER_DAY = 86400.0
LEAST_BLOCKS = 5
BLOCK_SECONDS, BLOCK_STEPS = 0.5, (100, 1000)
PLAIN_STEPS = 20  # to find the fastest plain dynamics
UNSOUND = 10.0  # times the bath's temperature
OFFSET_WINDOW = 8  # of the published rule, where LSD's own is tuned down to plain steps


@dataclasses.dataclass
class Row:
    """One way to run; ``seconds`` per step of each block, in the order of the blocks."""

    name: str
    settings: str
    seconds: list[float]
    temperatures: list[float]
    steps: int = 0  # of a block
    blew_up: bool = False
    spent: Statistics | None = None

    def against(self, plain: Row, step_size: float) -> dict[str, Any]:
        """Numbers of the table; plain dynamics is the measure."""
        ratios = np.array(plain.seconds) / np.array(self.seconds)
        temperatures = np.array(self.temperatures)
        result: dict[str, Any] = {
            "run": self.name,
            "settings": self.settings,
            "ns/day": 1e-3 * step_size * SECONDS_PER_DAY / float(np.median(self.seconds)),
            "ms per step": 1e3 * float(np.median(self.seconds)),
            "ratio": float(np.median(ratios)),
            "ratio quartiles": [float(q) for q in np.quantile(ratios, [0.25, 0.75])],
            "blocks": len(self.seconds),
            "steps per block": self.steps,
            "temperature, K": None if self.blew_up else float(temperatures.mean()),
        }
        if self.spent is not None:
            spent = self.spent
            result |= {
                "steps per round": spent.steps_per_round,
                "acceptance rate": spent.acceptance_rate,
                "window": spent.window_length,
                "target share": spent.target_seconds / spent.seconds,
                "draft share": spent.draft_seconds / spent.seconds,
                "learning share": spent.learning_seconds / spent.seconds,
                "overhead share": spent.overhead_seconds / spent.seconds,
            }
        return result


@dataclasses.dataclass
class Benchmark:
    """What ``benchmark`` measured: the first row is plain dynamics, then LSD, then the others."""

    case: Case
    rows: list[dict[str, Any]]
    estimates: dict[str, Estimate] = dataclasses.field(default_factory=dict)  # by row

    @property
    def lsd(self) -> dict[str, Any]:
        """The row of LSD; of several windows the fastest."""
        rows = [
            row for row in self.rows if row["run"].startswith("LSD") and "auto" not in row["run"]
        ]
        return max(rows, key=lambda row: row["ratio"])

    @property
    def speed_up(self) -> float:
        """Wall time of plain dynamics over that of LSD, median of the blocks."""
        return self.lsd["ratio"]

    def curve(self) -> tuple[list[int], list[float], list[list[float]], list[float]]:
        """Windows, speed-ups, their quartiles, steps per round; of the rows with a fixed window."""
        rows = [row for row in self.rows if row["run"].startswith("LSD, K")]
        return (
            [row["window"] for row in rows],
            [row["ratio"] for row in rows],
            [row["ratio quartiles"] for row in rows],
            [row["steps per round"] for row in rows],
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        case = self.case
        return {
            "system": case.name,
            "atoms": case.atoms,
            "temperature, K": case.temperature,
            "friction, 1/ps": case.friction,
            "timestep, fs": 1e3 * case.step_size,
            "scheme": case.scheme,
            "rows": self.rows,
            "estimates": {name: each.as_dict() for name, each in self.estimates.items()},
        }

    def time_breakdown(self) -> dict[str, dict[str, float]]:
        """Milliseconds per step of every row, by what they were spent on."""
        return {
            row["run"]: {
                part: row["ms per step"] * row.get(f"{part} share", float(part == "target"))
                for part in ("target", "draft", "learning", "overhead")
            }
            for row in self.rows
        }

    def __str__(self) -> str:
        lines = [
            f"{'':20s}{'settings':28s}{'ns/day':>8s}{'ms/step':>9s}{'speed-up':>10s}"
            f"{'quartiles':>14s}{'T, K':>10s}{'steps/round':>13s}  target/draft/learning/other"
        ]
        for row in self.rows:
            quartiles = "{:.2f} to {:.2f}".format(*row["ratio quartiles"])
            kelvin, error = row["temperature, K"], self._temperature_error(row)
            temperature = "blew up" if kelvin is None else f"{kelvin:.0f}({error:.0f})"
            line = (
                f"{row['run']:20s}{row['settings']:28s}{row['ns/day']:8.2f}"
                f"{row['ms per step']:9.2f}{row['ratio']:10.2f}{quartiles:>14s}{temperature:>10s}"
            )
            if "steps per round" in row:
                names = ("target", "draft", "learning", "overhead")
                shares = " / ".join(f"{100 * row[name + ' share']:.0f}" for name in names)
                line += f"{row['steps per round']:13.2f}  {shares} %"
            lines.append(line)
        lines += ["", self.verdict()]
        for name, found in self.estimates.items():
            rows = [row for row in self.rows if row["run"] == name] or [self.lsd]
            for row in rows:
                off = 100 * (found.best.speed_up / row["ratio"] - 1)
                lines.append(
                    f"{row['run']}: predicted from {found.steps} steps {found.best.speed_up:.2f}, "
                    f"measured {row['ratio']:.2f} ({off:+.0f} %)."
                )
        return "\n".join(lines)

    def _temperature_error(self, row: dict[str, Any]) -> float:
        """Standard error of the mean. Values two correlation times apart are independent, and that
        time is 1/gamma for the energy."""
        case = self.case
        picoseconds = row["blocks"] * row["steps per block"] * case.step_size
        independent = 1.0 + 0.5 * picoseconds * case.friction
        return case.temperature * float(np.sqrt(2.0 / case.degrees_of_freedom / independent))

    def verdict(self) -> str:
        """In one sentence, about the fastest LSD."""
        plain = self.rows[0]
        speculative = max(
            (row for row in self.rows if row["run"].startswith("LSD")), key=lambda row: row["ratio"]
        )
        ratio, committed = speculative["ratio"], speculative["steps per round"]
        cost = speculative["ms per step"] * committed * speculative["target share"]
        slower = "" if ratio >= 1 else " (slower)"
        return (
            f"{speculative['run']}: {ratio:.2f} times as fast as plain dynamics here{slower}: each "
            f"batch gives {committed:.2f} exact steps and costs what "
            f"{cost / plain['ms per step']:.2f} plain steps cost."
        )


def benchmark(
    case: Case,
    *,
    seconds: float = 60.0,
    block: int | None = None,
    warm_up: int = 1000,
    windows: Sequence[int] = (),
    also_auto: bool = False,
    predict: bool = False,
    notice: Notice = lambda line: None,
) -> Benchmark:
    """Time plain dynamics, LSD, the published rule, and multiple time steps.

    Each in its fastest form: plain dynamics on the platform and with the number of threads that
    are fastest, LSD on the same platform and with the window that its tuner finds, or with each of
    ``windows``. The published rule (one constant offset) and OpenMM's MTSLangevinIntegrator
    (draft as the inner force, target minus draft as the outer one: not exact) need a draft System.

    Parameters
    ----------
    case : Case
    seconds : float
        Of measurement; at least five blocks.
    block : int, optional
        Steps. Default: as many as plain dynamics does in half a second, from 100 to 1000. After a
        change of runs nothing is in the caches, and a user's run changes never.
    warm_up : int
        Steps of LSD before, in which a draft learns and the window is found.
    windows : sequence of int
        A row for each, instead of one with 'auto'.
    also_auto : bool
        A row with the draft 'auto' and window 'auto', besides that of the draft System.
    predict : bool
        Whether to ``estimate`` after the warm-up.
    notice : callable, optional
    """
    scout = case.plain()
    notice("minimising")
    scout.equilibrate(case, 1)
    plain = fastest_plain(case, scout.state, PLAIN_STEPS, notice)
    if block is None:
        steps = round(BLOCK_SECONDS / seconds_per_step(plain, PLAIN_STEPS))
        block = int(np.clip(steps, *BLOCK_STEPS))
    # Where LSD does plain steps its Context does them: no slower platform for it.
    case = dataclasses.replace(case, platform=plain.platform)
    speculative = {f"LSD, K = {window}": case.lsd(window) for window in windows}
    first = next(iter(speculative.values())) if windows else case.lsd("auto")
    notice(f"{first.platform}: {warm_up} steps of LSD")
    first.state = scout.state
    first.step(warm_up)
    state = first.state
    estimates: dict[str, Estimate] = {}
    if predict:
        options = {"windows": windows, "warm_up": warm_up} if windows else {"run": first}
        estimates["LSD"] = estimate(case, notice=notice, **options)
        notice(f"\n{estimates['LSD']}\n")
    runs: dict[str, Run] = {"plain": plain, **(speculative or {"LSD": first})}
    if also_auto and case.draft != "auto":
        notice(f"{warm_up} steps of LSD with draft='auto'")
        runs["LSD, auto draft"] = automatic = case.lsd("auto", "auto")
        automatic.state = state
        automatic.step(warm_up)
        if predict:
            found = estimate(dataclasses.replace(case, draft="auto"), run=automatic, notice=notice)
            estimates["LSD, auto draft"] = found
            notice(f"\n{found}\n")
    if isinstance(case.draft, openmm.System):
        window = first.integrator.statistics.window_length
        rule = case.integrator(window if window > 1 else OFFSET_WINDOW, kind=ConstantOffset)
        runs["constant offset"] = Run(case, rule, case.platform)
        for ratio in (2, 4):
            runs[f"MTS, {ratio} steps"] = MultipleTimeSteps(case, ratio, state[0])
    rows = measured(case, runs, state, seconds, block, notice)
    return Benchmark(case, rows, estimates)


def measured(
    case: Case,
    runs: dict[str, Run],
    state: tuple[Array, Array],
    seconds: float,
    block: int,
    notice: Notice,
) -> list[dict[str, Any]]:
    """Rows of a Benchmark: the runs in turns from one state, the first of them plain dynamics."""
    notice(f"{', '.join(runs)} in turns, for {seconds:g} s")
    for run in runs.values():
        run.state = state
        run.step(max(8, block // 4 // 8 * 8))
    rows = {name: Row(name, "", [], []) for name in runs}
    before = {name: run.integrator.statistics for name, run in runs.items() if _is_lsd(run)}
    begin = perf_counter()
    while perf_counter() - begin < seconds or len(rows["plain"].seconds) < LEAST_BLOCKS:
        for name, run in runs.items():
            # The published rule needs about as many rounds as steps; a shorter block will do.
            steps = max(8, block // 5) if name == "constant offset" else block
            rows[name].steps = steps
            rows[name].seconds.append(seconds_per_step(run, steps))
            rows[name].temperatures.append(case.temperature_of(run.state[1]))
    for name, run in runs.items():
        rows[name].settings = settings_of(run)
        hottest = max(rows[name].temperatures)
        rows[name].blew_up = run.blew_up or not hottest < UNSOUND * case.temperature
        if name in before:
            spent = rows[name].spent = run.integrator.statistics.since(before[name])
            rows[name].settings = f"{run.platform}, K = {spent.window_length}"
    return [row.against(rows["plain"], case.step_size) for row in rows.values()]


def _is_lsd(run: Run) -> bool:
    return hasattr(run.integrator, "watchers")


class ConstantOffset(LSDIntegrator):
    """The published rule: one offset, the discrepancy of the last committed step."""

    _correction = "constant"


class MultipleTimeSteps(Run):
    """MTSLangevinIntegrator: ``ratio`` steps of the draft for each of target minus draft."""

    def __init__(self, case: Case, ratio: int, positions: Array) -> None:
        assert isinstance(case.draft, openmm.System)
        self._ratio = ratio
        self._start: tuple[Array, Array] | None = None
        platform = openmm.Platform.getPlatform(case.platform or "Reference")
        target = SystemTarget(case.target, positions, platform=platform.getName())
        target.prepare(positions, 1)
        system = with_target(case.target, Difference(target, case.draft, positions))
        outer = system.getForce(0)
        outer.setForceGroup(1)
        for force in case.draft.getForces():
            if not isinstance(force, openmm.CMMotionRemover):
                inner = copy.deepcopy(force)
                inner.setForceGroup(0)
                system.addForce(inner)
        integrator = openmm.MTSLangevinIntegrator(
            case.temperature, case.friction, ratio * case.step_size, [(1, 1), (0, ratio)]
        )
        integrator.setRandomNumberSeed(case.seed)
        super().__init__(dataclasses.replace(case, target=system), integrator, platform.getName())

    def step(self, steps: int) -> None:
        """So many of the draft's steps, rounded down to whole ones of the target.

        If the particles fly apart they are put back to where they were at first.
        """
        if self._start is None:
            self._start = self.state
        try:
            super().step(steps // self._ratio)
        except openmm.OpenMMException as error:
            if "NaN" not in str(error):
                raise
            self.blew_up = True
            self.state = self._start
            super().step(steps // self._ratio)


class Difference(BatchedTarget):
    """Target minus draft."""

    def __init__(self, target: BatchedTarget, draft: openmm.System, positions: Array) -> None:
        self._target, self._draft = target, fastest_context(draft, positions)
        self.uses_times = target.uses_times or self._draft.uses_times

    def evaluate(self, positions: Array, box: Array | None = None) -> Evaluation:
        """See BatchedTarget."""
        return self.evaluate_at(positions, box)

    def evaluate_at(
        self, positions: Array, box: Array | None = None, times: Times | None = None
    ) -> Evaluation:
        """See BatchedTarget."""
        times = Times.same(len(positions)) if times is None else times
        energies, forces = self._target.evaluate_at(positions, box, times)
        self._draft.set_environment(box, {})
        draft_energies, draft_forces = self._draft.evaluate(positions, times)
        return energies - draft_energies, forces - draft_forces


def machine() -> dict[str, Any]:
    """Processor, GPU and versions."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0].split(":")[1].strip() if names else model
    about: dict[str, Any] = {
        "processor": model,
        "cores": allowed_cores(),
        "python": platform.python_version(),
        "openmm": openmm.version.short_version,
    }
    for package in ("torch", "openmm-lsd"):
        try:
            about[package] = version(package)
        except PackageNotFoundError:
            continue
    try:
        import torch
    except ImportError:
        return about
    if torch.cuda.is_available():
        about["GPU"] = torch.cuda.get_device_name()
    return about
