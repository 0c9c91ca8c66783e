"""What something was measured on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import openmm

from ..contexts.cores import allowed_cores


def machine() -> dict[str, Any]:
    """Processor, GPU and versions."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0].split(":")[1].strip() if names else model
    about: dict[str, Any] = {
        "processor": model,
        "cores": allowed_cores(),
        "python": platform.python_version(),
        "openmm": openmm.version.short_version,
    }
    for package in ("torch", "openmm-lsd"):
        try:
            about[package] = version(package)
        except PackageNotFoundError:
            continue
    try:
        import torch
    except ImportError:
        return about
    if torch.cuda.is_available():
        about["GPU"] = torch.cuda.get_device_name()
    return about
