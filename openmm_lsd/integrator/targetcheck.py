"""Before the first step: does the target give in a batch what a plain step would be given?"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from time import perf_counter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.clock import Times
from ..core.schemes import Scheme
from ..targets import BatchedTarget, RayTarget, TargetMismatchError, validate_target
from ..targets.base import Evaluation, perturb
from ..targets.validate import NotFiniteError

Array = NDArray[np.float64]

logger = logging.getLogger(__name__)

CHECKED_STATES, CHECKED_STATES_IF_SLOW = 3, 2
PREPARED_STATES_IF_SLOW = 4
SLOW = 1.0  # s per state, above which fewer states must do
FAST = 0.1  # s per state, below which a mere warning is worth some more states
TIMED_EVALUATIONS = 3
# nm; where states so far away cannot be evaluated, plain dynamics may still be sound.
DISPLACEMENTS = (1e-3, 1e-5, 0.0)
SLOW_SET_UP = 10.0  # s, of the whole check, after which a user is told what they went into


class Surroundings(NamedTuple):
    """Where a target is checked, and what it must agree with."""

    positions: Array  # (N, 3) nm
    masses: Array  # (N,) amu
    box: Array | None
    time: float  # ps
    step_count: int
    scheme: Scheme
    reference: Callable[[Array], Array] | None  # forces of the Context; None: it has none

    def forces(self, target: BatchedTarget) -> Array:
        """Forces (1, N, 3) at present: the Context's, or those of the target."""
        states = self.positions[None].copy()  # which some targets change
        if self.reference is not None:
            return self.reference(states)
        times = Times.same(1, self.time, self.step_count)
        return target.evaluate_at(states, self.box, times)[1]


def set_up_target(
    target: BatchedTarget, around: Surroundings, window: int, *, is_given: bool
) -> float | None:
    """Prepare and check a target that is new; seconds per state of plain dynamics.

    Parameters
    ----------
    window : int
        Sites that it will be given at once.
    is_given : bool
        Whether it was given by the user, and not made from the Context's System.

    Returns
    -------
    float or None
        None if forces at present are not finite, so that nothing could be checked.

    Raises
    ------
    TargetMismatchError
        If batches are wrong, forces are not the Context's, or, where that has none, are not minus
        the gradient of the energy.
    """
    begin = perf_counter()
    logger.info("the target is new: it is evaluated at a few states to prepare and check it")
    seconds, forces = time_first_state(target, around)
    is_slow = seconds > SLOW
    if is_slow:
        logger.info("a state takes %.3g s: as few as possible are evaluated", seconds)
    prepare_target(target, around, window, is_slow)
    if target.one_by_one is not None:
        _warn_of_no_gain(target.one_by_one)
    if not np.isfinite(forces).all():
        return None
    check_new_target(target, around, is_slow)
    if not is_slow:
        seconds = time_state(target, around)
    if around.reference is not None and not is_given and seconds < FAST:
        check_gradient_of_system(target, around)
    _tell_time(perf_counter() - begin, seconds)
    return seconds


@cache
def _warn_of_no_gain(reason: str) -> None:
    """Once in a process, however many Contexts there are."""
    logger.warning(
        "the states of a window are evaluated one after another, so LSD cannot be much faster than "
        "plain dynamics: %s",
        reason,
    )


def prepare_target(target: BatchedTarget, around: Surroundings, window: int, is_slow: bool) -> None:
    """For windows of this length; for shorter ones, if states are slow."""
    is_shared = isinstance(target, RayTarget)  # so that each worker has a few states only
    sites = min(window, PREPARED_STATES_IF_SLOW) if is_slow and not is_shared else window
    target.prepare(around.positions, sites, around.box)


def check_new_target(target: BatchedTarget, around: Surroundings, is_slow: bool) -> None:
    """As ``check_target``; rows of a batch too, and where the Context has no forces, gradients."""
    batch = CHECKED_STATES_IF_SLOW if is_slow else CHECKED_STATES
    directions = 0 if around.reference is not None else 1 if is_slow else 2
    check_target(target, around, batch=batch, directions=directions, rows=True)


def _tell_time(elapsed: float, seconds: float) -> None:
    logger.info("the target is ready after %.3g s", elapsed)
    if elapsed > SLOW_SET_UP:
        logger.warning(
            "before the first step the target was prepared and checked for %.0f s: compiling it, "
            "and finding the fastest way to a batch; a state takes %.2g s now, and this happens "
            "once for each target",
            elapsed,
            seconds,
        )


