"""What commands print, and the results and pictures they write."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..plots import INSTALL
from .case import Case
from .machine import machine

PICTURES = ("figure", "report", "curve")  # options


def say(line: str) -> None:
    """At once."""
    print(line, flush=True)


def say_what(case: Case) -> None:
    """What is simulated, and how."""
    say(case.description())
    say(f"{case.name}: {case.conditions()}")


def add_output_options(add: Callable[..., None]) -> None:
    """To a group of options."""
    add("--outfile", type=Path, metavar="FILE", help="results as JSON")
    add("--figure", type=Path, metavar="FILE", help="a picture, .png or .svg")


def check_output(args: argparse.Namespace) -> None:
    """Before hours are spent: can the results be written?

    Raises
    ------
    FileNotFoundError, ImportError
        If not.
    """
    for name in ("outfile", *PICTURES):
        file = getattr(args, name, None)
        if file is not None and not file.resolve().parent.is_dir():
            raise FileNotFoundError(f"--{name}: there is no directory {file.resolve().parent}")
    wanted = any(getattr(args, name, None) for name in PICTURES)
    if wanted and find_spec("matplotlib") is None:
        raise ImportError(f"pictures need matplotlib; install it with: {INSTALL}")


def write_json(file: Path | None, case: Case, **results: Any) -> None:
    """Results beside what they were measured on, if there is a file for them."""
    if file is None:
        return
    document = {"machine": machine(), "system": case.name, "conditions": case.conditions()}
    file.write_text(json.dumps({**document, **results}, indent=2) + "\n")
