"""The window length that gives the most steps per second, found while the run goes on.

Every trial is part of the run: its steps are committed like all others. The choice may depend on
the clock and on what was committed, never on the noise of steps to come.
"""

from __future__ import annotations

import logging
from collections import deque

import numpy as np

logger = logging.getLogger(__name__)

WINDOWS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48)  # one is plain dynamics
FIRST = 8
# An examination goes through the windows in turns, because other programs take the machine's cores
# for a while. For each turn: rounds per window, and how many times slower than the fastest a window
# may be to be there in the next.
TURNS = ((8, 2.0), (16, 1.4), (32, 1.2), (64, 1.0))
SECOND_EXAMINATION = 600  # steps, when a draft has learned most; the next each time twice as far
REMEMBERED = 160  # rounds of each window, also from one examination to the next


class WindowTuner:
    """Which window the next round takes.

    The first examination tries all windows; later ones, ever rarer, those near the best and plain
    dynamics.
    """

    def __init__(self) -> None:
        self.window = FIRST
        self._steps = 0
        self._next_examination = SECOND_EXAMINATION
        self._said_plain = False
        self._forget()
        self._examine(list(WINDOWS))

    def record(self, committed: int, seconds: float, rounds: int = 1) -> None:
        """Rounds of ``window`` sites committed so many steps in so much time."""
        self._steps += committed
        if self._left:
            self._rounds += rounds
            # The first has the corrections of another window.
            if self._rounds > rounds or rounds > 1:
                self._counts[self.window].append(committed)
                self._seconds[self.window].append(seconds)
            if self._rounds > TURNS[self._turn][0]:
                self._next_trial()
        elif self._steps >= self._next_examination:
            if self._next_examination == SECOND_EXAMINATION:
                self._forget()  # how it was before the draft had learned
            self._next_examination *= 2
            at = WINDOWS.index(self.window)
            self._examine(sorted({1, *WINDOWS[max(0, at - 2) : at + 3]}))

    def _forget(self) -> None:
        self._counts: dict[int, deque[int]] = {w: deque(maxlen=REMEMBERED) for w in WINDOWS}
        self._seconds: dict[int, deque[float]] = {w: deque(maxlen=REMEMBERED) for w in WINDOWS}

    def _examine(self, windows: list[int]) -> None:
        self._turn = 0
        self._left = windows
        self._waiting = list(windows)
        self._next_trial()

    def _next_trial(self) -> None:
        if not self._waiting:
            self._end_turn()
        if self._left:
            self.window = self._waiting.pop(0)
            self._rounds = 0

    def _end_turn(self) -> None:
        costs = {window: self._seconds_per_step(window) for window in self._left}
        fastest = min(costs.values())
        allowed = TURNS[self._turn][1] * fastest
        self._left = [window for window in self._left if costs[window] <= allowed]
        self._turn += 1
        if len(self._left) > 1 and self._turn < len(TURNS):
            self._waiting = list(self._left)
            return
        self._left = []
        self.window = min(costs, key=costs.__getitem__)
        logger.info(
            "window length %d; ms per step: %s",
            self.window,
            ", ".join(f"{each}: {1e3 * seconds:.3g}" for each, seconds in costs.items()),
        )
        if self.window == 1 and not self._said_plain:
            self._said_plain = True
            logger.warning(
                "no window is faster than plain dynamics here: a batch costs too much, or the "
                "draft is too far off. Going on with plain steps; this is looked at again later"
            )

    def _seconds_per_step(self, window: int) -> float:
        # All rounds of a window do the same work, so the median leaves out the disturbed ones.
        return float(np.median(self._seconds[window]) / np.mean(self._counts[window]))
