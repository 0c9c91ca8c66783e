"""What commands print, and the results and pictures they write."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..plots import INSTALL
from .case import Case
from .machine import machine

# Options of versions before 0.2, each for one file.
OLD_OPTIONS = ("outfile", "figure", "curve", "report")


def say(line: str) -> None:
    """At once."""
    print(line, flush=True)


def add_output_options(add: Callable[..., None], pictures: str, old: Sequence[str] = ()) -> None:
    """To a group of options; ``pictures`` says which files there are besides the JSON, and ``old``
    which of OLD_OPTIONS the command had."""
    add(
        "--output-dir",
        type=Path,
        metavar="DIRECTORY",
        help=f"write the results there: a JSON file and {pictures}",
    )
    add("--json", action="store_true", help="print the results as JSON, all else to stderr")
    for name in ("outfile", *old):
        add(f"--{name}", type=Path, metavar="FILE", help=argparse.SUPPRESS)


class Output:
    """Where the results of a command go; a context, in which with --json nothing else, not even
    from a library, comes to standard output.

    Parameters
    ----------
    args : Namespace
        Options of ``add_output_options``.

    Raises
    ------
    OSError, ImportError
        If files could not be written: before hours are spent.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._as_json = args.json
        self._directory: Path | None = args.output_dir
        self._old = {name: file for name in OLD_OPTIONS if (file := getattr(args, name, None))}
        if self._directory is not None:
            _make_directory(self._directory)
        for name, file in self._old.items():
            if not file.resolve().parent.is_dir():
                raise FileNotFoundError(f"--{name}: there is no directory {file.resolve().parent}")
            if file.is_dir():
                raise IsADirectoryError(f"--{name}: {file} is a directory")
        self._written: list[Path] = []
        self._can_draw = find_spec("matplotlib") is not None
        if not self._can_draw and set(self._old) - {"outfile"}:
            raise ImportError(f"pictures need matplotlib; install it with: {INSTALL}")
        self._text = ""
        self._stdout = -1  # a copy of its descriptor
        for name in self._old:
            _note(f"--{name} will be removed; use --output-dir or --json")
        if self._directory is not None and not self._can_draw:
            _note(f"there will be no pictures without matplotlib; install it with: {INSTALL}")

    def __enter__(self) -> Output:
        if self._as_json:
            sys.stdout.flush()
            self._stdout = os.dup(1)
            os.dup2(2, 1)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._as_json:
            sys.stdout.flush()
            ctypes.CDLL(None).fflush(None)  # what libraries have buffered
            os.dup2(self._stdout, 1)
            os.close(self._stdout)
            if self._text:
                print(self._text, flush=True)
        if kind is None and self._written:
            self.say("wrote " + ", ".join(map(str, self._written)))

    def say(self, line: str) -> None:
        """Print it, at once."""
        print(line, file=sys.stderr if self._as_json else sys.stdout, flush=True)

    def say_what(self, case: Case) -> None:
        """What is simulated, and how."""
        self.say(case.description())
        self.say(f"{case.name}: {case.conditions()}")

    def write_results(self, name: str, case: Case, **results: Any) -> None:
        """Results beside when and where they were measured, as JSON: printed, or NAME.json."""
        document = {
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
            "machine": machine(),
            "system": case.name,
            "conditions": case.conditions(),
        }
        text = json.dumps({**document, **results})
        valid = json.loads(text, parse_constant=lambda _: None)  # NaN is none
        self._text = json.dumps(valid, indent=2)
        for file in self._files(f"{name}.json", "outfile"):
            file.write_text(self._text + "\n")

    def draw(self, name: str, old: str, write: Callable[[Path], None]) -> None:
        """Call ``write`` with each file that the picture ``name`` is wanted in, if there can be
        pictures."""
        if self._can_draw:
            self.write(name, old, write)

    def write(self, name: str, old: str, write: Callable[[Path], None]) -> None:
        """Call ``write`` with each file that ``name`` is wanted in; what was measured is not lost
        if that fails."""
        for file in self._files(name, old):
            try:
                write(file)
            except Exception as error:
                self._written.remove(file)
                _note(f"{file} could not be written: {error}")

    def _files(self, name: str, old: str) -> list[Path]:
        files = [self._old[old]] if old in self._old else []
        if self._directory is not None:
            files.append(self._directory / name)
        self._written += files
        return files


def _make_directory(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise NotADirectoryError(f"--output-dir: {directory} is a file")
    directory.mkdir(parents=True, exist_ok=True)
    if not os.access(directory, os.W_OK):
        raise PermissionError(f"--output-dir: {directory} cannot be written to")


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)
