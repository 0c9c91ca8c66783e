"""Distance constraints: the projections that a step needs, and a plain form of them.

In a step of the Middle scheme velocities are projected onto those that keep the constraints, and
positions are moved back onto them along the gradients at the positions before. Both are functions
of positions before the step, and linear in the velocities; so draft and target, which stand at the
same place, are projected alike, and a target step that reaches the draft's positions before the
projection reaches them after it.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

MAX_ITERATIONS = 500


class ConstraintError(ValueError):
    """Positions or velocities cannot be brought onto the constraints."""


class Projection(Protocol):
    """Onto constraints; arrays (..., N, 3) in nm and nm/ps."""

    def velocities(self, positions: Array, velocities: Array) -> Array:
        """Velocities that keep the constraints at these positions, closest in kinetic energy."""

    def positions(self, reference: Array, positions: Array) -> Array:
        """Positions moved onto the constraints along their gradients at ``reference``."""


class PlainProjection:
    """SHAKE (Ryckaert, Ciccotti and Berendsen, J. Comput. Phys. 23, 327 (1977)) and the velocity
    part of RATTLE (Andersen, J. Comput. Phys. 52, 24 (1983)): constraint by constraint, again and
    again.

    Parameters
    ----------
    pairs : (C, 2) int
    lengths : (C,) nm
    masses : (N,) amu
        A particle of zero mass does not move; a constraint between two of them says nothing.
    tolerance : float
        Relative, of the lengths.

    Raises
    ------
    ConstraintError
        From ``positions`` and ``velocities``, if they do not converge.
    """

    def __init__(
        self, pairs: ArrayLike, lengths: ArrayLike, masses: ArrayLike, tolerance: float = 1e-10
    ) -> None:
        masses = np.asarray(masses, dtype=np.float64).reshape(-1)
        inverse = np.divide(1.0, masses, out=np.zeros_like(masses), where=masses > 0)
        every = np.array(pairs, dtype=int).reshape(-1, 2)
        moves = inverse[every].any(axis=1)
        self._pairs, self._lengths = every[moves], np.array(lengths, dtype=np.float64)[moves]
        self._inverse_masses = inverse[self._pairs]  # (C, 2)
        self._tolerance = tolerance

    def positions(self, reference: Array, positions: Array) -> Array:
        """See Projection."""
        result = positions.copy()
        for _ in range(MAX_ITERATIONS):
            worst = 0.0
            for (i, j), length, (a, b) in zip(
                self._pairs, self._lengths, self._inverse_masses, strict=True
            ):
                gradient = reference[..., i, :] - reference[..., j, :]
                now = result[..., i, :] - result[..., j, :]
                excess = (now * now).sum(-1) - length**2
                with np.errstate(all="ignore"):  # looked for below
                    step = excess / (2.0 * (a + b) * (now * gradient).sum(-1))
                    result[..., i, :] -= a * step[..., None] * gradient
                    result[..., j, :] += b * step[..., None] * gradient
                worst = max(worst, float(np.abs(excess).max()) / length**2)
            if not np.isfinite(result).all():
                break
            if worst <= 2.0 * self._tolerance:
                return result
        raise ConstraintError("the constraints cannot be met: positions are too far from them")

    def velocities(self, positions: Array, velocities: Array) -> Array:
        """See Projection."""
        result = velocities.copy()
        scale = np.abs(velocities).max(initial=np.finfo(float).tiny)
        for _ in range(MAX_ITERATIONS):
            worst = 0.0
            for (i, j), length, (a, b) in zip(
                self._pairs, self._lengths, self._inverse_masses, strict=True
            ):
                apart = positions[..., i, :] - positions[..., j, :]
                approach = ((result[..., i, :] - result[..., j, :]) * apart).sum(-1)
                step = approach / ((a + b) * (apart * apart).sum(-1))
                result[..., i, :] -= a * step[..., None] * apart
                result[..., j, :] += b * step[..., None] * apart
                worst = max(worst, float(np.abs(approach).max()) / (length * scale))
            if not np.isfinite(result).all():
                break
            if worst <= self._tolerance:
                return result
        raise ConstraintError("the velocities cannot be made to keep the constraints")
