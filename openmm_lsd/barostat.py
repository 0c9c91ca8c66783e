"""The moves of a barostat, at the steps where a plain run would make them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ._native import ContextAccess
from .clock import Clock
from .sampler import State

Array = NDArray[np.float64]


class BarostatMoves:
    """An Intervention: OpenMM's own barostats, in the Context of the run.

    A Monte Carlo barostat counts the steps of its Context, and begins every so many of them with a
    move, which it accepts or rejects by the Context's energies. Here it is told of the steps when
    it matters: before the next move, and before anybody else looks.

    Parameters
    ----------
    access : ContextAccess
    moved : callable
        Called after every move that was accepted: the box is another.
    clock : Clock
        Of the run: energies of a move may depend on the time.
    """

    def __init__(self, access: ContextAccess, moved: Callable[[], None], clock: Clock) -> None:
        self._access, self._moved, self._clock = access, moved, clock
        self.begun = 0  # steps before this index have begun, as far as the barostats know

    @property
    def next_step(self) -> int | None:
        """See Intervention."""
        steps = self._access.steps_before_move()
        return None if steps is None else self.begun + steps

    def tell(self, step: int) -> None:
        """All steps before this index have begun."""
        if step > self.begun:
            self._access.count_steps(step - self.begun)
        self.begun = step

    def apply(self, state: State) -> tuple[Array, Array]:
        """See Intervention; if the move fails the Context has its box back."""
        access, box = self._access, self._access.get_box()
        self.tell(state.step)
        time, step_count = (each[0] for each in self._clock.times(state.step, 1))
        access.set_state(state.positions, state.velocities, time, step_count)
        try:
            access.begin_step()
        except BaseException:
            access.set_box(box)
            raise
        self.begun += 1
        if np.array_equal(access.get_box(), box):
            return state.positions, state.velocities
        self._moved()
        return access.get_state()[0], state.velocities
