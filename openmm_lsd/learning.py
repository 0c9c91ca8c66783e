"""Ridge regression of a draft's parameters on the forces of the target, while the run goes on.

Measurability (docs/theory.md): only committed steps are learned from. Then the parameters do not
depend on the noise of any step to come, and may be used at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dposv
from threadpoolctl import ThreadpoolController

Array = NDArray[np.float64]

logger = logging.getLogger(__name__)

RIDGE = 0.001  # of the diagonal
FIRST_FIT = 16  # steps
EARLY, MIDDLE = 256, 2048  # steps, up to which more of them are learned from, and fits come often
EARLY_STRIDE, MIDDLE_STRIDE, LATE_STRIDE = 2, 10, 30
LATE_FITS, LAST_FITS = 512, 4096  # steps from one to the next, at first and in the end
MEMORY = 2000  # steps learned from, after which the weight of old ones has fallen to 1/e
LARGEST_WEIGHT = 1e6  # of the equations of a step
WATCHED = 128  # steps
GONE_BAD = 4.0  # times the least roughness so far, in two stretches in succession
ROUGH_STRETCHES = 2


def add_normal_equations(
    features: Array,
    before: Array | None,
    residuals: Array,
    weights: Array,
    offset: Array,
    scales: Array,
    gram: Array,
    moment: Array,
) -> None:
    """Add A^T A to ``gram`` (P, P) and A^T b to ``moment`` (P,), in place, of equations A x = b.

    They come in B blocks of E, of ``features`` (B, E, P), or of what these are more than those
    ``before`` (B, E, P), if not None:

        A_b = W_b (features_b - before_b)
        b_b = W_b (residuals_b + (features_b - before_b) . offset)
        W_b = scales_b weights

    with ``residuals`` (B, E), ``weights`` (E,), ``offset`` (P,) and ``scales`` (B,). Only the upper
    triangle of ``gram`` counts. ``Valence`` has the same, with positions (B, N, 3) in the place of
    the features at them.
    """
    differences = features if before is None else features - before
    both_sides = scales[:, None] * weights
    rows = (both_sides[:, :, None] * differences).reshape(-1, len(offset))
    gram += np.triu(rows.T @ rows)
    moment += rows.T @ (both_sides * (residuals + differences @ offset)).reshape(-1)


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


class RidgeRegression:
    """Parameters theta (P,) that minimise, over weighted equations A theta = b,

        |A theta - b|^2 + ridge sum_p D_p (theta_p - prior_p)^2,   D = diag(A^T A)

    Parameters
    ----------
    prior : (P,)
    add : callable
        As ``add_normal_equations``.
    """

    def __init__(self, prior: Array, add: Callable[..., None] = add_normal_equations) -> None:
        self._add = add
        self.prior = np.array(prior, dtype=np.float64)
        self.weight = 1.0  # of the next equations: in the place of the old ones' decay
        self.gram = np.zeros((len(prior), len(prior)))
        self.moment = np.zeros(len(prior))

    def age(self, steps: float, memory: float) -> None:
        """Let the equations that are there count less by exp(-``steps`` / ``memory``)."""
        decay = np.exp(-steps / memory)
        if self.weight > LARGEST_WEIGHT * decay:
            self.gram *= decay / self.weight
            self.moment *= decay / self.weight
            self.weight = 1.0
        else:
            self.weight /= decay

    def add(
        self,
        features: Array,
        before: Array | None,
        residuals: Array,
        weights: Array,
        at: Array,
        importance: Array | None = None,
    ) -> None:
        """Equations (``features`` - ``before``) . (theta - ``at``) = ``residuals``.

        Parameters
        ----------
        features, before : (B, E, P)
            Or what ``add`` of the constructor takes in their place; ``before`` may be None.
        residuals : (B, E)
        weights : (E,)
            By which both sides of an equation are multiplied.
        at : (P,)
        importance : (B,), optional
            Weights of the blocks in the sum of squares.
        """
        scales = np.full(len(residuals), np.sqrt(self.weight))
        if importance is not None:
            scales *= np.sqrt(importance)
        offset = at - self.prior
        self._add(features, before, residuals, weights, offset, scales, self.gram, self.moment)

    def solve(self, count: int | None = None, ridge: float | None = None) -> Array:
        """theta (P,); all NaN where rounding or bad equations left no positive definite matrix.

        Only the first ``count`` parameters are solved for, the others stay at the prior; ``ridge``
        in the place of RIDGE.
        """
        count = len(self.prior) if count is None else count
        result = self.prior.copy()
        if count == 0:
            return result
        gram = self.gram[:count, :count]
        diagonal = np.diag(gram).copy()
        # A parameter that no equation contains stays at its prior.
        diagonal[diagonal == 0] = 1.0
        scale = 1.0 / np.sqrt(diagonal)
        scaled = gram * scale
        scaled *= scale[:, None]
        scaled.flat[:: count + 1] += RIDGE if ridge is None else ridge
        # More threads would wait for cores that the target's threads keep, ten times as long.
        with _libraries().limit(limits=1, user_api="blas"):
            # LAPACK counts by columns: our upper triangle is its lower one.
            _, shift, fault = dposv(
                scaled.T, scale * self.moment[:count], lower=True, overwrite_a=True
            )
        if fault != 0:  # not positive definite
            return np.full_like(result, np.nan)
        result[:count] += scale * shift
        return result


class Learner:
    """When a draft learns, and from what.

    The schedule counts steps, not seconds: two runs with one seed learn the same.

    Parameters
    ----------
    prior : (P,)
        Parameters to start from.
    masses : (N,) amu
        Forces count by 1 / sqrt(mass), as the noise shift measures them.
    add : callable
        As in RidgeRegression.
    """

    def __init__(
        self, prior: Array, masses: Array, add: Callable[..., None] = add_normal_equations
    ) -> None:
        self._prior, self._add = prior, add
        self._weights = np.sqrt(
            np.divide(1.0, masses, out=np.zeros_like(masses), where=masses > 0)
        ).repeat(3)
        self._mean_square = self._weights**2 / max(1, len(self._weights))
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.parameters = self._prior.copy()
        self.begin_again()

    def begin_again(self) -> None:
        """Forget all steps, but keep the parameters until the next fit."""
        self._regression = RidgeRegression(self._prior, self._add)
        self._seen = 0
        self._next_fit = FIRST_FIT
        self._roughness, self._watched = 0.0, 0  # sum over so many steps
        self._least_roughness = np.inf
        self._rough_stretches = 0
        self._last: Array | None = None

    def interrupt(self) -> None:
        """The next step that is learned from does not follow the last one."""
        self._last = None

    def snapshot(self) -> dict[str, Any]:
        """All that it has learned, for ``restore``."""
        return {
            "prior": self._prior,
            "parameters": self.parameters,
            "gram": self._regression.gram,
            "moment": self._regression.moment,
            "weight": self._regression.weight,
            "seen": self._seen,
            "next fit": self._next_fit,
            "roughness": self._roughness,
            "watched": self._watched,
            "least roughness": self._least_roughness,
            "rough stretches": self._rough_stretches,
            "last": self._last,
        }

    def restore(self, record: dict[str, Any]) -> None:
        """Go on as the learner that the snapshot was taken of."""
        self._prior = record["prior"]
        self.reset()
        self.parameters = record["parameters"]
        self._regression.gram, self._regression.moment = record["gram"], record["moment"]
        self._regression.weight = record["weight"]
        self._seen, self._next_fit = record["seen"], record["next fit"]
        self._roughness, self._watched = record["roughness"], record["watched"]
        self._least_roughness = record["least roughness"]
        self._rough_stretches = record["rough stretches"]
        self._last = record["last"]

    def has_gone_bad(self, discrepancies: Array) -> bool:
        """Whether the draft has become much worse than it was; to be shown all committed steps.

        A draft is as good as its discrepancy is smooth: what changes from one step to the next no
        correction absorbs. That does not depend on the length of windows.

        Parameters
        ----------
        discrepancies : (B, N, 3) kJ/mol/nm
            Target force minus draft force at consecutive steps, which follow those of the last
            call.
        """
        rows = discrepancies.reshape(-1, len(self._weights))
        if self._last is not None:
            rows = np.concatenate([self._last, rows])
        self._last = rows[-1:]
        changes = rows[1:] - rows[:-1]
        self._roughness += float(np.einsum("bi,bi,i->", changes, changes, self._mean_square))
        self._watched += len(changes)
        if self._watched < WATCHED:
            return False
        roughness = self._roughness / self._watched
        self._roughness, self._watched = 0.0, 0
        if self._seen < EARLY:
            return False
        self._rough_stretches += 1
        if roughness <= GONE_BAD * self._least_roughness:
            self._rough_stretches = 0
        if self._rough_stretches == ROUGH_STRETCHES:
            return True
        self._least_roughness = min(self._least_roughness, roughness)
        return False

    def chosen(self, steps: int) -> list[int]:
        """Which of the next ``steps`` committed steps to learn from."""
        stride = LATE_STRIDE if self._seen >= MIDDLE else MIDDLE_STRIDE
        if self._seen < EARLY:
            stride = EARLY_STRIDE
        return [row for row in range(steps) if (self._seen + row) % stride == 0]

    def learn(self, features: Array, discrepancies: Array, steps: int) -> bool:
        """Learn from some of the next ``steps`` committed steps; whether ``parameters`` changed.

        Parameters
        ----------
        features : (B, 3 N, P)
            At the force sites of the ``chosen`` steps; or what ``add`` takes in their place.
        discrepancies : (B, N, 3) kJ/mol/nm
            Target force minus draft force there.
        """
        count = len(discrepancies)
        self._regression.age(count, MEMORY)
        self._regression.add(
            features,
            None,
            discrepancies.reshape(count, len(self._weights)),
            self._weights,
            self.parameters,
            np.exp(np.arange(1 - count, 1) / MEMORY),
        )
        self._seen += steps
        if self._seen < self._next_fit:
            return False
        while self._next_fit <= self._seen:
            wait = min(max(LATE_FITS, self._next_fit // 4), LAST_FITS)
            self._next_fit += min(self._next_fit, wait)
        parameters = self._regression.solve()
        if not np.isfinite(parameters).all():
            logger.warning("the draft's fit is not finite; it stays as it was")
            return False
        self.parameters = parameters
        self._last = None
        return True
