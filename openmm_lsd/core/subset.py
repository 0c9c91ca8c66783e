"""Draft and target that differ on a subset S of the particles: a round at the cost of that subset.

All other forces are shared: evaluated once per site, in the rollout, and the same numbers in the
target. Then draft step and target step of all particles outside S differ by one velocity for all of
them, that of removing the motion of the centre of mass; to it the rest is one particle more, at its
centre of mass and with its total mass. So a commit is that of |S| + 1 particles, and the rest is
the drafted one, moved as a whole. Nothing is approximated: the noise shift has no component in any
other direction, and transport changes the noise along the shift only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .clock import Times
from .constraints import ConstraintError, Projection
from .corrections import Corrections
from .engine import Engine, HostEngine, NumpyEngine, TrainableDraft, checked_masses
from .errors import SharedForceError
from .noise import NoiseOfRest
from .schemes import Scheme, reciprocal, remove_cm_motion
from .window import AnyState, Committed, CommittedSteps, Draws, KeptState, State, Whole, Window

Array = NDArray[np.float64]
Indices = NDArray[np.int64]


class Reduction:
    """From arrays (..., N, 3) to (..., |S| + 1, 3): the subset, and the rest as one particle.

    Parameters
    ----------
    subset : (|S|,) int
    masses : (N, 1) amu
        Particles of zero mass outside the subset do not move, and do not count.

    Attributes
    ----------
    subset : (|S|,) int
    masses : (|S| + 1, 1) amu
    moves : (N, 1)
        One for the particles of the rest that have mass, zero for all others.
    """

    def __init__(self, subset: Indices, masses: Array) -> None:
        self.subset = subset
        self._masses_of_rest = masses[:, 0].copy()
        self._masses_of_rest[subset] = 0.0
        self._roots = np.sqrt(self._masses_of_rest)
        self.moves = (self._masses_of_rest > 0).astype(float)[:, None]
        total = self._masses_of_rest.sum()
        self._inverse = 1.0 / total if total > 0 else 0.0
        self.masses = np.append(masses[subset, 0], total)[:, None]

    def centre(self, vectors: Array) -> Array:
        """Of mass of the rest: of positions or velocities (..., N, 3), (..., 3)."""
        return self._inverse * (self._masses_of_rest @ vectors)

    def vectors(self, vectors: Array) -> Array:
        """Of positions or velocities."""
        return self._with(vectors, self.centre(vectors))

    def forces(self, forces: Array) -> Array:
        """The last is the force on the whole rest."""
        return self._with(forces, self.moves[:, 0] @ forces)

    def noise(self, noise: Sequence[Array]) -> Array:
        """Of the rest only (K, 3); standard normal, as what it is made of, (N, 3) each."""
        return np.sqrt(self._inverse) * np.stack([self._roots @ each for each in noise])

    def _with(self, arrays: Array, of_rest: Array) -> Array:
        return np.concatenate([arrays[..., self.subset, :], of_rest[..., None, :]], axis=-2)


def pad(arrays: Array) -> Array:
    """Arrays (..., |S|, 3) with a row of zeros for the rest."""
    return np.concatenate([arrays, np.zeros_like(arrays[..., :1, :])], axis=-2)


@dataclasses.dataclass
class CommittedOfSubset:
    """See CommittedSteps: those of the subset and of the rest as one particle, in a window."""

    reduction: Reduction
    whole: Whole
    reduced: Committed
    num_steps: int

    @property
    def noise_shifts(self) -> list[float]:
        """See CommittedSteps."""
        return self.reduced.noise_shifts[: self.num_steps]

    @property
    def accepted(self) -> bool:
        """See CommittedSteps."""
        return self.reduced.accepted or self.num_steps < self.reduced.num_steps

    def states(self, step: int) -> list[KeptState]:
        """See CommittedSteps."""
        numbers = range(1, self.num_steps + 1)
        return [KeptState(partial(self.read, k), step + k) for k in numbers]

    def read(self, k: int) -> tuple[Array, Array]:
        """Positions and velocities (N, 3) after k steps: as drafted, but the rest is moved as a
        whole, and the subset is the committed one."""
        drafted = self.whole.positions[k], self.whole.velocities[k]
        committed = self.reduced.positions[k - 1], self.reduced.velocities[k - 1]
        positions, velocities = map(self._complete, drafted, self.whole.centres[k], committed)
        return positions, velocities

    def _complete(self, drafted: Array, centre: Array, reduced: Array) -> Array:
        result = drafted + (reduced[-1] - centre) * self.reduction.moves
        result[self.reduction.subset] = reduced[:-1]
        return result


class SubsetEngine(HostEngine, Engine):
    """An Engine for draft and target that differ on a subset; see the module.

    Parameters
    ----------
    scheme : Scheme
        Its projection is that of all particles.
    masses : (N,) amu
    shared : callable, positions (N, 3) nm -> forces (N, 3) kJ/mol/nm
        What draft and target share; takes the Times of the state as well, if it has an attribute
        ``uses_times`` that is true.
    draft : callable
        The draft's other forces: as of NumpyEngine, but of the subset, (|S|, 3).
    subset : (|S|,) int
        No constraint has one of its two particles in the subset and one outside.
    seed : int
        As of NoiseOfRest.
    projection : Projection, optional
        Of the |S| + 1 particles of a Reduction, if the scheme has one.

    Raises
    ------
    ValueError
        As NumpyEngine.
    SharedForceError
        From ``draft``, if there are no shared forces at the first site.
    """

    reduced_engine: type[NumpyEngine] = NumpyEngine
    noise_of_rest: type[NoiseOfRest] = NoiseOfRest

    def __init__(
        self,
        scheme: Scheme,
        masses: ArrayLike,
        shared: Callable[..., Array],
        draft: Callable[..., Array],
        subset: Indices,
        seed: int,
        projection: Projection | None = None,
    ) -> None:
        self.scheme, self.masses = scheme, checked_masses(masses)
        self.subset = np.asarray(subset, dtype=np.int64)
        self._inverse_masses = reciprocal(self.masses)
        scheme.check_noise(self._inverse_masses)
        self.noise_scale = scheme.noise_scale(self._inverse_masses)
        self._reduction = Reduction(self.subset, self.masses)
        self._noise_of_rest = self.noise_of_rest(seed, len(self.masses))
        reduced_scheme = dataclasses.replace(scheme, projection=projection)
        self._reduced = self.reduced_engine(reduced_scheme, self._reduction.masses, draft)
        self._shared = shared
        self._shared_uses_times = bool(getattr(shared, "uses_times", False))

    @property
    def trainable(self) -> TrainableDraft | None:
        """See Engine."""
        return self._reduced.trainable

    def project_forces(self, sites: Array, forces: Array) -> Array:
        """See Engine."""
        if self._reduced.scheme.projection is None:
            return forces
        return self._reduced.project_forces(pad(sites), pad(forces))[..., :-1, :]

    def forces(self, sites: Array, times: Times | None) -> Array:
        """See Engine."""
        return self._reduced.forces(sites, times)

    def shared_forces(self, site: Array, k: int, times: Times | None) -> Array:
        """At the site (N, 3) of step k.

        Raises
        ------
        SharedForceError
            If they cannot be computed, or are not finite.
        """
        try:
            if times is None or not self._shared_uses_times:
                result = self._shared(site)
            else:
                result = self._shared(site, times.rows(slice(k, k + 1)))
        except Exception as error:
            raise SharedForceError(f"the forces that it shares with the draft: {error}") from error
        if not np.isfinite(result).all():
            raise SharedForceError("the forces that it shares with the draft are not finite")
        return result

    def draft(
        self, state: AnyState, corrections: Corrections, draws: Draws, times: Times | None = None
    ) -> Window:
        """See Engine."""
        length, subset = len(draws.noise), self.subset
        noise = self._noise_of_all(state.step, draws)
        positions, velocities = [state.positions], [state.velocities]
        own = [np.empty((length, len(subset), 3)) for _ in range(4)]
        sites, start_velocities, draft_forces, added = own
        shared_forces: list[Array] = []
        for k in range(length):
            if draws.cm_removals[k]:
                velocities[k] = remove_cm_motion(velocities[k], self.masses)
            site = self.scheme.site(positions[k], velocities[k])
            if k > 0 and not np.isfinite(site[subset]).all():
                break
            try:
                shared = self.shared_forces(site, k, times)
                force = self._reduced.finite_force(site[subset], k, times)
            except Exception:
                if k == 0:
                    raise
                break
            sites[k], start_velocities[k] = site[subset], velocities[k][subset]
            draft_forces[k] = force
            added[k] = corrections.at(k, sites[k], self.masses[subset])
            shared_forces.append(shared)
            drafted = shared.copy()
            drafted[subset] += force + added[k]
            try:
                if k + 1 == length:
                    break
                kick = self.noise_scale * noise[k]
                acceleration = drafted * self._inverse_masses
                after = self.scheme.step(positions[k], velocities[k], acceleration, kick)
            except ConstraintError:  # a draft may lead anywhere
                break
            positions.append(after[0])
            velocities.append(after[1])
        length = len(shared_forces)
        end = shared_forces[-1], noise[length - 1]
        path = self._end_path(positions[:length], velocities[:length], *end)
        reduced = np.stack([self._reduction.forces(each) for each in shared_forces])
        both = np.stack([np.stack(each) for each in path], axis=1)
        centres, of_rest = self._reduction.centre(both), self._reduction.noise(noise)
        whole = Whole(both[:, 0].copy(), both[:, 1].copy(), centres, reduced, of_rest)
        sites, start_velocities, draft_forces, added = (each[:length] for each in own)
        return Window(sites, start_velocities, draft_forces, added, whole)

    def _noise_of_all(self, step: int, draws: Draws) -> list[Array]:
        """Of each step, (N, 3)."""
        rows = self._noise_of_rest(step, len(draws.noise))
        for row, own in zip(rows, draws.noise, strict=True):
            row[self.subset] = own
        return rows

    def _end_path(
        self, positions: list[Array], velocities: list[Array], shared: Array, noise: Array
    ) -> tuple[list[Array], list[Array]]:
        """With the rest after the last step, whatever becomes of the subset there; if it can."""
        at, still = self.subset, velocities[-1].copy()
        kick = self.noise_scale * noise
        acceleration = shared * self._inverse_masses
        for each in (still, kick, acceleration):
            each[at] = 0.0
        try:
            after = self.scheme.step(positions[-1], still, acceleration, kick)
        except ConstraintError:
            return positions, velocities
        return [*positions, after[0]], [*velocities, after[1]]

    def commit(
        self, state: AnyState, window: Window, target_forces: Array, draws: Draws
    ) -> CommittedSteps:
        """See Engine."""
        whole, verified = window.whole, len(target_forces)
        assert whole is not None
        shared, centres = whole.shared_forces[:verified], whole.centres
        start_velocities = np.concatenate([window.velocities, centres[: len(window.sites), 1:]], 1)
        reduced = Window(
            pad(window.sites[:verified]),
            start_velocities[:verified],
            shared + pad(window.draft_forces[:verified]),
            pad(window.corrections[:verified]),
        )
        # The motion of the centre of mass has been removed from it, if that is due.
        start = State(
            np.concatenate([whole.positions[0, self.subset], centres[0, :1]]),
            start_velocities[0],
            state.step,
        )
        noise = np.concatenate([draws.noise, whole.noise[:, None]], axis=1)
        committed = self._reduced.commit(
            start, reduced, shared + pad(target_forces), draws._replace(noise=noise)
        )
        count = min(committed.num_steps, len(whole.positions) - 1)
        if not count:
            raise ConstraintError("the constraints cannot be met: positions are too far from them")
        return CommittedOfSubset(self._reduction, whole, committed, count)
