"""How far speculation gets, from the forces alone: noise shift, rejection, steps per round.

The published rule drafts a window with one constant offset, the discrepancy D = F_t - F_d of the
last committed step. At the j-th step after it the drafting force is off by the residual

    r_j = D_j - D_0,

and all that decides the steps per round is how fast D changes along the path: its structure
function S(t) = < sum_i |D_i(t0 + t) - D_i(t0)|^2 / m_i >. Where a window is drafted with a
correction for every step the residuals are what is left of an iteration, and have no such form;
there steps per round are measured (``rejection_by_site``), and this module predicts the wall time.

With a = exp(-gamma h), kT and the time step h, a step whose predecessors since the last committed
state were all accepted has the squared noise shift

    ABOBA:   |delta_j|^2 = h^2 coth(gamma h / 2) / (4 kT) * sum_i |r_j,i|^2 / m_i
    Middle:  |delta_j|^2 = h^2 coth(gamma h / 2) / kT * sum_i |w_j,i|^2 / m_i,   w_j = r_j - w_(j-1)

(the alternating sum: after an accepted step of the Middle scheme target and draft stand at the same
positions with different velocities). Both follow from (1 + a) / (1 - a) = coth(gamma h / 2).

Units: nm, ps, amu, kJ/mol. Method: Kosmala, Guennemann, Gao and Wood, arXiv:2606.02455.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import erf

from .core.schemes import MOLAR_GAS_CONSTANT, Middle, Scheme, reciprocal
from .core.statistics import Round

Array = NDArray[np.float64]


def rejection_probability(noise_shift: ArrayLike) -> Array:
    """2 Phi(|delta| / 2) - 1, the least possible for two Gaussians that far apart."""
    return erf(np.asarray(noise_shift) / math.sqrt(8.0))


def noise_shifts(residuals: ArrayLike, masses: ArrayLike, scheme: Scheme) -> Array:
    """|delta| of each step of a window, as long as all steps before it are accepted.

    Parameters
    ----------
    residuals : (..., K, N, 3) kJ/mol/nm
        Target force minus drafting force at the force sites of K consecutive steps, less what acts
        along constraints (``Scheme.project_forces``).
    masses : (N,) amu
    scheme : schemes.Scheme

    Returns
    -------
    (..., K), dimensionless
    """
    errors = np.array(residuals, dtype=np.float64)
    if isinstance(scheme, Middle):
        for k in range(1, errors.shape[-3]):
            errors[..., k, :, :] -= errors[..., k - 1, :, :]
    inverse_masses = reciprocal(np.asarray(masses, dtype=np.float64))
    squares = np.einsum("...ic,i->...", errors**2, inverse_masses)
    return np.sqrt(_squared_shift_per_residual(scheme) * squares)


def structure_function(discrepancies: ArrayLike, masses: ArrayLike, lags: int) -> Array:
    """S at the lags 0 to ``lags``, in kJ/mol/ps^2 (force squared over mass).

    Parameters
    ----------
    discrepancies : (T, N, 3) kJ/mol/nm
        Target force minus draft force at T > ``lags`` equidistant times of one trajectory; less
        what acts along constraints.
    masses : (N,) amu

    Returns
    -------
    (lags + 1,)
    """
    discrepancies = np.asarray(discrepancies, dtype=np.float64)
    if len(discrepancies) <= lags:
        raise ValueError(f"{len(discrepancies)} discrepancies are too few for {lags} lags")
    weights = reciprocal(np.asarray(masses, dtype=np.float64))[:, None]
    changes = (
        discrepancies[lag:] - discrepancies[: len(discrepancies) - lag] for lag in range(lags + 1)
    )
    return np.array([float((weights * change**2).sum(axis=(1, 2)).mean()) for change in changes])


def constant_offset_shifts(structure: ArrayLike, scheme: Scheme) -> Array:
    """Root mean square noise shift of the j-th step after the last committed one, j = 1 to K.

    Parameters
    ----------
    structure : (K + 1,) kJ/mol/ps^2
        ``structure_function`` at multiples of the scheme's time step.
    """
    structure = np.asarray(structure, dtype=np.float64)
    if structure.ndim != 1 or len(structure) < 2:
        raise ValueError(f"structure has shape {structure.shape}; expected (K + 1,)")
    if not isinstance(scheme, Middle):
        return np.sqrt(_squared_shift_per_residual(scheme) * structure[1:])
    j = np.arange(1, len(structure))
    # <r_i r_j> of an increment process.
    products = (structure[j][:, None] + structure[j] - structure[abs(j[:, None] - j)]) / 2
    signed = products * (-1.0) ** (j[:, None] + j)
    squares = np.array([signed[:k, :k].sum() for k in j])
    return np.sqrt(_squared_shift_per_residual(scheme) * squares.clip(min=0.0))


def _squared_shift_per_residual(scheme: Scheme) -> float:
    thermal = MOLAR_GAS_CONSTANT * scheme.temperature
    factor = 1.0 if isinstance(scheme, Middle) else 0.25
    return (
        factor * scheme.step_size**2 / math.tanh(0.5 * scheme.friction * scheme.step_size) / thermal
    )


def expected_steps(rejections: ArrayLike, window: int) -> Array:
    """Committed steps of a round of ``window`` sites: 1 + sum of the chances to get beyond step j.

    Parameters
    ----------
    rejections : (..., J)
        Probability that the j-th step of a window is rejected if it is reached; J >= window - 1.
        The last step of a window is a plain target step and cannot be.
    """
    chances = 1.0 - np.asarray(rejections, dtype=np.float64)
    if chances.shape[-1] < window - 1:
        raise ValueError(
            f"{chances.shape[-1]} probabilities of rejection are too few for a window of {window}"
        )
    return 1.0 + np.cumprod(chances[..., : window - 1], axis=-1).sum(axis=-1)


def constant_offset_steps(structure: ArrayLike, scheme: Scheme, window: int) -> float:
    """Steps per round of the published rule, as if |delta| were always its root mean square.

    Many atoms add up to it, so it hardly fluctuates.
    """
    shifts = constant_offset_shifts(np.asarray(structure)[: window + 1], scheme)
    return float(expected_steps(rejection_probability(shifts), window))


def rejection_by_site(rounds: Iterable[Round]) -> Array:
    """Mean probability of rejection at each site, from the noise shifts that were measured there.

    Far less noisy than the share of rejections, since chance decides only which sites are reached.
    Sites that no round has reached are missing at the end.
    """
    total: dict[int, list[float]] = {}
    for each in rounds:
        for site, shift in enumerate(each.noise_shifts):
            total.setdefault(site, []).append(shift)
    return np.array([rejection_probability(total[site]).mean() for site in range(len(total))])


def speed_up(
    steps_per_round: float, plain_seconds: float, batch_seconds: float, other_seconds: float = 0.0
) -> float:
    """Wall time of plain dynamics over that of LSD.

    Parameters
    ----------
    steps_per_round : float
    plain_seconds : float
        Of one plain step.
    batch_seconds, other_seconds : float
        Of the target's batch in one round, and of all else (draft, learning, overhead).
    """
    return steps_per_round * plain_seconds / (batch_seconds + other_seconds)
