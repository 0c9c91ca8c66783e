"""The forces of any potential as a draft, one state at a time."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .._native import PythonForces
from ..core.clock import Times
from ..core.errors import checked_forces
from ..targets.base import BatchedTarget
from .nativedraft import NativeDraft, is_same_box

Array = NDArray[np.float64]

K = TypeVar("K")
V = TypeVar("V")

logger = logging.getLogger(__name__)

REMEMBERED = 128  # states; those of the last windows are asked for again when a draft has learned
LARGEST = 1e12  # kJ/mol/nm, of which squares can still be added up


class PotentialDraft(NativeDraft):
    """The forces of a potential.

    Where it fails, or gives what is not finite, a window ends; at its first site it counts as no
    force at all.

    Parameters
    ----------
    potential : BatchedTarget
    particles : int
        N
    remembers : bool
        Whether a draft learns on top, which asks for the same forces again.

    Attributes
    ----------
    access : _native.Forces
    """

    def __init__(self, potential: BatchedTarget, particles: int, remembers: bool = True) -> None:
        self.uses_times = potential.uses_times
        # Apart: C++ objects keep circles of Python's alive.
        self._function = _Function(potential, remembers)
        self.access = PythonForces(particles, self._function)

    def __call__(self, positions: Array, times: Times | None = None) -> Array:
        """See NativeDraft."""
        time, step_count = (0.0, 0) if times is None else (times.times[0], times.step_counts[0])
        return self._function(positions, 0, float(time), int(step_count))

    def has_failed_at(self, sites: Array) -> bool:
        """See ForceSource."""
        return self._function.has_failed_at(sites)

    def prepare(self, positions: Array) -> None:
        """Find the fastest way to evaluate single states near ``positions`` (N, 3) nm.

        Raises
        ------
        ValueError
            If there are no forces that are finite.
        """
        self._function.prepare(positions)

    def set_environment(self, box: Array | None, parameters: Mapping[str, float]) -> None:
        """See NativeDraft."""
        self._function.set_environment(box, parameters)

    def roll_out(self, *arguments: Any, times: Times | None) -> tuple:
        """See NativeDraft."""
        return self.access.rollout(*arguments, *(times or ()))

    def roll_out_whole(self, *arguments: Any, times: Times | None) -> tuple:
        """See NativeDraft."""
        return self.access.rollout_whole(*arguments, *(times or ()))

    def roll_out_in_context(self, *arguments: Any) -> tuple:
        """See NativeDraft."""
        return self.access.rollout_in_context(*arguments)


def _keep(memory: dict[K, V], key: K, value: V) -> None:
    """Put it in, in the place of the oldest if there are many."""
    if len(memory) >= REMEMBERED:
        memory.pop(next(iter(memory)))
    memory[key] = value


class _Function:
    """Forces (N, 3) at positions (N, 3), as C++ asks for them."""

    def __init__(self, potential: BatchedTarget, remembers: bool) -> None:
        self._potential, self._remembers = potential, remembers
        self._box: Array | None = None
        self._parameters: dict[str, float] = {}
        self._known: dict[tuple[bytes, float, int], Array] = {}
        self._failures: dict[bytes, None] = {}  # sites at which zeros stood for forces
        self._has_warned = False

    def __call__(self, site: Array, k: int, time: float, step_count: int) -> Array:
        """At step k of its window."""
        key = site.tobytes(), time, step_count
        if key not in self._known:
            try:
                forces = self._evaluate(site, time, step_count)
            except Exception as error:
                if k > 0:
                    raise
                self._warn(error)
                if self._remembers:
                    _keep(self._failures, key[0], None)
                return np.zeros_like(site)
            if not self._remembers:
                return forces
            _keep(self._known, key, forces)
        return self._known[key]

    def has_failed_at(self, sites: Array) -> bool:
        """See ForceSource."""
        return any(site.tobytes() in self._failures for site in sites)

    def _evaluate(self, site: Array, time: float, step_count: int) -> Array:
        potential = self._potential
        times = Times.same(1, time, step_count) if potential.uses_times else None
        if self._parameters:  # it may have been another Simulation's in the meantime
            potential.set_parameters(self._parameters)
        forces = potential.forces_at(site[None], self._box, times)
        # A copy: the potential may use its array again.
        result = checked_forces(forces, (1, *site.shape), "it")[0].copy()
        if not (np.abs(result) < LARGEST).all():
            raise FloatingPointError(f"its forces are not finite, or beyond {LARGEST:g} kJ/mol/nm")
        return result

    def _warn(self, error: Exception) -> None:
        if not self._has_warned:
            logger.warning(
                "the draft fails at a committed state, and windows have one step there (%s); this "
                "is not said again",
                error,
            )
        self._has_warned = True

    def prepare(self, positions: Array) -> None:
        """See PotentialDraft."""
        try:
            self._potential.prepare(positions, 1, self._box)
            self._evaluate(positions, 0.0, 0)
        except Exception as error:
            raise ValueError(f"the draft fails at the starting positions: {error}") from error

    def set_environment(self, box: Array | None, parameters: Mapping[str, float]) -> None:
        """See NativeDraft."""
        if not is_same_box(box, self._box) or self._parameters != dict(parameters):
            self._known.clear()
        self._box, self._parameters = box, dict(parameters)
        self._potential.set_parameters(parameters)
