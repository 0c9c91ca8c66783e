"""The engine on the host, in native code."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _native
from ..contexts.constraints import SystemProjection
from ..core.clock import Times
from ..core.corrections import Corrections
from ..core.engine import NumpyEngine
from ..core.schemes import Scheme
from ..core.window import Committed, Draws, State, Window
from .draft import NativeDraft

Array = NDArray[np.float64]


class NativeEngine(NumpyEngine):
    """As NumpyEngine, with a rollout and a commit of one C++ call each."""

    def __init__(self, scheme: Scheme, masses: ArrayLike, draft: NativeDraft) -> None:
        super().__init__(scheme, masses, draft)
        constraints = None
        if scheme.projection is not None:
            if not isinstance(scheme.projection, SystemProjection):
                raise TypeError(
                    f"the projection is a {type(scheme.projection).__name__}; native steps need a "
                    "SystemProjection"
                )
            constraints = scheme.projection.native
        self._native_scheme = _native.Scheme(
            scheme.name, scheme.step_size, scheme.decay, constraints
        )

    def draft(
        self, state: State, corrections: Corrections, draws: Draws, times: Times | None = None
    ) -> Window:
        """See Engine."""
        forces, sites, jacobian, secant = corrections
        tangents = (None, None, None) if sites is None or jacobian is None else (sites, *jacobian)
        compared = (None, None) if secant is None or jacobian is None else secant
        drafted, *arrays = self._draft.roll_out(
            self._native_scheme,
            self.masses,
            state.positions,
            state.velocities,
            forces,
            *tangents,
            *compared,
            self.noise_scale * draws.noise,
            draws.cm_removals,
            times=self._times_of_draft(times),
        )
        return Window(*(array[:drafted] for array in arrays))

    def commit(self, state: State, window: Window, target_forces: Array, draws: Draws) -> Committed:
        """See Engine."""
        verified = len(target_forces)
        return Committed(
            *_native.commit(
                self._native_scheme,
                self.masses,
                self.noise_scale,
                state.positions,
                state.velocities,
                window.velocities,
                target_forces,
                window.draft_forces[:verified] + window.corrections[:verified],
                *draws,
            )
        )
