"""Constraints in the Middle scheme: against OpenMM, and the law of speculation with them.
test_law_of_constraints.py has the law through Simulations.

A chain of four particles with two rigid bonds, whose draft is bad, also along the constraints: 3000
runs against 20,000 of the plain scheme, the moments of law.py at two times. In the fault that
is planted noise is never reflected.
"""

import dataclasses

import numpy as np
import openmm
import pytest
from law import KT, TEMPERATURE, make_sampler, plain_ensemble, speculative_ensemble, worst, z_scores
from openmm import unit
from openmm_lsd._native import Valence

from openmm_lsd.contexts.constraints import SystemProjection, constraints_of
from openmm_lsd.contexts.forcecontext import ForceContext
from openmm_lsd.core.constraints import ConstraintError, PlainProjection
from openmm_lsd.core.corrections import Corrections
from openmm_lsd.core.engine import NumpyEngine
from openmm_lsd.core.schemes import ABOBA, Middle, reciprocal
from openmm_lsd.core.transport import transport
from openmm_lsd.core.window import Draws, State
from openmm_lsd.drafts.autodraft import auto_draft
from openmm_lsd.drafts.draft import Draft
from openmm_lsd.drafts.learning import add_normal_equations
from openmm_lsd.drafts.molgraph import MolecularGraph
from openmm_lsd.drafts.nativeengine import NativeEngine
from openmm_lsd.drafts.valence import ANGLE, ATOMS_OF_KIND, DISTANCE, ValenceTerms

REFERENCE = openmm.Platform.getPlatform("Reference")
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


def ensemble(runs=RUNS, **options):
    begin = starts(runs, np.random.default_rng(3))
    return speculative_ensemble(make_scheme(), target, draft, MASSES, begin, STEPS, 3, **options)


def test_the_law_is_that_of_the_plain_scheme(reference):
    states, rate = ensemble()
    assert 0.15 < rate < 0.95
    name, score = worst(z_scores(states, reference))
    assert abs(score) < Z, f"{name}: z = {score:.1f}"


class AcceptsAll(NumpyEngine):
    def transport(self, noise, shift, log_uniform):
        return transport(noise, shift, -np.inf)[0], True


def test_noise_that_is_never_reflected_is_caught(reference):
    states, _ = ensemble(runs=300, engine=AcceptsAll)
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


def system_of_constraints():
    """A rigid water, and a chain of four with two constraints in a row and one apart."""
    system, force = openmm.System(), openmm.CustomExternalForce("40*(x^2+1.5*y^2+2*z^2)+9*x*y*z")
    masses = [*MASSES, 15.999, 1.008, 1.008]
    for index, mass in enumerate(masses):
        system.addParticle(mass)
        force.addParticle(index)
    for (i, j), length in zip([*PAIRS, (0, 2)], [*LENGTHS, 0.6], strict=True):
        system.addConstraint(i, j, length)
    for i, j, length in ((4, 5, 0.09572), (4, 6, 0.09572), (5, 6, 0.15139)):
        system.addConstraint(i, j, length)
    system.addForce(force)
    water = np.array([[0.0, 0.0, 0.0], [0.0757, 0.0586, 0.0], [-0.0757, 0.0586, 0.0]])
    positions = np.concatenate([PLACES, water + np.array([0.2, 0.4, 0.1])])
    return system, positions, np.array(masses)


def start_of(context, positions, masses, seed):
    """The Context's positions and velocities: random, on the constraints."""
    rng = np.random.default_rng(seed)
    context.setPositions(positions + 0.003 * rng.standard_normal(positions.shape))
    context.applyConstraints(1e-12)
    speeds = np.sqrt(KT / masses)[:, None]
    context.setVelocities(speeds * rng.standard_normal(positions.shape))
    return state_in(context)


def state_in(context):
    state = context.getState(positions=True, velocities=True)
    positions = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
    return np.array(positions), np.array(state.getVelocities(asNumpy=True)._value)


