"""The TorchForce plugin: importing and loading it, and which Forces are TorchForces."""

from __future__ import annotations

import ctypes
import logging
from pathlib import Path
from typing import Any

import openmm

logger = logging.getLogger(__name__)

INSTALL = 'pip install "openmm-lsd[torchforce]"'


def import_openmmtorch() -> Any:
    """The module openmmtorch; it needs torch's libraries, so torch is imported first.

    Raises
    ------
    ImportError
        If either cannot be imported, with what to install.
    """
    try:
        import torch  # noqa: F401

        disabled = logging.root.manager.disable
        logging.disable(logging.WARNING)  # that a name which openmmtorch itself uses is out of date
        try:
            import openmmtorch
        finally:
            logging.disable(disabled)
        load_plugin()
    except ImportError as error:
        raise ImportError(
            f"a TorchForce needs torch 2.9 and openmmtorch, which cannot be imported here "
            f"({error}); install them with: {INSTALL}"
        ) from error
    return openmmtorch


def load_plugin() -> None:
    """Load the TorchForce plugin if OpenMM failed to, which it does if it is imported before torch.

    Loading all plugins again would register platforms twice.
    """
    for failure in openmm.Platform.getPluginLoadFailures():
        library = failure.removeprefix("Error loading library ").split(":")[0]
        if "OpenMMTorch" in Path(library).name and library not in _retried:
            _retried.add(library)
            try:
                openmm.Platform.loadPluginLibrary(library)
            except openmm.OpenMMException as error:
                logger.info("plugin %s: %s", library, error)


_retried: set[str] = set()


# A function of OpenMM before 8.5, C++ name of ContextImpl::getPositions(std::vector<Vec3>&).
GONE = "_ZN6OpenMM11ContextImpl12getPositionsERSt6vectorINS_4Vec3ESaIS2_EE"


def check_torch_forces(system: openmm.System, platform: str) -> None:
    """Raise ValueError if a TorchForce would end the process on this platform.

    The OpenCL part of openmmtorch 1.5 calls a function that OpenMM 8.5 and later do not have.
    """
    if platform != "OpenCL" or not any(map(as_torch_force, system.getForces())):
        return
    libraries = Path(openmm.version.openmm_library_path)
    plugins = (libraries / "plugins").glob("libOpenMMTorchOpenCL.so")
    needs_it = any(GONE.encode() + b"\0" in plugin.read_bytes() for plugin in plugins)
    if needs_it and not hasattr(ctypes.CDLL(str(libraries / "libOpenMM.so")), GONE):
        raise ValueError(
            "a TorchForce on OpenMM's OpenCL platform ends the process: this openmmtorch was built "
            "for an older OpenMM. Pass another platform to the Simulation, such as "
            'openmm.Platform.getPlatform("CPU"), or "CUDA" where there is a card'
        )


def as_torch_force(force: openmm.Force) -> Any | None:
    """``force`` as openmmtorch.TorchForce, or None if it is something else."""
    if type(force).__name__ == "TorchForce":
        return force
    # Without the plugin's Python layer OpenMM hands out a bare Force; its name gives it away.
    if type(force).__name__ == "Force" and force.getName() == "TorchForce":
        import_openmmtorch()
    try:
        from openmmtorch import TorchForce
    except ImportError:
        return None
    return TorchForce.cast(force) if TorchForce.isinstance(force) else None
