"""Ridge regression of a draft's parameters on the target's forces and on how they change from step
to step, while the run goes on.

Measurability (docs/theory.md): only committed steps are learned from. Then the parameters do not
depend on the noise of any step to come, and may be used at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

Array = NDArray[np.float64]

logger = logging.getLogger(__name__)

# Of the diagonal; the former over the number of steps. In full from so many parameters for each
# equation of a step on, with fewer as their square: a crystal has a dozen, well known at once.
RIDGE_OF_ONE_STEP, LEAST_RIDGE, MANY_PARAMETERS = 0.3, 0.001, 2
WEIGHT_OF_DIFFERENCES = 300.0  # of forces: 1
EQUATIONS_PER_PARAMETER = 6
FIRST_FIT = 16  # steps
EARLY = 256  # steps, before which no draft has gone bad
STRIDES = ((128, 2), (512, 4), (2048, 20))  # up to which step every how many are learned from
LAST_STRIDE = 60
FIT_BATCH = 32  # steps whose equations are added at a time: it costs less
LATE_FITS, LAST_FITS = 1024, 4096  # steps from one to the next, at first and in the end
MEMORY = 1000  # steps learned from, after which the weight of old ones has fallen to 1/e
LARGEST_WEIGHT = 1e6  # of the equations of a step
WATCHED = 128  # steps
GONE_BAD = 4.0  # times the least roughness so far, in two stretches in succession
ROUGH_STRETCHES = 2
WEIGHT_OF_OLD = 1e-3  # of what was learned before a draft went bad


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

    Each of the B blocks of equations has a weight W = scale times ``weights`` (E,), one of
    ``scales`` (B,), and

        A = W (features - before),   b = W (residuals + (features - before) . offset)

    with ``features`` and ``before`` (B, E, P) or None, ``residuals`` (B, E), ``offset`` (P,). Only
    the upper triangle of ``gram`` counts. ``Valence`` has the same, with positions in the place of
    the features at them.
    """
    rows = features if before is None else features - before
    weighted = (scales[:, None] * weights)[:, :, None] * rows
    rights = scales[:, None] * weights * (residuals + rows @ offset)
    weighted = weighted.reshape(-1, len(offset))
    gram += np.triu(weighted.T @ weighted)
    moment += weighted.T @ rights.reshape(-1)


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

    def restore(self, gram: Array, moment: Array, weight: float) -> None:
        """Take over the sums and the weight of another."""
        self.gram, self.moment, self.weight = gram, moment, weight

    def age(self, factor: float) -> None:
        """What was added so far counts less by this factor."""
        self.weight /= factor
        if self.weight > LARGEST_WEIGHT:
            self.gram /= self.weight
            self.moment /= self.weight
            self.weight = 1.0

    def add(
        self,
        features: Array,
        before: Array | None,
        residuals: Array,
        weights: Array,
        at: Array,
        importance: float = 1.0,
    ) -> None:
        """Equations (features - before) . (theta - ``at`` (P,)) = residuals, times ``weights``.

        Shapes as in ``add_normal_equations``; the squares of these count ``importance`` times.
        """
        scales = np.full(len(residuals), np.sqrt(importance * self.weight))
        offset = at - self.prior
        self._add(features, before, residuals, weights, offset, scales, self.gram, self.moment)

    def solve(self, ridge: float, count: int | None = None) -> Array:
        """theta (P,); with ``count`` only so many of them, the first ones, differ from the prior.

        Not finite if there is no solution.
        """
        from scipy.linalg.lapack import dposv  # takes a while to import

        gram = self.gram[:count, :count]
        if not len(gram):
            return self.prior.copy()
        diagonal = np.diag(gram).copy()
        # A parameter that no equation contains stays at its prior.
        diagonal[diagonal == 0] = 1.0
        scale = 1.0 / np.sqrt(diagonal)
        scaled = gram * scale[:, None] * scale
        scaled[np.diag_indices_from(scaled)] += ridge
        # More threads would wait for cores that the target's threads keep, ten times as long.
        with _libraries().limit(limits=1, user_api="blas"):
            # To LAPACK, which counts by columns, the upper triangle is the lower one.
            _, shift, failed = dposv(
                scaled.T, scale * self.moment[:count], lower=True, overwrite_a=True
            )
        theta = self.prior.copy()
        theta[:count] += np.nan if failed else scale * shift
        return theta


def _stride(number: int) -> int:
    return next((stride for until, stride in STRIDES if number < until), LAST_STRIDE)


