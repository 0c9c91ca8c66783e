"""The draft of a window: where the draft dynamics would go, step by step.

``rollout`` is the readable reference. A draft that can do better (``draft.DraftContext``, in one
C++ call) offers a method of the same signature, and the sampler uses that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .clock import Times
from .jacobian import LocalJacobian, Secant
from .schemes import Scheme

Array = NDArray[np.float64]
Forces = Callable[..., Array]


class Corrections(NamedTuple):
    """Of the draft's force at each step of a window of length K.

    ``forces`` (K, N, 3) are what is added at ``sites`` (K, N, 3), and ``jacobian`` says how that
    changes away from them; without it they are added wherever the draft leads.
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


class Window(NamedTuple):
    """The drafted steps of a window of length K, each array (K, N, 3).

    ``velocities`` are those at the start of each step, after the motion of the centre of mass was
    removed where that is due, and ``corrections`` what was added to the forces of the draft. If the
    draft breaks down at step k > 0 (positions that are not finite, an exception), only the k steps
    before it are there.
    """

    sites: Array
    velocities: Array
    draft_forces: Array
    corrections: Array


def remove_cm_motion(velocities: Array, masses: Array) -> Array:
    """Velocities minus that of the centre of mass; particles of zero mass stay as they are."""
    cm_velocity = masses[:, 0] @ velocities / masses.sum()
    if masses.all():
        return velocities - cm_velocity
    return np.where(masses > 0, velocities - cm_velocity, velocities)


def rollout(
    draft: Forces,
    scheme: Scheme,
    masses: Array,
    positions: Array,
    velocities: Array,
    corrections: Corrections,
    kicks: Array,
    cm_removals: NDArray[np.bool_],
    times: Times | None = None,
) -> Window:
    """Draft K steps with the force F_d(q_k) + c_k(q_k) at step k.

    Parameters
    ----------
    draft : (N, 3) nm -> (N, 3) kJ/mol/nm
        Takes the Times of the state as well, if ``times`` are given.
    masses : (N, 1) amu
    positions, velocities : (N, 3) nm, nm/ps
        The committed state.
    corrections : Corrections
        c, of K steps.
    kicks : (K, N, 3) nm/ps
    cm_removals : (K,)
        Whether step k starts by removing the motion of the centre of mass.
    times : Times, optional
        Of the K steps.

    Draft forces that are not finite count as zero: a draft may propose anything.
    """
    inverse_masses = reciprocal(masses)
    length = len(corrections.forces)
    sites, start_velocities, draft_forces, added = (
        np.empty((length, *positions.shape)) for _ in range(4)
    )
    for k in range(length):
        if cm_removals[k]:
            velocities = remove_cm_motion(velocities, masses)
        site = scheme.site(positions, velocities)
        if k > 0 and not np.isfinite(site).all():
            length = k
            break
        try:
            force = draft(site) if times is None else draft(site, times.rows(slice(k, k + 1)))
        except Exception:
            if k == 0:
                raise
            length = k
            break
        if not np.isfinite(force).all():
            force = np.zeros_like(site)
        sites[k], start_velocities[k], draft_forces[k] = site, velocities, force
        added[k] = corrections.at(k, site, masses)
        if k + 1 < length:
            acceleration = (force + added[k]) * inverse_masses
            positions, velocities = scheme.step(positions, velocities, acceleration, kicks[k])
    arrays = (sites, start_velocities, draft_forces, added)
    return Window(*(array[:length] for array in arrays))


def reciprocal(values: Array) -> Array:
    """1 / values, and zero where values are zero."""
    return np.divide(1.0, values, out=np.zeros_like(values), where=values > 0)
