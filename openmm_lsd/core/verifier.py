"""The target's word on a window, and what happens where it fails."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .clock import Times
from .errors import TargetError, checked_forces
from .statistics import Statistics
from .window import Verified

Array = NDArray[np.float64]

logger = logging.getLogger(__name__)

FAILED_BATCHES_BEFORE_WARNING = 3  # once is no more than the other node that did not answer


class Pair(Protocol):
    """A target and its draft."""

    def compare(self, sites: Array, draft_forces: Array, times: Times | None) -> Verified:
        """The target at sites (B, N, 3), against the draft's forces there."""


class ForcePair:
    """A Pair, of any target.

    Parameters
    ----------
    target : callable, positions (B, N, 3) nm -> forces (B, N, 3) kJ/mol/nm
        With a clock it is given the Times of the states as well.
    """

    def __init__(self, target: Callable[..., Array]) -> None:
        self._target = target

    def compare(self, sites: Array, draft_forces: Array, times: Times | None) -> Verified:
        """See Pair."""
        when = () if times is None else (times,)
        forces = checked_forces(self._target(sites, *when), sites.shape)
        with np.errstate(invalid="ignore"):  # said by whoever asked
            return Verified(forces, forces - draft_forces)


class Verifier:
    """Asks a Pair about a window.

    Parameters
    ----------
    pair : Pair
    statistics : Statistics
        Where failures are counted.
    project : callable, sites, discrepancies -> discrepancies
        Takes away what makes no difference: what acts along constraints.
    particles : (n,) int
        Indices of those that the sites are of, for errors.
    """

    def __init__(
        self,
        pair: Pair,
        statistics: Statistics,
        project: Callable[[Array, Array], Array],
        particles: NDArray[np.int64],
    ) -> None:
        self._pair, self._statistics, self._project = pair, statistics, project
        self._particles = particles

    def verify(
        self, sites: Array, draft_forces: Array, step_count: int, times: Times | None
    ) -> Verified:
        """What the target says of the sites up to the first at which it fails.

        Parameters
        ----------
        sites, draft_forces : (B, N, 3)
        step_count : int
            Of the first site's step, for errors.
        times : Times, optional
            Of these sites, or of more.

        Raises
        ------
        TargetError
            If it fails at the first.
        """
        forces, discrepancies = self._verify(sites, draft_forces, step_count, times)
        return Verified(forces, self._project(sites[: len(forces)], discrepancies))

    def _verify(
        self, sites: Array, draft_forces: Array, step_count: int, times: Times | None
    ) -> Verified:
        count = len(sites)
        when = None if times is None else times.rows(slice(count))
        try:
            verified = self._pair.compare(sites, draft_forces, when)
        except Exception as error:
            if count == 1:
                raise TargetError(
                    f"the target failed at the state before step {step_count}: {error}", step_count
                ) from error
            return self._verify_singly(sites, draft_forces, step_count, times, error)
        finite = np.isfinite(verified.target_forces)
        if finite.all():
            return verified
        usable = int(np.argmin(finite.all(axis=(1, 2))))
        if usable == 0:
            forces = verified.target_forces[0]
            row = int(np.argwhere(~np.isfinite(forces))[0, 0])
            atom = int(self._particles[row])
            raise TargetError(
                f"the target's force on atom {atom} is {forces[row]} at the state before step "
                f"{step_count}; is the starting structure, the time step or the potential sound "
                "there?",
                step_count,
                atom,
            )
        self._statistics.count_failures(sites=1)
        return Verified(*(array[:usable] for array in verified))

    def _verify_singly(
        self,
        sites: Array,
        draft_forces: Array,
        step_count: int,
        times: Times | None,
        failure: Exception,
    ) -> Verified:
        """One after another: a batch does not say at which site it failed."""
        rows: list[Verified] = []
        for k in range(len(sites)):
            one = slice(k, k + 1)
            own = None if times is None else times.rows(one)
            try:
                rows.append(self._verify(sites[one], draft_forces[one], step_count + k, own))
            except TargetError:
                if not rows:
                    raise
                self._statistics.count_failures(sites=1)
                break
        if len(rows) == len(sites):
            self._count_failed_batch(failure)
        return Verified(*map(np.concatenate, zip(*rows, strict=True)))

    def _count_failed_batch(self, error: Exception) -> None:
        """A batch has failed of which no state fails by itself."""
        self._statistics.count_failures(batches=1)
        if self._statistics.failed_batches == FAILED_BATCHES_BEFORE_WARNING:
            logger.warning(
                "%d batches have failed whose states can be evaluated one by one, which takes as "
                "long as plain dynamics or longer; the last with %s: %s. Does the target take a "
                "batch? (this is said once)",
                FAILED_BATCHES_BEFORE_WARNING,
                type(error).__name__,
                error,
            )
