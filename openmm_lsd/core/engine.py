"""What drafts a window and commits it: the protocol, and the readable reference in NumPy.

``nativeengine.NativeEngine`` does the same in two C++ calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .clock import Times
from .constraints import ConstraintError
from .corrections import Corrections
from .schemes import Scheme, reciprocal, remove_cm_motion
from .transport import transport
from .window import AnyState, Committed, CommittedSteps, Draws, State, Window

Array = NDArray[np.float64]


@runtime_checkable
class TrainableDraft(Protocol):
    """A draft that can be fitted to the target."""

    def start(self, step: int) -> None:
        """A run starts at this step: what was learned from it or later ones is forgotten."""

    def learn(self, step: int, sites: Array, discrepancies: Array) -> bool:
        """Learn from committed steps, the first of this index; whether the forces have changed.

        ``sites`` and ``discrepancies`` (B, N, 3) in nm and kJ/mol/nm.
        """


class Engine(Protocol):
    """Drafts windows and commits them; NumPy arrays in and out.

    Attributes
    ----------
    scheme : Scheme
    masses : (N, 1) amu
    subset : slice or (|S|,) int
        Of the particles: those on which draft and target may differ. The arrays of noise, windows,
        corrections and forces are theirs only; those of states, of all.
    name : str
        Of its kind, in snapshots.
    """

    name: str

    scheme: Scheme
    masses: Array
    subset: slice | NDArray[np.int64]

    @property
    def trainable(self) -> TrainableDraft | None:
        """The draft, if it can be fitted."""

    def draft(
        self, state: AnyState, corrections: Corrections, draws: Draws, times: Times | None
    ) -> Window:
        """Draft K steps from a committed state with the force F_d(q_k) + c_k(q_k) at step k.

        Draft forces that are not finite count as zero: a draft may propose anything.
        """

    def commit(
        self, state: AnyState, window: Window, target_forces: Array, draws: Draws
    ) -> CommittedSteps:
        """Target steps up to the first that leaves the drafted path; at least one.

        Each is the plain scheme with the target's force, driven by transported noise. Only the last
        step of a full window, from which nothing was drafted, takes its noise untransported. A
        window that was cut short by a failing site (V < K) is no exception to that: whether the
        site fails depends on the noise of the step before it, so the failure must not choose how
        that noise is used. Raises ConstraintError if not even the first step can meet the
        constraints.

        Parameters
        ----------
        state : State or KeptState
            From which the window was drafted.
        window : Window
        target_forces : (V, N, 3) kJ/mol/nm
            At the leading sites, V >= 1.
        draws : Draws
            As they were drafted with.
        """

    def forces(self, sites: Array, times: Times | None) -> Array:
        """Draft forces (B, N, 3) as they are now, at sites (B, N, 3)."""

    def project_forces(self, sites: Array, forces: Array) -> Array:
        """Forces (B, N, 3) at sites without the part along constraints, which has no effect."""

    def snapshot(self, states: Sequence[AnyState]) -> dict[str, Any]:
        """These committed states, and what else the engine needs to continue, for ``restore``."""

    def restore(self, record: dict[str, Any]) -> list[AnyState]:
        """Continue as the engine that the snapshot was taken of; returns the states. Only an engine
        of the same name can."""


class HostEngine:
    """What Engines have in common whose states are arrays."""

    name = "host"

    def snapshot(self, states: Sequence[AnyState]) -> dict[str, Any]:
        """See Engine."""
        arrays = [(each.positions, each.velocities, each.step) for each in states]
        return {"engine": self.name, "states": arrays}

    def restore(self, record: dict[str, Any]) -> list[AnyState]:
        """See Engine."""
        return [State(*each) for each in record["states"]]


def checked_masses(masses: ArrayLike) -> Array:
    """Masses as an array (N, 1); ValueError if one is negative or not finite."""
    result = np.array(masses, dtype=np.float64).reshape(-1, 1)
    if not (np.isfinite(result).all() and (result >= 0).all()):
        raise ValueError("masses must be finite and not negative")
    return result


class NumpyEngine(HostEngine):
    """An Engine on the host, for any draft.

    Parameters
    ----------
    scheme : Scheme
    masses : (N,) amu
        Particles of zero mass do not move.
    draft : callable, positions (N, 3) nm -> forces (N, 3) kJ/mol/nm
        If it has an attribute ``uses_times`` that is true, it takes the Times of the state as well.
        It is fitted to the target if it is a TrainableDraft.

    Raises
    ------
    ValueError
        If a mass is negative or not finite, or the scheme's noise cannot be computed.
    """

    transport = staticmethod(transport)  # tests plant others here
    subset: slice | NDArray[np.int64] = slice(None)

    def __init__(self, scheme: Scheme, masses: ArrayLike, draft: Callable[..., Array]) -> None:
        self.scheme = scheme
        self.masses = checked_masses(masses)
        self._inverse_masses = reciprocal(self.masses)
        scheme.check_noise(self._inverse_masses)
        self.noise_scale = scheme.noise_scale(self._inverse_masses)
        self.trainable: TrainableDraft | None = draft if isinstance(draft, TrainableDraft) else None
        self._draft: Any = draft
        self._uses_times = bool(getattr(draft, "uses_times", False))

    def _times_of_draft(self, times: Times | None) -> Times | None:
        return times if self._uses_times else None

    def _force(self, site: Array, k: int, times: Times | None) -> Array:
        times = self._times_of_draft(times)
        result = (
            self._draft(site) if times is None else self._draft(site, times.rows(slice(k, k + 1)))
        )
        return np.asarray(result, dtype=np.float64)

    def finite_force(self, site: Array, k: int, times: Times | None) -> Array:
        """The draft's force at the site (N, 3) of step k; zero if it is not finite."""
        force = self._force(site, k, times)
        return force if np.isfinite(force).all() else np.zeros_like(site)

    def project_forces(self, sites: Array, forces: Array) -> Array:
        """See Engine."""
        return self.scheme.project_forces(sites, forces, self.masses)

    def forces(self, sites: Array, times: Times | None) -> Array:
        """See Engine."""
        return np.stack([self._force(site, k, times) for k, site in enumerate(sites)])

    def draft(
        self, state: AnyState, corrections: Corrections, draws: Draws, times: Times | None = None
    ) -> Window:
        """See Engine."""
        positions, velocities = state.positions, state.velocities
        kicks, length = self.noise_scale * draws.noise, len(draws.noise)
        arrays = tuple(np.empty((length, *positions.shape)) for _ in range(4))
        sites, start_velocities, draft_forces, added = arrays
        for k in range(length):
            if draws.cm_removals[k]:
                velocities = remove_cm_motion(velocities, self.masses)
            site = self.scheme.site(positions, velocities)
            if k > 0 and not np.isfinite(site).all():
                length = k
                break
            try:
                force = self.finite_force(site, k, times)
            except Exception:
                if k == 0:
                    raise
                length = k
                break
            sites[k], start_velocities[k], draft_forces[k] = site, velocities, force
            added[k] = corrections.at(k, site, self.masses)
            if k + 1 < length:
                acceleration = (force + added[k]) * self._inverse_masses
                try:
                    positions, velocities = self.scheme.step(
                        positions, velocities, acceleration, kicks[k]
                    )
                except ConstraintError:  # a draft may lead anywhere
                    length = k + 1
                    break
        sites, start_velocities, draft_forces, added = (array[:length] for array in arrays)
        return Window(sites, start_velocities, draft_forces, added)

    def commit(
        self, state: AnyState, window: Window, target_forces: Array, draws: Draws
    ) -> Committed:
        """See Engine."""
        positions, velocities = state.positions, state.velocities
        verified, inverse_scale = len(target_forces), reciprocal(self.noise_scale)
        draft_forces = window.draft_forces[:verified] + window.corrections[:verified]
        draft_accelerations = draft_forces * self._inverse_masses
        path: list[tuple[Array, Array]] = []
        shifts: list[float] = []
        accepted = True
        for k, acceleration in enumerate(target_forces * self._inverse_masses):
            if draws.cm_removals[k]:
                velocities = remove_cm_motion(velocities, self.masses)
            noise = draws.noise[k]
            if k + 1 < len(draws.noise):
                shift = inverse_scale * self.scheme.kick_shift(
                    positions,
                    velocities,
                    window.velocities[k],
                    acceleration,
                    draft_accelerations[k],
                )
                shifts.append(float(np.sqrt(np.vdot(shift, shift))))
                noise, accepted = self.transport(noise, shift, draws.log_uniforms[k])
            try:
                positions, velocities = self.scheme.step(
                    positions, velocities, acceleration, self.noise_scale * noise
                )
            except ConstraintError:
                if not path:
                    raise
                return self._committed(path, shifts[: len(path)], True)
            path.append((positions, velocities))
            if not accepted:
                break
        return self._committed(path, shifts, accepted)

    @staticmethod
    def _committed(
        path: list[tuple[Array, Array]], shifts: list[float], accepted: bool
    ) -> Committed:
        positions, velocities = map(np.stack, zip(*path, strict=True))
        return Committed(positions, velocities, shifts, accepted)
