"""The forces of a System at a batch of positions: each part in the form that batches best."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import numpy as np
import openmm

from ..checks import changes_state, default_box
from ..contexts import is_empty, without_forces
from .base import Array, BatchedTarget, Evaluation
from .contextpool import ContextTarget
from .openmmml import ModelTarget, as_openmmml_force
from .pythonforce import PythonForceTarget, as_python_force
from .torchforce import TorchForceTarget, as_torch_force
from .virtualsites import ForcesToParents

if TYPE_CHECKING:
    import torch


class SystemTarget(BatchedTarget):
    """Energies and forces of a System at a batch of positions.

    Every TorchForce takes the whole batch through its module, MACE and ANI of OpenMM-ML through
    their model, every other PythonForce through its function if that takes one. What remains
    (restraints, classical terms, any other force) goes through a pool of Contexts; the parts are
    added.

    Parameters
    ----------
    system : openmm.System
    positions : (N, 3) nm
        Where the forces can be computed, to find out what takes a batch.
    groups : int
        Bits of the force groups that count, as ``Integrator.getIntegrationForceGroups``.
    platform, properties : str, mapping of str to str
        Of the Context that these forces stand in for: it decides device and precision of the
        modules, and is one of the two platforms (with Reference) tried for the rest.
    """

    def __init__(
        self,
        system: openmm.System,
        positions: Array,
        *,
        groups: int = 0xFFFFFFFF,
        platform: str = "Reference",
        properties: Mapping[str, str] | None = None,
    ) -> None:
        properties = properties or {}
        self._system = system  # owns the forces that the parts refer to
        self._default_box = default_box(system)
        self._to_parents = ForcesToParents(system)
        self.torch_parts: list[TorchForceTarget] = []
        self.python_parts: list[PythonForceTarget] = []
        self.model_parts: list[ModelTarget] = []
        rest: list[openmm.Force] = []
        self._indices_of_rest: list[int] = []
        for index, force in enumerate(system.getForces()):
            if not groups >> force.getForceGroup() & 1:
                continue
            if changes_state(force) or is_empty(force):
                continue
            torch_force, python_force = as_torch_force(force), as_python_force(force)
            model = None if python_force is None else as_openmmml_force(python_force)
            if torch_force is not None:
                part = TorchForceTarget(torch_force, *_device_and_dtype(platform, properties))
                self.torch_parts.append(part)
            elif model is not None:
                self.model_parts.append(model)
            elif python_force is not None:
                box = self._default_box
                self.python_parts.append(PythonForceTarget(python_force, positions, box))
            else:
                rest.append(force)
                self._indices_of_rest.append(index)
        self.parts: list[BatchedTarget] = [
            *self.torch_parts,
            *self.model_parts,
            *self.python_parts,
        ]
        self.rest: ContextTarget | None = None
        if rest:
            platforms = {platform: properties, "Reference": {}}
            self.rest = ContextTarget(_system_with(system, rest), platforms=platforms)
            self.parts.append(self.rest)

    def refresh(self, forces: Sequence[openmm.Force]) -> None:
        """Take over new parameters, from Forces that are otherwise those of the System."""
        if self.rest is not None:
            system = _system_with(self._system, [forces[i] for i in self._indices_of_rest])
            self.rest = self.parts[-1] = self.rest.renewed(system)

    def evaluate(self, positions: Array, box: Array | None = None) -> Evaluation:
        """See BatchedTarget; without a box that of the System counts."""
        box = self._default_box if box is None else box
        energies, forces = np.zeros(len(positions)), np.zeros_like(positions)
        for part in self.parts:
            part_energies, part_forces = part.evaluate(positions, box)
            if part is not self.rest:  # whose Contexts do this themselves
                part_forces = self._to_parents(positions, part_forces, box)
            energies, forces = energies + part_energies, forces + part_forces
        return energies, forces

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


def _device_and_dtype(
    platform: str, properties: Mapping[str, str]
) -> tuple[torch.device, torch.dtype]:
    """What the TorchForce of a Context on this platform computes with."""
    import torch

    if platform not in ("CUDA", "HIP"):
        return torch.device("cpu"), torch.float64
    index = properties.get("DeviceIndex", "0").split(",")[0]
    double = properties.get("Precision") == "double"
    return torch.device("cuda", int(index)), torch.float64 if double else torch.float32
