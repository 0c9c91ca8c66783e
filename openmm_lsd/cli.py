"""``openmm-lsd``: run, estimate, benchmark, validate from the command line.

Exit status: 0; 1 if ``validate`` finds the law wrong; 2 for a bad file or option or a failure, with
one line that says what; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

SHORTHAND = "systems/NAME of the repository, in place of topology, coordinates, draft and target"
RUN_FILE = "run.json"


class OneLine(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = _parser()
    given = list(sys.argv[1:] if arguments is None else arguments)
    args = parser.parse_args(given)
    logging.basicConfig(
        level=logging.INFO if args.verbose else logging.WARNING, format="%(name)s: %(message)s"
    )
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    with _counted_interrupts() as interrupts:
        try:
            return args.command(args, given)
        except KeyboardInterrupt:
            return _stopped(parser.prog)
        except BrokenPipeError:
            return 2
        except Exception as error:
            # In Python that OpenMM has called, Ctrl-C becomes an OpenMMException.
            if interrupts:
                return _stopped(parser.prog)
            if args.debug:
                raise
            failure = error
    text = " ".join(str(failure).split()) or type(failure).__name__
    print(f"{parser.prog} {args.name}: error: {text}", file=sys.stderr)
    return 2


@contextmanager
def _counted_interrupts() -> Iterator[list[int]]:
    """While this lasts: the interrupts that there were; each raises KeyboardInterrupt as ever."""
    interrupts: list[int] = []
    in_main_thread = threading.current_thread() is threading.main_thread()  # it alone gets signals
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield interrupts
        return

    def interrupt(number: int, frame: Any) -> NoReturn:
        interrupts.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _stopped(program: str) -> int:
    print(f"\n{program}: stopped", file=sys.stderr)
    return 130


def _parser() -> argparse.ArgumentParser:
    parser = OneLine(prog="openmm-lsd", description="Langevin Speculative Dynamics with OpenMM.")
    from . import __version__

    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")
    for name, function, text, options in (
        ("run", _run, "simulate, from files to files", _run_options),
        ("estimate", _estimate, "does LSD pay here, and with which K?", _estimate_options),
        ("benchmark", _benchmark, "time LSD against plain dynamics", _benchmark_options),
        ("validate", _validate, "is the law right on this system?", _validate_options),
    ):
        command = commands.add_parser(
            name,
            help=text,
            description=text,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        command.set_defaults(command=function)
        _case_options(command)
        options(command)
    return parser


def _case_options(parser: argparse.ArgumentParser) -> None:
    files = parser.add_argument_group("molecule and potentials")
    files.add_argument("--system", type=Path, metavar="DIRECTORY", help=SHORTHAND)
    files.add_argument("--topology", type=Path, metavar="FILE", help=".prmtop, .parm7 or .pdb")
    files.add_argument(
        "--coordinates",
        type=Path,
        metavar="FILE",
        help=".inpcrd, .rst7 or .pdb; default a .pdb topology",
    )
    files.add_argument(
        "--target",
        metavar="SPEC",
        help="model.pt; force field or System .xml; ase:MODULE:CALL; torchsim:MODULE:CALL; "
        "python:MODULE:CALL; openmmml:NAME (MODULE may be a .py file)",
    )
    files.add_argument(
        "--draft",
        nargs="+",
        metavar="NAME",
        help="auto, a .prmtop, a System .xml, or OpenMM force field files; default auto, and with "
        "--system its force field",
    )
    files.add_argument("--cutoff", type=_positive, default=0.9, help="nm, of PME in a box")
    conditions = parser.add_argument_group("conditions")
    conditions.add_argument("--temperature", type=_positive, default=300.0, help="kelvin")
    conditions.add_argument("--friction", type=_positive, default=1.0, help="1/ps")
    conditions.add_argument("--timestep", type=_positive, default=1.0, help="fs")
    conditions.add_argument("--scheme", choices=["middle", "aboba"], default="middle")
    conditions.add_argument("--platform", help="of the target's Context; default OpenMM's choice")
    conditions.add_argument("--seed", type=_seed, default=0, help="0: a fresh one")
    parser.add_argument("--verbose", action="store_true", help="log what is chosen and why")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")


def _run_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("run")
    group.add_argument("--steps", type=_count, default=10_000, help="all together, if resumed")
    group.add_argument("--window", type=_window, default="auto", metavar="K", help="or auto")
    group.add_argument("--equilibration", type=_whole, default=1000, help="steps")
    group.add_argument("--report-interval", type=_count, default=100, help="steps")
    group.add_argument("--checkpoint-interval", type=_count, default=1000, help="steps")
    group.add_argument("--output-dir", type=Path, default=Path("lsd_output"))
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on from the checkpoint in --output-dir; all other options are those of its first "
        "run, and only --steps may be given anew",
    )


def _estimate_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("estimate")
    group.add_argument("--steps", type=_count, default=200, help="to measure on, at least")
    group.add_argument("--windows", type=_count, nargs="+", default=[4, 8, 12, 16, 24])
    group.add_argument("--warm-up", type=_count, default=100, help="steps; 1000 for draft auto")
    _output_options(group)


def _benchmark_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("benchmark")
    group.add_argument("--seconds", type=_positive, default=60.0, help="of measurement")
    group.add_argument("--block", type=_count, help="steps per block (default: half a second)")
    group.add_argument("--warm-up", type=_count, default=1000, help="steps")
    group.add_argument(
        "--windows", type=_window, nargs="+", default=["auto"], help="fixed K, a row each; or auto"
    )
    group.add_argument("--also-auto", action="store_true", help="and a row with draft auto")
    group.add_argument(
        "--estimate", action="store_true", help="predict first, and compare with what is measured"
    )
    group.add_argument(
        "--curve",
        type=Path,
        metavar="FILE",
        help="picture of speed-up against --windows; --estimate",
    )
    _output_options(group)


def _validate_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("validate")
    group.add_argument("--window", type=_count, default=8, metavar="K")
    group.add_argument("--runs", type=_count, default=1000, help="short LSD runs")
    group.add_argument("--path-steps", type=_count, default=1000, help="whose noise is checked")
    group.add_argument("--long-steps", type=_count, default=20_000, help="of either long run")
    group.add_argument("--equilibration", type=_whole, default=5000, help="steps before")
    group.add_argument("--report", type=Path, metavar="FILE", help=".html, with pictures")
    group.add_argument("--outfile", type=Path, metavar="FILE", help="results as JSON")
    group.add_argument(
        "--wrong-sampler", choices=["accept-all", "no-reflection"], help=argparse.SUPPRESS
    )


def _output_options(group: Any) -> None:
    group.add_argument("--outfile", type=Path, metavar="FILE", help="results as JSON")
    group.add_argument("--figure", type=Path, metavar="FILE", help="a picture, .png or .svg")


def _case(args: argparse.Namespace) -> Any:
    from .commands.case import Case
    from .commands.potentials import draft_system, nonbonded_options, read_structure, target_system

    _check_output(args)
    conditions = {
        "temperature": args.temperature,
        "friction": args.friction,
        "step_size": 1e-3 * args.timestep,
        "scheme": args.scheme,
        "platform": args.platform,
        "seed": args.seed,
    }
    if args.system is not None:
        from . import systems

        given = [name for name in ("topology", "coordinates", "target") if getattr(args, name)]
        if given:
            raise ValueError(f"--system goes without --{given[0]}")
        molecule = systems.load(args.system)
        options = nonbonded_options(molecule.topology, args.cutoff)
        if args.draft is not None:
            conditions["draft"] = draft_system(args.draft, molecule.topology, options)
        return Case.of(molecule, name=args.system.resolve().name, **conditions)
    if args.topology is None or args.target is None:
        raise ValueError("give --topology and --target, or --system")
    topology, positions = read_structure(args.topology, args.coordinates)
    options = nonbonded_options(topology, args.cutoff)
    draft = draft_system(args.draft or ["auto"], topology, options)
    particles = topology if isinstance(draft, str) else draft
    target = target_system(args.target, topology, options, particles)
    return Case(topology, positions, draft, target, name=args.topology.stem, **conditions)


def _check_output(args: argparse.Namespace) -> None:
    """Before hours are spent: can the results be written?"""
    pictures = [getattr(args, name, None) for name in ("figure", "report", "curve")]
    for name in ("outfile", "figure", "report", "curve"):
        file = getattr(args, name, None)
        if file is not None and not file.resolve().parent.is_dir():
            raise FileNotFoundError(f"--{name}: there is no directory {file.resolve().parent}")
    if any(pictures):
        from .plots import INSTALL

        if find_spec("matplotlib") is None:
            raise ImportError(f"pictures need matplotlib; install it with: {INSTALL}")


def _run(args: argparse.Namespace, given: Sequence[str]) -> int:
    from .commands.simulate import CHECKPOINT, FINAL, Plan, simulate

    output, resume = args.output_dir, args.resume
    if resume:
        args = _options_of_first_run(args, given)
    elif (output / CHECKPOINT).exists():
        raise ValueError(
            f"{output} holds a run already; go on with --resume, or choose another --output-dir"
        )
    if not args.seed:
        import secrets

        args.seed = secrets.randbelow(2**31 - 1) + 1
    case = _case(args)
    if not resume:
        output.mkdir(parents=True, exist_ok=True)
        skipped = ("command", "resume", "output_dir", "debug", "verbose", "name")
        options = {k: v for k, v in vars(args).items() if k not in skipped}
        (output / RUN_FILE).write_text(json.dumps(options, indent=2, default=str) + "\n")
    plan = Plan(args.steps, args.equilibration, args.report_interval, args.checkpoint_interval)
    statistics = simulate(case, plan, output, window=args.window, resume=resume, notice=_say)
    _say(str(statistics))
    _say(f"wrote trajectory.dcd, log.csv, lsd.csv, {CHECKPOINT} and {FINAL} to {output}")
    return 0


def _options_of_first_run(args: argparse.Namespace, given: Sequence[str]) -> argparse.Namespace:
    file = args.output_dir / RUN_FILE
    if not file.is_file():
        raise FileNotFoundError(f"there is nothing to resume: {file} is missing")
    allowed = {"--resume", "--output-dir", "--steps", "--debug", "--verbose"}
    others = {word.split("=")[0] for word in given if word.startswith("--")} - allowed
    if others:
        raise ValueError(
            f"with --resume {sorted(others)[0]} is that of the first run; leave it out"
        )
    options = json.loads(file.read_text())
    steps = args.steps if any(word.split("=")[0] == "--steps" for word in given) else None
    for name in ("system", "topology", "coordinates"):
        options[name] = None if options[name] is None else Path(options[name])
    merged = argparse.Namespace(**{**vars(args), **options})
    merged.steps = steps or options["steps"]
    return merged


def _estimate(args: argparse.Namespace, given: Sequence[str]) -> int:
    from .commands.estimate import estimate

    case = _case(args)
    _say(f"{case.name}: {case.conditions()}")
    result = estimate(
        case,
        steps=args.steps,
        warm_up=_warm_up(args, case, given),
        windows=sorted(set(args.windows)),
        notice=_say,
    )
    _say(f"\n{result}\n\n{result.steps} steps of LSD, {result.seconds:.0f} s")
    _write_json(args.outfile, case, estimate=result.as_dict())
    if args.figure is not None:
        from .plots import speed_up

        windows = [each.window for each in result.windows]
        predicted = [each.speed_up for each in result.windows]
        steps = [each.steps_per_round for each in result.windows]
        speed_up(windows, predicted=predicted, predicted_steps_per_round=steps).savefig(
            args.figure, dpi=150
        )
    return 0


def _warm_up(args: argparse.Namespace, case: Any, given: Sequence[str]) -> int:
    is_given = any(word.split("=")[0] == "--warm-up" for word in given)
    return args.warm_up if is_given or not isinstance(case.draft, str) else max(1000, args.warm_up)


def _benchmark(args: argparse.Namespace, given: Sequence[str]) -> int:
    from .commands.benchmark import benchmark, machine

    windows = [] if args.windows == ["auto"] else args.windows
    if "auto" in windows:
        raise ValueError("--windows takes numbers, or auto alone")
    windows = sorted(set(windows))
    if args.curve is not None and not (windows and args.estimate):
        raise ValueError("--curve needs --windows and --estimate")
    case = _case(args)
    _say(", ".join(f"{key} {value}" for key, value in machine().items()))
    _say(f"{case.name}: {case.conditions()}")
    result = benchmark(
        case,
        seconds=args.seconds,
        block=args.block,
        warm_up=args.warm_up,
        windows=windows,
        also_auto=args.also_auto,
        predict=args.estimate,
        notice=_say,
    )
    _say(f"\n{result}")
    _write_json(args.outfile, case, benchmark=result.as_dict())
    if args.figure is not None:
        from .plots import time_breakdown

        time_breakdown(result.time_breakdown()).savefig(args.figure, dpi=150)
    if args.curve is not None:
        _draw_curve(args.curve, result)
    return 0


def _draw_curve(file: Path, result: Any) -> None:
    from .plots import speed_up

    measured, ratios, ranges, steps = result.curve()
    predicted = {each.window: each for each in result.estimates["LSD"].windows}
    figure = speed_up(
        measured,
        ratios,
        ranges,
        [predicted[window].speed_up for window in measured],
        steps,
        [predicted[window].steps_per_round for window in measured],
    )
    figure.savefig(file, dpi=150)


def _validate(args: argparse.Namespace, given: Sequence[str]) -> int:
    from .commands.validation import validate, wrong_sampler

    case = _case(args)
    _say(f"{case.name}: {case.conditions()}")
    with wrong_sampler(args.wrong_sampler):
        result = validate(
            case,
            window=args.window,
            runs=args.runs,
            path_steps=args.path_steps,
            long_steps=args.long_steps,
            equilibration=args.equilibration,
            notice=_say,
        )
    _say(f"\n{result}")
    _write_json(args.outfile, case, validation=result.as_dict())
    if args.report is not None:
        from .commands.report import write_report

        write_report(args.report, result)
        _say(f"wrote {args.report}")
    return 0 if result.passed else 1


def _write_json(file: Path | None, case: Any, **results: Any) -> None:
    if file is None:
        return
    from .commands.benchmark import machine

    document = {"machine": machine(), "system": case.name, "conditions": case.conditions()}
    file.write_text(json.dumps({**document, **results}, indent=2) + "\n")


def _say(line: str) -> None:
    print(line, flush=True)


def _number(kind: Callable[[str], Any], allowed: Callable[[Any], bool], words: str) -> Any:
    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not allowed(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {words}")
        return value

    return read


_positive = _number(float, lambda value: 0 < value < float("inf"), "a positive number")
_count = _number(int, lambda value: value > 0, "a positive whole number")
_whole = _number(int, lambda value: value >= 0, "a whole number")
_seed = _number(int, lambda value: 0 <= value < 2**31, "a whole number below 2^31")


def _window(text: str) -> int | str:
    return "auto" if text == "auto" else _count(text)


if __name__ == "__main__":
    sys.exit(main())
