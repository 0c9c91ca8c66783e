"""The schemes against OpenMM, against their own noise shift, and in their limits."""

import numpy as np
import openmm
import pytest
from law import make_sampler
from openmm import unit

from openmm_lsd.core.schemes import ABOBA, MOLAR_GAS_CONSTANT, Middle

SCHEMES = [Middle, ABOBA]
TEMPERATURE, FRICTION, STEP_SIZE = 300.0, 10.0, 0.02
MASS, STIFFNESS = 2.0, 3000.0  # h^2 k / m = 0.6
START = np.array([0.05, -0.02, 0.01]), np.array([1.0, 2.0, -0.5])


def test_gas_constant_is_that_of_openmm():
    expected = unit.MOLAR_GAS_CONSTANT_R.value_in_unit(unit.kilojoule_per_mole / unit.kelvin)
    assert abs(MOLAR_GAS_CONSTANT / expected - 1.0) < 1e-12


@pytest.mark.parametrize("kind", SCHEMES)
@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
@pytest.mark.parametrize("position", range(3))
def test_parameters_must_be_positive_and_finite(kind, bad, position):
    arguments = [300.0, 1.0, 0.001]
    arguments[position] = bad
    with pytest.raises(ValueError, match="must be positive and finite"):
        kind(*arguments)


@pytest.mark.parametrize("kind", SCHEMES)
def test_shifted_kick_lands_on_the_drafted_positions(kind):
    rng = np.random.default_rng(1)
    scheme = kind(TEMPERATURE, FRICTION, STEP_SIZE)
    positions, velocities, kick, draft, target = rng.standard_normal((5, 4, 3))
    other_velocities = velocities
    if kind is Middle:  # the two may differ there
        other_velocities = velocities + 0.1 * rng.standard_normal((4, 3))
    shift = scheme.kick_shift(positions, other_velocities, velocities, target, draft)
    drafted, _ = scheme.step(positions, velocities, draft, kick)
    committed, _ = scheme.step(positions, other_velocities, target, kick - shift)
    assert np.abs(committed - drafted).max() < 1e-14


@pytest.mark.parametrize("kind", SCHEMES)
def test_free_particle_thermalises_at_the_exact_rate(kind):
    """Without a force <v^2> obeys w' = a^2 w + s^2: after n steps kT/m (1 - a^(2n))."""
    scheme = kind(TEMPERATURE, FRICTION, STEP_SIZE)
    variance = 0.0
    scale = scheme.noise_scale(np.array([1.0 / MASS]))[0]
    for _ in range(7):
        variance = scheme.decay**2 * variance + scale**2
    expected = MOLAR_GAS_CONSTANT * TEMPERATURE / MASS * -np.expm1(-2 * 7 * FRICTION * STEP_SIZE)
    assert abs(variance / expected - 1.0) < 1e-12


def linear_moments(scheme, steps):
    """Mean (2, 3), and covariance (2, 2) of each component, of a harmonic particle."""
    basis_x, basis_v = np.array([[1.0, 0.0, 0.0]]).T, np.array([[0.0, 1.0, 0.0]]).T
    kick = np.array([[0.0, 0.0, 1.0]]).T
    acceleration = -STIFFNESS / MASS * scheme.site(basis_x, basis_v)
    matrix = np.hstack(scheme.step(basis_x, basis_v, acceleration, kick)).T
    advance, noise = matrix[:, :2], matrix[:, 2:] * scheme.noise_scale(np.array([1.0 / MASS]))
    mean, covariance = np.array(START), np.zeros((2, 2))
    for _ in range(steps):
        mean, covariance = advance @ mean, advance @ covariance @ advance.T + noise @ noise.T
    return mean, covariance


def z_of_moments(sample, mean, covariance):
    """z scores of means, variances and the covariance; sample (count, 2, 3)."""
    count = len(sample)
    deviation = sample - mean
    scores = list((deviation.mean(axis=0) / np.sqrt(np.diag(covariance) / count)[:, None]).ravel())
    for i, j in ((0, 0), (1, 1), (0, 1)):
        products = (deviation[:, i] * deviation[:, j]).ravel()
        error = products.std() / np.sqrt(len(products))
        scores.append((products.mean() - covariance[i, j]) / error)
    return np.array(scores)


@pytest.mark.parametrize("steps", [1, 5, 40])
def test_middle_is_the_scheme_of_langevin_middle_integrator(steps):
    """18,000 components: a variance wrong by 6 % is seen at z = 5.5."""
    count = 6000
    system = openmm.System()
    force = openmm.CustomExternalForce(f"0.5*{STIFFNESS}*(x*x+y*y+z*z)")
    for index in range(count):
        system.addParticle(MASS)
        force.addParticle(index)
    system.addForce(force)
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, FRICTION, STEP_SIZE)
    integrator.setRandomNumberSeed(5)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatform("Reference"))
    context.setPositions(np.tile(START[0], (count, 1)))
    context.setVelocities(np.tile(START[1], (count, 1)))
    integrator.step(steps)
    state = context.getState(positions=True, velocities=True)
    sample = np.stack(
        [state.getPositions(asNumpy=True)._value, state.getVelocities(asNumpy=True)._value], axis=1
    )
    scores = z_of_moments(sample, *linear_moments(Middle(TEMPERATURE, FRICTION, STEP_SIZE), steps))
    assert np.abs(scores).max() < 5.5, scores
    # The other scheme is told apart.
    wrong = z_of_moments(sample, *linear_moments(ABOBA(TEMPERATURE, FRICTION, STEP_SIZE), steps))
    assert np.abs(wrong).max() > 5.5


@pytest.mark.parametrize("kind", SCHEMES)
def test_sampler_has_the_moments_of_the_scheme(kind):
    """The same moments from 3000 speculative runs with a draft half as stiff."""
    scheme = kind(TEMPERATURE, FRICTION, STEP_SIZE)
    steps, runs = 5, []
    for seed in range(3000):
        sampler = make_sampler(
            scheme, [MASS], lambda x: -0.5 * STIFFNESS * x, lambda x: -STIFFNESS * x, 4, seed
        )
        sampler.set_state(START[0][None], START[1][None])
        positions, velocities = sampler.advance(steps)
        runs.append([positions[0], velocities[0]])
    scores = z_of_moments(np.array(runs), *linear_moments(scheme, steps))
    assert np.abs(scores).max() < 5.5, scores
