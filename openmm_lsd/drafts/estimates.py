"""The sampler's estimates of how a discrepancy goes on, in native code."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .._native import add_differences, add_lagged, changes_in_time, predict_changes, solve_ridge
from ..core.jacobian import JacobianEstimate
from ..core.prediction import Kernels, Prediction
from .molgraph import Pairs, pairs_within

Array = NDArray[np.float64]


def native_estimates(
    masses: Array, find_pairs: Callable[[Array, float], tuple[Pairs, Array]] = pairs_within
) -> tuple[JacobianEstimate, Prediction]:
    """Estimates for ``correctors.Following``; arguments as of JacobianEstimate."""
    return (
        JacobianEstimate(masses, find_pairs, add_differences, solve_ridge),
        Prediction(len(masses), Kernels(changes_in_time, add_lagged, predict_changes)),
    )
