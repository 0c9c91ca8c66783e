"""What ``openmm-lsd`` does: run, estimate, benchmark, validate; each also a function."""

from .benchmark import benchmark
from .case import Case
from .estimate import estimate
from .validation import validate

__all__ = ["Case", "benchmark", "estimate", "validate"]
