"""What may be wrong with a target's forces."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


class TargetError(RuntimeError):
    """The target failed at a committed state: an exception, or forces that are not finite.

    The sampler stands at the last committed state; ``step`` is its step count, and ``atom`` the
    index of the first atom whose force is not finite, or None.
    """

    def __init__(self, message: str, step: int, atom: int | None = None) -> None:
        super().__init__(message)
        self.step = step
        self.atom = atom


class SharedForceError(ValueError):
    """The forces that the target shares with the draft failed where a window starts."""


def last_line(error: Exception) -> str:
    """Its type, and of what may be a traceback of TorchScript the last line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"


def checked_forces(forces: ArrayLike, shape: tuple[int, ...], name: str = "the target") -> Array:
    """What a target returned for positions of ``shape``, as an array of that shape."""
    try:
        array = np.asarray(forces, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} returned a {type(forces).__name__}, not an array") from None
    if array.shape != shape:
        raise ValueError(
            f"{name} returned forces of shape {array.shape} for positions of shape {shape}"
        )
    return array
