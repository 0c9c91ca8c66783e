"""What every draft is: forces, and native rollouts by them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .._native import Forces
from ..core.clock import Times

Array = NDArray[np.float64]


class ForceSource(Protocol):
    """Forces that native code asks for, on top of which a draft may learn."""

    uses_times: bool

    @property
    def access(self) -> Forces:
        """For native code; to be asked for anew at every use."""

    def set_environment(self, box: Array | None, parameters: Mapping[str, float]) -> None:
        """See NativeDraft."""

    def has_failed_at(self, sites: Array) -> bool:
        """Whether there are no forces at one of the sites (B, N, 3), and zeros stood for them."""


class NativeDraft(ABC):
    """Draft forces whose windows are drafted natively, by ``nativeengine.NativeEngine``."""

    uses_times = False  # whether the forces may depend on time or step count

    @abstractmethod
    def __call__(self, positions: Array, times: Times | None = None) -> Array:
        """Forces (N, 3) in kJ/mol/nm at positions (N, 3) in nm, at one time if it plays a part."""

    @abstractmethod
    def set_environment(self, box: Array | None, parameters: Mapping[str, float]) -> None:
        """Take over the periodic box (3, 3) in nm and the Context's global parameters."""

    def snapshot(self) -> dict[str, Any]:
        """All that the run has changed, for ``restore``."""
        return {}

    def restore(self, record: dict[str, Any]) -> None:  # noqa: B027
        """Go on as the draft that the snapshot was taken of."""

    @abstractmethod
    def roll_out(self, *arguments: Any, times: Times | None) -> tuple:
        """The native rollout with these arguments: the number of drafted steps, and the arrays of a
        Window."""

    @abstractmethod
    def roll_out_whole(self, *arguments: Any, times: Times | None) -> tuple:
        """The same of a draft of a subset, in the midst of all particles."""

    @abstractmethod
    def roll_out_in_context(self, *arguments: Any) -> tuple:
        """The same where all but the subset stays in a Context: see ``_native``."""


def is_same_box(one: Array | None, other: Array | None) -> bool:
    """Whether both are none, or the same to the last bit."""
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other)
