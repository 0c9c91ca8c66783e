"""Constraints in the Middle scheme: against OpenMM, and the law of speculation with them.

A chain of four particles with two rigid bonds, whose draft is bad, also along the constraints: 3000
runs against 20,000 of the plain scheme, the moments of law.py at two times. The fault that is
planted never reflects.
"""

import numpy as np
import openmm
import pytest
from law import KT, TEMPERATURE, make_sampler, plain_ensemble, speculative_ensemble, worst, z_scores
from openmm import unit

from openmm_lsd.core.constraints import PlainProjection
from openmm_lsd.core.engine import NumpyEngine
from openmm_lsd.core.schemes import Middle, reciprocal
from openmm_lsd.core.transport import transport

MASSES = np.array([12.0, 4.0, 16.0, 4.0])
PAIRS, LENGTHS = [(0, 1), (2, 3)], [0.35, 0.30]
PROJECTION = PlainProjection(PAIRS, LENGTHS, MASSES)
STEP_SIZE = 0.02
STIFFNESS = 0.3 * 12.0 / STEP_SIZE**2
RUNS, REFERENCE_RUNS, STEPS, Z = 3_000, 20_000, (2, 5), 5.5


def target(positions):
    """Skewed springs to places of their own, and one between the rigid bonds."""
    length = 2.0 * np.sqrt(KT / STIFFNESS)
    away = np.minimum((positions - PLACES) / length, 50.0)
    forces = -STIFFNESS * (MASSES / 12.0)[:, None] * length * np.expm1(away)
    between = positions[..., 1, :] - positions[..., 2, :]
    forces[..., 1, :] -= 100.0 * between
    forces[..., 2, :] += 100.0 * between
    return forces


def draft(positions):
    forces = 0.6 * target(positions)
    along = positions[1] - positions[0]
    forces[1] += 10_000.0 * along  # nothing comes of it
    return forces


PLACES = np.array([[0.0, 0.0, 0.0], [0.35, 0.0, 0.0], [0.5, 0.2, 0.0], [0.5, 0.2, 0.30]])


def starts(count, rng):
    positions = PLACES + 0.02 * rng.standard_normal((count, 4, 3))
    positions = PROJECTION.positions(np.broadcast_to(PLACES, positions.shape), positions)
    velocities = rng.standard_normal((count, 4, 3)) * np.sqrt(KT / MASSES)[:, None]
    return positions, PROJECTION.velocities(positions, velocities)


def make_scheme(projection=PROJECTION):
    return Middle(TEMPERATURE, 1.0 / STEP_SIZE, STEP_SIZE, projection)


@pytest.fixture(scope="module")
def reference():
    begin = starts(REFERENCE_RUNS, np.random.default_rng(1))
    return plain_ensemble(make_scheme(), target, MASSES, begin, STEPS, 2)


class Unprojected(Middle):
    """Its noise shift knows nothing of the constraints: right, since SHAKE takes back what is along
    them, and dear."""

    def kick_shift(self, positions, *rest):
        return Middle(self.temperature, self.friction, self.step_size).kick_shift(positions, *rest)


def ensemble(**options):
    begin = starts(RUNS, np.random.default_rng(3))
    return speculative_ensemble(make_scheme(), target, draft, MASSES, begin, STEPS, 3, **options)


def test_the_law_is_that_of_the_plain_scheme(reference):
    states, rate = ensemble()
    assert 0.15 < rate < 0.95
    name, score = worst(z_scores(states, reference))
    assert abs(score) < Z, f"{name}: z = {score:.1f}"


class NeverReflects(NumpyEngine):
    def transport(self, noise, shift, log_uniform):
        moved, accepted = transport(noise, shift, log_uniform)
        return (moved, True) if accepted else (noise, False)


def test_missing_reflections_are_caught(reference):
    states, _ = ensemble(engine=NeverReflects)
    name, score = worst(z_scores(states, reference))
    assert abs(score) > Z, f"{name}: z = {score:.1f}"


