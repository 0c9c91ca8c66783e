"""When a run learns, and from what: from steps that have been handed out, several rounds together.

Not before all steps of a round have been handed out: should the run be taken up at one of them, the
noise of the later ones is used again, and must not have shaped the draft.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .clock import Times
from .correctors import Corrector
from .engine import TrainableDraft
from .window import Ahead, Lesson, MeasuredRound

Array = NDArray[np.float64]

# Several rounds are learned from together, which costs less: not before there are so many new steps
# for each that has been learned from since the start.
NEW_STEPS, MOST_NEW_STEPS = 1 / 8, 48
# That may be done while the target is evaluated, in another thread; but not before so many
# steps have been learned from: the next window needs what there is to know.
LEARNED_AT_ONCE = 384


class Lessons:
    """What draft and corrector have still to learn from.

    Parameters
    ----------
    draft : TrainableDraft or None
    corrector : Corrector
    beside : bool
        Whether they may learn while the target is evaluated, after the first steps.

    Attributes
    ----------
    last : MeasuredRound or None
        The last round, of which steps may still have to be handed out.
    ahead : Ahead or None
        Steps that the last closed round has measured and not committed.
    """

    def __init__(self, draft: TrainableDraft | None, corrector: Corrector, beside: bool) -> None:
        self._draft, self._corrector, self._beside = draft, corrector, beside
        self._waiting: list[Lesson] = []  # in a row, of one draft
        self._clear()

    def _clear(self) -> None:
        self.last: MeasuredRound | None = None
        self.ahead: Ahead | None = None
        self._learned = 0  # steps

    def start(self, step: int) -> None:
        """A run starts at this step; ``finish`` was called before."""
        self._clear()
        if self._draft is not None:
            self._draft.start(step)
        self._corrector.start(step)

    def add(self, measured: MeasuredRound) -> None:
        """A round was committed."""
        if self._draft is not None or self._corrector.learns:
            self.last = measured

    @property
    def are_due(self) -> bool:
        """Whether there are enough new steps, those of the last round included."""
        if self.last is None:
            return False
        new = sum(len(each.sites) for each in self._waiting) + self.last.committed
        return new >= min(NEW_STEPS * self._learned, MOST_NEW_STEPS)

    @property
    def may_wait(self) -> bool:
        """Whether the next window may be drafted before they are learned."""
        return self._beside and self._learned >= LEARNED_AT_ONCE

    def close_round(self) -> None:
        """All steps of the last round have been handed out."""
        last, self.last = self.last, None
        if last is None:
            return
        if self._waiting and self._waiting[-1].end != last.step:  # an interrupt came between
            self._waiting = []
        past, rest = slice(last.committed), slice(last.committed, None)
        self._waiting.append(
            Lesson(last.step, last.sites[past], last.discrepancies[past], *self._earlier(last))
        )
        self.ahead = Ahead(last.end, last.sites[rest], last.discrepancies[rest])

    def _earlier(self, last: MeasuredRound) -> tuple[Array, Array]:
        """Sites and discrepancies of its first steps, as measured in the round before."""
        if self.ahead is None or self.ahead.step != last.step:
            nothing = np.empty((0, *last.sites.shape[1:]))
            return nothing, nothing
        return self.ahead.sites[: last.committed], self.ahead.discrepancies[: last.committed]

    def forget_ahead(self) -> None:
        """What was measured ahead is not to be compared with what comes."""
        self.ahead = None

    def learn(self) -> bool:
        """Learn from all that waits for it; whether the draft has changed."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return False
        sites = np.concatenate([each.sites for each in waiting])
        discrepancies = np.concatenate([each.discrepancies for each in waiting])
        self._learned += len(sites)
        self._corrector.learn(waiting, sites, discrepancies)
        if self._draft is None or not self._draft.learn(waiting[0].step, sites, discrepancies):
            return False
        self._corrector.interrupt()
        return True

    def finish(self, step: int) -> None:
        """Learn now from what is past, if this is the next step: before something else changes.

        Nothing is learned from this or later steps: their noise is about to be used again.
        """
        if self._waiting and self._waiting[-1].end > step:
            self._waiting = []
        self.learn()

    def snapshot(self) -> dict[str, Any]:
        """All of it, for ``restore``."""
        return {
            "measured": None if self.ahead is None else self.ahead._asdict(),
            "lesson": None if self.last is None else self.last._asdict(),
            "waiting": [tuple(each) for each in self._waiting],
            "learned": self._learned,
        }

    def restore(self, record: dict[str, Any]) -> None:
        """Continue as those that the snapshot was taken of."""
        ahead, last = record["measured"], record["lesson"]
        self.ahead = None if ahead is None else Ahead(**ahead)
        if last is not None:
            times = last["times"]
            last = MeasuredRound(**last | {"times": None if times is None else Times(*times)})
            # Records of before kept the sites that could not be verified, too.
            last = last._replace(sites=last.sites[: len(last.discrepancies)])
        self.last = last
        self._waiting = [Lesson(*each) for each in record["waiting"]]
        self._learned = record["learned"]
