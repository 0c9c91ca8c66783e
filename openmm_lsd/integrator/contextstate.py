"""The state in a Context, as arrays: out of it, and into it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .._native import ContextAccess
from ..core.window import AnyState

Array = NDArray[np.float64]


class ContextState:
    """Reads states from a Context and shows committed ones in it, with their time and step count.

    Parameters
    ----------
    access : ContextAccess
    masses : (N,) amu

    Attributes
    ----------
    step : int
        Index of the next step's random numbers, in the state that is shown.
    step_count : int
        The Context's, likewise.
    time : float
        Likewise, in ps.
    is_cut_short : bool
        Whether a sampler knows of a barostat's move that was taken back.
    """

    def __init__(self, access: ContextAccess, masses: Array) -> None:
        self._access = access
        self._immobile = masses[:, None] == 0
        self._has_immobile = bool(self._immobile.any())
        self.step, self.step_count = 0, -1
        self.time = self._step_size = 0.0
        self._start_velocities: Array = np.zeros((len(masses), 3))
        self._shown: Array | None = None  # positions of a state that the Context itself has made
        self.is_cut_short = False
        self._in_box: tuple[Array, Array] | None = None  # positions shown last, and their box

    def read(self) -> tuple[Array, Array]:
        """Positions and velocities (N, 3) from which a run starts; later ones are counted from it.

        Raises
        ------
        ValueError
            If they are not finite.
        """
        positions, velocities, self.step_count = self.read_checked()
        self._start_velocities, self._shown = velocities, None
        self.is_cut_short = False
        return positions, velocities

    def read_checked(self) -> tuple[Array, Array, int]:
        """Positions, velocities and step count; an error if they are not finite."""
        positions, velocities, _, step_count = self._access.get_state()
        for name, array in (("positions", positions), ("velocities", velocities)):
            if not np.isfinite(array).all():
                atom = int(np.argwhere(~np.isfinite(array))[0, 0])
                raise ValueError(
                    f"the {name} in the Context are not finite, first those of atom {atom}: "
                    f"{array[atom]}; set sound ones before the next step"
                )
        return positions, velocities, step_count

    def set_step(self, step: int) -> None:
        """Index of the next step."""
        self.step = step

    def begin(self, step_size: float) -> None:
        """Steps of this size are about to be done, from the state that is shown."""
        self.time, self._step_size = self._access.get_time()[0], step_size
        self._in_box = None

    def show(self, state: AnyState) -> None:
        """Put a state into the Context, with its time and step count."""
        done, time, velocities = state.step - self.step, self.time, state.velocities
        for _ in range(done):  # with the rounding of one step after another
            time += self._step_size
        if self._has_immobile:  # OpenMM leaves them alone, their velocities too
            velocities = np.where(self._immobile, self._start_velocities, velocities)
        self._in_box = state.positions, self._access.get_box()
        self._access.set_state(state.positions, velocities, time, self.step_count + done)

    def show_for_plain_steps(self, state: AnyState) -> None:
        """Unless the Context has come to it by itself."""
        if state.positions is not self._shown:
            self.show(state)
        self._shown, self._in_box = None, (state.positions, self._access.get_box())

    def take_plain(self) -> tuple[Array, Array]:
        """Positions and velocities to which the Context has come by itself."""
        positions, velocities, *_ = self._access.get_state()
        if self._has_immobile:
            velocities = np.where(self._immobile, 0.0, velocities)
        self._shown = positions
        return positions, velocities

    def take_back_box(self, state: AnyState) -> None:
        """Give this state the box in which it was shown, if the Context has another.

        It has if an interrupt came between a barostat's move and the state that follows it.
        """
        if self._in_box is None:
            return
        positions, box = self._in_box
        if state.positions is positions and not np.array_equal(self._access.get_box(), box):
            self._access.set_box(box)
            self.is_cut_short = True

    def end(self, state: AnyState) -> None:
        """The steps end at this state, which is shown."""
        is_shown = state.positions is self._shown and not self._has_immobile
        if not is_shown:
            self.show(state)
        self._shown = self._shown if is_shown else None
        self.step_count += state.step - self.step
        self.step = state.step
        self.time = self._access.get_time()[0]