def test_what_acts_along_a_constraint_costs_nothing():
    """The draft differs from the target along a rigid bond only: nothing is rejected."""

    def pushing(positions):
        forces = target(positions)
        along = positions[1] - positions[0]
        forces[0] -= 3000.0 * along
        forces[1] += 3000.0 * along
        return forces

    rates = []
    for kind in (Middle, Unprojected):
        scheme = kind(TEMPERATURE, 1.0 / STEP_SIZE, STEP_SIZE, PROJECTION)
        sampler = make_sampler(scheme, MASSES, pushing, target, 8, 1, correction="none")
        sampler.set_state(*(each[0] for each in starts(1, np.random.default_rng(5))))
        sampler.advance(100)
        rates.append(sampler.statistics.steps_per_round)
    assert rates[0] > 7 and rates[1] < 3, rates


def test_the_shifted_kick_lands_on_the_drafted_positions():
    rng = np.random.default_rng(7)
    scheme = make_scheme()
    (positions,), (velocities,) = starts(1, rng)
    other = velocities + PROJECTION.velocities(positions, 0.3 * rng.standard_normal((4, 3)))
    scale = scheme.noise_scale(reciprocal(MASSES[:, None]))
    kick = scale * rng.standard_normal((4, 3))
    drafted, aimed = 50.0 * rng.standard_normal((2, 4, 3))
    shift = scheme.kick_shift(positions, other, velocities, aimed, drafted)
    there, _ = scheme.step(positions, velocities, drafted, kick)
    again, _ = scheme.step(positions, other, aimed, kick - shift)
    np.testing.assert_allclose(again, there, atol=1e-9)


def test_a_step_is_that_of_openmm():
    """Without noise: positions and velocities of LangevinMiddleIntegrator, constraints and all."""
    system, force = openmm.System(), openmm.CustomExternalForce("40*(x^2+1.5*y^2+2*z^2)+9*x*y*z")
    for index, mass in enumerate(MASSES):
        system.addParticle(mass)
        force.addParticle(index)
    for (i, j), length in zip(PAIRS, LENGTHS, strict=True):
        system.addConstraint(i, j, length)
    system.addForce(force)
    integrator = openmm.LangevinMiddleIntegrator(0.0, 1.0, 0.004)
    integrator.setConstraintTolerance(1e-11)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatform("Reference"))
    (positions,), (velocities,) = starts(1, np.random.default_rng(9))
    context.setPositions(positions)
    context.setVelocities(velocities)
    scheme = Middle(1e-9, 1.0, 0.004, PROJECTION)
    for _ in range(20):
        state = context.getState(forces=True)
        acceleration = state.getForces(asNumpy=True)._value / MASSES[:, None]
        positions, velocities = scheme.step(positions, velocities, acceleration, np.zeros((4, 3)))
        integrator.step(1)
        state = context.getState(positions=True, velocities=True)
        there = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
        np.testing.assert_allclose(positions, there, atol=1e-9)
        np.testing.assert_allclose(velocities, state.getVelocities(asNumpy=True)._value, atol=1e-6)


def test_projections():
    rng = np.random.default_rng(11)
    triangle = PlainProjection([(0, 1), (0, 2), (1, 2)], [0.1, 0.1, 0.16], [16.0, 1.0, 0.0])
    flat = np.array([[0.0, 0.0, 0.0], [0.08, 0.06, 0.0], [-0.08, 0.06, 0.0]])
    moved = triangle.positions(flat, flat + 0.003 * rng.standard_normal((6, 3, 3)))
    for (i, j), length in zip([(0, 1), (0, 2), (1, 2)], [0.1, 0.1, 0.16], strict=True):
        apart = np.linalg.norm(moved[:, i] - moved[:, j], axis=1)
        np.testing.assert_allclose(apart, length, rtol=1e-9)
    velocities = rng.standard_normal((6, 3, 3))
    once = triangle.velocities(moved, velocities)
    np.testing.assert_allclose(triangle.velocities(moved, once), once, atol=1e-8)
    np.testing.assert_array_equal(once[:, 2], velocities[:, 2])  # no mass
    with pytest.raises(ValueError, match="zero mass"):
        PlainProjection([(0, 1)], [0.1], [0.0, 0.0])
    with pytest.raises(ValueError, match="cannot be met"):
        triangle.positions(flat, 0.0 * flat)
