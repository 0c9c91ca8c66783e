"""The constraints of a System, by OpenMM's own solvers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import unit

from .._native import Constraints
from .forcecontext import copy_particles

Array = NDArray[np.float64]


class SystemProjection:
    """A constraints.Projection onto the constraints of a System.

    SETTLE (Miyamoto and Kollman, J. Comput. Chem. 13, 952 (1992)) for rigid water, CCMA (Eastman
    and Pande, J. Chem. Theory Comput. 6, 434 (2010)) for everything else: what OpenMM's Reference
    and CPU platforms do, on the host whatever the platform.

    Parameters
    ----------
    system : openmm.System
    tolerance : float
        Relative, of the lengths; as of OpenMM's integrators.

    Attributes
    ----------
    native : _native.Constraints
        The same for native steps.

    Raises
    ------
    ConstraintError
        From ``positions``, if the constraints cannot be met.
    """

    def __init__(self, system: openmm.System, tolerance: float) -> None:
        frame = openmm.System()
        copy_particles(system, frame)
        for index in range(system.getNumConstraints()):
            frame.addConstraint(*system.getConstraintParameters(index))
        for force in system.getForces():
            if isinstance(force, openmm.HarmonicAngleForce):  # CCMA looks at them
                frame.addForce(openmm.HarmonicAngleForce(force))
        self.native = Constraints(int(frame.this), tolerance)

    def velocities(self, positions: Array, velocities: Array) -> Array:
        """See Projection."""
        return self._project(self.native.velocities, positions, velocities)

    def positions(self, reference: Array, positions: Array) -> Array:
        """See Projection."""
        return self._project(self.native.positions, reference, positions)

    @staticmethod
    def _project(project: Callable[[Array, Array], Array], at: Array, given: Array) -> Array:
        batch = (-1, *given.shape[-2:])
        at = np.broadcast_to(at, given.shape).reshape(batch)
        arrays = (np.ascontiguousarray(each, dtype=np.float64) for each in (at, given.reshape(batch)))
        return project(*arrays).reshape(given.shape)


def constraints_of(system: openmm.System) -> dict[tuple[int, int], float]:
    """Lengths in nm by pairs of particles, the smaller index first."""
    result = {}
    for index in range(system.getNumConstraints()):
        i, j, length = system.getConstraintParameters(index)
        result[min(i, j), max(i, j)] = length.value_in_unit(unit.nanometer)
    return result