def plain_program(noise_name):
    """LangevinMiddleIntegrator's step, with noise that is given."""
    program = openmm.CustomIntegrator(0.002)
    program.addPerDofVariable(noise_name, 0.0)
    program.addPerDofVariable("free", 0.0)
    for variable, expression in (
        ("v", "v + dt*f/m"),
        (None, None),
        ("x", "x + 0.5*dt*v"),
        ("v", f"exp(-0.02)*v + {noise_name}"),
        ("x", "x + 0.5*dt*v"),
        ("free", "x"),
    ):
        if variable is None:
            program.addConstrainVelocities()
        else:
            program.addComputePerDof(variable, expression)
    program.addConstrainPositions()
    program.addComputePerDof("v", "v + (x-free)/dt")
    return program


@pytest.mark.parametrize("solver", [SystemProjection, None], ids=["OpenMM", "plain"])
@pytest.mark.parametrize("tolerance", [1e-5, 1e-11])
def test_steps_of_the_same_noise(solver, tolerance):
    """As OpenMM's own kernels do them, up to the tolerance: positions, velocities."""
    system, positions, masses = system_of_constraints()
    program = plain_program("kick")
    program.setConstraintTolerance(tolerance)
    context = openmm.Context(system, program, REFERENCE)
    x, v = start_of(context, positions, masses, 3)
    if solver is None:
        pairs, lengths = zip(*constraints_of(system).items(), strict=True)
        projection = PlainProjection(pairs, lengths, masses, 1e-12)
    else:
        projection = SystemProjection(system, tolerance)
    scheme = Middle(TEMPERATURE, 10.0, 0.002, projection)
    scale = scheme.noise_scale(reciprocal(masses[:, None]))
    rng = np.random.default_rng(4)
    for _ in range(20):
        kick = scale * rng.standard_normal(x.shape)
        acceleration = context.getState(forces=True).getForces(asNumpy=True)._value
        program.setPerDofVariableByName("kick", [openmm.Vec3(*row) for row in kick])
        program.step(1)
        x, v = scheme.step(x, v, acceleration / masses[:, None], kick)
        there, speeds = state_in(context)
        error = max(tolerance, 1e-7)  # OpenMM's SETTLE rounds lengths
        np.testing.assert_allclose(x, there, atol=3 * error)
        np.testing.assert_allclose(v, speeds, atol=3e3 * error)


@pytest.mark.parametrize("place", [0.0, 300.0])
@pytest.mark.parametrize("waters", [1, 3, 4, 9])
def test_rigid_waters(waters, place):
    """Of any shape and masses, however many, and however far from the origin."""
    rng = np.random.default_rng(waters)
    masses, pairs, lengths, positions = [], [], [], []
    for first in range(0, 3 * waters, 3):
        corners = 0.1 * np.eye(3) + 0.02 * rng.standard_normal((3, 3))
        sides = [(0, 1), (2, 0), (1, 2)]
        masses += rng.uniform(1.0, 20.0, 3).tolist()
        pairs += [(first + i, first + j) for i, j in sides]
        lengths += [float(np.linalg.norm(corners[i] - corners[j])) for i, j in sides]
        positions.append(corners + place)
    order = rng.permutation(3 * waters)  # molecules need not be in a row
    system = openmm.System()
    for old in order:
        system.addParticle(masses[old])
    new = np.argsort(order)
    for c in rng.permutation(len(pairs)):
        system.addConstraint(int(new[pairs[c][0]]), int(new[pairs[c][1]]), lengths[c])
    positions = np.concatenate(positions)[order]
    plain = PlainProjection(
        *zip(*constraints_of(system).items(), strict=True), np.array(masses)[order], 1e-13
    )
    ours = SystemProjection(system, 1e-5)
    moved = positions + 1e-3 * rng.standard_normal((5, *positions.shape))
    rounding = 1e-15 * max(1.0, place)
    velocities = rng.standard_normal(moved.shape)
    np.testing.assert_allclose(
        ours.velocities(positions, velocities),
        plain.velocities(np.broadcast_to(positions, moved.shape), velocities),
        atol=1e-8 + 1e5 * rounding,
    )
    if place == 0.0:
        there = plain.positions(np.broadcast_to(positions, moved.shape), moved)
        np.testing.assert_allclose(ours.positions(positions, moved), there, atol=1e-11)
    found = ours.positions(positions, moved)
    for (i, j), length in constraints_of(system).items():
        apart = np.linalg.norm(found[:, i] - found[:, j], axis=-1)
        np.testing.assert_allclose(apart, length, atol=3 * rounding + 1e-13)
    with pytest.raises(ConstraintError):
        ours.positions(positions, 1e3 * moved * rng.standard_normal(moved.shape))


