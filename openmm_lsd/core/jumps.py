"""Discrepancies that change from one step to the next as on no sound path."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .schemes import Scheme, reciprocal

Array = NDArray[np.float64]

# A discrepancy may change from one step to the next by what gives an atom this many times its
# thermal speed. In sound runs at 1 fs the largest seen is 0.4, at 2 fs 1.1.
MAX_JUMP = 2.0
# Nor by more than this many times what was seen at committed steps (heavy atoms jump far less);
# the largest seen is forgotten by and by.
JUMP_BEYOND_SEEN, KEPT_PER_ROUND = 8.0, 0.99
# And where a correction was wrong by this many times the thermal speed, the draft went astray.
MAX_ERROR = 1.0


def hold_outliers(
    discrepancies: Array, errors: Array, first: int, largest: Array, largest_error: Array
) -> Array:
    """Discrepancies (K, N, 3) of a window, cured of rows that no sound path has (jumps).

    From row ``first`` on, where an atom's discrepancy differs by more than ``largest`` (N, 1) from
    the row before, or the draft, as it was corrected, was wrong there by more than
    ``largest_error`` (N, 1), as ``errors`` (K, N, 3) say, that row takes its place and that of all
    later ones. A wrong correction leads the draft to wild sites, and what is measured there are the
    next round's corrections: without this, one mishap would feed itself, and the run would
    continue with one step per round for good.

    Row j of the result depends on rows up to j only, as the measurability rule demands.
    """
    wrong = np.abs(errors[first - 1 : -1]) > largest_error
    jumps = np.abs(discrepancies[first:] - discrepancies[first - 1 : -1]) > largest
    if not (wrong.any() or jumps.any()):
        return discrepancies
    result = discrepancies.copy()
    astray = np.zeros(result.shape[1], dtype=bool)
    for row in range(first, len(result)):
        astray |= wrong[row - first].any(axis=1)
        astray |= (np.abs(result[row] - result[row - 1]) > largest).any(axis=1)
        result[row, astray] = result[row - 1, astray]
    return result


class JumpLimit:
    """How far the discrepancy of an atom may change, learned from committed steps.

    Parameters
    ----------
    scheme : Scheme
    masses : (N, 1) amu
    """

    def __init__(self, scheme: Scheme, masses: Array) -> None:
        thermal_force = masses * scheme.thermal_speed(reciprocal(masses)) / scheme.step_size
        self.largest_error: Array = MAX_ERROR * thermal_force  # (N, 1)
        self._largest = MAX_JUMP * thermal_force
        self._inverse = reciprocal(self._largest)
        self.start()

    def start(self, seen: float = np.inf) -> None:
        """Continue with what was ``seen``, in units of the largest allowed."""
        self.seen = seen

    def update(self, committed: Array) -> Array:
        """The largest sound jump (N, 1), by the discrepancies at committed steps (B, N, 3)."""
        if len(committed) > 1:
            seen = float((np.abs(committed[1:] - committed[:-1]) * self._inverse).max())
            kept = KEPT_PER_ROUND * self.seen
            self.seen = max(seen, kept) if np.isfinite(kept) else seen
        return min(1.0, JUMP_BEYOND_SEEN * self.seen) * self._largest