class Roughness:
    """How far a discrepancy changes from one step to the next, on stretches of a run.

    A draft is as good as its discrepancy is smooth: what changes from one step to the next no
    correction absorbs. That does not depend on the length of windows.

    Parameters
    ----------
    weights : (3 N,)
        Of the components.
    """

    def __init__(self, weights: Array) -> None:
        self._weights = weights / np.sqrt(max(1, len(weights)))
        self._sum, self._steps = 0.0, 0
        self._least = np.inf
        self._rough_stretches = 0

    def has_risen(self, discrepancies: Array, last: Array | None, *, judges: bool) -> bool:
        """Whether several stretches in a row were much rougher than the smoothest.

        Parameters
        ----------
        discrepancies : (B, N, 3) kJ/mol/nm
            At consecutive steps.
        last : (N, 3) or None
            At the step before them, if it is known.
        judges : bool
            Whether a stretch counts that ends here.
        """
        rows = discrepancies.reshape(-1, len(self._weights))
        changes = np.empty_like(rows)
        np.subtract(rows[1:], rows[:-1], out=changes[1:])
        if last is None:
            changes = changes[1:]
        else:
            changes[0] = rows[0] - last.reshape(-1)
        changes *= self._weights
        self._sum += float(np.vdot(changes, changes))
        self._steps += len(changes)
        if self._steps < WATCHED:
            return False
        roughness = self._sum / self._steps
        self._sum, self._steps = 0.0, 0
        if not judges:
            return False
        self._rough_stretches += 1
        if roughness <= GONE_BAD * self._least:
            self._rough_stretches = 0
        if self._rough_stretches == ROUGH_STRETCHES:
            return True
        self._least = min(self._least, roughness)
        return False

    def snapshot(self) -> dict[str, Any]:
        """All of it, for ``restore``."""
        return {
            "roughness": self._sum,
            "watched": self._steps,
            "least roughness": self._least,
            "rough stretches": self._rough_stretches,
        }

    def restore(self, record: dict[str, Any]) -> None:
        """Go on as where the snapshot was taken."""
        self._sum, self._steps = record["roughness"], record["watched"]
        self._least, self._rough_stretches = record["least roughness"], record["rough stretches"]