@pytest.mark.parametrize("with_noise", [False, True])
def test_the_kick_is_found_again(with_noise):
    system, positions, masses = system_of_constraints()
    scheme = Middle(TEMPERATURE, 10.0, 0.002, SystemProjection(system, 1e-5))
    rng = np.random.default_rng(6)
    acceleration, kick = 300 * rng.standard_normal((7, 3)), np.zeros((7, 3))
    if with_noise:
        kick = scheme.noise_scale(reciprocal(masses[:, None])) * rng.standard_normal((7, 3))
    before = positions, rng.standard_normal((7, 3))
    after = scheme.step(*before, acceleration, kick)
    np.testing.assert_allclose(scheme.find_kick(before, acceleration, after), kick, atol=1e-11)


@pytest.mark.parametrize("is_cut", [False, True])
def test_native_engine_is_that_of_numpy(is_cut):
    """Draft and commit; and where the constraints cannot be met."""
    system, positions, masses = system_of_constraints()
    rng = np.random.default_rng(8)
    projection = SystemProjection(system, 1e-8)
    scheme = Middle(TEMPERATURE, 10.0, 0.002, projection)
    draft = Draft(ForceContext(system, REFERENCE))
    draws = Draws(
        rng.standard_normal((8, 7, 3)), np.log(rng.uniform(size=8)), np.arange(8) % 3 == 0
    )
    corrections = 100.0 * rng.standard_normal((8, 7, 3))
    if is_cut:
        corrections[4, 4] = [1e9, 0.0, 0.0]
    state = State(positions, projection.velocities(positions, rng.standard_normal((7, 3))), 0)
    windows = [
        kind(scheme, masses, draft).draft(state, Corrections(corrections), draws)
        for kind in (NativeEngine, NumpyEngine)
    ]
    for ours, theirs in zip(*(each[:4] for each in windows), strict=True):
        assert len(ours) == (5 if is_cut else 8)
        np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-7)
    forces = windows[1].draft_forces + 20.0 * rng.standard_normal((len(windows[1].sites), 7, 3))
    if is_cut:
        forces[2, 4] = [1e9, 0.0, 0.0]
    committed = [
        kind(scheme, masses, draft).commit(
            state, windows[1], forces, draws._replace(log_uniforms=np.full(8, -1e3))
        )
        for kind in (NativeEngine, NumpyEngine)
    ]
    for ours, theirs in zip(*committed, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-7)
    assert len(committed[0].positions) == (2 if is_cut else 8)
    assert len(committed[0].noise_shifts) == (2 if is_cut else 7)
    forces[0, 4] = [1e9, 0.0, 0.0]
    for kind in (NativeEngine, NumpyEngine):
        with pytest.raises(ConstraintError, match="cannot be met"):
            kind(scheme, masses, draft).commit(state, windows[1], forces, draws)


