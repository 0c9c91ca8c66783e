"""Does LSD pay here, and with which window? From some 200 steps."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from .. import theory
from ..contexts.checks import barostat_frequency, masses_of
from ..core.statistics import Round
from ..plots import speed_up
from ..targets import BatchedTarget
from .case import Array, Case, Log, Run
from .caseoptions import case_of
from .options import Options, positive_integer
from .output import Output, add_output_options
from .timing import fastest_plain, seconds_per_step_of_a_block, settings_of

WINDOWS = (4, 8, 16, 24, 48)
ROUNDS = 6  # of a window, before the next one has its turn
UNTIMED_ROUNDS = 2  # after a change of the window: corrections and code are of another length
PLAIN_STEPS = 10  # at least, and as many as take PLAIN_SECONDS
UNTIMED_SECONDS, PLAIN_SECONDS = 0.05, 0.2
PASSES = 2  # at least, and
MOST_PASSES, ENOUGH_SECONDS = 4, 5.0  # where they are fast
WARM_UP_OF_AUTO = 1000  # steps in which it learns
PAYS = 1.1  # such a gain is beyond the errors of this estimate
OFFSET_STEPS = 40  # on which the discrepancy's rate of change is measured


@dataclasses.dataclass
class WindowEstimate:
    """Of one window; times in seconds per round."""

    window: int
    steps_per_round: float
    target_seconds: float
    draft_seconds: float
    overhead_seconds: float
    speed_up: float


@dataclasses.dataclass
class Estimate:
    """What ``estimate`` found."""

    plain: str
    plain_seconds: float  # per step
    windows: list[WindowEstimate]
    constant_offset_steps: float  # per round, of the published rule in the longest window: theory
    noise_shifts: list[float | None]  # of steps measured 0, 1, 2, 3 or more times before
    steps: int
    seconds: float

    @property
    def best(self) -> WindowEstimate:
        """The window with the greatest speed-up."""
        return max(self.windows, key=lambda each: each.speed_up)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**dataclasses.asdict(self), "best window": self.best.window}

    def __str__(self) -> str:
        lines = [
            f"plain step, t_target(1): {1e3 * self.plain_seconds:.2f} ms ({self.plain})",
            "",
            f"{'K':>4s}{'t_target(K)':>13s}{'K t_draft':>11s}{'other':>8s}"
            f"{'steps/round':>13s}{'speed-up':>10s}",
        ]
        for each in self.windows:
            times = (each.target_seconds, each.draft_seconds, each.overhead_seconds)
            target, draft, other = (1e3 * seconds for seconds in times)
            lines.append(
                f"{each.window:4d}{target:10.2f} ms{draft:8.2f} ms{other:5.2f} ms"
                f"{each.steps_per_round:13.2f}{each.speed_up:10.2f}"
            )
        best = self.best
        shifts = ("-" if shift is None else f"{shift:.2f}" for shift in self.noise_shifts)
        lines += [
            "",
            "mean noise shift of steps measured 0, 1, 2, 3 or more times before: "
            + ", ".join(shifts),
            "",
            self.verdict(),
        ]
        if best.speed_up > 1:
            lines.append(
                f"windowLength='auto' finds it by itself; the published rule (one constant offset) "
                f"would commit {self.constant_offset_steps:.2f} steps per round here."
            )
        return "\n".join(lines)

    def verdict(self) -> str:
        """In one sentence."""
        best = self.best
        if best.speed_up > 1:
            begin = "LSD pays here" if best.speed_up > PAYS else "LSD gains little here"
            return (
                f"{begin}: about {best.speed_up:.2f} times as fast as plain dynamics, with "
                f"K = {best.window}."
            )
        cheapest = best.target_seconds / self.plain_seconds
        return (
            f"LSD does not pay here: a batch of {best.window} costs what {cheapest:.1f} plain "
            f"steps cost, and {best.steps_per_round:.1f} of its steps are committed. "
            "windowLength='auto' would do plain steps."
        )


def estimate(
    case: Case,
    *,
    steps: int = 200,
    warm_up: int = 100,
    windows: Sequence[int] = WINDOWS,
    run: Run | None = None,
    log: Log = lambda line: None,
) -> Estimate:
    """Predict the speed-up over plain dynamics for several windows.

    Windows take turns with each other and with plain steps. Steps per round come from the noise
    shifts at all sites that were reached (``theory.rejection_by_site``) and are smoothed; times
    come from the clock.

    Parameters
    ----------
    case : Case
    steps : int
        LSD steps to measure on, at least; every window has its turn at least twice.
    warm_up : int
        LSD steps before; a draft that learns needs thousands until it is at its best.
    windows : sequence of int
        Those with room between a barostat's moves are taken.
    run : Run, optional
        An LSD run of the case with windowLength='auto' that is warm already.
    log : callable, optional
        Gets lines about the progress.

    Raises
    ------
    ValueError
        If a window is of one step, or none has room.
    """
    begin = perf_counter()
    windows = windows_with_room(case, windows, log)
    if run is None:
        run = case.lsd("auto")
        log(f"{case.start_in_words}; {warm_up} steps of LSD")
        run.equilibrate(case, warm_up)
    plain = fastest_plain(case, run.state_in_box, 2 * PLAIN_STEPS, log)
    plain.set_state(*run.state_in_box)
    log(f"windows {', '.join(map(str, windows))} in turns")
    turns, before = _Turns(run), run.integrator.statistics
    plain_seconds: list[float] = []
    passes, started = 0, perf_counter()
    with turns.taken():
        while _go_on(passes, turns.steps < steps, perf_counter() - started):
            turns.warm_up(min(windows))
            for window in windows:
                turns.take(window)
            plain_seconds.append(
                seconds_per_step_of_a_block(
                    plain, untimed=UNTIMED_SECONDS, timed=PLAIN_SECONDS, least=PLAIN_STEPS
                )
            )
            passes += 1
        offset_steps = _constant_offset_steps(case, run, max(windows))
    plain_step = float(np.median(plain_seconds))
    measured = [turns.steps_per_round(window) for window in windows]
    return Estimate(
        settings_of(plain),
        plain_step,
        [
            turns.estimate(window, plain_step, steps)
            for window, steps in zip(windows, smooth(windows, measured), strict=True)
        ],
        offset_steps,
        run.integrator.statistics.since(before).noise_shifts_by_measurement,
        turns.steps,
        perf_counter() - begin,
    )


def windows_with_room(case: Case, windows: Sequence[int], log: Log) -> list[int]:
    """The windows (at least 2) that are not longer than the steps between a barostat's moves."""
    if not windows:
        raise ValueError("there are no windows to try")
    if min(windows) < 2:
        raise ValueError("a window of one step is plain dynamics: windows begin at 2 steps")
    room = barostat_frequency(case.target)
    if room is None or max(windows) <= room:
        return list(windows)
    found = [window for window in windows if window <= room]
    if not found:
        raise ValueError(
            f"the barostat moves every {room} steps, and there is no room for a window of "
            f"{min(windows)}; give shorter ones"
        )
    log(f"the barostat moves every {room} steps: no longer windows are tried")
    return found


