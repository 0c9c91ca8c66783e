"""Ctrl-C, where OpenMM hides it.

An interrupt in Python that OpenMM has called (a PythonForce) becomes an OpenMMException without a
text, like any other error there. Whoever must tell the two apart counts the interrupts.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def counted_interrupts() -> Iterator[list[int]]:
    """While this lasts: the interrupts that raised an exception; each is handled as always."""
    interrupts: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    in_main_thread = threading.current_thread() is threading.main_thread()  # it alone gets signals
    if not (in_main_thread and callable(before)):
        yield interrupts
        return

    def interrupt(number: int, frame: Any) -> None:
        try:
            before(number, frame)
        except BaseException:
            interrupts.append(number)
            raise

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupts
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, before)


class InterruptWatch:
    """Tells errors that are Ctrl-C in disguise, while something is watched."""

    def __init__(self) -> None:
        self._interrupts: list[int] = []

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Count interrupts while this lasts."""
        try:
            with counted_interrupts() as self._interrupts:
                yield
        finally:
            self._interrupts = []

    def raise_pending(self) -> None:
        """Raise KeyboardInterrupt if there was one, though nobody has raised it."""
        if self._interrupts:
            raise KeyboardInterrupt

    def raise_interrupt(self, error: Exception) -> None:
        """Raise KeyboardInterrupt if that is what OpenMM made this exception of."""
        if self._interrupts:
            raise KeyboardInterrupt from error