def test_what_is_learned_is_projected():
    """Features of the native equations are what constraints leave of the forces."""
    system, positions, masses = system_of_constraints()
    constraints = np.array(sorted(constraints_of(system)))
    kinds, atoms = [0, 0, 1, 2], [[0, 3, 0, 0], [1, 4, 0, 0], [0, 2, 6, 0], [1, 0, 2, 5]]
    terms = ValenceTerms(
        particles=7,
        kinds=np.array(kinds, dtype=np.int32),
        atoms=np.array(atoms, dtype=np.int32),
        references=np.array([0.3, 0.4, 1.5, 0.0]),
        limits=np.full(4, np.inf),
        factors=np.array(
            [[0, -1, -1, -1], [1, 1, -1, -1], [2, 3, -1, -1], [0, 2, 2, -1]], dtype=np.int32
        ),
        classes=np.arange(4, dtype=np.int32),
    )
    native = Valence(*(getattr(terms, field.name) for field in dataclasses.fields(terms)))
    rng = np.random.default_rng(10)
    states, before = positions + 0.01 * rng.standard_normal((2, 3, 7, 3))
    residuals, weights = rng.standard_normal((3, 21)), np.repeat(masses**-0.5, 3)
    offset, scales = rng.standard_normal(4), rng.uniform(1.0, 2.0, 3)
    native.set_constraints(constraints.astype(np.int32), reciprocal(masses))
    projection = SystemProjection(system, 1e-12)

    def features(at):
        rows = []
        for parameter in np.eye(4):
            native.set_parameters(parameter)
            forces = native.forces(at, None) / masses[:, None]
            left = masses[:, None] * projection.velocities(at, forces)
            rows.append(left.reshape(len(at), -1))
        return np.stack(rows, axis=-1)

    sums = [(np.zeros((4, 4)), np.zeros(4)) for _ in range(2)]
    rest = residuals, weights, offset, scales
    native.add_normal_equations(states, before, *rest, *sums[0])
    add_normal_equations(features(states), features(before), *rest, *sums[1])
    for ours, theirs in zip(*sums, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6 * np.abs(theirs).max())


def test_rigid_parts_have_no_terms():
    """A water and the bonds to hydrogen of ethane."""
    elements = np.array([8, 1, 1, 6, 6, 1, 1, 1, 1, 1, 1])
    bonds = [(0, 1), (0, 2), (3, 4), *((3, h) for h in (5, 6, 7)), *((4, h) for h in (8, 9, 10))]
    graph = MolecularGraph(elements, np.array(bonds))
    positions = np.random.default_rng(1).standard_normal((11, 3))
    fixed = np.array([(0, 1), (0, 2), (1, 2), *bonds[3:]])
    terms = auto_draft(graph, positions, constraints=fixed).terms
    named = {
        (kind, *each[: ATOMS_OF_KIND[kind]])
        for kind, each in zip(terms.kinds.tolist(), terms.atoms.tolist(), strict=True)
    }
    assert {each for each in named if each[0] == DISTANCE} == {(DISTANCE, 3, 4)}
    assert len({each for each in named if each[0] == ANGLE}) == 12
    assert not any(set(each[1:]) & {0, 1, 2} for each in named)
    free = auto_draft(graph, positions).terms
    assert len(free.kinds) == len(terms.kinds) + 8 + 1


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
    context = openmm.Context(system, integrator, REFERENCE)
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
    fixed = PlainProjection([(0, 1)], [0.1], [0.0, 0.0, 1.0])
    np.testing.assert_array_equal(fixed.positions(flat, flat), flat)
    with pytest.raises(ValueError, match="cannot be met"):
        triangle.positions(flat, 0.0 * flat)
    with pytest.raises(ValueError, match="use 'middle'"):
        ABOBA(300.0, 1.0, 0.001, triangle)
    draft = Draft(ForceContext(system_of_constraints()[0], REFERENCE))
    with pytest.raises(TypeError, match="a PlainProjection; native steps need a SystemProjection"):
        NativeEngine(Middle(300.0, 1.0, 0.001, triangle), np.ones(7), draft)
