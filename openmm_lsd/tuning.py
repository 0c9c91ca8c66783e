"""The window length that gives the most steps per second, found while the run goes on.

Every trial is part of the run: its steps are committed like all others. The choice may depend on
the clock and on what was committed, not on the noise of steps to come (of which the time of a batch
may tell a little, if it depends on the positions: see docs/theory.md).
"""

from __future__ import annotations

import logging
from collections import deque

import numpy as np

logger = logging.getLogger(__name__)

WINDOWS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48)  # one is plain dynamics
FIRST = 8
TRIAL, STINT = 5, 8  # rounds with a window that is tried, and with the best
# After a change: TorchScript profiles and compiles for every new size of a batch.
WARM_UP = 2  # rounds that are not timed
TIMINGS = 15  # of each window that are remembered
MEMORY = 200  # rounds of which the acceptance is remembered; less at first, when the draft learns
WORTH = 1.03  # times faster, to leave the present window
FIRST_PROBE, LAST_PROBE = 60, 500  # rounds; from one to the next it is twice as many
SURE = 600  # rounds


class Acceptance:
    """How many steps a round commits, from rounds of all windows together.

    Whether a round goes on beyond its k-th step depends on k much more than on the window, so
    every round says something about all windows.
    """

    def __init__(self) -> None:
        longest = WINDOWS[-1]
        self._reached, self._passed = np.zeros(longest), np.zeros(longest)
        self._own: dict[int, tuple[float, float]] = {}  # weight, mean
        self._rounds = 0

    def record(self, window: int, committed: int) -> None:
        """A round of ``window`` sites committed so many steps."""
        self._rounds += 1
        keep = 1.0 - 1.0 / min(MEMORY, 20 + self._rounds / 2)
        self._reached *= keep
        self._passed *= keep
        # The last step of a window is always accepted.
        self._reached[: min(committed, window - 1)] += 1
        self._passed[: committed - 1] += 1
        weight, mean = self._own.get(window, (0.0, 0.0))
        weight = keep * weight + 1.0
        self._own[window] = weight, mean + (committed - mean) / weight

    def steps(self) -> dict[int, float]:
        """Steps per round to be expected of each window."""
        pooled = np.append(1.0, 1.0 + np.cumsum(np.cumprod(self._chances())))
        result = {}
        for window in WINDOWS:
            weight, mean = self._own.get(window, (0.0, 0.0))
            result[window] = (weight * mean + STINT * float(pooled[window - 1])) / (weight + STINT)
        return result

    def _chances(self) -> np.ndarray:
        """Of going on, at each step; where little is known, as at the step before."""
        chances = np.zeros(len(self._reached))
        chance, weight = 0.5, 1.0
        for k, (reached, passed) in enumerate(zip(self._reached, self._passed, strict=True)):
            chance = chances[k] = (passed + weight * chance) / (reached + weight)
            weight = 4.0
        return chances


class WindowTuner:
    """Which window the next round takes.

    That with the most steps per second, as far as is known; where nothing is known of the cost of
    a window the best is assumed, so that it is tried. Now and then, ever more rarely, the windows
    beside the best are tried again, and plain dynamics.

    Parameters
    ----------
    longest : int, optional
        No longer window has room, because something comes in between so often.
    """

    def __init__(self, longest: int | None = None) -> None:
        self.windows = [w for w in WINDOWS if longest is None or w <= longest]
        self.window = min(FIRST, self.windows[-1])
        self._acceptance = Acceptance()
        self._seconds: dict[int, deque[float]] = {}
        self._rounds = 0
        self._left = TRIAL
        self._since_change = 0  # rounds
        self._probes: list[int] = []
        self._next_probe = FIRST_PROBE
        self._said: int | None = None
        self._said_plain = False

    def record(self, committed: int, seconds: float, rounds: int = 1) -> None:
        """Rounds of ``window`` sites committed so many steps in so much time."""
        window = self.window
        if self._since_change >= WARM_UP or rounds > 1:
            self._seconds.setdefault(window, deque(maxlen=TIMINGS)).append(seconds / rounds)
        # The first round has the corrections of another window.
        if window > 1 and self._since_change > 0:
            self._acceptance.record(window, committed)
        self._since_change += rounds
        self._rounds += rounds
        self._left -= rounds
        if self._left <= 0:
            self._choose()

    def _choose(self) -> None:
        before = self.window
        if self._probes:
            self.window, self._left = self._probes.pop(), TRIAL
            self._seconds.pop(self.window, None)  # the machine may be another by now
        else:
            self.window = self._best()
            known = self.window in self._seconds
            self._left = STINT if known else TRIAL
            if known and self._rounds >= self._next_probe:
                self._next_probe += min(self._next_probe, LAST_PROBE)
                self._say()
                at = self.windows.index(self.window)
                beside = {1, *self.windows[max(0, at - 1) : at + 2]}
                self._probes = sorted(beside - {self.window})
        if self.window != before:
            self._since_change = 0

    def _best(self) -> int:
        steps = self._acceptance.steps()
        rates = {window: steps[window] / self._cost(window) for window in self.windows}
        best = max(rates, key=rates.__getitem__)
        if rates[best] < WORTH * rates[self.window]:
            return self.window
        return best

    def _cost(self, window: int) -> float:
        """Seconds of a round; the least that is possible, if the window was never tried.

        A batch costs no less than a smaller one, and in proportion no less than a larger one.
        """
        if window in self._seconds:
            # All rounds of a window do the same work, so the median leaves out the disturbed ones.
            return float(np.median(self._seconds[window]))
        known = self._seconds
        smaller = [self._cost(each) for each in known if each < window]
        larger = [self._cost(each) * window / each for each in known if each > window]
        return max([*smaller, *larger])

    def _say(self) -> None:
        if self.window != self._said:
            self._said = self.window
            steps = self._acceptance.steps()
            logger.info(
                "window length %d; ms per step: %s",
                self.window,
                ", ".join(
                    f"{each}: {1e3 * self._cost(each) / steps[each]:.3g}"
                    for each in sorted(self._seconds)
                ),
            )
        if self.window == 1 and self._rounds >= SURE and not self._said_plain:
            self._said_plain = True
            logger.warning(
                "no window is faster than plain dynamics here: a batch costs too much, or the "
                "draft is too far off. Going on with plain steps; this is looked at again later"
            )
