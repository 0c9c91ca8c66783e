"""Random numbers of a step as a pure function of (seed, step).

Philox (Salmon et al., SC 2011) is a counter-based generator: the step index is the upper word of
its counter, so every step owns 2^192 blocks and can be drawn again at any time, in any order. The
numbers are reproducible as long as NumPy keeps its stream of ``Generator.standard_normal``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def step_noise(seed: int, step: int, particles: int) -> tuple[NDArray[np.float64], float]:
    """Noise xi ~ N(0, I) of shape (particles, 3) and log u, u ~ U(0, 1), of one step.

    Parameters
    ----------
    seed, step : int
        0 <= seed, step < 2^64.
    """
    key = np.array([seed, 0], dtype=np.uint64)
    counter = np.array([0, 0, 0, step], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(key=key, counter=counter))
    log_uniform = -generator.standard_exponential()
    return generator.standard_normal((particles, 3)), log_uniform
