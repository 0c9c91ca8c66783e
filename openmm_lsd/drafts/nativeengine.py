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
from ..core.subset import SubsetEngine
from ..core.window import AnyState, Committed, Draws, Whole, Window
from .draft import Draft
from .nativedraft import NativeDraft

Array = NDArray[np.float64]


class NativeEngine(NumpyEngine):
    """As NumpyEngine, with a rollout and a commit of one C++ call each."""

    def __init__(self, scheme: Scheme, masses: ArrayLike, draft: NativeDraft) -> None:
        super().__init__(scheme, masses, draft)
        self._native_scheme = _native_scheme(scheme)

    def draft(
        self, state: AnyState, corrections: Corrections, draws: Draws, times: Times | None = None
    ) -> Window:
        """See Engine."""
        drafted, *arrays = self._draft.roll_out(
            self._native_scheme,
            self.masses,
            state.positions,
            state.velocities,
            *correction_arrays(corrections),
            self.noise_scale * draws.noise,
            draws.cm_removals,
            times=self._times_of_draft(times),
        )
        return Window(*(array[:drafted] for array in arrays))

    def commit(
        self, state: AnyState, window: Window, target_forces: Array, draws: Draws
    ) -> Committed:
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


class NativeSubsetEngine(SubsetEngine):
    """As SubsetEngine, likewise.

    Parameters
    ----------
    shared : drafts.Draft
        Forces of all particles.
    draft : NativeDraft
        Of the subset.
    Others as of SubsetEngine.
    """

    reduced_engine = NativeEngine

    def __init__(
        self,
        scheme: Scheme,
        masses: ArrayLike,
        shared: Draft,
        draft: NativeDraft,
        subset: NDArray[np.int64],
        seed: int,
        projection: SystemProjection | None = None,
    ) -> None:
        super().__init__(scheme, masses, shared, draft, subset, seed, projection)
        self._native_scheme = _native_scheme(scheme)
        self._native_subset = self.subset.astype(np.int32)
        self._scales = np.ascontiguousarray(self.noise_scale)
        self._shared_draft, self._draft = shared, draft

    def draft(
        self, state: AnyState, corrections: Corrections, draws: Draws, times: Times | None = None
    ) -> Window:
        """See Engine."""
        noise = self._noise_of_all(state.step, draws)
        drafted, *arrays, has_end, positions, velocities, centres, shared_forces = (
            self._draft.roll_out_whole(
                self._native_scheme,
                self.masses,
                self._scales,
                self._native_subset,
                state.positions,
                state.velocities,
                noise,
                draws.cm_removals,
                self._shared_draft.context.access,
                *((times if self._shared_uses_times else None) or (None, None)),
                *correction_arrays(corrections),
                times=times if self._draft.uses_times else None,
            )
        )
        states = slice(drafted + has_end)
        path = positions[states], velocities[states], centres[states]
        whole = Whole(*path, shared_forces[:drafted], self._reduction.noise(noise))
        sites, start_velocities, draft_forces, added = (array[:drafted] for array in arrays)
        return Window(sites, start_velocities, draft_forces, added, whole)


def _native_scheme(scheme: Scheme) -> _native.Scheme:
    constraints = None
    if scheme.projection is not None:
        if not isinstance(scheme.projection, SystemProjection):
            raise TypeError(
                f"the projection is a {type(scheme.projection).__name__}; native steps need a "
                "SystemProjection"
            )
        constraints = scheme.projection.native
    return _native.Scheme(scheme.name, scheme.step_size, scheme.decay, constraints)


def correction_arrays(corrections: Corrections) -> tuple[Array | None, ...]:
    """As the native rollouts take them."""
    forces, sites, jacobian, secant = corrections
    tangents = (None, None, None) if sites is None or jacobian is None else (sites, *jacobian)
    compared = (None, None) if secant is None or jacobian is None else secant
    return forces, *tangents, *compared
