"""The forces of a System at a batch of positions: each part in the form that batches best."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import unit

from ..contexts import ForceContext, fastest_context
from .torchforce import TorchForceBatch, as_torch_force

if TYPE_CHECKING:
    import torch

Array = NDArray[np.float64]


BATCH_PERTURBATION = 0.01  # nm


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
    positions : (N, 3) nm
        For timing.
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
        self.torch_parts: list[TorchForceBatch] = []
        rest: list[openmm.Force] = []
        for force in system.getForces():
            if not groups >> force.getForceGroup() & 1 or isinstance(force, openmm.CMMotionRemover):
                continue
            torch_force = as_torch_force(force)
            if torch_force is None:
                rest.append(force)
            else:
                part = TorchForceBatch(torch_force, *_device_and_dtype(platform, properties))
                part.set_environment(*_default_environment(system, torch_force))
                self.torch_parts.append(part)
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

    def choose(self, positions: Array, batch: int) -> None:
        """Find how to run a batch of states near ``positions`` (N, 3) fastest; see TorchForceBatch.

        The states lie further apart than those of a window, so that a leak between rows shows.
        """
        states = perturbed(positions, batch, BATCH_PERTURBATION)
        for part in self.torch_parts:
            part.choose(states)


def perturbed(positions: Array, count: int, displacement: float) -> Array:
    """``count`` states (count, N, 3) near ``positions``, the first equal to it; always the same."""
    noise = np.random.default_rng(0).standard_normal((count, *positions.shape))
    noise[0] = 0.0
    return positions + displacement * noise


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


def _default_environment(system: openmm.System, force: Any) -> tuple[Array, dict[str, float]]:
    box = system.getDefaultPeriodicBoxVectors()
    parameters = {
        force.getGlobalParameterName(i): force.getGlobalParameterDefaultValue(i)
        for i in range(force.getNumGlobalParameters())
    }
    return np.array([vector.value_in_unit(unit.nanometer) for vector in box]), parameters


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
