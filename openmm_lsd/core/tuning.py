"""The window length that gives the most steps per second, found during the run.

Every trial is part of the run: its steps are committed like all others. The choice may depend on
the clock and on what was committed, not on the noise of steps to come (of which the time of a batch
may tell a little, if it depends on the positions: see docs/theory.md).
"""

from __future__ import annotations

import logging
from collections import deque

import numpy as np

logger = logging.getLogger(__name__)

WINDOWS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # one is plain dynamics
INITIAL_WINDOW = 8
TRIAL_ROUNDS = 3  # timings of a window that is tried
STAY_ROUNDS, MAX_STAY_ROUNDS = 8, 64  # rounds with the best window, at first and after many with it
# After a change nothing is in the caches, and TorchScript compiles for a new size of the batch.
UNTIMED_ROUNDS = 4  # rounds that are not timed
SPEED_TIMINGS = 15  # of the present window that tell the machine's speed
COST_SMOOTHING = 0.7  # weight of the last comparison of two windows' costs against earlier ones
MAX_TIMES_MEASURED = 6  # times that a step is measured; more are counted as so many
MEMORY_ROUNDS = 200  # of which the acceptance is remembered; less at first, when the draft learns
SWITCH_GAIN = 1.03  # times faster, to leave a window
RETRY_PLAIN_ABOVE = 0.75  # times as fast as the present window; else plain steps are not tried
FIRST_RETRY, LAST_RETRY = 60, 2000  # rounds; from one to the next it is twice as many
WARMUP_ROUNDS = 24  # rounds that do not tell how good a draft is that learns: it has just begun
WARN_AFTER_ROUNDS = 600  # rounds


class Acceptance:
    """How many steps a round commits, from rounds of all windows together.

    Whether a round continues beyond a step depends on how often the discrepancy of that step has
    been measured, a round ago, two rounds ago and so on; the last steps of a window are new, and
    take the last correction there is. The chances of both kinds are counted. What a window would
    commit, round after round, follows from them: in a long one a step is measured more often
    before its turn comes.
    """

    def __init__(self) -> None:
        # By how often a step was measured; and of those that never were, by how far they are off.
        self._reached = np.zeros(MAX_TIMES_MEASURED + 1), np.zeros(WINDOWS[-1])
        self._passed = np.zeros(MAX_TIMES_MEASURED + 1), np.zeros(WINDOWS[-1])
        self._own: dict[int, tuple[float, float]] = {}  # weight, mean
        self._rounds = self._since_change = 0
        self._window = 0
        self._measured = np.zeros(0, dtype=int)  # how often, of the leading steps of the next round

    def interrupt(self) -> None:
        """Other steps lie between the last round and the next."""
        self._measured = self._measured[:0]

    def record(self, window: int, committed: int) -> None:
        """A round of ``window`` sites committed so many steps."""
        self._rounds += 1
        keep = 1.0 - 1.0 / min(MEMORY_ROUNDS, 20 + self._rounds / 2)
        measured = self._measured[:window]
        kept = len(measured)
        # The last step of a window is always accepted.
        for counts, steps in (
            (self._reached, min(committed, window - 1)),
            (self._passed, committed - 1),
        ):
            for each in counts:
                each *= keep
            counts[0][:] += np.bincount(
                np.minimum(measured[:steps], MAX_TIMES_MEASURED), minlength=MAX_TIMES_MEASURED + 1
            )
            counts[1][: max(0, steps - kept)] += 1
        self._own = {each: (keep * weight, mean) for each, (weight, mean) in self._own.items()}
        self._since_change = self._since_change + 1 if window == self._window else 0
        self._window = window
        if self._since_change >= UNTIMED_ROUNDS:
            weight, mean = self._own.get(window, (0.0, 0.0))
            self._own[window] = weight + 1.0, mean + (committed - mean) / (weight + 1.0)
        measured = np.append(measured, np.zeros(window - kept, dtype=int))
        self._measured = measured[committed:] + 1

    def steps(self) -> dict[int, float]:
        """Steps per round to be expected of each window."""
        new = _chances(self._reached[1], self._passed[1], 0.5, 1.0)
        # Of what was measured nothing is known at first but that it should be no worse.
        measured = _chances(self._reached[0], self._passed[0], new[0], 4.0)
        result = {}
        for window in WINDOWS:
            weight, mean = self._own.get(window, (0.0, 0.0))
            expected = _steady_steps(window, measured, new)
            result[window] = (weight * mean + STAY_ROUNDS * expected) / (weight + STAY_ROUNDS)
        return result


