"""Energies and forces of an expensive potential at a batch of states, by one call, ``evaluate``."""

from __future__ import annotations

import sys
from typing import Any

from .ase import ASETarget
from .base import BatchedTarget
from .chgnet import CHGNetTarget
from .contextpool import ContextTarget
from .function import FunctionTarget
from .models import ANITarget, MACETarget
from .module import ModuleTarget
from .pythonforce import PythonForceTarget, batched
from .ray import RayTarget, WorkerError
from .system import SystemTarget
from .torchforce import TorchForceTarget
from .torchsim import TorchSimTarget
from .validate import Check, TargetMismatchError, validate_target

__all__ = [
    "ANITarget",
    "ASETarget",
    "BatchedTarget",
    "CHGNetTarget",
    "Check",
    "ContextTarget",
    "FunctionTarget",
    "MACETarget",
    "ModuleTarget",
    "PythonForceTarget",
    "RayTarget",
    "SystemTarget",
    "TargetMismatchError",
    "TorchForceTarget",
    "TorchSimTarget",
    "WorkerError",
    "as_target",
    "batched",
    "validate_target",
]


def as_target(target: Any, name: str = "target") -> BatchedTarget:
    """``target`` as a BatchedTarget; ``name`` is that of the argument, for the error.

    A torch.nn.Module becomes a ModuleTarget, another callable a FunctionTarget.

    Raises
    ------
    TypeError
        If it is none of these.
    """
    if isinstance(target, BatchedTarget):
        return target
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(target, torch.nn.Module):
        return ModuleTarget(target)
    if callable(target):
        return FunctionTarget(target)
    of_ase = " (an ASE calculator becomes one by ASETarget(calculator, atomic_numbers))"
    raise TypeError(
        f"{name} is a {type(target).__name__}; it must be a BatchedTarget"
        f"{of_ase if hasattr(target, 'get_potential_energy') else ''}, a torch.nn.Module, or a "
        "callable that gives forces"
    )
