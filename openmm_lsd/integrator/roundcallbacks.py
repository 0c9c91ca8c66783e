"""Calls what the user wants to be called after every round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .._native import ContextAccess
from ..core.statistics import Round


class RoundCallbacks:
    """The user's callbacks, one after another; the state is not theirs to change.

    A round ends in the middle of ``step``, and what they set would be overwritten at its end.

    Parameters
    ----------
    access : ContextAccess
    callbacks : sequence of callables, Round ->
        May become longer or shorter.

    Raises
    ------
    RuntimeError
        If the box was changed. OpenMM raises an OpenMMException where positions or velocities are
        set.
    """

    def __init__(self, access: ContextAccess, callbacks: Sequence[Callable[[Round], Any]]) -> None:
        self._access, self._callbacks = access, callbacks

    def __call__(self, became: Round) -> None:
        """After each round."""
        if not self._callbacks:
            return
        access, box = self._access, self._access.get_box()
        access.refuse_states(True)
        try:
            for tell in self._callbacks:
                tell(became)
        finally:
            access.refuse_states(False)
        if not np.array_equal(access.get_box(), box):
            access.set_box(box)
            raise RuntimeError(
                "a round callback has changed the box while step() runs; change it between two "
                "calls of step()"
            )