def _chances(reached: np.ndarray, passed: np.ndarray, chance: float, weight: float) -> np.ndarray:
    """Of continuing, by a number; where little is known, as for the number before, at first
    ``chance``, with a ``weight`` in rounds."""
    chances = np.zeros_like(reached)
    for number, (many, of_them) in enumerate(zip(reached.tolist(), passed.tolist(), strict=True)):
        chance = chances[number] = (of_them + weight * chance) / (many + weight)
        weight = 4.0
    return chances


def _steady_steps(window: int, measured: np.ndarray, new: np.ndarray) -> float:
    """Steps of a round, where all rounds commit the same.

    Parameters
    ----------
    measured : (MAX_TIMES_MEASURED + 1,)
        Chances of continuing beyond a step, by how often it was measured.
    new : (K,)
        Of those that were not, by how many of these come before it.
    """
    if window == 1:
        return 1.0
    places = np.arange(window - 1)
    steps = 0.5 * window
    for _ in range(8):
        often = ((window - 1 - places) / steps).astype(int)
        kept = np.count_nonzero(often)
        chances = np.where(
            often > 0,
            measured[np.minimum(often, MAX_TIMES_MEASURED)],
            new[np.maximum(places - kept, 0)],
        )
        steps = 0.5 * (steps + 1.0 + float(np.cumprod(chances).sum()))
    return steps


class Costs:
    """What a round of each window takes, on a machine whose speed changes.

    Other programs take the cores for a while, and clocks change: what a window took a minute ago
    is not to be compared with what another takes now. So each window's rounds are compared with
    those of the present one just before, and only the ratios are kept.
    """

    def __init__(self) -> None:
        self._relative: dict[int, float] = {}
        self._speed_before = 1.0
        self._present: int | None = None
        self._seconds: deque[float] = deque(maxlen=SPEED_TIMINGS)  # of the present window's rounds

    def __contains__(self, window: int) -> bool:
        return window in self._relative

    def follow(self, window: int, seconds: float) -> None:
        """A round of the present window, whose cost is known, tells the machine's speed."""
        if window != self._present:
            self._speed_before, self._present = self._speed, window
            self._seconds.clear()
        self._seconds.append(seconds)

    @property
    def _speed(self) -> float:
        """Seconds per unit of relative cost."""
        if not self._seconds:
            return self._speed_before
        assert self._present is not None
        return float(np.median(self._seconds)) / self._relative[self._present]

    def compare(self, window: int, seconds: list[float]) -> None:
        """Rounds of a window that is tried, with the present one just before."""
        # All rounds of a window do the same work, so the median leaves out the disturbed ones.
        measured = float(np.median(seconds)) / self._speed
        known = self._relative.get(window, measured)
        self._relative[window] = known * (measured / known) ** COST_SMOOTHING

    def seconds(self, window: int) -> float:
        """On the machine as it is now; if the window was never tried, hardly less than it will be.

        A batch costs no less than a smaller one, in proportion no less than a larger one, and more
        states cost at least half of what they cost between two sizes that were tried.
        """
        return self._relative_cost(window) * self._speed

    def _relative_cost(self, window: int) -> float:
        known = self._relative
        if window in known:
            return known[window]
        smaller = [each for each in self.tried if each < window]
        larger = [each for each in self.tried if each > window]
        bounds = [known[each] for each in smaller]
        bounds += [known[each] * window / each for each in larger]
        if smaller and len(known) > 1:
            low = smaller[-1]
            first, last = (low, larger[0]) if larger else self.tried[-2:]
            slope = (known[last] - known[first]) / (last - first)
            bounds.append(known[low] + 0.5 * slope * (window - low))
        return max(bounds)

    @property
    def tried(self) -> list[int]:
        """Windows whose cost is known."""
        return sorted(self._relative)


