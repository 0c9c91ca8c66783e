"""Exact speculative Langevin dynamics for expensive potentials in OpenMM."""

import openmm as _openmm

from . import _native
from .version import __version__ as __version__

_built, _found = (
    tuple(version.split(".")[:2])
    for version in (_native.openmm_version, _openmm.version.short_version)
)
if _built != _found:
    raise ImportError(
        f"openmm_lsd was built against OpenMM {_native.openmm_version}, and OpenMM "
        f"{_openmm.version.short_version} is installed; build it again with: pip install "
        "scikit-build-core nanobind && pip install --no-build-isolation --force-reinstall "
        "--no-deps openmm-lsd"
    )

from .contexts.checks import trust_force  # noqa: E402
from .core.errors import TargetError  # noqa: E402
from .core.sampler import SpeculativeSampler  # noqa: E402
from .core.statistics import Round, Statistics  # noqa: E402
from .integrator.integrator import LSDIntegrator  # noqa: E402
from .integrator.reporter import LSDReporter  # noqa: E402
from .targets import BatchedTarget, TargetMismatchError, batched, validate_target  # noqa: E402

__all__ = [
    "BatchedTarget",
    "LSDIntegrator",
    "LSDReporter",
    "Round",
    "SpeculativeSampler",
    "Statistics",
    "TargetError",
    "TargetMismatchError",
    "batched",
    "trust_force",
    "validate_target",
]
