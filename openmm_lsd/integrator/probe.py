"""A look behind an LSDIntegrator: its target, its draft, its sampler."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.clock import Times
from ..core.corrections import Corrections
from ..core.engine import Engine, TrainableDraft
from ..core.sampler import SpeculativeSampler, Tuner
from ..core.schemes import reciprocal, remove_cm_motion
from ..core.window import AnyState, CommittedSteps, Draws, Window
from ..drafts.contextengine import CommittedInContext
from ..targets.base import Evaluation
from .binding import Binding

Array = NDArray[np.float64]


class Probe:
    """What an LSDIntegrator works with, after its first step; see ``LSDIntegrator.probe``."""

    def __init__(self, binding: Binding) -> None:
        self._binding = binding

    @property
    def sampler(self) -> SpeculativeSampler:
        """The sampler at present. What is done with it, the Context does not see."""
        return self._binding.sampler

    def evaluate(self, positions: Array) -> Evaluation:
        """Energies (B,) in kJ/mol and forces (B, N, 3) of the target at positions (B, N, 3)."""
        return self._binding.pair.evaluate(positions)

    def discrepancies(self, positions: Array) -> Array:
        """Target force minus draft force at positions (B, N, 3), less what acts along
        constraints; zero where both are the same."""
        engine, result = self.sampler.engine, np.zeros_like(positions)
        sites = np.ascontiguousarray(positions[:, engine.subset])
        found = self._binding.pair.discrepancies(sites)
        result[:, engine.subset] = engine.project_forces(sites, found)
        return result

    @contextmanager
    def tuned_by(self, tuner: Tuner) -> Iterator[None]:
        """While this lasts another tuner chooses the windows."""
        before = self._binding.take_tuner(tuner)
        try:
            yield
        finally:
            self._binding.take_tuner(before)

    @contextmanager
    def recorded_shifts(self) -> Iterator[dict[int, Array]]:
        """While this lasts: the noise shift (N, 3) of every committed step whose noise is
        transported, by the index of the step's random numbers (``sampler.state.step``)."""
        sampler = self.sampler
        recording = _Recording(sampler.engine)
        sampler.take_engine(recording)
        try:
            yield recording.shifts
        finally:
            sampler.take_engine(recording.recorded)


class _Recording:
    """An Engine that keeps the noise shifts of another."""

    def __init__(self, recorded: Engine) -> None:
        self.scheme, self.masses, self.subset = recorded.scheme, recorded.masses, recorded.subset
        self.recorded, self.name = recorded, recorded.name
        self.shifts: dict[int, Array] = {}

    @property
    def trainable(self) -> TrainableDraft | None:
        return self.recorded.trainable

    def snapshot(self, states: Sequence[AnyState]) -> dict[str, Any]:
        return self.recorded.snapshot(states)

    def restore(self, record: dict[str, Any]) -> list[AnyState]:
        return self.recorded.restore(record)

    def draft(
        self, state: AnyState, corrections: Corrections, draws: Draws, times: Times | None
    ) -> Window:
        return self.recorded.draft(state, corrections, draws, times)

    def forces(self, sites: Array, times: Times | None) -> Array:
        return self.recorded.forces(sites, times)

    def project_forces(self, sites: Array, forces: Array) -> Array:
        return self.recorded.project_forces(sites, forces)

    def commit(
        self, state: AnyState, window: Window, target_forces: Array, draws: Draws
    ) -> CommittedSteps:
        drafted = window.velocities if window.whole is None else window.whole.velocities
        committed = self.recorded.commit(state, window, target_forces, draws)
        known = len(committed.noise_shifts)
        differences = target_forces[:known] - window.draft_forces[:known]
        differences -= window.corrections[:known]
        if isinstance(committed, CommittedInContext):  # differences are all that is known
            own = self.masses[self.subset]
            shifts: Iterable[Array] = committed.find_shifts(self.scheme, own, differences)
        else:
            shifts = self._find_shifts(state, committed, drafted, differences, draws)
        for k, shift in enumerate(shifts):
            everywhere = self.shifts[state.step + k] = np.zeros_like(state.positions)
            everywhere[self.subset if len(shift) < len(everywhere) else slice(None)] = shift
        return committed

    def _find_shifts(
        self,
        state: AnyState,
        committed: CommittedSteps,
        drafted: Array,
        differences: Array,
        draws: Draws,
    ) -> Iterator[Array]:
        inverse_masses = reciprocal(self.masses)
        inverse_scale = reciprocal(self.scheme.noise_scale(inverse_masses))
        starts = [state, *committed.states(state.step)[:-1]]
        for k, difference in enumerate(differences):
            x, v = starts[k].positions, starts[k].velocities
            if draws.cm_removals[k]:
                v = remove_cm_motion(v, self.masses)
            acceleration = np.zeros_like(x)
            acceleration[self.subset] = difference
            acceleration *= inverse_masses
            shift = self.scheme.kick_shift(x, v, drafted[k], acceleration, np.zeros_like(x))
            yield inverse_scale * shift
