"""What a round tells about the corrections of the next: the rules, from the published one on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .corrections import Corrections, hold_rows
from .jacobian import JacobianEstimate, Secant
from .jumps import JumpLimit, hold_outliers
from .prediction import Prediction
from .schemes import Scheme
from .window import Ahead, Lesson, MeasuredRound

Array = NDArray[np.float64]


class Corrector(ABC):
    """Makes the corrections of the next window.

    Measurability: the correction of step n may depend on the noise of steps before n alone. Row j
    of a round's discrepancies was measured at the force site of step j of its window, which is a
    function of the noise of steps before j. So row j may serve as the correction of step j (its
    own, a round ago) and of every later step; never of an earlier one.
    """

    name: ClassVar[str]
    keeps_rows: ClassVar[bool] = False  # whether a step is corrected by what was measured for it
    learns: ClassVar[bool] = False

    @classmethod
    def make(cls, scheme: Scheme, masses: Array) -> Corrector:
        """For a scheme and masses (N, 1) amu."""
        return cls()

    def start(self, step: int) -> None:  # noqa: B027
        """A run starts at this step; what was learned from it or later ones is forgotten."""

    def complete(self, corrections: Corrections) -> Corrections:
        """With what has been learned by now."""
        return corrections

    @abstractmethod
    def next(self, measured: MeasuredRound, window: int, ahead: Ahead | None) -> Corrections:
        """Of the next K steps, K being ``window``, after a round.

        ``ahead`` is what the round before had measured for the steps of this one, if the draft is
        the same.
        """

    def learn(self, lessons: Sequence[Lesson], sites: Array, discrepancies: Array) -> None:  # noqa: B027
        """Learn from steps in a row, which have been handed out; the arrays are those of all."""

    def interrupt(self) -> None:  # noqa: B027
        """The draft has changed, or the state: what comes does not follow from what was."""

    def snapshot(self) -> dict[str, Any]:
        """What the run has changed, without what other objects keep, for ``restore``."""
        return {}

    def restore(self, record: dict[str, Any]) -> None:  # noqa: B027
        """Continue as the corrector that the snapshot was taken of."""


class NoCorrection(Corrector):
    """The bare draft."""

    name = "none"

    def next(self, measured: MeasuredRound, window: int, ahead: Ahead | None) -> Corrections:
        """See Corrector."""
        return Corrections(np.zeros((window, *measured.discrepancies.shape[1:])))


class ConstantOffset(Corrector):
    """The published rule: the discrepancy of the last committed step, throughout the window."""

    name = "constant"

    def next(self, measured: MeasuredRound, window: int, ahead: Ahead | None) -> Corrections:
        """See Corrector."""
        offset = measured.discrepancies[measured.committed - 1]
        return Corrections(np.repeat(offset[None], window, axis=0))


class PerStep(Corrector):
    """To each step the discrepancy that was measured for it a round ago; or, if there is none yet,
    the last one of the window.

    Parameters
    ----------
    scheme : Scheme
    masses : (N, 1) amu
    """

    name = "per-step"
    keeps_rows = True

    def __init__(self, scheme: Scheme, masses: Array) -> None:
        self._jumps = JumpLimit(scheme, masses)

    @classmethod
    def make(cls, scheme: Scheme, masses: Array) -> Corrector:
        """See Corrector."""
        return cls(scheme, masses)

    def start(self, step: int) -> None:
        """See Corrector."""
        self._jumps.start()

    def next(self, measured: MeasuredRound, window: int, ahead: Ahead | None) -> Corrections:
        """See Corrector."""
        smooth, _ = self._held(measured)
        return Corrections(hold_rows(smooth, measured.committed, window))

    def _held(self, measured: MeasuredRound) -> tuple[Array, Array]:
        """Discrepancies without outliers, and the largest jump (N, 1) that is allowed."""
        discrepancies, committed = measured.discrepancies, measured.committed
        largest = self._jumps.update(discrepancies[:committed])
        limits = largest, self._jumps.largest_error
        return hold_outliers(discrepancies, measured.errors, committed, *limits), largest

    def snapshot(self) -> dict[str, Any]:
        """See Corrector."""
        return {"leap seen": self._jumps.seen}

    def restore(self, record: dict[str, Any]) -> None:
        """See Corrector."""
        self._jumps.start(record["leap seen"])


class Following(PerStep):
    """The same, and it follows the path: a correction changes with the positions, as the secant of
    the last two rounds and an estimate of the derivative say; and what was never measured is
    predicted.

    Parameters
    ----------
    scheme : Scheme
    masses : (N, 1) amu
    jacobian : JacobianEstimate, optional
    prediction : Prediction, optional
        They continue to learn, whatever run they are given to.
    """

    name = "secant"
    learns = True

    def __init__(
        self,
        scheme: Scheme,
        masses: Array,
        jacobian: JacobianEstimate | None = None,
        prediction: Prediction | None = None,
    ) -> None:
        super().__init__(scheme, masses)
        self._jacobian = JacobianEstimate(masses) if jacobian is None else jacobian
        self._prediction = Prediction(len(masses)) if prediction is None else prediction

    def start(self, step: int) -> None:
        """See Corrector."""
        super().start(step)
        self._jacobian.start(step)
        self._prediction.start(step)

    def complete(self, corrections: Corrections) -> Corrections:
        """See Corrector."""
        return corrections._replace(jacobian=self._jacobian.jacobian)

    def next(self, measured: MeasuredRound, window: int, ahead: Ahead | None) -> Corrections:
        """See Corrector."""
        smooth, largest = self._held(measured)
        sites, committed = measured.sites, measured.committed
        forces = hold_rows(smooth, committed, window)
        usable = len(smooth)
        if smooth is measured.discrepancies:
            jacobian = self._jacobian.jacobian
            predicted = self._prediction.predict(sites, smooth, jacobian, largest)
            new = forces[usable - committed :]
            if predicted is not None and len(new):
                new += hold_rows(predicted, 0, len(new))
        else:  # a wild site is no place to start from
            outliers = (smooth != measured.discrepancies).any(axis=(1, 2))
            usable = max(int(outliers.argmax()), 1)
        held_sites = hold_rows(sites[:usable], committed, window)
        return Corrections(forces, held_sites, secant=_secant(measured, window, ahead))

    def learn(self, lessons: Sequence[Lesson], sites: Array, discrepancies: Array) -> None:
        """See Corrector."""
        for each in lessons:
            self._jacobian.learn(*each)
        jacobian = self._jacobian.jacobian
        self._prediction.learn(lessons[0].step, sites, discrepancies, jacobian)

    def interrupt(self) -> None:
        """See Corrector."""
        self._prediction.interrupt()


def _secant(measured: MeasuredRound, window: int, ahead: Ahead | None) -> Secant | None:
    """Of the next window: this round compared with the one before, step by step."""
    if ahead is None or ahead.step != measured.step:
        return None
    sites, discrepancies = measured.sites, measured.discrepancies
    rows = slice(measured.committed, min(len(ahead.sites), len(discrepancies)))
    count = max(0, rows.stop - rows.start)
    result = Secant(*np.zeros((2, window, *sites.shape[1:])))
    np.subtract(sites[rows], ahead.sites[rows], out=result.displacements[:count])
    np.subtract(discrepancies[rows], ahead.discrepancies[rows], out=result.changes[:count])
    return result


CORRECTORS: dict[str, type[Corrector]] = {
    each.name: each for each in (Following, PerStep, ConstantOffset, NoCorrection)
}


def make_corrector(name: str, scheme: Scheme, masses: Array) -> Corrector:
    """'secant', 'per-step', 'constant' or 'none'.

    Raises
    ------
    ValueError
        If there is none of that name.
    """
    if name not in CORRECTORS:
        raise ValueError(f"correction is {name!r}; it must be one of {tuple(CORRECTORS)}")
    return CORRECTORS[name].make(scheme, masses)
