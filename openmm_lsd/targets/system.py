"""The forces of a System at a batch of positions: each part in the form that batches best."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np
import openmm
from numpy.typing import NDArray

from ..contexts import ForceContext, fastest_context
from .torchforce import TorchForceBatch, as_torch_force

if TYPE_CHECKING:
    import torch

Array = NDArray[np.float64]


class Part(Protocol):
    """Some of the forces of a System."""

    def forces(self, positions: Array) -> Array: ...

    def set_environment(self, box: Array, parameters: Mapping[str, float]) -> None: ...


class SystemTarget:
    """Forces of a System at a batch of positions.

    Every TorchForce takes the whole batch through its module. What remains (restraints, classical
    terms, any other force) goes through one Context, state after state, and is added.

    Parameters
    ----------
    system : openmm.System
    groups : int
        Bits of the force groups that count, as ``Integrator.getIntegrationForceGroups``.
    platform, properties : str, mapping of str to str
        Of the Context that these forces stand in for: it decides device and precision of the
        modules, and is one of the two platforms (with Reference) tried for the rest.
    positions : (N, 3) nm
    """

    def __init__(
        self,
        system: openmm.System,
        groups: int,
        platform: str,
        properties: Mapping[str, str],
        positions: Array,
    ) -> None:
        self.torch_parts: list[TorchForceBatch] = []
        rest: list[openmm.Force] = []
        for force in system.getForces():
            if not groups >> force.getForceGroup() & 1 or isinstance(force, openmm.CMMotionRemover):
                continue
            torch_force = as_torch_force(force)
            if torch_force is None:
                rest.append(force)
            else:
                self.torch_parts.append(
                    TorchForceBatch(torch_force, *_device_and_dtype(platform, properties))
                )
        self._system, self._rest_forces = system, rest
        self._fingerprint = self._current_fingerprint()
        self.parts: list[Part] = list(self.torch_parts)
        self.rest: ForceContext | None = None
        if rest:
            remainder = _system_with(system, rest)
            platforms = {platform: properties, "Reference": {}}
            self.rest = fastest_context(remainder, positions, platforms)
            self.parts.append(self.rest)

    def __call__(self, positions: Array) -> Array:
        """Forces (B, N, 3) in kJ/mol/nm at positions (B, N, 3) in nm."""
        if not self.parts:
            return np.zeros_like(positions)
        forces = self.parts[0].forces(positions)
        for part in self.parts[1:]:
            forces = forces + part.forces(positions)
        return forces

    def set_environment(self, box: Array, parameters: Mapping[str, float]) -> None:
        """Take over the periodic box (3, 3) in nm and the Context's parameters."""
        for part in self.parts:
            part.set_environment(box, parameters)

    def is_current(self) -> bool:
        """Whether the System still holds the forces that this was made from."""
        return self._fingerprint == self._current_fingerprint()

    def _current_fingerprint(self) -> tuple[list[int], int]:
        """Which forces there are, and the contents of those that are evaluated from a copy."""
        contents = "".join(openmm.XmlSerializer.serialize(force) for force in self._rest_forces)
        return [int(force.this) for force in self._system.getForces()], hash(contents)

    def choose(self, positions: Array, tolerance: Array) -> None:
        """Find how to run batches like ``positions`` (B, N, 3) fastest; see TorchForceBatch."""
        for part in self.torch_parts:
            part.choose(positions, tolerance)


def _system_with(system: openmm.System, forces: list[openmm.Force]) -> openmm.System:
    """The particles and the box of ``system`` with copies of some of its forces.

    Not a copy of the System with the others removed: copying a TorchForce takes its whole module
    through XML.
    """
    result = openmm.System()
    for index in range(system.getNumParticles()):
        result.addParticle(system.getParticleMass(index))
    result.setDefaultPeriodicBoxVectors(*system.getDefaultPeriodicBoxVectors())
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
