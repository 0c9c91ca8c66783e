"""All three ways in turn, and the verdict on all."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

import numpy as np

from ...contexts.checks import barostat_frequency
from ...core.statistics import Round
from ..case import Case, Log
from ..caseoptions import case_of
from ..options import Options, positive_integer, whole_number
from ..output import Output, add_output_options
from ..report import write_report
from .geometry import dihedral_quadruples
from .longruns import (
    BLOCKS,
    LAGS,
    STRIDE,
    kinetic_energy_check,
    long_law_check,
    run_in_pairs,
)
from .pathnoise import noise_check
from .result import FAMILY_WISE, Validation
from .shortruns import PLAIN_PER_RUN, few_step_check

FAMILIES = 4
SHORT_STEPS = (1, 3, 8)


def validate(
    case: Case,
    *,
    window: int = 8,
    runs: int = 1000,
    short_steps: Sequence[int] = SHORT_STEPS,
    path_steps: int = 1000,
    long_steps: int = 20_000,
    equilibration: int = 5000,
    log: Log = lambda line: None,
) -> Validation:
    """Test the distribution that LSD samples on a case.

    Parameters
    ----------
    case : Case
    window : int
    runs : int
        Short LSD runs from one state; twice as many plain ones.
    short_steps : sequence of int
        After which their states are compared.
    path_steps : int
        Steps whose noise is worked out.
    long_steps : int
        Of LSD and of plain dynamics, in all blocks together.
    equilibration : int
        Steps of LSD before.
    log : callable, optional
    """
    if barostat_frequency(case.target) is not None:
        raise ValueError("validation needs a System without a barostat; leave it out here")
    seed = case.seed or 1
    level = FAMILY_WISE / FAMILIES
    run = case.lsd(window)
    log(f"{case.start_in_words}; {equilibration} steps of LSD")
    run.equilibrate(case, max(1, equilibration))
    log(f"{runs} short LSD runs and {PLAIN_PER_RUN * runs} plain ones from one state")
    short = few_step_check(case, run, runs, tuple(short_steps), seed, level)
    log(f"the noise of {path_steps} steps")
    noise = noise_check(case, run, path_steps, level)
    quadruples, names = dihedral_quadruples(case.topology)
    times = STRIDE * case.step_size * np.arange(LAGS, dtype=np.float64)
    if not (short.passed and noise.passed):
        return Validation(case, [short, noise], [], names, None, None, times)
    rounds: list[Round] = []
    run.integrator.round_callbacks.append(rounds.append)
    log(f"{long_steps} steps of LSD and as many plain ones, in {BLOCKS} pairs")
    lsd, plain = run_in_pairs(case, run, case.plain(), long_steps, quadruples, seed)
    run.integrator.round_callbacks.remove(rounds.append)
    checks = [
        short,
        noise,
        kinetic_energy_check(case, lsd, plain, level),
        long_law_check(lsd, plain, names, level),
    ]
    return Validation(case, checks, rounds, names, lsd, plain, times)


EXAMPLES = """examples:
  openmm-lsd validate --topology X.prmtop --coordinates X.inpcrd --target X.pt \\
      --output-dir results
  openmm-lsd validate --system systems/alanine_dipeptide --seed 1"""


def add_options(options: Options) -> None:
    """Of ``openmm-lsd validate``."""
    add = options.group("validate")
    add(
        "--window",
        type=positive_integer,
        default=8,
        metavar="K",
        help="length of windows in steps; default 8",
    )
    add(
        "--runs",
        type=positive_integer,
        default=1000,
        metavar="RUNS",
        help="short LSD runs; default 1000",
    )
    add(
        "--path-steps",
        type=positive_integer,
        default=1000,
        metavar="STEPS",
        help="number of steps whose noise is checked; default 1000",
    )
    add(
        "--long-steps",
        type=positive_integer,
        default=20_000,
        metavar="STEPS",
        help="steps of LSD, and as many of plain dynamics, in all pairs together; default 20000",
    )
    add(
        "--equilibration",
        type=whole_number,
        default=5000,
        metavar="STEPS",
        help="before all tests; default 5000",
    )
    add_output_options(add, "report.html, with pictures", old=("report",))


def main(args: argparse.Namespace) -> int:
    """``openmm-lsd validate``; returns the exit status."""
    with Output(args) as output:
        return _run(args, output)


def _run(args: argparse.Namespace, output: Output) -> int:
    case = case_of(args)
    output.say_what(case)
    result = validate(
        case,
        window=args.window,
        runs=args.runs,
        path_steps=args.path_steps,
        long_steps=args.long_steps,
        equilibration=args.equilibration,
        log=output.say,
    )
    output.say(f"\n{result}")
    output.write_results("validate", case, validation=result.as_dict())
    output.write("report.html", "report", partial(write_report, result))
    return 0 if result.passed else 1
