"""Which forces of a System are slow, and on which particles each of them acts."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Sequence
from time import perf_counter
from types import FunctionType

import numpy as np
import openmm
from numpy.typing import NDArray

from ..contexts.autotune import recall, remember
from ..contexts.checks import changes_state
from ..contexts.digests import digest_of
from ..contexts.forcecontext import holds_python
from ..contexts.sharedforces import reach_of_sum
from .base import Array, Evaluation, ForceSettings
from .openmmml import pickled_function
from .pythonforce import Batched, PythonForceTarget, as_python_force
from .torchforce import TorchForceTarget
from .torchgraph import particles_in_program
from .torchplugin import as_torch_force

Indices = NDArray[np.int64]

logger = logging.getLogger(__name__)

# Of OpenMM's own; all others are cheap compared with a network or a quantum method.
SLOW_KINDS = (
    "AmoebaGeneralizedKirkwoodForce",
    "AmoebaMultipoleForce",
    "AmoebaVdwForce",
    "AmoebaWcaDispersionForce",
    "HippoNonbondedForce",
)
QUICK = 0.02  # of the time of the slowest force
SAME = 1e-4  # of the largest force


def is_slow(force: openmm.Force) -> bool:
    """By its kind: a user's code, a network, polarisable multipoles, or not known."""
    if isinstance(force, openmm.CustomCVForce):
        return any(map(is_slow, variables_of(force)))
    name = type(force).__name__
    return (
        name in ("Force", "TorchForce", *SLOW_KINDS)
        or not type(force).__module__.startswith("openmm.")
        or holds_python(force)
    )


def find_slow_forces(
    forces: Sequence[openmm.Force], settings: ForceSettings
) -> dict[int, Indices | None]:
    """Their indices, and on which particles each acts, in ascending order; None: all, or unknown.

    The particles of a TorchForce, which does not say, are found in its program. A PythonForce whose
    particles are unknown is none of the slow ones if it takes next to no time beside another, and
    its function is one that a copy of the Force shares.
    """
    slow = {
        index: force
        for index, force in enumerate(forces)
        if not changes_state(force) and is_slow(force)
    }
    if not any(index not in slow and not changes_state(each) for index, each in enumerate(forces)):
        return dict.fromkeys(slow)  # there is nothing to share, so they need not be looked at
    reaches = {index: _particles_of(force, settings) for index, force in slow.items()}
    doubtful = [
        index
        for index, reach in reaches.items()
        if reach is None and isinstance(slow[index], openmm.PythonForce)
    ]
    others = [slow[index] for index in reaches if index not in doubtful]
    for index in doubtful:
        if others and _is_quick(slow[index], others, settings):
            logger.info("%s: is quick, so it counts as cheap", slow[index].getName())
            del reaches[index]
    return reaches


def _is_quick(force: openmm.Force, others: Sequence[openmm.Force], settings: ForceSettings) -> bool:
    """Beside the slowest of the others; and a copy calls the same function."""
    try:
        function = pickle.loads(pickled_function(force) or b"")
    except Exception:  # whatever the user's classes may raise
        return False
    if not isinstance(function, FunctionType | Batched):
        return False
    key = f"quick {digest_of(openmm.XmlSerializer.serialize(force))}"
    known = recall(key, (True, False))
    if known is None:
        slowest = max(_seconds_of(other, settings) for other in others)
        known = _seconds_of(force, settings) < QUICK * slowest
        remember(key, known)
    return known


def _seconds_of(force: openmm.Force, settings: ForceSettings) -> float:
    """Of one state, in the form that takes a batch; 0 if there is none."""
    target = TorchForceTarget.of_force(force, settings) or PythonForceTarget.of_force(
        force, settings
    )
    if target is None:
        return 0.0
    begin = perf_counter()
    target.evaluate(settings.positions[None], settings.box)
    return perf_counter() - begin


def _particles_of(force: openmm.Force, settings: ForceSettings) -> Indices | None:
    if isinstance(force, openmm.CustomCVForce):
        return _particles_of_variables(force, settings)
    python_force = as_python_force(force)
    if python_force is not None:
        given = np.unique(np.array(python_force.getParticles(), dtype=np.int64))
        return given if len(given) else None
    torch_force = as_torch_force(force)
    if torch_force is None:
        return None
    return particles_in_program(torch_force.getModule(), len(settings.positions))


def variables_of(force: openmm.CustomCVForce) -> list[openmm.Force]:
    """The Forces that are its collective variables."""
    return [force.getCollectiveVariable(k) for k in range(force.getNumCollectiveVariables())]


def _particles_of_variables(force: openmm.CustomCVForce, settings: ForceSettings) -> Indices | None:
    found: list[Indices] = []
    for inner in variables_of(force):
        own = _particles_of(inner, settings) if is_slow(inner) else reach_of_sum(inner)
        if own is None:
            return None
        found.append(own)
    return np.unique(np.concatenate(found)) if found else None


def leading_rows(
    target: TorchForceTarget, subset: Indices, positions: Array, box: Array | None
) -> int:
    """Of positions, that a module of these particles can be given without the others after them."""
    count = int(subset.max()) + 1
    states = positions[None]
    try:
        energies, forces = target.evaluate(states, box)
        there = target.evaluate(states[:, :count], box)
        if _are_same(there, (energies, forces[:, :count])):
            return count
    except Exception as error:  # whatever a module may raise
        logger.info("TorchForce: needs all particles (%s)", error)
    return len(positions)


def _are_same(found: Evaluation, expected: Evaluation) -> bool:
    """But for rounding."""
    tolerance = SAME * float(np.abs(expected[1]).max())
    return np.allclose(found[0], expected[0], rtol=1e-6, atol=tolerance) and np.allclose(
        found[1], expected[1], rtol=0, atol=tolerance
    )
