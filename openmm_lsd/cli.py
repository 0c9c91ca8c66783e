"""``openmm-lsd``: run, estimate, benchmark, validate from the command line.

Exit status: 0; 1 if ``validate`` finds the law wrong; 2 for a bad file or option or a failure, with
one line that says what; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from .interrupts import counted_interrupts

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
    words = list(sys.argv[1:] if arguments is None else arguments)
    args = parser.parse_args(words)
    given = set(vars(_parser(with_defaults=False).parse_args(words)))
    logging.basicConfig(
        level=logging.INFO if args.verbose else logging.WARNING, format="%(name)s: %(message)s"
    )
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    with counted_interrupts() as interrupts:
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


def _stopped(program: str) -> int:
    print(f"\n{program}: stopped", file=sys.stderr)
    return 130


class _Options:
    """Adds options to a parser, with their defaults or without, to know what was given."""

    def __init__(self, parser: argparse.ArgumentParser, with_defaults: bool) -> None:
        self._parser, self._with_defaults = parser, with_defaults

    def group(self, title: str | None = None) -> Callable[..., None]:
        """``add_argument`` of a new group, or of the parser."""
        group: Any = self._parser if title is None else self._parser.add_argument_group(title)

        def add(*names: str, **settings: Any) -> None:
            if settings.get("action") == "store_true":
                settings.setdefault("default", False)
            if not self._with_defaults:
                settings["default"] = argparse.SUPPRESS
            group.add_argument(*names, **settings)

        return add


def _parser(with_defaults: bool = True) -> argparse.ArgumentParser:
    from . import __version__

    description = "Langevin Speculative Dynamics with OpenMM."
    parser = OneLine(prog="openmm-lsd", description=description, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")
    for name, function, text, add_options in (
        ("run", _run, "simulate, from files to files", _run_options),
        ("estimate", _estimate, "does LSD pay here, and with which K?", _estimate_options),
        ("benchmark", _benchmark, "time LSD against plain dynamics", _benchmark_options),
        ("validate", _validate, "is the law right on this system?", _validate_options),
    ):
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.set_defaults(command=function)
        options = _Options(command, with_defaults)
        _case_options(options)
        add_options(options)
    return parser


def _case_options(options: _Options) -> None:
    add = options.group("molecule and potentials")
    add("--system", type=Path, metavar="DIRECTORY", help=SHORTHAND)
    add("--topology", type=Path, metavar="FILE", help=".prmtop, .parm7, .pdb, .cif, .xyz, POSCAR")
    add(
        "--coordinates",
        type=Path,
        metavar="FILE",
        help=".inpcrd, .rst7, or a format of --topology; default: those of the topology",
    )
    add(
        "--target",
        metavar="SPEC",
        help="model.pt; force field or System .xml; ase:MODULE:CALL; torchsim:MODULE:CALL; "
        "python:MODULE:CALL; openmmml:NAME (MODULE may be a .py file)",
    )
    add(
        "--draft",
        nargs="+",
        metavar="NAME",
        help="auto, a .prmtop, a System .xml, or OpenMM force field files; default auto, and with "
        "--system its force field",
    )
    add("--no-box", action="store_true", help="ignore the box in the files: an isolated molecule")
    add("--cutoff", type=_positive, default=0.9, help="nm, of PME in a box; default 0.9")
    add = options.group("conditions")
    add("--temperature", type=_positive, default=300.0, help="kelvin; default 300")
    add("--friction", type=_positive, default=1.0, help="1/ps; default 1")
    add("--timestep", type=_positive, default=1.0, help="fs; default 1")
    add("--scheme", choices=["middle", "aboba"], default="middle", help="default middle")
    add("--platform", help="of the target's Context; default OpenMM's choice")
    add("--seed", type=_seed, default=0, help="default 0: a fresh one")
    add = options.group()
    add("--verbose", action="store_true", help="log what is chosen and why")
    add("--debug", action="store_true", help="show tracebacks")


def _run_options(options: _Options) -> None:
    add = options.group("run")
    add("--steps", type=_count, default=10_000, help="all together, if resumed; default 10000")
    add("--window", type=_window, default="auto", metavar="K", help="default auto")
    add(
        "--minimize",
        action=argparse.BooleanOptionalAction,
        help="the energy first; default: unless the coordinates come with velocities",
    )
    add(
        "--equilibration",
        type=_whole,
        help="steps; default 1000, or 0 if the coordinates come with velocities",
    )
    add("--report-interval", type=_count, default=100, help="steps; default 100")
    add("--checkpoint-interval", type=_count, default=1000, help="steps; default 1000")
    add("--output-dir", type=Path, default=Path("lsd_output"), help="default lsd_output")
    add(
        "--resume",
        action="store_true",
        help="continue from the checkpoint in --output-dir; all other options are those of its "
        "first run, and only --steps may be given anew",
    )


def _estimate_options(options: _Options) -> None:
    add = options.group("estimate")
    add("--steps", type=_count, default=200, help="to measure on, at least; default 200")
    windows = [4, 8, 12, 16, 24]
    words = " ".join(map(str, windows))
    add("--windows", type=_count, nargs="+", default=windows, help=f"default {words}")
    add("--warm-up", type=_count, help="steps; default 100, or 1000 for draft auto")
    _output_options(add)


def _benchmark_options(options: _Options) -> None:
    add = options.group("benchmark")
    add("--seconds", type=_positive, default=60.0, help="of measurement; default 60")
    add("--block", type=_count, help="steps per block; default: those of half a second")
    add("--warm-up", type=_count, default=1000, help="steps; default 1000")
    add(
        "--windows",
        type=_window,
        nargs="+",
        default=["auto"],
        help="fixed K, a row each; default auto",
    )
    add("--also-auto", action="store_true", help="and a row with draft auto")
    add("--estimate", action="store_true", help="predict first, and compare with what is measured")
    add(
        "--curve",
        type=Path,
        metavar="FILE",
        help="picture of speed-up against --windows; needs --estimate",
    )
    _output_options(add)


def _validate_options(options: _Options) -> None:
    add = options.group("validate")
    add("--window", type=_count, default=8, metavar="K", help="default 8")
    add("--runs", type=_count, default=1000, help="short LSD runs; default 1000")
    add("--path-steps", type=_count, default=1000, help="whose noise is checked; default 1000")
    add("--long-steps", type=_count, default=20_000, help="of either long run; default 20000")
    add("--equilibration", type=_whole, default=5000, help="steps before; default 5000")
    add("--report", type=Path, metavar="FILE", help=".html, with pictures")
    add("--outfile", type=Path, metavar="FILE", help="results as JSON")


def _output_options(add: Callable[..., None]) -> None:
    add("--outfile", type=Path, metavar="FILE", help="results as JSON")
    add("--figure", type=Path, metavar="FILE", help="a picture, .png or .svg")


def _case(args: argparse.Namespace) -> Any:
    from .commands.case import Case
    from .commands.potentials import draft_system, target_system
    from .structures import read_structure

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
        if args.no_box:
            raise ValueError("--system goes without --no-box")
        molecule = systems.load(args.system)
        if args.draft is not None:
            conditions["draft"] = draft_system(
                args.draft, molecule.topology, args.cutoff, molecule.target
            )
        return Case.of(molecule, name=args.system.resolve().name, **conditions)
    if args.topology is None or args.target is None:
        raise ValueError("give --topology and --target, or --system")
    structure = read_structure(args.topology, args.coordinates)
    if args.no_box:
        structure.topology.setPeriodicBoxVectors(None)
        structure.sources.pop("box", None)
    target = target_system(args.target, structure, args.cutoff)
    if args.no_box and target.usesPeriodicBoundaryConditions():
        raise ValueError(f"--no-box, and the System in {args.target} is periodic")
    draft = draft_system(args.draft or ["auto"], structure.topology, args.cutoff, target)
    return Case(
        structure.topology,
        structure.positions,
        draft,
        target,
        name=args.topology.stem or args.topology.name,
        velocities=structure.velocities,
        sources=structure.sources,
        **conditions,
    )


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


def _run(args: argparse.Namespace, given: set[str]) -> int:
    from .commands.simulate import CHECKPOINT, FINAL, Plan, simulate

    output, resume = args.output_dir, args.resume
    if resume:
        args = _options_of_first_run(args, given)
    elif (output / CHECKPOINT).exists():
        raise ValueError(
            f"{output} holds a run already; continue it with --resume, or choose another "
            "--output-dir"
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
    plan = Plan(
        args.steps,
        args.equilibration,
        args.report_interval,
        args.checkpoint_interval,
        args.minimize,
    )
    statistics = simulate(case, plan, output, window=args.window, resume=resume, notice=_say)
    _say(str(statistics))
    _say(f"wrote trajectory.dcd, log.csv, lsd.csv, {CHECKPOINT} and {FINAL} to {output}")
    return 0


def _options_of_first_run(args: argparse.Namespace, given: set[str]) -> argparse.Namespace:
    file = args.output_dir / RUN_FILE
    if not file.is_file():
        raise FileNotFoundError(f"there is nothing to resume: {file} is missing")
    others = given - {"name", "command", "resume", "output_dir", "steps", "debug", "verbose"}
    if others:
        option = "--" + sorted(others)[0].replace("_", "-")
        raise ValueError(f"with --resume {option} is that of the first run; leave it out")
    options = json.loads(file.read_text())
    for name in ("system", "topology", "coordinates"):
        options[name] = None if options[name] is None else Path(options[name])
    merged = argparse.Namespace(**{**vars(args), **options})
    if "steps" in given:
        merged.steps = args.steps
    return merged


def _estimate(args: argparse.Namespace, given: set[str]) -> int:
    from .commands.estimate import estimate

    case = _case(args)
    _say_what(case)
    warm_up = args.warm_up
    if warm_up is None:
        warm_up = 1000 if isinstance(case.draft, str) else 100
    result = estimate(
        case,
        steps=args.steps,
        warm_up=warm_up,
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


def _benchmark(args: argparse.Namespace, given: set[str]) -> int:
    from .commands.benchmark import benchmark, machine

    windows = [] if args.windows == ["auto"] else args.windows
    if "auto" in windows:
        raise ValueError("--windows takes numbers, or auto alone")
    windows = sorted(set(windows))
    if args.curve is not None and not (windows and args.estimate):
        raise ValueError("--curve needs --windows and --estimate")
    case = _case(args)
    _say(", ".join(f"{key} {value}" for key, value in machine().items()))
    _say_what(case)
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
    from .commands.rows import Kind
    from .plots import speed_up

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


def _validate(args: argparse.Namespace, given: set[str]) -> int:
    from .commands.validation import validate

    case = _case(args)
    _say_what(case)
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
    from .commands.machine import machine

    document = {"machine": machine(), "system": case.name, "conditions": case.conditions()}
    file.write_text(json.dumps({**document, **results}, indent=2) + "\n")


def _say_what(case: Any) -> None:
    _say(case.description())
    _say(f"{case.name}: {case.conditions()}")


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
