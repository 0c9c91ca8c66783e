"""Random numbers of a step as a pure function of (seed, step).

Philox (Salmon et al., SC 2011) is a counter-based generator: the upper word of its counter is the
step index, less its remainder by ``NOISE_BLOCK``, so that every few steps own 2^192 of its blocks
and can be drawn again at any time, in any order. For many particles every step has a generator of
its own, SFC64 (Doty-Humphrey's small fast chaotic one), seeded by both. The numbers are
reproducible as long as NumPy keeps its stream of ``Generator.standard_normal``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .window import Draws

Array = NDArray[np.float64]

NOISE_BLOCK = 8  # steps that are drawn at a time
OF_REST = 1  # stream of random numbers
LARGE = 4000  # particles, above which it pays to draw steps in parallel


class StepNoise:
    """The random numbers of every step of one run.

    Parameters
    ----------
    seed : int
        0 <= seed < 2^64.
    particles : int
        N
    cm_removal_frequency : int
        As ``openmm.CMMotionRemover``: the motion of the centre of mass is removed at the start of
        every step whose count is a multiple of it. 0: never.

    Raises
    ------
    ValueError
        If the seed is not as above.
    """

    def __init__(self, seed: int, particles: int, cm_removal_frequency: int = 0) -> None:
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed is {seed}; it must be from 0 to 2^64 - 1")
        self._generator, self._seed = _Philox(seed), seed
        self._cm_removal_frequency = cm_removal_frequency
        self._shape = NOISE_BLOCK, particles, 3
        self._drawn: dict[int, tuple[Array, Array]] = {}  # by the first step

    def draw(self, step: int, count: int, step_count: int) -> Draws:
        """All that is drawn for ``count`` steps from one on, whose step count is given."""
        removals = np.zeros(count, dtype=bool)
        if self._cm_removal_frequency:
            counts = np.arange(step_count, step_count + count)
            removals = counts % self._cm_removal_frequency == 0
        return Draws(*self(step, count), removals)

    def __call__(self, step: int, count: int) -> tuple[Array, Array]:
        """Noise xi ~ N(0, I) (``count``, N, 3) and log u (``count``,), u ~ U(0, 1), from a step on.

        0 <= step < 2^64. Not to be called from two threads at a time.
        """
        first = step - step % NOISE_BLOCK
        starts = range(first, step + count, NOISE_BLOCK)
        # What was drawn for the last window will be needed again.
        self._drawn = {start: self._drawn.get(start) or self._draw(start) for start in starts}
        noise, log_uniforms = np.empty((count, *self._shape[1:])), np.empty(count)
        for start, (own_noise, own_uniforms) in self._drawn.items():
            begin, end = max(start, step), min(start + NOISE_BLOCK, step + count)
            to, of = slice(begin - step, end - step), slice(begin - start, end - start)
            noise[to], log_uniforms[to] = own_noise[of], own_uniforms[of]
        return noise, log_uniforms

    def _draw(self, start: int) -> tuple[Array, Array]:
        if self._shape[1] > LARGE:
            return self._draw_large(start)
        generator = self._generator.at(start)
        log_uniforms = -generator.standard_exponential(NOISE_BLOCK)
        return generator.standard_normal(self._shape), log_uniforms

    def _draw_large(self, start: int) -> tuple[Array, Array]:
        """Each step from a generator of its own, several at a time."""
        noise, log_uniforms = np.empty(self._shape), np.empty(NOISE_BLOCK)

        def fill(row: int) -> None:
            generator = _generator_of_step(self._seed, start + row)
            log_uniforms[row] = -generator.standard_exponential()
            generator.standard_normal(out=noise[row])

        _fill_beside_each_other(fill, range(NOISE_BLOCK))
        return noise, log_uniforms


class NoiseOfRest:
    """The noise of a large box of which only a few particles take that of a StepNoise.

    Parameters
    ----------
    seed : int
        0 <= seed < 2^64.
    particles : int
        N, all there are.
    """

    def __init__(self, seed: int, particles: int) -> None:
        self._generator, self._seed = _Philox(seed, OF_REST), seed
        self._shape = particles, 3
        self._drawn: dict[int, Array] = {}  # by step

    def __call__(self, step: int, count: int) -> list[Array]:
        """xi ~ N(0, I) (N, 3) of each of ``count`` steps, from one on.

        The rows of particles whose noise comes from elsewhere are to be written over. The arrays
        are good until the next call, which takes those of other steps for new numbers.
        """
        wanted = range(step, step + count)
        before, self._drawn = self._drawn, {}
        kept = {each: before.pop(each) for each in wanted if each in before}
        spare = list(before.values())
        missing = [each for each in wanted if each not in kept]
        to = {each: spare.pop() if spare else np.empty(self._shape) for each in missing}

        if self._shape[0] > LARGE:

            def fill(each: int) -> None:
                _generator_of_step(self._seed, each, OF_REST).standard_normal(out=to[each])

            _fill_beside_each_other(fill, missing)
        else:
            for each in missing:
                self._generator.at(each).standard_normal(out=to[each])
        self._drawn = {**kept, **to}
        return [self._drawn[each] for each in wanted]


class _Philox:
    """Setting its counter is several times faster than making a generator for each step."""

    def __init__(self, seed: int, stream: int = 0) -> None:
        self._philox = np.random.Philox(key=np.array([seed, stream], dtype=np.uint64))
        self._generator = np.random.Generator(self._philox)
        self._state: Any = self._philox.state  # before its first number

    def at(self, step: int) -> np.random.Generator:
        """Before the numbers of a step."""
        self._state["state"]["counter"][3] = step
        self._philox.state = self._state
        return self._generator


def _generator_of_step(seed: int, step: int, *stream: int) -> np.random.Generator:
    sequence = np.random.SeedSequence([seed, step], spawn_key=stream)
    return np.random.Generator(np.random.SFC64(sequence))


def _fill_beside_each_other(fill: Callable[[int], None], steps: Iterable[int]) -> None:
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # NumPy releases the GIL
        list(pool.map(fill, steps))
