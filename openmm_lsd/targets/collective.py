"""CustomCVForce: a function of energies, each of them for a whole batch.

What OpenMM-ML makes of ``interpolate=True``: a network and a force field of the same atoms, mixed
by a parameter.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Mapping, Sequence

import numpy as np
import openmm
from numpy.typing import NDArray

from ..contexts.forcecontext import ForceContext, without_forces
from ..contexts.subsets import reduce_force, reduce_system
from ..core.clock import Times
from .base import Array, BatchedTarget, Evaluation

AXES = "xyz"


class CollectiveTarget(BatchedTarget):
    """The energy of a CustomCVForce, and its forces by the chain rule.

    OpenMM's own parser does it: in a System in which the variables are coordinates of particles,
    the forces on these are minus the derivatives.

    Parameters
    ----------
    force : openmm.CustomCVForce
    variables : sequence of BatchedTarget
        The energies that are its variables, in its order.
    """

    def __init__(self, force: openmm.CustomCVForce, variables: Sequence[BatchedTarget]) -> None:
        self._variables = variables
        self.uses_times = any(each.uses_times for each in variables)
        self.conservative = all(each.conservative for each in variables)
        self.keeps_cores_busy = any(each.keeps_cores_busy for each in variables)
        names = [force.getCollectiveVariableName(k) for k in range(len(variables))]
        # Of particles whose coordinates are called otherwise than all that the user has named.
        text = force.getEnergyFunction()
        first = next(n for n in itertools.count(1) if not _is_taken(n, len(names), text, names))
        self._first = 3 * (first - 1)
        self._particles = first + -(-len(names) // 3)
        where = [f"{name}={AXES[k % 3]}{k // 3 + first}" for k, name in enumerate(names)]
        function = openmm.CustomCompoundBondForce(self._particles, "; ".join([text, *where]))
        for k in range(force.getNumGlobalParameters()):
            function.addGlobalParameter(
                force.getGlobalParameterName(k), force.getGlobalParameterDefaultValue(k)
            )
        for k in range(force.getNumTabulatedFunctions()):
            table = copy.deepcopy(force.getTabulatedFunction(k))
            function.addTabulatedFunction(force.getTabulatedFunctionName(k), table)
        function.addBond(list(range(self._particles)), [])
        system = openmm.System()
        for _ in range(self._particles):
            system.addParticle(1.0)
        system.addForce(function)
        self._function = ForceContext(system, openmm.Platform.getPlatform("Reference"))

    def evaluate(self, positions: Array, box: Array | None = None) -> Evaluation:
        """See BatchedTarget."""
        return self.evaluate_at(positions, box)

    def evaluate_at(
        self, positions: Array, box: Array | None = None, times: Times | None = None
    ) -> Evaluation:
        """See BatchedTarget."""
        values = np.zeros((len(positions), 3 * self._particles))
        inner = []
        for k, variable in enumerate(self._variables):
            values[:, self._first + k], forces = variable.evaluate_at(positions, box, times)
            inner.append(forces)
        energies, minus_slopes = self._function.evaluate(values.reshape(-1, self._particles, 3))
        slopes = -minus_slopes.reshape(len(positions), -1)
        result = np.zeros_like(positions)
        for k, forces in enumerate(inner):
            result += slopes[:, self._first + k, None, None] * forces
        return energies, result

    def set_parameters(self, parameters: Mapping[str, float]) -> None:
        """See BatchedTarget."""
        self._function.set_environment(None, parameters)
        for each in self._variables:
            each.set_parameters(parameters)

    def prepare(self, positions: Array, batch: int, box: Array | None = None) -> None:
        """See BatchedTarget."""
        for each in self._variables:
            each.prepare(positions, batch, box)

    def close(self) -> None:
        """See BatchedTarget."""
        for each in self._variables:
            each.close()


def _is_taken(first: int, count: int, text: str, names: Sequence[str]) -> bool:
    """Whether one of so many coordinates, from those of a particle on, is called like something
    else."""
    last = first + -(-count // 3)
    coordinates = {f"{axis}{number}" for axis in AXES for number in range(first, last + 1)}
    return bool(coordinates & {*names, *re.findall(r"\w+", text)})


class CheapVariable(BatchedTarget):
    """A variable that is cheap: terms of a few atoms, computed one state after another.

    Parameters
    ----------
    force : openmm.Force
    system : openmm.System
        To which it belongs.
    subset : (n,) int or None
        Of the particles; all, if it is None.
    """

    def __init__(
        self, force: openmm.Force, system: openmm.System, subset: NDArray[np.int64] | None
    ) -> None:
        if subset is None:
            frame, own = without_forces(system), openmm.XmlSerializer.clone(force)
        else:
            frame, own = reduce_system(system, subset), reduce_force(force, subset)
        frame.addForce(own)
        self._context = ForceContext(frame, openmm.Platform.getPlatform("Reference"))

    def evaluate(self, positions: Array, box: Array | None = None) -> Evaluation:
        """See BatchedTarget."""
        self._context.set_environment(box, {})
        return self._context.evaluate(positions)

    def set_parameters(self, parameters: Mapping[str, float]) -> None:
        """See BatchedTarget."""
        self._context.set_environment(None, parameters)
