"""Plain dynamics against LSD on the same System, in one process, in alternating blocks."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import openmm

from ..integrator.integrator import LSDIntegrator
from ..plots import speed_up, time_breakdown
from .case import Array, Case, Log, Run, StateInBox
from .caseoptions import case_of
from .estimate import Estimate, estimate, windows_with_room
from .machine import machine
from .multipletimesteps import MultipleTimeSteps
from .options import Options, positive_integer, positive_number, window_length
from .output import Output, add_output_options
from .rows import Benchmark, Kind, Row, Spent
from .timing import fastest_plain, seconds_per_step, settings_of, step_for

__all__ = ["Benchmark", "Way", "benchmark", "machine", "time_in_turns"]

SECONDS_PER_DAY = 86400.0
MIN_BLOCKS = 5
BLOCK_SECONDS, BLOCK_STEPS = 0.5, (100, 1000)
UNTIMED_SECONDS, UNTIMED_STEPS = 0.05, 4  # at least, before each block
PLAIN_STEPS = 20  # to find the fastest plain dynamics
UNSOUND = 10.0  # times the bath's temperature
OFFSET_WINDOW = 8  # of the published rule, where LSD's own is tuned down to plain steps


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to run, before it is timed."""

    name: str
    kind: Kind
    run: Run
    has_fixed_window: bool = False


