"""Whether a potential is that of a checkpoint: by its forces at a state that the checkpoint holds.

Of a function, a calculator or a network nothing else is known that is the same in every process.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.clock import Times
from ..targets.base import BatchedTarget

Array = NDArray[np.float64]

logger = logging.getLogger(__name__)

SHIFT = 0.005  # nm, off a minimum, where all potentials have the same forces
TOLERANCE = 5e-3  # of the forces: single precision and unconverged densities are well below


def state_beside(positions: Array) -> Array:
    """A state (N, 3) at which there are forces, the same for the same ``positions`` (N, 3) nm."""
    return positions + SHIFT * np.random.default_rng(0).standard_normal(positions.shape)


def take_fingerprint(
    potential: BatchedTarget, positions: Array, box: Array | None, parameters: Mapping[str, float]
) -> dict[str, Any] | None:
    """For ``is_of``; None if the potential fails at this state.

    Parameters
    ----------
    potential : BatchedTarget
    positions : (N, 3) nm
    box : (3, 3) nm, optional
    parameters : mapping
        Global parameters of the Context.
    """
    try:
        forces = _forces(potential, positions, box, parameters)
    except Exception as error:  # whatever a potential may raise
        logger.info("no fingerprint of the draft: it fails at the state for it (%s)", error)
        return None
    if not np.isfinite(forces).all():
        return None
    pairs = [[name, value] for name, value in parameters.items()]
    return {"positions": positions, "box": box, "parameters": pairs, "forces": forces}


def is_of(fingerprint: Mapping[str, Any], potential: BatchedTarget) -> bool:
    """Whether the potential has these forces there."""
    expected, positions = fingerprint["forces"], fingerprint["positions"]
    try:
        parameters = dict(fingerprint["parameters"])
        found = _forces(potential, positions, fingerprint["box"], parameters)
    except Exception as error:  # whatever a potential may raise
        logger.info("the draft fails at a state at which that of the checkpoint did not: %s", error)
        return False
    if found.shape != expected.shape:
        return False
    difference = np.linalg.norm(found - expected)
    return bool(difference <= TOLERANCE * np.linalg.norm(expected))


def _forces(
    potential: BatchedTarget, positions: Array, box: Array | None, parameters: Mapping[str, float]
) -> Array:
    potential.set_parameters(parameters)
    times = Times.same(1, 0.0, 0) if potential.uses_times else None
    states = positions[None].copy()  # which some potentials change
    return np.array(potential.forces_at(states, box, times), dtype=np.float64)[0]