class Learner:
    """When a draft learns, and from what.

    From forces at some of the steps, and from how they changed since the step before. Differences
    count for much more: what the corrections cannot take back is an error of the draft's Hessian
    (docs/drafts.md). Forces alone fix what differences cannot see.

    The schedule counts steps, not seconds: two runs with one seed learn the same.

    Parameters
    ----------
    prior : (P,)
        Parameters to start from.
    masses : (N,) amu
        Forces count by 1 / sqrt(mass), as the noise shift measures them.
    stages : sequence of int, optional
        How many of the parameters, the first ones, are fitted at first, and how many as soon as
        there are EQUATIONS_PER_PARAMETER for so many; the last is P. By default all at once.
    add : callable
        As in RidgeRegression.
    weight_of_differences : float
        Of how forces change, in the place of WEIGHT_OF_DIFFERENCES; that of forces is 1.
    """

    def __init__(
        self,
        prior: Array,
        masses: Array,
        stages: Sequence[int] = (),
        add: Callable[..., None] = add_normal_equations,
        weight_of_differences: float = WEIGHT_OF_DIFFERENCES,
    ) -> None:
        self._prior, self._add = prior, add
        self._weight_of_differences = weight_of_differences
        self._stages = tuple(stages) or (len(prior),)
        self._weights = np.sqrt(
            np.divide(1.0, masses, out=np.zeros_like(masses), where=masses > 0)
        ).repeat(3)
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.parameters = self._prior.copy()
        self._regression = RidgeRegression(self._prior, self._add)
        self._learned = 0  # steps
        self._states: list[tuple[Array, Array]] = []  # sites and discrepancies; equations to come
        self._differences: list[tuple[Array, Array, Array]] = []
        self._restart_schedule()

    def forget_data(self) -> None:
        """From now on learn as eagerly as at first: what is known is of little use here."""
        self.add_equations()
        self._regression.age(WEIGHT_OF_OLD)
        self._restart_schedule()

    def _restart_schedule(self) -> None:
        self._seen = 0  # steps
        self._next_fit = FIRST_FIT
        self._roughness = Roughness(self._weights)
        self._last: tuple[Array, Array] | None = None  # site and discrepancy of the last step

    def break_sequence(self) -> None:
        """The next step that is learned from does not follow the last one."""
        self._last = None

    def snapshot(self) -> dict[str, Any]:
        """All that it has learned, for ``restore``."""
        return {
            "prior": self._prior,
            "stages": self._stages,
            "parameters": self.parameters,
            "gram": self._regression.gram,
            "moment": self._regression.moment,
            "weight": self._regression.weight,
            "seen": self._seen,
            "learned": self._learned,
            "next fit": self._next_fit,
            **self._roughness.snapshot(),
            "last": self._last,
            "states": self._states,
            "differences": self._differences,
        }

    def restore(self, record: dict[str, Any]) -> None:
        """Go on as the learner that the snapshot was taken of."""
        self._prior, self._stages = record["prior"], tuple(record["stages"])
        self.reset()
        self.parameters = record["parameters"]
        self._regression.restore(record["gram"], record["moment"], record["weight"])
        self._seen, self._learned = record["seen"], record["learned"]
        self._next_fit = record["next fit"]
        self._roughness.restore(record)
        self._last = record["last"] and tuple(record["last"])
        self._states = [tuple(each) for each in record["states"]]
        self._differences = [tuple(each) for each in record["differences"]]

    def has_degraded(self, discrepancies: Array) -> bool:
        """Whether the draft has become much worse than it was; to be shown all committed steps
        (B, N, 3), before ``learn``."""
        last = None if self._last is None else self._last[1]
        return self._roughness.has_risen(discrepancies, last, judges=self._seen >= EARLY)

    def learn(self, sites: Array, discrepancies: Array) -> bool:
        """Learn from the next committed steps; whether ``parameters`` changed.

        Parameters
        ----------
        sites : (B, N, 3) nm
            Force sites; or features there, (B, 3 N, P), if that is what ``add`` takes.
        discrepancies : (B, N, 3) kJ/mol/nm
            Target force minus draft force there.
        """
        for row in self._select_steps(len(sites)):
            here = sites[row].copy(), discrepancies[row].copy()
            before = (sites[row - 1], discrepancies[row - 1]) if row else self._last
            self._states.append(here)
            if before is not None:
                self._differences.append((here[0], before[0].copy(), here[1] - before[1]))
        self._seen += len(sites)
        if len(sites):
            self._last = sites[-1].copy(), discrepancies[-1].copy()
        if self._seen >= self._next_fit:
            return self._fit()
        if len(self._states) >= FIT_BATCH:
            self.add_equations()
        return False

    def _select_steps(self, steps: int) -> list[int]:
        """Which of the next ``steps`` committed steps to learn from."""
        rows, number, end = [], self._seen, self._seen + steps
        while number < end:
            past = number % _stride(number)
            if past == 0:
                rows.append(number - self._seen)
            number += _stride(number) - past
        return rows

    def add_equations(self) -> None:
        """Of the steps that were chosen last; to be called before anything else changes that the
        forces depend on."""
        states, differences = self._states, self._differences
        self._states, self._differences = [], []
        if not states:
            return
        self._regression.age(np.exp(-len(states) / MEMORY))
        self._learned += len(states)
        sites, discrepancies = map(np.array, zip(*states, strict=True))
        self._add_to_regression(sites, None, discrepancies, 1.0)
        if differences and self._weight_of_differences > 0:
            sites, before, changes = map(np.array, zip(*differences, strict=True))
            self._add_to_regression(sites, before, changes, self._weight_of_differences)

    def _add_to_regression(
        self, sites: Array, before: Array | None, values: Array, weight: float
    ) -> None:
        residuals = values.reshape(len(values), -1)
        self._regression.add(sites, before, residuals, self._weights, self.parameters, weight)

    def _fit(self) -> bool:
        """Whether ``parameters`` changed."""
        self.add_equations()
        while self._next_fit <= self._seen:
            wait = min(max(LATE_FITS, self._next_fit // 2), LAST_FITS)
            self._next_fit += min(self._next_fit, wait)
        equations = self._learned * len(self._weights) / EQUATIONS_PER_PARAMETER
        count = max([self._stages[0], *(each for each in self._stages if each <= equations)])
        ridge = max(LEAST_RIDGE, RIDGE_OF_ONE_STEP / max(1, self._learned))
        ridge *= min(1.0, count / (MANY_PARAMETERS * len(self._weights))) ** 2
        parameters = self._regression.solve(ridge, count)
        if not np.isfinite(parameters).all():
            logger.warning("the draft's fit is not finite; it stays as it was")
            return False
        self.parameters = parameters
        self._last = None
        return True
