"""The transported noise is N(0, I) whatever the shift, and accepts as often as it can.

z scores: about 150 assertions, each two-sided at 5.5 standard errors: a false alarm in the whole
file has probability 150 * 3.8e-8 < 1e-5. With 20,000 draws a bias of 0.04 in a mean, or of 0.055 in
a variance, is seen.
"""

import numpy as np
import pytest
from scipy import stats

from openmm_lsd.core.transport import transport

DRAWS = 20_000
Z = 5.5
LENGTHS = [0.0, 0.01, 0.3, 1.0, 3.0, 10.0]
DIMENSIONS = [1, 3, 66]


def sample(dimension, length, seed, transport=transport):
    """Noise, random shifts of one length, transported noise, accepted."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((DRAWS, dimension))
    shift = rng.standard_normal((DRAWS, dimension))
    # Skewed directions: for symmetric ones a wrong sign of the reflection would be hidden.
    shift[:, 0] = np.abs(shift[:, 0]) + 1.0
    shift *= length / np.linalg.norm(shift, axis=1, keepdims=True)
    log_uniform = -rng.standard_exponential(DRAWS)
    rows = [transport(*row) for row in zip(noise, shift, log_uniform, strict=True)]
    return noise, shift, np.array([eta for eta, _ in rows]), np.array([ok for _, ok in rows])


def z_score(values, expected):
    return (values.mean() - expected) / (values.std() / np.sqrt(len(values)))


def z_scores(shift, eta, length):
    """Moments of eta: by itself, along the shift, and jointly with the shift."""
    squares = (eta**2).sum(axis=1)
    scores = {
        "first component": z_score(eta[:, 0], 0.0),
        "first component, squared": z_score(eta[:, 0] ** 2, 1.0),
        "first component, cubed": z_score(eta[:, 0] ** 3, 0.0),
        "squared norm": z_score(squares, eta.shape[1]),
    }
    if length > 0:
        along = (eta * shift).sum(axis=1) / length
        scores |= {
            "along the shift": z_score(along, 0.0),
            "along the shift, squared": z_score(along**2, 1.0),
            "along the shift, cubed": z_score(along**3, 0.0),
            "along the shift times squared norm": z_score(along * (squares - eta.shape[1]), 0.0),
        }
    return scores


@pytest.mark.parametrize("dimension", DIMENSIONS)
@pytest.mark.parametrize("length", LENGTHS)
def test_transported_noise_is_normal_and_independent_of_the_shift(dimension, length):
    _, shift, eta, accepted = sample(dimension, length, seed=1)
    for name, score in z_scores(shift, eta, length).items():
        assert abs(score) < Z, f"{name}: z = {score:.1f}"
    if length > 0:
        along = (eta * shift).sum(axis=1) / length
        assert stats.kstest(along, "norm").pvalue > 1e-7
    expected = 2.0 * stats.norm.cdf(-length / 2.0)
    error = max(np.sqrt(expected * (1 - expected) / DRAWS), 1.0 / DRAWS)
    assert abs(accepted.mean() - expected) < Z * error


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_accepted_noise_lands_where_the_draft_landed(dimension):
    noise, shift, eta, accepted = sample(dimension, 1.0, seed=2)
    assert np.array_equal(eta[accepted], (noise - shift)[accepted])
    # A rejected noise is mirrored in the plane across the shift: same length, opposite overlap.
    rejected = ~accepted
    assert np.allclose(
        np.linalg.norm(eta, axis=1)[rejected], np.linalg.norm(noise, axis=1)[rejected]
    )
    overlap, mirrored = (noise * shift).sum(axis=1), (eta * shift).sum(axis=1)
    assert np.allclose(mirrored[rejected], -overlap[rejected])


def test_both_branches_can_be_forced():
    noise, shift = np.array([[0.3, -0.2, 0.9]]), np.array([[0.5, 0.0, 0.0]])
    threshold = np.vdot(noise, shift) - 0.5 * np.vdot(shift, shift)
    assert transport(noise, shift, threshold)[1]
    eta, accepted = transport(noise, shift, np.nextafter(threshold, 1.0))
    assert not accepted
    assert np.allclose(eta, [[-0.3, -0.2, 0.9]])


def test_zero_shift_is_an_acceptance_and_changes_nothing():
    noise = np.array([1.0, 2.0])
    eta, accepted = transport(noise, np.zeros(2), -0.0)
    assert accepted and np.array_equal(eta, noise)


@pytest.mark.parametrize("length", [1e10, 1e200])
def test_huge_shift_is_a_finite_reflection(length):
    noise = np.array([0.4, -1.2, 0.1])
    eta, accepted = transport(noise, length * np.array([0.6, 0.0, 0.8]), -1.0)
    assert not accepted
    assert np.allclose(np.linalg.norm(eta), np.linalg.norm(noise))


def test_inputs_are_not_changed():
    noise, shift = np.array([0.1, -2.0]), np.array([1.0, 1.0])
    for log_uniform in (-50.0, 0.0):
        transport(noise, shift, log_uniform)
    assert np.array_equal(noise, [0.1, -2.0]) and np.array_equal(shift, [1.0, 1.0])


@pytest.mark.parametrize(
    "broken",
    [
        lambda noise, shift, log_uniform: (noise, True),
        lambda noise, shift, log_uniform: (noise - shift, True),
        lambda noise, shift, log_uniform: (*transport(noise, -shift, log_uniform)[:1], True),
        lambda noise, shift, log_uniform: transport(noise, shift, 2.0 * log_uniform),
        lambda noise, shift, log_uniform: (
            (noise - shift, True)
            if transport(noise, shift, log_uniform)[1]
            else (noise, False)  # rejected without reflection
        ),
    ],
    ids=["none", "always accepted", "wrong sign", "wrong rate", "no reflection"],
)
def test_broken_transport_is_seen(broken):
    noise, shift, eta, accepted = sample(3, 1.0, seed=3, transport=broken)
    scores = z_scores(shift, eta, 1.0)
    lands = np.allclose(eta[accepted], (noise - shift)[accepted])
    assert max(abs(score) for score in scores.values()) > Z or not lands
