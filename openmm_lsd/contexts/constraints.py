"""The constraints of a System: how they are kept, and which there are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import unit

from .._native import Constraints
from .forcecontext import copy_constraints, copy_particles

Array = NDArray[np.float64]


class SystemProjection:
    """A constraints.Projection onto the constraints of a System.

    On the host, whatever the platform. Rigid water is solved to the last digits, as SETTLE does
    (Miyamoto and Kollman, J. Comput. Chem. 13, 952 (1992)), but several molecules at a time; all
    else by CCMA (Eastman and Pande, J. Chem. Theory Comput. 6, 434 (2010)), OpenMM's own code.

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
        copy_constraints(system, frame)
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
        both = np.broadcast_to(at, given.shape), given
        arrays = (np.ascontiguousarray(each, dtype=np.float64).reshape(batch) for each in both)
        return project(*arrays).reshape(given.shape)


class Projections:
    """Onto the constraints of a System, which take a while to build, at one tolerance or another.

    Parameters
    ----------
    system : openmm.System
    """

    def __init__(self, system: openmm.System) -> None:
        self._system = system
        self._tolerance = 0.0
        self._projection: SystemProjection | None = None

    def at(self, tolerance: float) -> SystemProjection | None:
        """None if there are no constraints."""
        if self._system.getNumConstraints() and self._tolerance != tolerance:
            self._projection = SystemProjection(self._system, tolerance)
            self._tolerance = tolerance
        return self._projection


def constraints_of(system: openmm.System) -> dict[tuple[int, int], float]:
    """Lengths in nm by pairs of particles, the smaller index first."""
    result = {}
    for index in range(system.getNumConstraints()):
        i, j, length = system.getConstraintParameters(index)
        result[min(i, j), max(i, j)] = length.value_in_unit(unit.nanometer)
    return result


def count_active_constraints(system: openmm.System) -> int:
    """Those that take a degree of freedom: not between two particles of zero mass."""
    zero = 0 * unit.dalton
    return sum(
        any(system.getParticleMass(index) > zero for index in pair)
        for pair in constraints_of(system)
    )


def has_uneven_triangles(system: openmm.System) -> bool:
    """Whether OpenMM's SETTLE, which keeps the constraints in plain steps, goes wrong here.

    It takes every rigid molecule of three atoms two of whose sides are equal, as if the atoms at
    their ends had equal masses. Those of HDO have not.
    """
    lengths, partners = constraints_of(system), defaultdict[int, set[int]](set)
    for i, j in lengths:
        partners[i].add(j)
        partners[j].add(i)
    for apex, ends in partners.items():
        if len(ends) != 2:
            continue
        first, second = ends
        if partners[first] != {apex, second} or partners[second] != {apex, first}:
            continue
        sides = [lengths[min(apex, end), max(apex, end)] for end in ends]
        masses = [system.getParticleMass(end) for end in ends]
        if sides[0] == sides[1] and masses[0] != masses[1]:
            return True
    return False