def benchmark(
    case: Case,
    *,
    seconds: float = 60.0,
    block: int | None = None,
    warm_up: int = 1000,
    windows: Sequence[int] = (),
    also_auto: bool = False,
    predict: bool = False,
    log: Log = lambda line: None,
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
        Steps. Default: as many as plain dynamics does in half a second, from 100 to 1000. Short
        blocks time cold caches, which a run without interruptions does not have.
    warm_up : int
        Steps of LSD before, in which a draft learns and the window is found.
    windows : sequence of int
        A row for each that has room between a barostat's moves, instead of one with 'auto'.
    also_auto : bool
        A row with the draft 'auto' and window 'auto', besides that of the draft System.
    predict : bool
        Whether to ``estimate`` after the warm-up.
    log : callable, optional
    """
    if windows:
        windows = windows_with_room(case, windows, log)
    scout = case.plain()
    log(case.start_in_words)
    scout.equilibrate(case, 1)
    plain = fastest_plain(case, scout.state_in_box, PLAIN_STEPS, log)
    if block is None:
        steps = round(BLOCK_SECONDS / seconds_per_step(plain, PLAIN_STEPS))
        block = int(np.clip(steps, *BLOCK_STEPS))
    # Where LSD does plain steps its Context does them: no slower platform for it.
    case = dataclasses.replace(case, platform=plain.platform)
    speculative = _speculative(case, windows)
    first = speculative[0].run
    log(f"{first.platform}: {warm_up} steps of LSD")
    first.set_state(*scout.state_in_box)
    first.step(warm_up)
    state = first.state_in_box
    ways = [Way(Kind.PLAIN.value, Kind.PLAIN, plain), *speculative]
    estimates: dict[Kind, Estimate] = {}
    if predict:
        options = {"windows": windows, "warm_up": warm_up} if windows else {"run": first}
        estimates[Kind.LSD] = _predicted(case, log, **options)
    if also_auto and case.draft != "auto":
        log(f"{warm_up} steps of LSD with draft='auto'")
        automatic = case.lsd("auto", "auto")
        automatic.set_state(*state)
        automatic.step(warm_up)
        ways.append(Way(Kind.AUTO_DRAFT.value, Kind.AUTO_DRAFT, automatic))
        if predict:
            with_auto = dataclasses.replace(case, draft="auto")
            estimates[Kind.AUTO_DRAFT] = _predicted(with_auto, log, run=automatic)
    if isinstance(case.draft, openmm.System):
        ways += _others(case, first.integrator.statistics.window_length, state[0])
    rows = time_in_turns(case, ways, state, seconds, block, log)
    return Benchmark(case, rows, estimates)


def _speculative(case: Case, windows: Sequence[int]) -> list[Way]:
    """LSD with each of the windows, or with 'auto'."""
    if not windows:
        return [Way(Kind.LSD.value, Kind.LSD, case.lsd("auto"))]
    return [
        Way(f"{Kind.LSD.value}, K = {window}", Kind.LSD, case.lsd(window), has_fixed_window=True)
        for window in windows
    ]


def _predicted(case: Case, log: Log, **options: Any) -> Estimate:
    found = estimate(case, log=log, **options)
    log(f"\n{found}\n")
    return found


def _others(case: Case, window: int, positions: Array) -> Iterator[Way]:
    """The published rule, and multiple time steps."""
    rule = case.integrator(window if window > 1 else OFFSET_WINDOW, kind=ConstantOffset)
    kind = Kind.CONSTANT_OFFSET
    yield Way(kind.value, kind, Run(case, rule, case.platform))
    kind = Kind.MULTIPLE_TIME_STEPS
    for ratio in (2, 4):
        run = MultipleTimeSteps(case, ratio, positions)
        yield Way(f"{kind.value}, {ratio} steps", kind, run)


class ConstantOffset(LSDIntegrator):
    """The published rule: one offset, the discrepancy of the last committed step."""

    _correction = "constant"


def time_in_turns(
    case: Case,
    ways: Sequence[Way],
    state: StateInBox,
    seconds: float,
    block: int,
    log: Log,
) -> list[Row]:
    """Rows of a Benchmark: all ways in turns from one state, the first of them plain dynamics."""
    log(f"{', '.join(way.name for way in ways)} in turns, for {seconds:g} s")
    for way in ways:
        way.run.set_state(*state)
        way.run.step(max(8, block // 4 // 8 * 8))
    timings = [_Timing(case, way, block) for way in ways]
    plain = timings[0]
    begin = perf_counter()
    while perf_counter() - begin < seconds or plain.blocks < MIN_BLOCKS:
        for timing in timings:
            timing.take_block()
    return [timing.row(plain) for timing in timings]


class _Timing:
    """Blocks of one way."""

    def __init__(self, case: Case, way: Way, block: int) -> None:
        self._case, self._way = case, way
        # The published rule needs about as many rounds as steps; a shorter block will do.
        self._steps = max(8, block // 5) if way.kind is Kind.CONSTANT_OFFSET else block
        self._seconds: list[float] = []  # per step, of each block
        self._temperatures: list[float] = []
        integrator = way.run.integrator
        self._before = integrator.statistics if isinstance(integrator, LSDIntegrator) else None

    @property
    def blocks(self) -> int:
        """So far."""
        return len(self._seconds)

    def take_block(self) -> None:
        """Time one more, once caches and threads have got used to it: nobody interrupts a run."""
        step_for(self._way.run, UNTIMED_SECONDS, UNTIMED_STEPS)
        self._seconds.append(seconds_per_step(self._way.run, self._steps))
        self._temperatures.append(self._case.temperature_of(self._way.run.state[1]))

    def row(self, plain: _Timing) -> Row:
        """Of the table; plain dynamics is the measure."""
        way, run = self._way, self._way.run
        per_step = float(np.median(self._seconds))
        ratios = np.array(plain._seconds) / np.array(self._seconds)
        hottest = max(self._temperatures)
        blew_up = run.blew_up or not hottest < UNSOUND * self._case.temperature
        settings, spent = settings_of(run), None
        if self._before is not None:
            spent = Spent.of(run.integrator.statistics.since(self._before))
            settings = f"{run.platform}, K = {spent.window}"
        return Row(
            way.name,
            way.kind,
            way.has_fixed_window,
            settings,
            ns_per_day=1e-3 * self._case.step_size * SECONDS_PER_DAY / per_step,
            ms_per_step=1e3 * per_step,
            ratio=float(np.median(ratios)),
            ratio_quartiles=[float(q) for q in np.quantile(ratios, [0.25, 0.75])],
            blocks=len(self._seconds),
            steps_per_block=self._steps,
            temperature=None if blew_up else float(np.mean(self._temperatures)),
            spent=spent,
        )


EXAMPLES = """examples:
  openmm-lsd benchmark --topology X.prmtop --coordinates X.inpcrd --target X.pt --seconds 60
  openmm-lsd benchmark --system systems/alanine_dipeptide --also-auto --estimate
  openmm-lsd benchmark --system systems/alanine_dipeptide --windows 4 8 16 --estimate \\
      --output-dir results"""


def add_options(options: Options) -> None:
    """Of ``openmm-lsd benchmark``."""
    add = options.group("benchmark")
    add(
        "--seconds",
        type=positive_number,
        default=60.0,
        metavar="SECONDS",
        help="of measurement; default 60",
    )
    add(
        "--block",
        type=positive_integer,
        metavar="STEPS",
        help="length of a block; default: half a second of plain dynamics, from 100 to 1000",
    )
    add(
        "--warm-up",
        type=positive_integer,
        default=1000,
        metavar="STEPS",
        help="before measuring, in which drafts learn; default 1000",
    )
    add(
        "--windows",
        type=window_length,
        nargs="+",
        default=["auto"],
        metavar="K",
        help="lengths of windows in steps, a row each; default auto",
    )
    add("--also-auto", action="store_true", help="also time LSD with draft auto")
    add("--estimate", action="store_true", help="predict first, and compare with what is measured")
    pictures = "pictures of where the time goes and, with --windows, of the speed-up"
    add_output_options(add, pictures, old=("figure", "curve"))


def main(args: argparse.Namespace) -> int:
    """``openmm-lsd benchmark``; returns the exit status."""
    windows = [] if args.windows == ["auto"] else args.windows
    if "auto" in windows:
        raise ValueError("--windows takes numbers, or auto alone")
    windows = sorted(set(windows))
    if args.curve is not None and not (windows and args.estimate):
        raise ValueError("--curve needs --windows and --estimate")
    with Output(args) as output:
        return _run(args, windows, output)


def _run(args: argparse.Namespace, windows: list[int], output: Output) -> int:
    case = case_of(args)
    output.say(", ".join(f"{key} {value}" for key, value in machine().items()))
    output.say_what(case)
    result = benchmark(
        case,
        seconds=args.seconds,
        block=args.block,
        warm_up=args.warm_up,
        windows=windows,
        also_auto=args.also_auto,
        predict=args.estimate,
        log=output.say,
    )
    output.say(f"\n{result}")
    output.write_results("benchmark", case, benchmark=result.as_dict())
    output.draw("time_breakdown.png", "figure", partial(_draw_breakdown, result))
    if windows and args.estimate:
        output.draw("speed_up.png", "curve", partial(_draw_curve, result))
    return 0


def _draw_breakdown(result: Benchmark, file: Path) -> None:
    time_breakdown(result.time_breakdown()).savefig(file, dpi=150)


def _draw_curve(result: Benchmark, file: Path) -> None:
    measured, ratios, ranges, steps = result.curve()
    predicted = {each.window: each for each in result.estimates[Kind.LSD].windows}
    figure = speed_up(
        measured,
        ratios,
        ranges,
        [predicted[window].speed_up for window in measured],
        steps,
        [predicted[window].steps_per_round for window in measured],
    )
    figure.savefig(file, dpi=150)
