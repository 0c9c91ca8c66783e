"""Random numbers of a step as a pure function of (seed, step).

Philox (Salmon et al., SC 2011) is a counter-based generator: the upper word of its counter is the
step index, less its remainder by ``TOGETHER``, so that every few steps own 2^192 of its blocks and
can be drawn again at any time, in any order. The numbers are reproducible as long as NumPy keeps
its stream of ``Generator.standard_normal``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

TOGETHER = 8  # steps that are drawn at a time


class StepNoise:
    """The random numbers of every step of one run.

    Parameters
    ----------
    seed : int
        0 <= seed < 2^64.
    particles : int
        N
    """

    def __init__(self, seed: int, particles: int) -> None:
        # Setting the counter is several times faster than making a generator for each step.
        self._philox = np.random.Philox(key=np.array([seed, 0], dtype=np.uint64))
        self._generator = np.random.Generator(self._philox)
        self._state: Any = self._philox.state  # before its first number
        self._shape = TOGETHER, particles, 3
        self._drawn: dict[int, tuple[Array, Array]] = {}  # by the first step

    def __call__(self, step: int, count: int) -> tuple[Array, Array]:
        """Noise xi ~ N(0, I) (``count``, N, 3) and log u (``count``,), u ~ U(0, 1), from a step on.

        0 <= step < 2^64. Not to be called from two threads at a time.
        """
        first = step - step % TOGETHER
        starts = range(first, step + count, TOGETHER)
        # What was drawn for the last window will be needed again.
        self._drawn = {start: self._drawn.get(start) or self._draw(start) for start in starts}
        rows = slice(step - first, step - first + count)
        noise, log_uniforms = map(np.concatenate, zip(*self._drawn.values(), strict=True))
        return noise[rows], log_uniforms[rows]

    def _draw(self, start: int) -> tuple[Array, Array]:
        self._state["state"]["counter"][3] = start
        self._philox.state = self._state
        log_uniforms = -self._generator.standard_exponential(TOGETHER)
        return self._generator.standard_normal(self._shape), log_uniforms
