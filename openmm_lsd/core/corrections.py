"""What is added to the draft's force at each step of a window."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .jacobian import LocalJacobian, Secant

Array = NDArray[np.float64]


class Corrections(NamedTuple):
    """Of the draft's force at each step of a window of length K.

    ``forces`` (K, N, 3) are what is added at ``sites`` (K, N, 3). ``jacobian`` says how that
    changes away from them, and ``secant`` how it did from one round to the next; without
    ``jacobian`` they are added wherever the draft leads.
    """

    forces: Array
    sites: Array | None = None
    jacobian: LocalJacobian | None = None
    secant: Secant | None = None

    def at(self, k: int, site: Array, masses: Array) -> Array:
        """What is added (N, 3) at step k, whose site is this, for masses (N, 1)."""
        if self.sites is None or self.jacobian is None:
            return self.forces[k]
        displacement = site - self.sites[k]
        if self.secant is None:
            return self.forces[k] + self.jacobian(displacement)
        secant = Secant(*(each[k] for each in self.secant))
        return self.forces[k] + self.jacobian.with_secant(displacement, secant, masses)

    def rows(self, rows: slice | NDArray[np.int_]) -> Corrections:
        """Those of some steps."""
        sites = None if self.sites is None else self.sites[rows]
        secant = None if self.secant is None else Secant(*(each[rows] for each in self.secant))
        return Corrections(self.forces[rows], sites, self.jacobian, secant)

    def moved(self, displacements: Array) -> Corrections:
        """The same at sites displaced by (N, 3) nm."""
        return self if self.sites is None else self._replace(sites=self.sites + displacements)


def hold_rows(array: Array, first: int, count: int) -> Array:
    """So many rows from ``first`` on; after the last one, that again and again."""
    result = np.empty((count, *array.shape[1:]))
    present = min(max(len(array) - first, 0), count)
    result[:present] = array[first : first + present]
    result[present:] = array[-1]
    return result


class Outlook(NamedTuple):
    """What is known of the steps to come.

    ``corrections`` of the next window, and ``times_measured``: how often each of its leading steps
    has been measured.
    """

    corrections: Corrections
    times_measured: NDArray[np.int_]

    @classmethod
    def nothing(cls, window: int, particles: int) -> Outlook:
        """Of ``window`` steps."""
        return cls(Corrections(np.zeros((window, particles, 3))), np.zeros(0, dtype=int))

    def resized(self, window: int) -> Outlook:
        """For a window of another length; what is known of later steps is given up."""
        length = len(self.corrections.forces)
        rows = slice(window) if window <= length else np.minimum(np.arange(window), length - 1)
        return Outlook(self.corrections.rows(rows), self.times_measured[:window])
