"""The engine that leaves the box in a Context: the host sees the subset only.

Draft and target share all forces but those on the subset, so in the frame in which the rest is
where it was drafted, the target's path is the drafted one plus a difference on the subset: a free
particle that starts at rest, is pulled by the discrepancies, and takes the transported noise in the
place of the drafted. The frame itself moves by what removing the motion of the centre of mass takes
from the target beyond what it takes from the draft: one velocity for all particles, which no force
between particles feels. So a commit is that of |S| free particles, whatever the box, and asks
nothing about the noise of the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..core.clock import Times
from ..core.constraints import ConstraintError
from ..core.corrections import Corrections
from ..core.engine import Engine, TrainableDraft, checked_masses
from ..core.schemes import Scheme, reciprocal
from ..core.window import AnyState, Draws, KeptState, State, Window
from .nativedraft import NativeDraft
from .nativeengine import NativeEngine, correction_arrays
from .rolloutcontext import Kept, Move, RolloutContext

Array = NDArray[np.float64]

FARTHEST = 0.1  # nm, that the draft may push a particle in one step


class KeptInContext(KeptState):
    """A state of the window that was drafted last, or what became of one."""

    def __init__(self, engine: ContextEngine, kept: Kept, step: int) -> None:
        super().__init__(partial(engine.read, kept), step)
        self.kept = kept


@dataclasses.dataclass
class CommittedInContext:
    """See CommittedSteps."""

    engine: ContextEngine
    kept: list[Kept]
    noise_shifts: list[float]
    accepted: bool

    @property
    def num_steps(self) -> int:
        """See CommittedSteps."""
        return len(self.kept)

    def states(self, step: int) -> list[KeptInContext]:
        """See CommittedSteps."""
        return [KeptInContext(self.engine, each, step + k) for k, each in enumerate(self.kept, 1)]

    def find_shifts(self, scheme: Scheme, masses: Array, discrepancies: Array) -> Array:
        """Noise shifts (C, n, 3) of the leading steps, for masses (n, 1) of the subset."""
        count, inverse_masses = len(discrepancies), reciprocal(masses)
        velocities = np.zeros_like(discrepancies)
        velocities[1:] = [each.of_subset[1] for each in self.kept[: count - 1]]
        free = dataclasses.replace(scheme, projection=None)
        nothing = np.zeros_like(velocities)
        accelerations = discrepancies * inverse_masses
        shifts = free.kick_shift(nothing, velocities, nothing, accelerations, nothing)
        return shifts * reciprocal(free.noise_scale(inverse_masses))


class ContextEngine(Engine):
    """An Engine for draft and target that differ on a subset; see the module.

    Parameters
    ----------
    scheme : Scheme
        'middle'; its projection is that of all particles.
    masses : (N,) amu
    context : RolloutContext
        That of this scheme from now on.
    draft : NativeDraft
        Of the subset.
    subset : (n,) int
        No constraint has a particle in it, and none is a virtual site.
    tolerance : float
        Relative, of the constraints.

    Raises
    ------
    SharedForceError
        From ``draft``, if the shared forces cannot be had at the first site.
    """

    name = "context"

    def __init__(
        self,
        scheme: Scheme,
        masses: ArrayLike,
        context: RolloutContext,
        draft: NativeDraft,
        subset: NDArray[np.int64],
        tolerance: float,
    ) -> None:
        self.scheme, self.masses, self.subset = scheme, checked_masses(masses), subset
        scheme.check_noise(reciprocal(self.masses))
        self._draft, self._context = draft, context
        context.set_scheme(scheme, tolerance)
        free = dataclasses.replace(scheme, projection=None)
        self._free = NativeEngine(free, self.masses[subset], draft)
        self._share = self.masses[subset, 0] / self.masses.sum()
        self._moving = (self.masses > 0).astype(float)

    @property
    def trainable(self) -> TrainableDraft | None:
        """See Engine."""
        return self._free.trainable

    def project_forces(self, sites: Array, forces: Array) -> Array:
        """See Engine."""
        return forces

    def forces(self, sites: Array, times: Times | None) -> Array:
        """See Engine."""
        return self._free.forces(sites, times)

    def draft(
        self, state: AnyState, corrections: Corrections, draws: Draws, times: Times | None = None
    ) -> Window:
        """See Engine. ``velocities`` are those of free particles that start at rest."""
        length = len(draws.noise)
        move = self._begin_from(state, length)
        kicks = self._free.noise_scale * draws.noise
        sites, *arrays = self._draft.roll_out_in_context(
            self._context.native,
            move,
            self._free.masses,
            self.scheme.step_size,
            FARTHEST,
            kicks,
            draws.cm_removals,
            *correction_arrays(corrections),
        )
        rest = np.zeros((len(self.subset), 3))
        positions, velocities = np.zeros((2, sites + 1, *rest.shape))
        for k in range(sites):
            positions[k + 1], velocities[k + 1] = self._free.scheme.step(
                positions[k], velocities[k], rest, kicks[k]
            )
        self._path = positions, velocities
        drafted, forces, added = (each[:sites] for each in arrays)
        return Window(drafted, velocities[:sites], forces, added)

    def _begin_from(self, state: AnyState, length: int) -> Move | None:
        """How the Context comes to where a window of this length begins; None: it is there."""
        context = self._context
        kept = state.kept if isinstance(state, KeptInContext) else None
        move = None if kept is None else context.find(kept)
        if move is not None and context.has_room(length):
            return move
        positions, velocities = state.positions, state.velocities  # while they can be read
        if not context.has_room(length):
            context.make(length, state.step)
        context.set_state(positions, velocities)
        return None

    def commit(
        self, state: AnyState, window: Window, target_forces: Array, draws: Draws
    ) -> CommittedInContext:
        """See Engine."""
        verified = len(target_forces)
        discrepancies = target_forces - window.draft_forces[:verified]
        nothing = np.zeros((len(self.subset), 3))
        start = State(nothing, nothing, state.step)
        still = draws._replace(cm_removals=np.zeros_like(draws.cm_removals))
        committed = self._free.commit(
            start, _at_rest(window), discrepancies - window.corrections[:verified], still
        )
        count = min(committed.num_steps, self._context.record.drafted)
        if not count:
            raise ConstraintError("the drafted step is not finite")
        differences = np.stack([committed.positions[:count], committed.velocities[:count]], axis=1)
        differences -= np.stack(self._path, axis=1)[1 : count + 1]
        kept = self._follow_frame(differences, draws.cm_removals)
        accepted = committed.accepted or count < committed.num_steps
        return CommittedInContext(self, kept, committed.noise_shifts[:count], accepted)

    def _follow_frame(self, differences: Array, removals: NDArray[np.bool_]) -> list[Kept]:
        """What is to be added to the drafted states: differences (C, 2, n, 3) in the frame of the
        drafted path, and how that moves."""
        decay, half = self.scheme.decay, 0.5 * self.scheme.step_size
        shift, drift = np.zeros(3), np.zeros(3)
        kept, window = [], self._context.record.windows
        for k, difference in enumerate(differences):
            if removals[k]:
                drift = -self._share @ differences[k - 1, 1] if k else np.zeros(3)
            shift = shift + half * (1.0 + decay) * drift
            drift = decay * drift
            kept.append(Kept(window, k + 1, shift, drift, difference))
        return kept

    def read(self, kept: Kept) -> tuple[Array, Array]:
        """Positions and velocities (N, 3) of a state of the window that was drafted last."""
        move = self._context.find(kept)
        if move is None:
            raise RuntimeError("the state has been overwritten by a later window")
        self._context.go_to(move.state)
        positions, velocities = self._context.read()
        positions += move.shift * self._moving
        velocities += move.drift * self._moving
        positions[self.subset] += move.of_subset[0]
        velocities[self.subset] += move.of_subset[1]
        return positions, velocities

    def snapshot(self, states: Sequence[AnyState]) -> dict[str, Any]:
        """See Engine."""
        kept = [
            (*each.kept, each.step)
            if isinstance(each, KeptInContext) and self._context.find(each.kept) is not None
            else (each.positions, each.velocities, each.step)
            for each in states
        ]
        return {"engine": self.name, "states": kept, "rollout": self._context.snapshot()}

    def restore(self, record: dict[str, Any]) -> list[AnyState]:
        """See Engine."""
        self._context.restore(record["rollout"])
        return [self._restored(*each) for each in record["states"]]

    def _restored(self, *state: Any) -> AnyState:
        if len(state) == len(State._fields):
            return State(*state)
        return KeptInContext(self, Kept(*state[:-1]), state[-1])


def _at_rest(window: Window) -> Window:
    """The drafted path in its own frame: no forces."""
    nothing = np.zeros_like(window.draft_forces)
    return window._replace(draft_forces=nothing, corrections=nothing)
