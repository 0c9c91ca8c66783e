"""``openmm-lsd``: run, estimate, benchmark, validate, info from the command line.

Exit status: 0; 1 if ``validate`` finds the distribution wrong; 2 for a bad file or option or a
failure, with one line that says what; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from .commands.caseoptions import add_case_options
from .commands.options import Options
from .contexts.interrupts import counted_interrupts
from .version import __version__

PROGRAM = "openmm-lsd"
# Of each its module in commands/, which has EXAMPLES, ``add_options`` and ``main``, and its help.
COMMANDS = {
    "run": ("simulate", "run a simulation"),
    "estimate": ("estimate", "predict whether LSD pays here, and with which K"),
    "benchmark": ("benchmark", "time LSD against plain dynamics"),
    "validate": ("validation.validate", "check that LSD samples the right distribution here"),
    "info": ("info", "show what is installed here, for bug reports"),
}
WITHOUT_CASE = ("info",)  # these simulate nothing


class OneLine(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(words: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    args = parse(words)
    logging.basicConfig(
        level=logging.INFO if args.verbose else logging.WARNING, format="%(name)s: %(message)s"
    )
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    with counted_interrupts() as interrupts:
        try:
            return _module_of(args.name).main(args)
        except KeyboardInterrupt:
            return _stopped()
        except BrokenPipeError:
            return 2
        except Exception as error:
            # In Python that OpenMM has called, Ctrl-C becomes an OpenMMException.
            if interrupts:
                return _stopped()
            if args.debug:
                raise
            failure = error
    text = " ".join(str(failure).split()) or type(failure).__name__
    print(f"{PROGRAM} {args.name}: error: {text}", file=sys.stderr)
    return 2


def _stopped() -> int:
    print(f"\n{PROGRAM}: stopped", file=sys.stderr)
    return 130


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """All options of a command, its ``name``, and which names were ``given``; exits if it cannot.

    ``words`` are those after the program's name; default: of this process.
    """
    description = "Langevin Speculative Dynamics with OpenMM."
    parser = OneLine(prog=PROGRAM, description=description, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")
    options = {}
    for name, (_, text) in COMMANDS.items():
        module = _module_of(name)
        command = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + "." * (text[-1] != "?"),
            epilog=module.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        options[name] = Options(command)
        if name not in WITHOUT_CASE:
            add_case_options(options[name])
        module.add_options(options[name])
    parsed = parser.parse_args(words)
    return options[parsed.name].complete(parsed)


def _module_of(name: str) -> Any:
    # By import_module: as attributes of ``commands`` some of these names are functions.
    return import_module(f".commands.{COMMANDS[name][0]}", __package__)


if __name__ == "__main__":
    sys.exit(main())
