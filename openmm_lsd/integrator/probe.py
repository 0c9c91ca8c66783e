"""A look behind an LSDIntegrator: its target, its draft, its sampler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from ..core.clock import Times
from ..core.corrections import Corrections
from ..core.engine import Engine
from ..core.sampler import SpeculativeSampler, Tuner
from ..core.schemes import reciprocal, remove_cm_motion
from ..core.window import Committed, Draws, State, Window
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
        constraints."""
        engine, pair = self.sampler.engine, self._binding.pair
        found = pair.discrepancies(positions)
        return engine.project_forces(positions, found)

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
        self.scheme, self.masses, self.trainable = (
            recorded.scheme,
            recorded.masses,
            recorded.trainable,
        )
        self.recorded = recorded
        self.shifts: dict[int, Array] = {}

    def draft(
        self, state: State, corrections: Corrections, draws: Draws, times: Times | None
    ) -> Window:
        return self.recorded.draft(state, corrections, draws, times)

    def forces(self, sites: Array, times: Times | None) -> Array:
        return self.recorded.forces(sites, times)

    def commit(self, state: State, window: Window, target_forces: Array, draws: Draws) -> Committed:
        committed = self.recorded.commit(state, window, target_forces, draws)
        inverse_masses = reciprocal(self.masses)
        inverse_scale = reciprocal(self.scheme.noise_scale(inverse_masses))
        drafted = window.draft_forces + window.corrections
        starts = [
            state[:2],
            *zip(committed.positions[:-1], committed.velocities[:-1], strict=True),
        ]
        for k in range(len(committed.noise_shifts)):
            x, v = starts[k]
            if draws.cm_removals[k]:
                v = remove_cm_motion(v, self.masses)
            accelerations = target_forces[k] * inverse_masses, drafted[k] * inverse_masses
            shift = self.scheme.kick_shift(x, v, window.velocities[k], *accelerations)
            self.shifts[state.step + k] = inverse_scale * shift
        return committed
