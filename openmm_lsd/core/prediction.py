"""How a discrepancy continues after the last measured step, as far as that can be told.

A step that has never been measured has no correction of its own. Holding the last discrepancy is
poor: much of it oscillates with the bonds, several times in a window. What a few steps in a row
have done says what the next ones will do: linear prediction, an autoregression for each atom
(Makhoul, Proc. IEEE 63, 561 (1975)).

Measurability (docs/theory.md): coefficients come from steps that have been handed out, and what is
predicted for a step depends on what was measured at earlier ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .jacobian import LocalJacobian

Array = NDArray[np.float64]

ORDER = 4  # changes from one step to the next that the following one is predicted from
AHEAD = 6  # steps; what comes later is held
MEMORY = 100  # steps, after which the weight of old ones has fallen to 1/e
RIDGE = 0.01  # of the mean square of a change
SOLVED_EVERY = 48  # steps


def changes_in_time(
    sites: Array, discrepancies: Array, neighbours: NDArray[np.int32], blocks: Array
) -> Array:
    """From each of B consecutive steps to the next, what J does not explain: (B - 1, N, 3).

    J is the LocalJacobian of these ``neighbours`` and ``blocks``.
    """
    jacobian = LocalJacobian(neighbours, blocks)
    return discrepancies[1:] - discrepancies[:-1] - jacobian(sites[1:] - sites[:-1])


def add_lagged(changes: Array, gram: Array, moment: Array, memory: float) -> None:
    """Add to the sums of the regressions, in place; what was in them fades.

    Parameters
    ----------
    changes : (B, N, 3)
        In the order of time; the first ORDER only have followers.
    gram, moment : (N, ORDER, ORDER), (N, ORDER)
        Sums of x x^T and x y, for y a change and x those before it, the latest first.
    memory : float
        Steps, after which weights have fallen to 1/e.
    """
    order, count = moment.shape[1], len(changes) - moment.shape[1]
    before = np.stack([changes[order - lag : -lag] for lag in range(1, order + 1)])
    weights = np.exp(-np.arange(count)[::-1] / memory)
    for sums in (gram, moment):
        sums *= np.exp(-count / memory)
    gram += np.einsum("b,pbnc,qbnc->npq", weights, before, before)
    moment += np.einsum("b,pbnc,bnc->np", weights, before, changes[order:])


def predict_changes(
    sites: Array,
    discrepancies: Array,
    neighbours: NDArray[np.int32],
    blocks: Array,
    coefficients: Array,
    largest: Array,
    ahead: int,
) -> Array:
    """How far discrepancies will be from the last one, J apart, at the next steps (ahead, N, 3).

    Parameters
    ----------
    sites, discrepancies : (ORDER + 1, N, 3)
        Of consecutive steps.
    neighbours, blocks
        As in ``changes_in_time``.
    coefficients : (N, ORDER)
        Of the latest change first.
    largest : (N, 1)
        Change from one step to the next.
    """
    recent = list(changes_in_time(sites, discrepancies, neighbours, blocks)[::-1])
    sums = np.zeros((ahead, *sites.shape[1:]))
    for n in range(ahead):
        change = np.einsum("np,pnc->nc", coefficients, recent[: coefficients.shape[1]])
        recent.insert(0, np.clip(change, -largest, largest))
        sums[n] = recent[0] + (sums[n - 1] if n else 0.0)
    return sums


class Kernels(NamedTuple):
    """What takes time, in Python or in native code."""

    changes_in_time: Callable[..., Array] = changes_in_time
    add_lagged: Callable[..., None] = add_lagged
    predict_changes: Callable[..., Array] = predict_changes


class Prediction:
    """The autoregression, fitted to committed steps during a run.

    Parameters
    ----------
    particles : int
        N.
    kernels : Kernels, optional
    """

    def __init__(self, particles: int, kernels: Kernels = Kernels()) -> None:  # noqa: B008
        self._particles, self._kernels = particles, kernels
        self._shown_until = 0  # index of a step
        self._waiting: list[tuple[Array, Array]]  # sites and discrepancies of steps in a row
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._gram = np.zeros((self._particles, ORDER, ORDER))
        self._moment = np.zeros((self._particles, ORDER))
        self._coefficients: Array | None = None  # (N, ORDER)
        self.interrupt()

    def snapshot(self) -> dict[str, Any]:
        """All that it has learned, for ``restore``."""
        return {
            "gram": self._gram,
            "moment": self._moment,
            "coefficients": self._coefficients,
            "waiting": self._waiting,
            "steps": self._steps,
            "shown until": self._shown_until,
        }

    def restore(self, record: dict[str, Any]) -> None:
        """Continue as the prediction that the snapshot was taken of."""
        self._gram, self._moment = record["gram"], record["moment"]
        self._coefficients = record["coefficients"]
        self._waiting = [tuple(each) for each in record["waiting"]]
        self._steps, self._shown_until = record["steps"], record["shown until"]

    def start(self, step: int) -> None:
        """A run starts at this step. What was learned from it or later ones is forgotten.

        Their noise is about to be used again.
        """
        if step < self._shown_until:
            self.reset()
        self.interrupt()
        self._shown_until = step

    def interrupt(self) -> None:
        """The next steps do not follow the last ones, or the draft has changed."""
        self._waiting = []
        self._steps = 0  # of those waiting, the ones that were not there before

    def learn(
        self, step: int, sites: Array, discrepancies: Array, jacobian: LocalJacobian | None
    ) -> None:
        """Learn from committed steps in a row, after all of them have been handed out.

        Parameters
        ----------
        step : int
            Index of the first.
        sites, discrepancies : (B, N, 3) nm, kJ/mol/nm
        """
        if step != self._shown_until:  # plain steps lie between
            self.interrupt()
        self._shown_until = step + len(sites)
        self._waiting.append((sites, discrepancies))
        self._steps += len(sites)
        if self._steps < SOLVED_EVERY:
            return
        sites, discrepancies = (np.concatenate(each) for each in zip(*self._waiting, strict=True))
        tail = slice(-ORDER - 1, None)
        self._waiting = [(sites[tail], discrepancies[tail])]
        self._steps = 0
        if jacobian is None:
            return
        changes = self._kernels.changes_in_time(sites, discrepancies, *jacobian)
        with np.errstate(over="ignore", invalid="ignore"):  # a draft may say anything
            self._kernels.add_lagged(changes, self._gram, self._moment, MEMORY)
        if not (np.isfinite(self._gram).all() and np.isfinite(self._moment).all()):
            self.reset()
            return
        squares = np.einsum("npp->n", self._gram) / ORDER
        ridge = np.where(squares > 0, RIDGE * squares, 1.0)[:, None, None] * np.eye(ORDER)
        solution = np.linalg.solve(self._gram + ridge, self._moment[..., None])[..., 0]
        self._coefficients = np.asarray(solution, dtype=np.float64)

    def predict(
        self, sites: Array, discrepancies: Array, jacobian: LocalJacobian | None, largest: Array
    ) -> Array | None:
        """See ``predict_changes``: of the next AHEAD steps; None if there is nothing to go by.

        ``sites`` and ``discrepancies`` (B, N, 3) are of consecutive steps, any number of them.
        """
        if self._coefficients is None or jacobian is None or len(sites) <= ORDER:
            return None
        latest = slice(len(sites) - ORDER - 1, None)
        return self._kernels.predict_changes(
            sites[latest], discrepancies[latest], *jacobian, self._coefficients, largest, AHEAD
        )
