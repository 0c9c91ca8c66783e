"""The moves of a barostat, at the steps where a plain run would make them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .._native import ContextAccess
from ..core.window import AnyState

Array = NDArray[np.float64]


class BarostatMoves:
    """An Intervention: OpenMM's own barostats, in the Context of the run.

    A Monte Carlo barostat counts the steps of its Context, and begins every nth of them with a
    move, which it accepts or rejects by the Context's energies. Here it is told of the steps when
    it matters: before the next move, and before anybody else looks.

    Parameters
    ----------
    access : ContextAccess
    show : callable, State
        Puts a state into the Context, with its time and step count.
    moved : callable
        Called after every move that was accepted: the box is another.
    """

    def __init__(
        self,
        access: ContextAccess,
        show: Callable[[AnyState], None],
        moved: Callable[[], None],
    ) -> None:
        self._access, self._show, self._moved = access, show, moved
        self._begun = 0  # steps before this index have begun, as far as the barostats know
        self._expected: int | None = None  # next step with a move, after the last steps

    @property
    def next_step(self) -> int | None:
        """See Intervention."""
        steps = self._access.steps_before_move()
        return None if steps is None else self._begun + steps

    def begin(self, step: int) -> bool:
        """Steps from this index on are about to be done; whether moves come at others than before.

        The frequency of a barostat counts at once, as in plain dynamics.
        """
        self._begun = step
        return self.next_step != self._expected

    def end(self, step: int) -> None:
        """All steps before this index are done."""
        self._tell(step)
        self._expected = self.next_step

    def count_begun(self, steps: int) -> None:
        """The Context has begun this number of steps by itself."""
        self._begun += steps

    def _tell(self, step: int) -> None:
        """All steps before this index have begun."""
        if step > self._begun:
            self._access.count_steps(step - self._begun)
        self._begun = step

    def hand_over(self, step: int) -> None:
        """The Context begins this step and those after it by itself, as in plain dynamics."""
        if step != self._begun:  # a move that was made beforehand is not counted again
            self._access.count_steps(step - self._begun)
        self._begun = step

    def apply(self, state: AnyState) -> tuple[Array, Array]:
        """See Intervention; if the move fails the Context has its box back.

        If it is interrupted afterwards ``ContextState.take_back_box`` undoes it.
        """
        access, box = self._access, self._access.get_box()
        self._tell(state.step)
        self._show(state)
        try:
            access.begin_step()
        except BaseException:
            access.set_box(box)
            raise
        self._begun += 1
        if np.array_equal(access.get_box(), box):
            return state.positions, state.velocities
        self._moved()
        return access.get_state()[0], state.velocities
