"""Which of several ways to do the same thing is the fastest on this machine, by trying."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Mapping
from time import perf_counter
from typing import Any, TypeVar

import numpy as np

Candidate = TypeVar("Candidate", bound=Hashable)

logger = logging.getLogger(__name__)

SPINNING = 0.1  # s, more than the threads of OpenMP libraries wait for more work
LONG_TRIAL = 2.0  # s; where the fastest takes longer, one trial each has to say which that is

# What has been chosen in this process, by a key that says what for. The same is computed in the
# same way ever after, so that two runs with one seed agree to the last bit; restarts bring it.
_choices: dict[str, Any] = {}


def snapshot() -> dict[str, Any]:
    """All choices, for ``restore``."""
    return dict(_choices)


def restore(choices: Mapping[str, Any]) -> bool:
    """Choose as another process did; whether that differs from what was chosen in this one."""
    differs = any(_choices.get(key) != value for key, value in choices.items())
    _choices.update(choices)
    return differs


def recall(key: str, candidates: Iterable[Candidate]) -> Candidate | None:
    """The candidate that was chosen for this key, if one was."""
    chosen = _choices.get(key)
    return next((each for each in candidates if _as_record(each) == chosen), None)


def remember(key: str, candidate: Hashable) -> None:
    """It is the choice for this key from now on."""
    _choices[key] = _as_record(candidate)


def _as_record(candidate: Hashable) -> Any:
    """As it comes back from a checkpoint."""
    return list(candidate) if isinstance(candidate, tuple) else candidate


def choose(
    key: str,
    candidates: Iterable[Candidate],
    run: Callable[[Candidate], object],
    *,
    works: Callable[[Candidate], bool] | None = None,
    what: str,
    warm_up: int = 2,
    longest: float = 10.0,
) -> Candidate | None:
    """The fastest of the candidates that work, and ever after the same for this key.

    Parameters
    ----------
    key : str
        Says what for: equal keys must mean equal choices.
    candidates : iterable
    run : callable
        Does what is to be done, in the way of a candidate.
    works : callable, optional
        Whether a candidate does what it should; by default, if ``run`` raises nothing.
    what : str
        For the log.
    warm_up, longest : as in ``time_candidates``

    Returns
    -------
    One of the candidates; None if none works.
    """
    candidates = list(candidates)
    known = recall(key, candidates)
    if known is not None and (works is None or works(known)):
        return known
    seconds: dict[Candidate, float] = {}
    for candidate in candidates:
        begin = perf_counter()
        try:
            if works is None:
                run(candidate)
            elif not works(candidate):
                continue
        except Exception as error:  # whatever platforms and modules may raise
            logger.info("%s: %s: does not work (%s)", what, candidate, error)
            continue
        seconds[candidate] = perf_counter() - begin
    if not seconds:
        return None
    if len(seconds) > 1 and min(seconds.values()) < LONG_TRIAL:
        seconds = time_candidates(run, seconds, warm_up=warm_up, longest=longest)
    for candidate, median in seconds.items():
        logger.info("%s: %s: %.3g ms", what, candidate, 1e3 * median)
    fastest = min(seconds, key=seconds.__getitem__)
    remember(key, fastest)
    return fastest


def time_candidates(
    run: Callable[[Candidate], object],
    candidates: Iterable[Candidate],
    *,
    warm_up: int = 2,
    turns: int = 9,
    longest: float = 10.0,
) -> dict[Candidate, float]:
    """Median seconds of ``run(candidate)`` for the candidates that were not beaten early.

    In turns, because other programs take the machine's cores for a while and give them back. The
    median, because threads that wait for a busy core are what makes a way slow. Twice, if it is
    short, and the second time counts: threads of the one before spin for a while, and take a core.

    Parameters
    ----------
    warm_up : int
        Turns that do not count: TorchScript profiles its first runs and compiles after them.
    turns : int
        Turns that count.
    longest : float
        Seconds after which no further turn begins; then the last ones count.
    """
    left = list(candidates)
    times: dict[Candidate, list[float]] = {each: [] for each in left}
    start = perf_counter()
    for turn in range(warm_up + turns):
        for each in left:
            seconds = _seconds(run, each)
            if seconds < SPINNING:
                seconds = _seconds(run, each)
            times[each].append(seconds)
        if perf_counter() - start > longest:
            break
        if turn == warm_up + 2:  # most have lost already
            medians = {each: np.median(times[each][warm_up:]) for each in left}
            left = [each for each in left if medians[each] < 2 * min(medians.values())]
    return {each: float(np.median(times[each][min(warm_up, turn) :])) for each in left}


def _seconds(run: Callable[[Candidate], object], candidate: Candidate) -> float:
    begin = perf_counter()
    run(candidate)
    return perf_counter() - begin