def _go_on(passes: int, too_few_steps: bool, seconds: float) -> bool:
    """A fast potential is disturbed more by other programs, and its passes cost little."""
    disturbed = passes < MOST_PASSES and seconds < ENOUGH_SECONDS
    return passes < PASSES or too_few_steps or disturbed


class _Turns:
    """Takes the place of the run's WindowTuner, and keeps what each round did and took."""

    def __init__(self, run: Run) -> None:
        self._run = run
        run.step(1)  # binds integrator and Context
        self.window = 0
        self.steps = 0
        self._since_change = 0
        self._rounds: dict[int, list[Round]] = {}
        self._times: dict[int, list[tuple[float, float, float]]] = {}  # all, target, draft
        self._in_rounds = self._between_rounds = 0.0  # seconds
        self._spent = self._statistics()
        self._last: Round | None = None

    @contextmanager
    def taken(self) -> Iterator[None]:
        """While this lasts the windows are those of ``take``."""
        integrator = self._run.integrator
        integrator.round_callbacks.append(self._watch)
        try:
            with integrator.probe().tuned_by(self):
                yield
        finally:
            integrator.round_callbacks.remove(self._watch)

    def warm_up(self, window: int) -> None:
        """Rounds after something else, which do not count."""
        self.window, self._since_change = window, -ROUNDS
        while self._since_change < 0:
            self._run.step(PLAIN_STEPS)

    def take(self, window: int) -> None:
        """So many rounds of this window."""
        self.window, self._since_change = window, 0
        before, begin = self._run.integrator.statistics.steps, perf_counter()
        in_rounds = self._in_rounds
        while self._since_change < ROUNDS + UNTIMED_ROUNDS:
            self._run.step(PLAIN_STEPS)
        done = self._run.integrator.statistics.steps - before
        self.steps += done
        self._between_rounds += perf_counter() - begin - (self._in_rounds - in_rounds)

    def record(self, committed: int, seconds: float, rounds: int = 1) -> None:
        """As WindowTuner; called after every round, before the callbacks."""
        self._since_change += 1
        self._in_rounds += seconds
        before, self._spent = self._spent, self._statistics()
        if self._since_change > UNTIMED_ROUNDS:
            target, draft = (now - then for now, then in zip(self._spent, before, strict=True))
            self._times.setdefault(self.window, []).append((seconds, target, draft))

    def _statistics(self) -> tuple[float, float]:
        statistics = self._run.integrator.statistics
        return statistics.target_seconds, statistics.draft_seconds

    def _watch(self, became: Round) -> None:
        if self._since_change > UNTIMED_ROUNDS:
            self._rounds.setdefault(self.window, []).append(became)

    def steps_per_round(self, window: int) -> float:
        """Expected, from the noise shifts in the rounds of this window."""
        # In others the same site has been drafted more often, or less.
        rejections = theory.rejection_by_site(self._rounds[window])
        missing = max(0, window - 1 - len(rejections))
        rejections = np.append(rejections, np.full(missing, rejections[-1:].sum()))
        return float(theory.expected_steps(rejections, window))

    def estimate(self, window: int, plain_seconds: float, steps: float) -> WindowEstimate:
        """With the times of this window's rounds."""
        seconds, target, draft = np.median(self._times[window], axis=0)
        other = seconds - target - draft + steps * self._between_rounds / self.steps
        return WindowEstimate(
            window,
            steps,
            float(target),
            float(draft),
            float(other),
            theory.speed_up(steps, plain_seconds, target, draft + other),
        )