def check_target(
    target: BatchedTarget,
    around: Surroundings,
    *,
    batch: int = CHECKED_STATES,
    directions: int = 0,
    rows: bool = False,
) -> None:
    """``validate_target`` close to the present state; also by state, if it cannot take a batch.

    Raises
    ------
    TargetMismatchError
        As ``set_up_target``.
    """
    try:
        _check_nearby(target, around, batch, directions, rows)
    except TargetMismatchError:
        raise
    except Exception as error:
        _check_nearby(_StateByState(target), around, batch, directions, rows=False)
        logger.warning(
            "the target fails at %d states in one batch (%s: %s), but not at one after another, "
            "which is slower than plain dynamics",
            batch,
            type(error).__name__,
            error,
        )


def _check_nearby(
    target: BatchedTarget, around: Surroundings, batch: int, directions: int, rows: bool
) -> None:
    """As far away as states can be evaluated.

    Plain dynamics asks for no force but that of the present state, so a wall next to it is no fault
    of the target.
    """
    for displacement in DISPLACEMENTS:
        is_last = displacement == DISPLACEMENTS[-1]
        reference = None
        try:
            if around.reference is not None:
                expected = around.reference(perturb(around.positions, batch, displacement))
                if not (np.isfinite(expected).all() or is_last):
                    continue
                reference = lambda _, expected=expected: expected  # noqa: E731 (the same states)
            validate_target(
                target,
                around.positions,
                around.masses,
                box=around.box,
                scheme=around.scheme,
                reference=reference,
                batch=batch,
                displacement=displacement,
                directions=directions,
                rows=rows,
                time=around.time,
                step_count=around.step_count,
            )
        except Exception as error:  # whatever a target may raise
            is_mismatch = isinstance(error, TargetMismatchError)
            if is_last or (is_mismatch and not isinstance(error, NotFiniteError)):
                raise
            logger.info("states %g nm from the present one fail (%s)", displacement, error)
        else:
            return


class _StateByState(BatchedTarget):
    """A target that is never given more than one state."""

    def __init__(self, target: BatchedTarget) -> None:
        self._target = target
        self.gives_energies, self.conservative = target.gives_energies, target.conservative

    def evaluate(self, positions: Array, box: Array | None = None) -> Evaluation:
        return self.evaluate_at(positions, box, Times.same(len(positions)))

    def evaluate_at(
        self, positions: Array, box: Array | None = None, times: Times | None = None
    ) -> Evaluation:
        assert times is not None
        rows = [slice(row, row + 1) for row in range(len(positions))]
        parts = [self._target.evaluate_at(positions[one], box, times.rows(one)) for one in rows]
        energies, forces = zip(*parts, strict=True)
        return np.concatenate(energies), np.concatenate(forces)


def check_gradient_of_system(target: BatchedTarget, around: Surroundings) -> None:
    """A potential of the user's own may be what it likes: no more than a warning."""
    if not target.conservative or not target.gives_energies:
        return
    try:
        validate_target(
            target,
            around.positions,
            around.masses,
            box=around.box,
            scheme=around.scheme,
            batch=2,
            directions=2,
            rows=False,
            time=around.time,
            step_count=around.step_count,
        )
    except TargetMismatchError as error:
        if not isinstance(error, NotFiniteError):
            logger.warning(
                "the forces of the System do not seem to be minus the gradient of its energy (%s); "
                "LSD runs them as plain OpenMM would: check units and signs",
                str(error).split(";")[0],
            )
    except Exception as error:
        logger.info("the gradient of the energy cannot be computed (%s)", error)


def time_first_state(target: BatchedTarget, around: Surroundings) -> tuple[float, Array]:
    """Seconds per state, and forces at present; a first evaluation may compile what it needs."""
    seconds, forces = _seconds(target, around)
    if seconds > SLOW:
        seconds = min(seconds, _seconds(target, around)[0])
    return seconds, forces


def time_state(target: BatchedTarget, around: Surroundings) -> float:
    """Seconds of one, as plain steps take them."""
    with target.single_states():
        return min(_seconds(target, around)[0] for _ in range(TIMED_EVALUATIONS))


def _seconds(target: BatchedTarget, around: Surroundings) -> tuple[float, Array]:
    begin = perf_counter()
    forces = around.forces(target)
    return perf_counter() - begin, forces
