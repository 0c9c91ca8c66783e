"""The draft: forces of a classical System and, in one C++ call, the rollout of a window."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .contexts import ForceContext
from .rollout import Window
from .schemes import Scheme

Array = NDArray[np.float64]


class Draft:
    """Draft forces of a System, as ``SpeculativeSampler`` takes them."""

    def __init__(self, context: ForceContext) -> None:
        self.context = context

    def __call__(self, positions: Array) -> Array:
        """Forces (N, 3) in kJ/mol/nm at positions (N, 3) in nm."""
        return self.context.forces(positions[None])[0]

    def rollout(
        self,
        scheme: Scheme,
        masses: Array,
        positions: Array,
        velocities: Array,
        corrections: Array,
        kicks: Array,
        cm_removals: NDArray[np.bool_],
    ) -> Window:
        """``rollout.rollout`` with this draft, in native code."""
        drafted, *arrays = self.context.access.rollout(
            scheme.name,
            scheme.step_size,
            scheme.decay,
            masses,
            positions,
            velocities,
            corrections,
            kicks,
            cm_removals,
        )
        return Window(*(array[:drafted] for array in arrays))