class WindowTuner:
    """Which window the next round takes.

    That with the most steps per second, as far as is known; where nothing is known of the cost of
    a window the best is assumed, so that it is tried. Now and then, ever more rarely, the windows
    next to the best are tried again, and plain dynamics.

    Parameters
    ----------
    longest : int, optional
        No longer window has room, because something comes in between so often.
    learns : bool
        Whether the draft knows nothing yet, and learns during the run.
    """

    def __init__(self, longest: int | None = None, learns: bool = False) -> None:
        self._school = WARMUP_ROUNDS if learns else 0
        self.windows = [w for w in WINDOWS if longest is None or w <= longest]
        self.window = self._standing = min(INITIAL_WINDOW, self.windows[-1])
        self._acceptance = Acceptance()
        self._costs = Costs()
        self._rounds = 0
        self._left = 0  # rounds of a stint
        self._since_change = 0  # rounds
        self._on_trial: list[float] | None = []  # seconds of the window that is tried, if one is
        self._probes = [1] if self.window > 1 else []
        self._interval = self._next_probe = FIRST_RETRY
        self._said: int | None = None
        self._said_plain = False

    def anew(self) -> WindowTuner:
        """One that knows nothing of the steps so far, whose noise is about to be used again."""
        return WindowTuner(self.windows[-1])

    def resume_at(self, window: int) -> None:
        """Continue with this window, if it is one of those that are tried, and with what the draft
        has learned."""
        self._school = 0
        if window in self.windows:
            self.window = self._standing = window
            self._since_change, self._on_trial, self._probes = 0, [], []

    def record(self, committed: int, seconds: float, rounds: int = 1) -> None:
        """Rounds of ``window`` sites committed some steps in some seconds, which count everything
        but learning: that costs much at first and little later."""
        if self._school > 0:
            self._school -= rounds
            return
        window = self.window
        if self._since_change >= UNTIMED_ROUNDS:
            if self._on_trial is not None:
                self._on_trial += [seconds / rounds] * rounds
            else:
                self._costs.follow(window, seconds / rounds)
        if window > 1:
            self._acceptance.record(window, committed)
        else:
            self._acceptance.interrupt()
        self._since_change += rounds
        self._rounds += rounds
        self._left -= rounds
        if self._left <= 0 if self._on_trial is None else len(self._on_trial) >= TRIAL_ROUNDS:
            self._choose()

    def _choose(self) -> None:
        before = self.window
        if self._on_trial is not None:
            self._costs.compare(self.window, self._on_trial)
        if self._probes:
            self.window, self._on_trial = self._probes.pop(), []
        else:
            self.window = self._best()
            self._on_trial = []
            if self.window in self._costs:
                self._on_trial = None
                if self.window != self._standing:  # perhaps by mistake: look again soon
                    self._standing, self._interval = self.window, FIRST_RETRY
                    self._next_probe = min(self._next_probe, self._rounds + FIRST_RETRY)
                self._plan_probes()
                self._left = min(max(STAY_ROUNDS, self._since_change // 4), MAX_STAY_ROUNDS)
                if self.window == 1 and not self._probes:  # plain steps tell nothing new
                    self._left = max(self._left, self._next_probe - self._rounds)
        if self.window != before:
            self._since_change = 0

    def _plan_probes(self) -> None:
        if self._rounds < self._next_probe:
            return
        self._interval = min(2 * self._interval, LAST_RETRY)
        self._next_probe = self._rounds + self._interval
        self._say()
        windows, rates = self.windows, self._rates()
        if self.window == 1:  # while these last nothing is heard of the others
            self._probes = sorted(windows[1:], key=rates.__getitem__)[-1:]
            return
        at = windows.index(self.window)
        beside = {*windows[max(0, at - 1) : at + 2]} - {self.window}
        if rates[1] > RETRY_PLAIN_ABOVE * rates[self.window]:
            beside.add(1)
        self._probes = sorted(beside)

    def _rates(self) -> dict[int, float]:
        """Steps per second."""
        steps = self._acceptance.steps()
        return {each: steps[each] / self._costs.seconds(each) for each in self.windows}

    def _best(self) -> int:
        rates = self._rates()
        best = max(rates, key=rates.__getitem__)
        return best if rates[best] > SWITCH_GAIN * rates[self._standing] else self._standing

    def _say(self) -> None:
        if self.window != self._said:
            self._said = self.window
            steps = self._acceptance.steps()
            logger.info(
                "window length %d; ms per step: %s",
                self.window,
                ", ".join(
                    f"{each}: {1e3 * self._costs.seconds(each) / steps[each]:.3g}"
                    for each in self._costs.tried
                ),
            )
        if self.window == 1 and self._rounds >= WARN_AFTER_ROUNDS and not self._said_plain:
            self._said_plain = True
            logger.warning(
                "no window is faster than plain dynamics here: a batch costs too much, or the "
                "draft is too far off. Plain steps are done now; windows are tried again later"
            )
