"""Random numbers of a step as a pure function of (seed, step).

Philox (Salmon et al., SC 2011) is a counter-based generator: the step index is the upper word of
its counter, so every step owns 2^192 blocks and can be drawn again at any time, in any order. The
numbers are reproducible as long as NumPy keeps its stream of ``Generator.standard_normal``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


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
        self._shape = particles, 3

    def __call__(self, step: int) -> tuple[NDArray[np.float64], float]:
        """Noise xi ~ N(0, I) of shape (N, 3) and log u, u ~ U(0, 1), of one step, 0 <= step < 2^64.

        Not to be called from two threads at a time.
        """
        self._state["state"]["counter"][3] = step
        self._philox.state = self._state
        log_uniform = -self._generator.standard_exponential()
        return self._generator.standard_normal(self._shape), log_uniform
