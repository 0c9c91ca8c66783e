"""What a round hands on: a state, its random numbers, the drafted window, what was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from .clock import Times

Array = NDArray[np.float64]


class State(NamedTuple):
    """A committed state at the start of step ``step``."""

    positions: Array
    velocities: Array
    step: int


class KeptState:
    """As a State, but where it was drafted, from where it is read when somebody asks for it.

    Parameters
    ----------
    read : callable
        Returns positions and velocities (N, 3). It is called once, and then let go of.
    step : int
    """

    def __init__(self, read: Callable[[], tuple[Array, Array]], step: int) -> None:
        self.step = step
        self._read: Callable[[], tuple[Array, Array]] | None = read
        self._arrays: tuple[Array, Array] | None = None

    @property
    def positions(self) -> Array:
        """See State."""
        return self._here()[0]

    @property
    def velocities(self) -> Array:
        """See State."""
        return self._here()[1]

    def _here(self) -> tuple[Array, Array]:
        if self._arrays is None:
            assert self._read is not None
            self._arrays = self._read()
        self._read = None
        return self._arrays


AnyState = State | KeptState


class Draws(NamedTuple):
    """What is drawn beforehand for each step of a window of length K.

    ``noise`` (K, N, 3) ~ N(0, I), of the particles on which draft and target may differ;
    ``log_uniforms`` (K,), by which steps are accepted; and ``cm_removals`` (K,): whether a step
    starts by removing the motion of the centre of mass.
    """

    noise: Array
    log_uniforms: Array
    cm_removals: NDArray[np.bool_]


class Whole(NamedTuple):
    """A drafted path of all particles, where draft and target differ on a subset S only.

    ``positions`` and ``velocities`` (K + 1, N, 3) are those at the start of each step and, without
    the subset, after the last; (K, N, 3) if that step cannot be done. ``centres`` (K + 1, 2, 3) are
    position and velocity of the centre of mass of the rest. ``shared_forces`` (K, |S| + 1, 3) are
    what draft and target share, on the subset and on all of the rest together. ``noise`` (K, 3) is
    that of the rest as one particle.
    """

    positions: Array
    velocities: Array
    centres: Array
    shared_forces: Array
    noise: Array


class Window(NamedTuple):
    """The drafted steps of a window of length K, each array (K, N, 3).

    Where draft and target differ on a subset only, N counts its particles, and ``whole`` is the
    path of all.

    ``velocities`` are those at the start of each step, after the motion of the centre of mass was
    removed where that is due, and ``corrections`` what was added to the forces of the draft. If the
    draft breaks down at step k > 0 (positions that are not finite, an exception), only the k steps
    before it are there.
    """

    sites: Array
    velocities: Array
    draft_forces: Array
    corrections: Array
    whole: Whole | None = None


class Verified(NamedTuple):
    """What the target says of the leading V sites of a window, each array (V, N, 3) in kJ/mol/nm.

    ``discrepancies`` are target force minus draft force, less what acts along constraints. The
    target's force cannot be computed from them, so it comes with them.
    """

    target_forces: Array
    discrepancies: Array


class CommittedSteps(Protocol):
    """The committed steps of a window, at least one.

    ``noise_shifts`` are the |delta| of those whose noise was transported, and ``accepted`` says
    whether the last of them was accepted.
    """

    @property
    def noise_shifts(self) -> list[float]: ...

    @property
    def accepted(self) -> bool: ...

    @property
    def num_steps(self) -> int:
        """C, how many they are."""

    def states(self, step: int) -> Sequence[AnyState]:
        """After each of them, the first of which has this index."""


class Committed(NamedTuple):
    """CommittedSteps as arrays: positions and velocities (C, N, 3) after each of them."""

    positions: Array
    velocities: Array
    noise_shifts: list[float]
    accepted: bool

    @property
    def num_steps(self) -> int:
        """See CommittedSteps."""
        return len(self.positions)

    def states(self, step: int) -> list[State]:
        """See CommittedSteps."""
        path = zip(self.positions, self.velocities, strict=True)
        return [State(*each, step + k) for k, each in enumerate(path, 1)]


class MeasuredRound(NamedTuple):
    """What a round leaves to be learned from.

    ``sites``, ``target_forces``, ``discrepancies`` and ``errors`` (V, N, 3) are of the sites whose
    target forces are there; ``errors`` are the discrepancies less the corrections that the steps
    were drafted with.
    """

    step: int  #: index of the first
    sites: Array
    target_forces: Array
    discrepancies: Array
    errors: Array
    committed: int  #: the leading ones, which are steps by now
    times: Times | None = None

    @classmethod
    def of(
        cls, step: int, window: Window, verified: Verified, committed: int, times: Times | None
    ) -> MeasuredRound:
        """The window was drafted from the state before ``step``."""
        count = len(verified.target_forces)
        errors = verified.discrepancies - window.corrections[:count]
        return cls(step, window.sites[:count], *verified, errors, committed, times)

    @property
    def end(self) -> int:
        """Index of the step after the committed ones."""
        return self.step + self.committed


class Ahead(NamedTuple):
    """Steps that have been drafted and measured, but not committed yet; arrays (B, N, 3)."""

    step: int  #: index of the first
    sites: Array
    discrepancies: Array


class Lesson(NamedTuple):
    """Steps of one round that have been handed out, to be learned from; arrays (B, N, 3)."""

    step: int  #: index of the first
    sites: Array
    discrepancies: Array
    earlier_sites: Array  #: of the first of them, as measured in the round before
    earlier_discrepancies: Array

    @property
    def end(self) -> int:
        """Index of the step after the last."""
        return self.step + len(self.sites)
