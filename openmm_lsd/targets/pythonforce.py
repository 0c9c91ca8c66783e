"""PythonForce: a user's Python function, for a batch where the function can take one."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import openmm
from numpy.typing import ArrayLike, NDArray
from openmm import unit

from .._native import evaluate_python_force
from ..core.clock import Times
from .base import (
    Array,
    BatchedTarget,
    Evaluation,
    ForceSettings,
    Parts,
    checked,
    describe_function,
    is_out_of_memory,
)

BatchFunction = Callable[..., tuple[ArrayLike, ArrayLike]]

ONE_BY_ONE = (
    "the function of a PythonForce takes one state; write it for positions (B, n, 3) under the "
    "decorator openmm_lsd.batched, take one of openmm_lsd.targets if there is one for this "
    "potential, or spread the states over workers with a RayTarget"
)

_called = threading.local()


class Batched:
    """A computation for openmm.PythonForce that takes any number of states; see ``batched``."""

    def __init__(self, function: BatchFunction, target: BatchedTarget | None = None) -> None:
        self.function, self._target = function, target
        self.keeps_cores_busy = target is not None and target.keeps_cores_busy
        self.__module__, self.__doc__ = function.__module__, function.__doc__
        self.__name__, self.__qualname__ = function.__name__, function.__qualname__
        names = inspect.signature(function).parameters
        self._times_taken = [name for name in Times._fields if name in names]

    @property
    def one_by_one(self) -> str | None:
        """See BatchedTarget: of the target that it hands on."""
        return None if self._target is None else self._target.one_by_one

    @property
    def hands_on_a_target(self) -> bool:
        """Whether a target computes, which knows how to evaluate batches fast."""
        return self._target is not None

    def prepare(self, positions: Array, batch: int, box: Array | None) -> None:
        """See BatchedTarget: of the target that it hands on."""
        if self._target is not None:
            self._target.prepare(positions, batch, box)

    def single_states(self) -> AbstractContextManager:
        """See BatchedTarget: of the target that it hands on."""
        return nullcontext() if self._target is None else self._target.single_states()

    @property
    def uses_times(self) -> bool:
        """Whether the function takes times or step counts."""
        return bool(self._times_taken)

    def __call__(self, state: openmm.State) -> tuple[float, Array]:
        """Energy in kJ/mol and forces (n, 3) in kJ/mol/nm of one State, as PythonForce asks."""
        # Called by the force itself, or by a function of the user's that does more?
        if sys._getframe(1).f_code is PythonForceTarget._one_by_one.__code__:
            _called.last = self
        positions = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
        time = state.getTime().value_in_unit(unit.picosecond)
        times = Times.same(1, time, state.getStepCount())
        energies, forces = self.evaluate(
            positions[None], _box_of(state), state.getParameters(), times
        )
        return float(energies[0]), forces[0]

    def evaluate(
        self,
        positions: Array,
        box: Array | None,
        parameters: Mapping[str, float],
        times: Times | None = None,
    ) -> Evaluation:
        """Energies (B,) and forces (B, n, 3) in kJ/mol and kJ/mol/nm; times zero by default."""
        if times is None:
            times = Times.same(len(positions))
        taken = {name: getattr(times, name) for name in self._times_taken}
        energies, forces = self.function(positions, box, dict(parameters), **taken)
        return checked(energies, forces, positions, f"the batched function {self.__name__}")

    def __reduce__(self) -> str:
        # By name, as functions are; the function itself hides behind this object's name.
        return self.__qualname__


def batched(function: BatchFunction) -> Batched:
    """Decorator: one function for PythonForce and for batches.

    ::

        @batched
        def compute(positions, box, parameters):
            # (B, n, 3) nm, (3, 3) nm or None, {name: value}
            energies = parameters["k"] * np.sum(positions**2, axis=(1, 2))
            return energies, -2 * parameters["k"] * positions

        force = openmm.PythonForce(compute, {"k": 2.5})

    The function gives energies (B,) in kJ/mol and forces (B, n, 3) in kJ/mol/nm. OpenMM calls it
    with B = 1; LSDIntegrator with the whole window. If it has arguments named ``times`` (B,) in ps
    or ``step_counts`` (B,), it is given those of each state as well.
    """
    return Batched(function)


class PythonForceTarget(BatchedTarget):
    """One PythonForce: in one call if its function is ``batched``, else state after state.

    Parameters
    ----------
    force : openmm.PythonForce
        Kept; the System it belongs to must live as long as this target.
    positions : (N, 3) nm
        Of all particles of the System; the function is called once there to find out.
    box : (3, 3) nm, optional
    time, step_count : float (ps), int
        When the function is called there.
    rows : (n,) int, optional
        Where the force's particles are among those that this target is given, if these are not all.
    """

    def __init__(
        self,
        force: openmm.PythonForce,
        positions: Array,
        box: Array | None = None,
        *,
        time: float = 0.0,
        step_count: int = 0,
        rows: NDArray[np.int64] | None = None,
    ) -> None:
        self._force = force
        self._periodic = force.usesPeriodicBoundaryConditions()
        self._particles = np.array(force.getParticles(), dtype=int)
        self._parameters = dict(force.getGlobalParameters())
        self.batched = self._find_batched(positions, box, Times.same(1, time, step_count))
        self.keeps_cores_busy = self.batched is not None and self.batched.keeps_cores_busy
        # A State has them, and nobody knows whether the function asks for them.
        self.uses_times = self.batched is None or self.batched.uses_times
        self._in_parts = Parts(self._evaluate, is_out_of_memory)
        if rows is not None:
            self._particles = rows

    @classmethod
    def of_force(cls, force: openmm.Force, settings: ForceSettings) -> PythonForceTarget | None:
        """Of a PythonForce; None of any other."""
        own = as_python_force(force)
        if own is None:
            return None
        particles = own.getParticles()
        return cls(
            own,
            settings.positions,
            settings.box,
            time=settings.time,
            step_count=settings.step_count,
            rows=settings.rows(particles) if len(particles) else None,
        )

    @property
    def one_by_one(self) -> str | None:
        """See BatchedTarget."""
        return ONE_BY_ONE if self.batched is None else self.batched.one_by_one

    def _find_batched(self, positions: Array, box: Array | None, times: Times) -> Batched | None:
        """The function behind the force, if it is one of ours: it says so when it is called."""
        _called.last = None
        try:
            self._one_by_one(self._own(positions[None]), box, times)
        except Exception:
            if _called.last is None:
                raise
        return _called.last

    def set_parameters(self, parameters: Mapping[str, float]) -> None:
        """See BatchedTarget."""
        for name in self._parameters:
            self._parameters[name] = parameters.get(name, self._parameters[name])

    def prepare(self, positions: Array, batch: int, box: Array | None = None) -> None:
        """See BatchedTarget."""
        if self.batched is None:
            return
        if self.batched.hands_on_a_target:
            own = self._own(positions[None])[0]
            self.batched.prepare(own, batch, box if self._periodic else None)
        else:
            model = describe_function(self.batched.function)
            self._in_parts.prepare(positions, batch, box, model)

    def single_states(self) -> AbstractContextManager:
        """See BatchedTarget."""
        return nullcontext() if self.batched is None else self.batched.single_states()

    def evaluate(self, positions: Array, box: Array | None = None) -> Evaluation:
        """See BatchedTarget."""
        return self.evaluate_at(positions, box)

    def evaluate_at(
        self, positions: Array, box: Array | None = None, times: Times | None = None
    ) -> Evaluation:
        """See BatchedTarget."""
        return self._in_parts(positions, box, times)

    def _evaluate(
        self, positions: Array, box: Array | None, times: Times | None = None
    ) -> Evaluation:
        times = Times.same(len(positions)) if times is None else times
        own = self._own(positions)
        if self.batched is None:
            energies, forces = self._one_by_one(own, box, times)
        else:
            box = box if self._periodic else None
            energies, forces = self.batched.evaluate(own, box, self._parameters, times)
        if not len(self._particles):
            return energies, forces
        everywhere = np.zeros_like(positions)
        by_particle = everywhere.swapaxes(0, 1)  # some may be named twice
        np.add.at(by_particle, self._particles, forces.swapaxes(0, 1))
        return energies, everywhere

    def _own(self, positions: Array) -> Array:
        own = positions[:, self._particles] if len(self._particles) else positions
        return np.ascontiguousarray(own)

    def _one_by_one(self, positions: Array, box: Array | None, times: Times) -> Evaluation:
        box = np.ascontiguousarray(box) if self._periodic else None
        address = int(self._force.this)
        return evaluate_python_force(address, positions, box, self._parameters, *times)


def as_python_force(force: openmm.Force) -> Any | None:
    """``force`` as openmm.PythonForce, or None if it is something else."""
    return force if isinstance(force, openmm.PythonForce) else None


def _box_of(state: openmm.State) -> Array | None:
    try:
        vectors = state.getPeriodicBoxVectors(asNumpy=True)
    except openmm.OpenMMException:  # a State without a box
        return None
    return None if vectors is None else vectors.value_in_unit(unit.nanometer)
