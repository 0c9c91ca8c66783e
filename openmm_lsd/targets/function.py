"""A function of the user's own that gives forces only."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from ..core.errors import checked_forces
from .base import (
    Array,
    BatchedTarget,
    Evaluation,
    Parts,
    describe_function,
    is_out_of_memory,
)


class FunctionTarget(BatchedTarget):
    """Forces from a function; dynamics needs no more.

    Parameters
    ----------
    function : callable
        Forces (B, N, 3) in kJ/mol/nm at positions (B, N, 3) in nm.
    """

    gives_energies = False
    takes_box = False

    def __init__(self, function: Callable[[Array], ArrayLike]) -> None:
        self._function = function
        self._in_parts = Parts(self._evaluate, is_out_of_memory)

    def evaluate(self, positions: Array, box: Array | None = None) -> Evaluation:
        """See BatchedTarget; the energies are NaN."""
        return self._in_parts(positions, box)

    def prepare(self, positions: Array, batch: int, box: Array | None = None) -> None:
        """See BatchedTarget."""
        self._in_parts.prepare(positions, batch, box, describe_function(self._function))

    def _evaluate(self, positions: Array, _: Array | None) -> Evaluation:
        forces = checked_forces(self._function(positions), positions.shape, "the function")
        return np.full(len(positions), np.nan), forces