def smooth(windows: Sequence[int], steps: Sequence[float]) -> list[float]:
    """Steps per round on the curve 1 + A (1 - exp(-(K - 1) / B)) that is closest to them.

    A few rounds of each window tell little about that window, but together enough.
    """
    if len(windows) < 3:
        return list(steps)
    from scipy.optimize import least_squares  # its import takes as long as that of all the rest

    beyond, measured = np.array(windows) - 1.0, np.array(steps)

    def curve(parameters: Array) -> Array:
        rise, range_ = np.exp(parameters)
        return 1.0 - rise * np.expm1(-beyond / range_)

    fit = least_squares(
        lambda parameters: curve(parameters) / measured - 1.0,
        np.log([measured.max(), np.median(beyond) + 1.0]),
        bounds=(-20.0, 10.0),
    )
    return [float(value) for value in curve(fit.x)]


def _constant_offset_steps(case: Case, run: Run, window: int) -> float:
    """Of the published rule, from the discrepancies along a piece of the run."""
    sites = []
    scheme = case.build_scheme()
    for _ in range(window + OFFSET_STEPS):
        run.step(1)
        sites.append(scheme.site(*run.state))
    positions: Array = np.stack(sites)
    discrepancies = run.integrator.probe().discrepancies(positions)
    structure = theory.structure_function(discrepancies, masses_of(case.target), window)
    return theory.constant_offset_steps(structure, scheme, window)


EXAMPLES = """examples:
  openmm-lsd estimate --topology X.prmtop --coordinates X.inpcrd --target X.pt
  openmm-lsd estimate --topology X.pdb --target 'ase:tblite.ase:TBLite(method="GFN2-xTB")'
  openmm-lsd estimate --system systems/ibuprofen --timestep 0.5 --json > estimate.json"""


def add_options(options: Options) -> None:
    """Of ``openmm-lsd estimate``."""
    add = options.group("estimate")
    add(
        "--steps",
        type=positive_integer,
        default=200,
        metavar="STEPS",
        help="measure on at least this number of steps; default 200",
    )
    windows = [4, 8, 12, 16, 24]
    words = " ".join(map(str, windows))
    add(
        "--windows",
        type=positive_integer,
        nargs="+",
        default=windows,
        metavar="K",
        help=f"lengths of windows in steps; default {words}",
    )
    add(
        "--warm-up",
        type=positive_integer,
        metavar="STEPS",
        help="before measuring, in which drafts learn; default 100, or 1000 for draft auto",
    )
    add_output_options(add, "a picture of the speed-up", old=("figure",))


def main(args: argparse.Namespace) -> int:
    """``openmm-lsd estimate``; returns the exit status."""
    with Output(args) as output:
        return _run(args, output)


def _run(args: argparse.Namespace, output: Output) -> int:
    case = case_of(args)
    output.say_what(case)
    warm_up = args.warm_up
    if warm_up is None:
        warm_up = WARM_UP_OF_AUTO if isinstance(case.draft, str) else 100
    windows = sorted(set(args.windows))
    result = estimate(case, steps=args.steps, warm_up=warm_up, windows=windows, log=output.say)
    output.say(f"\n{result}\n\n{result.steps} steps of LSD, {result.seconds:.0f} s")
    found = {"estimate": result.as_dict()}
    if isinstance(case.draft, BatchedTarget):
        output.say("\nthe same with draft='auto'")
        automatic = estimate(
            dataclasses.replace(case, draft="auto"),
            steps=args.steps,
            warm_up=args.warm_up or WARM_UP_OF_AUTO,
            windows=windows,
            log=output.say,
        )
        output.say(f"\n{automatic}\n\n{compare_drafts(result, automatic)}")
        found["estimate, draft auto"] = automatic.as_dict()
    output.write_results("estimate", case, **found)
    output.draw("speed_up.png", "figure", partial(_draw, result))
    return 0


def compare_drafts(given: Estimate, automatic: Estimate) -> str:
    """Which of two drafts pays more, in one sentence."""
    speeds = [max(1.0, each.best.speed_up) for each in (given, automatic)]
    better = "your draft" if speeds[0] > speeds[1] else "draft='auto'"
    return (
        f"Take {better}: {speeds[0]:.2f} times plain dynamics with your draft, "
        f"{speeds[1]:.2f} with draft='auto'."
    )


def _draw(result: Estimate, file: Path) -> None:
    windows = [each.window for each in result.windows]
    predicted = [each.speed_up for each in result.windows]
    steps = [each.steps_per_round for each in result.windows]
    figure = speed_up(windows, predicted=predicted, predicted_steps_per_round=steps)
    figure.savefig(file, dpi=150)
