"""Plain steps of the target, by the Context itself."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .._native import ContextAccess, largest_device_force
from ..contexts.interrupts import InterruptWatch
from ..core.errors import TargetError
from ..core.window import AnyState
from .barostat import BarostatMoves
from .boundpair import BoundPair
from .contextstate import ContextState

Array = NDArray[np.float64]


class PlainSteps:
    """Steps that the Context does by itself, with random numbers of its own.

    Parameters
    ----------
    access : ContextAccess
    shown : ContextState
    pair : BoundPair
    moves : BarostatMoves
    masses : (N,) amu
    interrupts : InterruptWatch
    """

    def __init__(
        self,
        access: ContextAccess,
        shown: ContextState,
        pair: BoundPair,
        moves: BarostatMoves,
        masses: Array,
        interrupts: InterruptWatch,
    ) -> None:
        self._access, self._shown, self._pair, self._moves = access, shown, pair, moves
        self._masses, self._interrupts = masses[:, None], interrupts

    def do(
        self, state: AnyState, steps: int, run: Callable[[int], None], step_size: float
    ) -> tuple[Array, Array, int]:
        """Positions and velocities after so many steps from a state, or fewer; and how many.

        ``run`` lets the Context do steps of ``step_size`` (ps).

        Raises
        ------
        TargetError
            If the first of them fails.
        """
        access, moves = self._access, self._moves
        self._shown.show_for_plain_steps(state)
        moves.hand_over(state.step)
        before, box = access.get_time()[1], access.get_box()
        try:
            with self._pair.target.single_states():
                run(steps)
            moves.count_begun(steps)
        except Exception as error:
            count = access.get_time()[1]
            steps = count - before
            moves.count_begun(steps + 1)
            self._interrupts.raise_interrupt(error)
            if steps == 0:
                raise TargetError(
                    f"the target failed at the state before step {count}: {error}", count
                ) from error
        if not np.array_equal(access.get_box(), box):
            self._pair.take_environment()
        positions, velocities = self._shown.take_plain()
        if access.on_device and self._has_overflowed(velocities, step_size):
            velocities = np.full_like(velocities, np.nan)
        return positions, velocities, steps

    def _has_overflowed(self, velocities: Array, step_size: float) -> bool:
        """Whether a force was NaN, or too large for a device's integers: it is finite there."""
        largest = largest_device_force * step_size
        return bool((self._masses * np.abs(velocities) > 0.5 * largest).any())
