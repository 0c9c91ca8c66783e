"""The forces of a System at a batch of positions: each part in the form that batches best."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import openmm
from numpy.typing import NDArray

from ..contexts.checks import changes_state, default_box
from ..contexts.cores import allowed_cores
from ..contexts.forcecontext import (
    ALL_GROUPS,
    groups_of,
    holds_python,
    is_empty,
    without_forces,
)
from ..contexts.platforms import reproducible_properties
from ..contexts.sharedforces import reach_of_sum
from ..contexts.subsets import reduce_system
from ..core.clock import Times
from ..targets import openmmml
from .base import Array, BatchedTarget, Evaluation, ForceSettings
from .collective import CheapVariable, CollectiveTarget
from .contextpool import ContextTarget
from .ofsubset import EmbeddedTarget
from .pythonforce import PythonForceTarget
from .slowforces import is_slow, leading_rows, variables_of
from .torchforce import TorchForceTarget
from .virtualsites import VirtualSiteForces


def of_torch_force(force: openmm.Force, settings: ForceSettings) -> BatchedTarget | None:
    """The batched form of a TorchForce, whose module may want more particles than its own."""
    target, subset = TorchForceTarget.of_force(force, settings), settings.subset
    if target is None or subset is None:
        return target
    count = leading_rows(target, subset, settings.positions, settings.box)
    if count == len(subset):
        return target
    return EmbeddedTarget(target, subset, settings.positions[:count])


def of_cv_force(force: openmm.Force, settings: ForceSettings) -> BatchedTarget | None:
    """The batched form of a CustomCVForce some of whose variables have one, if all of them act on
    a few particles; None of any other."""
    if not isinstance(force, openmm.CustomCVForce) or not is_slow(force):
        return None
    variables = []
    for inner in variables_of(force):
        made = (of_force(inner, settings) for of_force in FORMS)
        variable = next((each for each in made if each is not None), None)
        if variable is None and reach_of_sum(inner) is not None and settings.system is not None:
            variable = CheapVariable(inner, settings.system, settings.subset)
        if variable is None:
            return None
        variables.append(variable)
    return CollectiveTarget(force, variables)


# What recognises a Force and gives the form of it that takes a batch; the first that does, counts.
FORMS: tuple[Callable[[openmm.Force, ForceSettings], BatchedTarget | None], ...] = (
    of_torch_force,
    openmmml.of_force,
    PythonForceTarget.of_force,
    of_cv_force,
)


class SystemTarget(BatchedTarget):
    """Energies and forces of a System at a batch of positions.

    Every TorchForce takes the whole batch through its module, MACE and ANI of OpenMM-ML through
    their model, every other PythonForce through its function if that takes one. What remains
    (restraints, classical terms, any other force) goes through a pool of Contexts, or through a
    single one if a PythonForce is in it; the parts are added.

    Parameters
    ----------
    system : openmm.System
    positions : (N, 3) nm
        Where the forces can be computed, to find out what takes a batch.
    groups : int
        Bits of the force groups that count, as ``Integrator.getIntegrationForceGroups``.
    groups_of_forces : sequence of int, optional
        Bits of the groups in which each force of the System is; by default, of those that it says.
    platform, properties : str, mapping of str to str
        Of the Context that these forces stand in for: it decides device and precision of the
        modules, and is one of the two platforms (with Reference) tried for the rest.
    time, step_count : float (ps), int
        At ``positions``, for users' functions that depend on them.
    subset : (n,) int, optional
        Particles that can stand alone (``subsets.close_subset``) and on which alone the forces in
        question act, in ascending order. Then positions and forces of ``evaluate`` are theirs, but
        the constructor's ``positions`` those of all.
    indices : iterable of int, optional
        Of the forces in question; by default all.
    reproducible : bool
        Whether forces computed by Contexts are the same to the last bit, which takes one thread for
        each state on the CPU platform.
    """

    def __init__(
        self,
        system: openmm.System,
        positions: Array,
        *,
        groups: int = ALL_GROUPS,
        groups_of_forces: Sequence[int] | None = None,
        platform: str = "Reference",
        properties: Mapping[str, str] | None = None,
        time: float = 0.0,
        step_count: int = 0,
        subset: NDArray[np.int64] | None = None,
        indices: Iterable[int] | None = None,
        reproducible: bool = False,
    ) -> None:
        properties = properties or {}
        cores = allowed_cores(properties.get("Threads"))
        self._system = system  # owns the forces that the parts refer to
        self._default_box = default_box(system)
        if subset is not None and len(subset) == system.getNumParticles():
            subset = None
        self._to_parents = VirtualSiteForces(
            system if subset is None else reduce_system(system, subset)
        )
        where = ForceSettings(
            positions,
            self._default_box,
            platform,
            properties,
            cores,
            time,
            step_count,
            subset,
            system,
        )
        counting = range(system.getNumForces()) if indices is None else set(indices)
        own_parts: list[tuple[int, int, BatchedTarget]] = []  # rank of the form, index of the force
        # Indices of forces of which Contexts take care, and of those that hold users' functions.
        rest: list[int] = []
        python_rest: list[int] = []
        for index, force in enumerate(system.getForces()):
            own = groups_of(force) if groups_of_forces is None else groups_of_forces[index]
            if index not in counting or not groups & own or changes_state(force) or is_empty(force):
                continue
            made = ((rank, of_force(force, where)) for rank, of_force in enumerate(FORMS))
            rank, part = next((each for each in made if each[1] is not None), (-1, None))
            if part is not None:
                own_parts.append((rank, index, part))
            else:
                (python_rest if holds_python(force) else rest).append(index)
        if subset is not None and (rest or python_rest):
            raise ValueError("forces that only Contexts can evaluate are those of all particles")
        # These take care of virtual sites, too.
        self._indices_in_contexts = [indices for indices in (rest, python_rest) if indices]
        platforms: Mapping[str, Mapping[str, str]] = {platform: properties, "Reference": {}}
        if reproducible:
            platforms = reproducible_properties(platforms)
        self.in_contexts = [
            ContextTarget(part, platforms=platforms, groups=groups, cores=cores)
            for part in self._parts_of(system.getForces())
        ]
        own_parts.sort(key=lambda each: each[:2])
        self._own_parts, self._where = own_parts, where
        self.parts = [*(part for *_, part in own_parts), *self.in_contexts]
        self.uses_times = any(part.uses_times for part in self.parts)
        self.keeps_cores_busy = any(part.keeps_cores_busy for part in self.parts)

    def refresh(self, forces: Sequence[openmm.Force]) -> None:
        """Take over new parameters, from Forces that are otherwise those of the System.

        A part whose Force can have new ones is rebuilt.
        """
        for row, (rank, index, part) in enumerate(self._own_parts):
            made = None
            if hasattr(forces[index], "updateParametersInContext"):
                made = FORMS[rank](forces[index], self._where)
            if made is not None:
                part.close()
                self._own_parts[row] = rank, index, made
        self.in_contexts = [
            target.renew(part)
            for target, part in zip(self.in_contexts, self._parts_of(forces), strict=True)
        ]
        self.parts = [*(part for *_, part in self._own_parts), *self.in_contexts]

    def forget_history(self) -> None:
        """See ContextTarget."""
        for target in self.in_contexts:
            target.forget_history()

    def _parts_of(self, forces: Sequence[openmm.Force]) -> list[openmm.System]:
        return [
            _system_with(self._system, [forces[index] for index in indices])
            for indices in self._indices_in_contexts
        ]

    @property
    def one_by_one(self) -> str | None:
        """See BatchedTarget; of those parts of which it is so."""
        reasons = dict.fromkeys(part.one_by_one for part in self.parts)
        return "; and ".join(filter(None, reasons)) or None

    def evaluate(self, positions: Array, box: Array | None = None) -> Evaluation:
        """See BatchedTarget; without a box that of the System counts."""
        return self.evaluate_at(positions, box)

    def evaluate_at(
        self, positions: Array, box: Array | None = None, times: Times | None = None
    ) -> Evaluation:
        """See BatchedTarget; without a box that of the System counts."""
        box = self._default_box if box is None else box
        energies, forces = np.zeros(len(positions)), np.zeros_like(positions)
        for part in self.parts:
            part_energies, part_forces = part.evaluate_at(positions, box, times)
            if part not in self.in_contexts:
                part_forces = self._to_parents(positions, part_forces, box)
            energies, forces = energies + part_energies, forces + part_forces
        return energies, forces

    def forces_at(
        self, positions: Array, box: Array | None = None, times: Times | None = None
    ) -> Array:
        """See BatchedTarget."""
        box = self._default_box if box is None else box
        forces = np.zeros_like(positions)
        for part in self.parts:
            part_forces = part.forces_at(positions, box, times)
            if part not in self.in_contexts:
                part_forces = self._to_parents(positions, part_forces, box)
            forces = forces + part_forces
        return forces

    def set_parameters(self, parameters: Mapping[str, float]) -> None:
        """See BatchedTarget."""
        for part in self.parts:
            part.set_parameters(parameters)

    def prepare(self, positions: Array, batch: int, box: Array | None = None) -> None:
        """See BatchedTarget."""
        box = self._default_box if box is None else box
        for part in self.parts:
            part.prepare(positions, batch, box)

    @contextmanager
    def single_states(self) -> Iterator[None]:
        """See BatchedTarget."""
        with ExitStack() as stack:
            for part in self.parts:
                stack.enter_context(part.single_states())
            yield

    def close(self) -> None:
        """See BatchedTarget."""
        for part in self.parts:
            part.close()


def _system_with(system: openmm.System, forces: list[openmm.Force]) -> openmm.System:
    """The particles and the box of ``system`` with copies of some of its forces."""
    result = without_forces(system)
    for force in forces:
        result.addForce(copy.deepcopy(force))
    return result
