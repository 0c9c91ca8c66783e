"""Options of a command: their defaults, which of them were given, and the numbers they take."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any


class Options:
    """Adds options to a parser, and keeps their defaults.

    What the parser returns holds only options that were given; ``complete`` adds the others.
    """

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._parser = parser
        self._defaults: dict[str, Any] = {}

    def group(self, title: str | None = None) -> Callable[..., None]:
        """``add_argument`` of a new group, or of the parser."""
        group: Any = self._parser if title is None else self._parser.add_argument_group(title)

        def add(*names: str, **settings: Any) -> None:
            default = False if settings.get("action") == "store_true" else None
            default = settings.pop("default", default)
            action = group.add_argument(*names, default=argparse.SUPPRESS, **settings)
            self._defaults[action.dest] = default

        return add

    def complete(self, parsed: argparse.Namespace) -> argparse.Namespace:
        """With defaults, and with ``given``: the names of what was given."""
        given = vars(parsed)
        return argparse.Namespace(**{**self._defaults, **given, "given": set(given)})


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


positive_number = _number(float, lambda value: 0 < value < float("inf"), "a positive number")
positive_integer = _number(int, lambda value: value > 0, "a positive whole number")
whole_number = _number(int, lambda value: value >= 0, "a whole number")
seed_number = _number(int, lambda value: 0 <= value < 2**31, "a whole number below 2^31")


def window_length(text: str) -> int | str:
    """'auto' or a positive whole number."""
    return "auto" if text == "auto" else positive_integer(text)
