"""Time and step count of the steps of a run, for forces that depend on them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Times(NamedTuple):
    """Of each state of a batch: its time (B,) in ps, and its step count (B,)."""

    times: NDArray[np.float64]
    step_counts: NDArray[np.int64]

    @classmethod
    def same(cls, batch: int, time: float = 0.0, step_count: int = 0) -> Times:
        """The same for ``batch`` states."""
        return cls(np.full(batch, time), np.full(batch, step_count, dtype=np.int64))

    def rows(self, rows: slice) -> Times:
        """Those of some of the states."""
        return Times(self.times[rows], self.step_counts[rows])


class Clock:
    """Time and step count at the start of each step, counted on from the last one that is known.

    OpenMM adds the step size once per step; so does this, to get the same last bit.
    """

    def __init__(self) -> None:
        self.set(0, 0.0, 0, 0.0)

    def set(self, step: int, time: float, step_count: int, step_size: float) -> None:
        """The step of index ``step`` starts at ``time`` (ps) with ``step_count``."""
        self._step, self._time, self._step_count = step, time, step_count
        self._step_size = step_size

    def times(self, step: int, length: int) -> Times:
        """Those of the steps ``step`` to ``step + length - 1``.

        Raises
        ------
        ValueError
            If ``step`` is before the last one that was asked for.
        """
        if step < self._step:
            raise ValueError(f"step {step} is before step {self._step}, which has begun")
        for _ in range(step - self._step):
            self._time += self._step_size
        self._step_count += step - self._step
        self._step = step
        additions = np.full(length, self._step_size)
        additions[:1] = self._time
        return Times(np.add.accumulate(additions), self._step_count + np.arange(length))
