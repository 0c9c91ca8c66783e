"""Which of several ways to do the same thing is the fastest here, by trying."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from time import perf_counter
from typing import Any, TypeVar

import numpy as np

Way = TypeVar("Way", bound=Hashable)

# What has been chosen in this process, by a key that says what for. The same is computed in the
# same way ever after, so that two runs with one seed agree to the last bit; restarts bring it.
decisions: dict[str, Any] = {}


SPINNING = 0.1  # s, more than the threads of OpenMP libraries wait for more work


def race(
    run: Callable[[Way], object],
    ways: Iterable[Way],
    *,
    warm_up: int = 2,
    turns: int = 9,
    longest: float = 10.0,
) -> dict[Way, float]:
    """Median seconds of ``run(way)`` for the ways that were not beaten early.

    In turns, because other programs take the machine's cores for a while and give them back. The
    median, because threads that wait for a busy core are what makes a way slow. Twice, if it is
    short, and the second time counts: threads of the way before spin for a while, and take a core.

    Parameters
    ----------
    warm_up : int
        Turns that do not count: TorchScript profiles its first runs and compiles after them.
    turns : int
        Turns that count.
    longest : float
        Seconds after which no further turn begins; then the last ones count.
    """
    left = list(ways)
    times: dict[Way, list[float]] = {way: [] for way in left}
    start = perf_counter()
    for turn in range(warm_up + turns):
        for way in left:
            seconds = _seconds(run, way)
            if seconds < SPINNING:
                seconds = _seconds(run, way)
            times[way].append(seconds)
        if perf_counter() - start > longest:
            break
        if turn == warm_up + 2:  # most have lost already
            medians = {way: np.median(times[way][warm_up:]) for way in left}
            left = [way for way in left if medians[way] < 2 * min(medians.values())]
    return {way: float(np.median(times[way][min(warm_up, turn) :])) for way in left}


def _seconds(run: Callable[[Way], object], way: Way) -> float:
    begin = perf_counter()
    run(way)
    return perf_counter() - begin
