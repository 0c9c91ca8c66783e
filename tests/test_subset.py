"""Draft and target that differ on a subset only: the same steps as with arrays of all particles.

The engine of a subset against the one that handles everything, both driven by the same noise: that
says all about the distribution, as long as the law of the latter is tested elsewhere.
"""

import dataclasses
import weakref
from types import SimpleNamespace

import numpy as np
import openmm
import pytest

from openmm_lsd.contexts.constraints import SystemProjection
from openmm_lsd.contexts.forcecontext import ForceContext
from openmm_lsd.core.constraints import PlainProjection
from openmm_lsd.core.correctors import make_corrector
from openmm_lsd.core.engine import NumpyEngine
from openmm_lsd.core.errors import TargetError
from openmm_lsd.core.noise import NoiseOfRest, StepNoise
from openmm_lsd.core.sampler import SpeculativeSampler
from openmm_lsd.core.schemes import ABOBA, Middle, remove_cm_motion
from openmm_lsd.core.subset import Reduction, SubsetEngine, pad
from openmm_lsd.core.verifier import ForcePair
from openmm_lsd.drafts.draft import Draft
from openmm_lsd.drafts.nativeengine import NativeSubsetEngine

MASSES = np.array([12.0, 1.0, 16.0, 14.0, 3.0, 0.0, 7.0, 1.0])
SUBSET = np.array([1, 4, 2])  # in any order
RNG = np.random.default_rng(3)
START = RNG.normal(0.0, 0.1, (8, 3))
SPEEDS = RNG.normal(0.0, 0.5, (8, 3))
BONDS = [(0, 7), (4, 2), (3, 6)]  # where constrained
LENGTHS = np.array([np.linalg.norm(START[i] - START[j]) for i, j in BONDS])


def shared(positions):
    """Couples everything."""
    apart = positions[:, None] - positions[None]
    return -40.0 * positions**3 - 30.0 * np.tanh(apart).sum(axis=1)


def stand_in(positions):
    return -900.0 * (positions - START[SUBSET])


def slow(positions):
    apart = positions[:, None] - positions[None]
    return -1500.0 * (positions - START[SUBSET]) - 200.0 * np.tanh(2.0 * apart).sum(axis=1)


def on_all(positions, forces):
    result = shared(positions)
    result[SUBSET] += forces(positions[SUBSET])
    return result


def projection_of(particles):
    """Of these particles and, if they are not all, of the rest as one more."""
    index = {particle: row for row, particle in enumerate(particles)}
    pairs = [(index[i], index[j]) for i, j in BONDS if i in index and j in index]
    lengths = [LENGTHS[k] for k, (i, j) in enumerate(BONDS) if i in index and j in index]
    masses = MASSES[particles]
    if len(particles) < len(MASSES):
        masses = np.append(masses, 1.0)
    return PlainProjection(pairs, lengths, masses, 1e-12)


CASES = [(Middle, False), (Middle, True), (ABOBA, False)]


def scheme_of(kind, constrained):
    projection = projection_of(np.arange(8)) if constrained else None
    return kind(300.0, 5.0, 0.004, projection)


class OfSubset(StepNoise):
    """The noise of all, of which the subset takes its own."""

    def draw(self, step, count, step_count):
        draws = super().draw(step, count, step_count)
        return draws._replace(noise=np.ascontiguousarray(draws.noise[:, SUBSET]))


class OfAll(NoiseOfRest):
    """The rest takes the same noise as if it were drawn with that of the subset."""

    def __call__(self, step, count):
        return list(StepNoise(self._seed, *self._shape[:1])(step, count)[0])


def samplers(kind, constrained, frequency, engine=SubsetEngine, **options):
    """One of everything, one of the subset; with the same noise."""
    scheme = scheme_of(kind, constrained)
    reduced = projection_of(SUBSET) if constrained else None
    options = {"correction": "per-step", **options}
    made = type("WithNoise", (engine,), {"noise_of_rest": OfAll})(
        scheme, MASSES, shared, stand_in, SUBSET, 11, reduced
    )
    whole = SpeculativeSampler.of_forces(
        scheme,
        MASSES,
        lambda q: on_all(q, stand_in),
        lambda q: np.stack([on_all(each, slow) for each in q]),
        6,
        11,
        cm_removal_frequency=frequency,
        **options,
    )
    part = SpeculativeSampler(
        made,
        ForcePair(lambda q: np.stack([slow(each) for each in q])),
        OfSubset(11, len(MASSES), frequency),
        6,
        corrector=make_corrector(options["correction"], scheme, MASSES[SUBSET, None]),
    )
    velocities = SPEEDS if not constrained else scheme.projection.velocities(START, SPEEDS)
    for sampler in (whole, part):
        sampler.set_state(START, velocities)
    return whole, part


def differences(whole, part, steps=40):
    return max(
        float(np.abs(one - other).max())
        for _ in range(steps)
        for one, other in zip(whole.advance(1), part.advance(1), strict=True)
    )


@pytest.mark.parametrize("frequency", [0, 1, 3])
@pytest.mark.parametrize(("kind", "constrained"), CASES)
def test_the_same_path_as_with_all_particles(kind, constrained, frequency):
    whole, part = samplers(kind, constrained, frequency)
    assert differences(whole, part) < 1e-9
    statistics = part.statistics
    assert statistics.rounds == whole.statistics.rounds
    assert statistics.accepted > 10 and statistics.rejected > 5
    measured = part.snapshot()["lesson"] or part.snapshot()["corrections"]
    assert np.shape(measured[0])[1:] == (3, 3)  # arrays of the subset


class NoMotionOfTheRest(SubsetEngine):
    """Forgets that the motion of the centre of mass moves the rest, too."""

    def commit(self, state, window, target_forces, draws):
        committed = super().commit(state, window, target_forces, draws)
        moves = np.zeros_like(committed.reduction.moves)
        reduction = SimpleNamespace(subset=self.subset, moves=moves)
        return dataclasses.replace(committed, reduction=reduction)


class OtherNoise(SubsetEngine):
    """The noise of the rest that enters the shift is not that which has moved it."""

    def commit(self, state, window, target_forces, draws):
        noise = np.random.default_rng(state.step).standard_normal(window.whole.noise.shape)
        window = window._replace(whole=window.whole._replace(noise=noise))
        return super().commit(state, window, target_forces, draws)


class ForcesOfAnotherSite(SubsetEngine):
    """The shared forces of a step are those of the site before."""

    def commit(self, state, window, target_forces, draws):
        late = np.roll(window.whole.shared_forces, 1, axis=0)
        late[0] = window.whole.shared_forces[0]
        window = window._replace(whole=window.whole._replace(shared_forces=late))
        return super().commit(state, window, target_forces, draws)


@pytest.mark.parametrize("fault", [NoMotionOfTheRest, OtherNoise, ForcesOfAnotherSite])
def test_planted_faults_show(fault):
    assert differences(*samplers(Middle, False, 1, fault)) > 1e-4


def test_learning_corrections_of_the_subset():
    """Jacobians and secants see the subset alone; the path is an exact one all the same."""
    _, part = samplers(Middle, True, 1, correction="secant")
    first = part.snapshot()["states"][0]
    part.advance(1)
    steps = [first[:2]]
    for _ in range(200):
        steps.append(tuple(map(np.copy, part.advance(1))))
    assert part.statistics.steps_per_round > 2.0
    scheme = scheme_of(Middle, True)
    for positions, velocities in steps:
        np.testing.assert_allclose(
            [np.linalg.norm(positions[i] - positions[j]) for i, j in BONDS], LENGTHS, rtol=1e-9
        )
        kept = scheme.projection.velocities(positions, velocities)
        assert np.isfinite(kept).all()


def test_reduction_commutes_with_what_a_step_does():
    reduction = Reduction(SUBSET, MASSES[:, None])
    still = np.where(MASSES[:, None] > 0, SPEEDS, 0.0)
    np.testing.assert_allclose(
        reduction.vectors(remove_cm_motion(still, MASSES[:, None])),
        remove_cm_motion(reduction.vectors(still), reduction.masses),
        atol=1e-14,
    )
    assert reduction.masses.sum() == MASSES.sum()
    noise = np.random.default_rng(0).standard_normal((40_000, 8, 3))
    both = np.concatenate([noise[:, SUBSET], reduction.noise(noise)[:, None]], axis=1)
    np.testing.assert_allclose(np.cov(both[..., 0].T), np.eye(4), atol=0.03)


def test_noise_of_the_rest_is_a_function_of_seed_and_step():
    noise = NoiseOfRest(7, 5)
    window = [each.copy() for each in noise(3, 6)]
    later = [each.copy() for each in noise(6, 6)]
    np.testing.assert_array_equal(window[3:], later[:3])
    np.testing.assert_array_equal(window, noise(3, 6))
    np.testing.assert_array_equal(window, NoiseOfRest(7, 5)(3, 6))
    assert np.abs(np.array(NoiseOfRest(8, 5)(3, 6)) - window).min(axis=(1, 2)).all()
    drawn_beside = StepNoise(7, 5000)(3, 1)[0][0, :5]
    assert np.abs(NoiseOfRest(7, 5000)(3, 1)[0][:5] - drawn_beside).min() > 0


@pytest.mark.parametrize("particles", [5, 5000])
def test_noise_of_the_rest_is_normal(particles):
    noise = NoiseOfRest(1, particles)
    rows = np.concatenate([np.array(noise(step, 4))[:1].ravel() for step in range(0, 400, 2)])
    assert abs(rows.mean()) < 5 / np.sqrt(len(rows))
    assert abs(rows.var() - 1) < 5 * np.sqrt(2 / len(rows))
    np.testing.assert_allclose(np.mean(rows**4), 3.0, atol=5 * np.sqrt(96 / len(rows)))


def test_committed_states_are_kept_as_long_as_somebody_may_ask():
    """And no longer: the path of the window before is let go of when the next one is drafted."""
    windows = []

    class Watched(SubsetEngine):
        def draft(self, *arguments):
            window = super().draft(*arguments)
            windows.append(weakref.ref(window.whole.positions))
            assert all(each() is None for each in windows[:-1])
            return window

    _, part = samplers(Middle, False, 1, Watched)
    part.advance(60)
    assert len(windows) > 10


def test_a_subset_of_all_that_move():
    """The rest has no mass then, and its row means nothing."""
    masses = np.array([2.0, 0.0, 3.0])
    scheme = Middle(300.0, 1.0, 0.002)
    subset = np.array([0, 2])
    engine = SubsetEngine(scheme, masses, lambda q: -q, lambda q: -50.0 * q, subset, 5)
    plain = NumpyEngine(scheme, masses, lambda q: -q - 50.0 * q * (masses > 0)[:, None])
    results = []
    for each, factor, particles in ((engine, -80.0, subset), (plain, -81.0, slice(None))):
        noise = StepNoise(5, 3, 1)
        draw = noise.draw
        noise.draw = lambda *when, draw=draw, particles=particles: draw(*when)._replace(
            noise=np.ascontiguousarray(draw(*when).noise[:, particles])
        )
        target = ForcePair(lambda q, factor=factor: factor * q)
        sampler = SpeculativeSampler(each, target, noise, 4)
        sampler.set_state(START[:3], np.zeros((3, 3)))
        results.append(np.stack(sampler.advance(30)))
    np.testing.assert_allclose(*results, atol=1e-9)


@pytest.mark.parametrize("bad", [np.nan, "raise"])
def test_shared_forces_that_fail(bad):
    """At a later site they end the window; at a committed state they are the target's failure."""
    calls = []

    def failing(positions):
        calls.append(len(calls))
        if len(calls) in (5, 8) or len(calls) > 30:
            if bad == "raise":
                raise ArithmeticError("no")
            return np.full_like(positions, bad)
        return shared(positions)

    sampler = SpeculativeSampler.of_forces(
        Middle(300.0, 5.0, 0.004),
        MASSES,
        slow,
        lambda q: np.stack([slow(each) for each in q]),
        6,
        11,
        engine=lambda scheme, masses, draft: SubsetEngine(
            scheme, masses, failing, draft, SUBSET, 11
        ),
    )
    sampler.set_state(START, SPEEDS)
    with pytest.raises(TargetError, match=r"step \d+: the forces that it shares"):
        sampler.advance(100)
    assert sampler.state.step > 6
    assert np.isfinite(sampler.state.positions).all()


def test_padded_rows_are_zero():
    assert not pad(np.ones((2, 3, 3)))[:, -1].any()


# Natively


def system_of(masses, bonds):
    system = openmm.System()
    for mass in masses:
        system.addParticle(mass)
    for i, j, length in bonds:
        system.addConstraint(i, j, length)
    return system


def native_draft(count, strength):
    system = system_of(np.ones(count), [])
    field = openmm.CustomExternalForce(f"{strength}*(x^4+y^2+z^2+x*y*z)")
    pairs = openmm.CustomBondForce("3*r^2")
    for index in range(count):
        field.addParticle(index, [])
        for other in range(index):
            pairs.addBond(index, other, [])
    system.addForce(field)
    system.addForce(pairs)
    return Draft(ForceContext(system, openmm.Platform.getPlatform("Reference")))


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize(("kind", "constrained"), CASES)
def test_native_engine_is_that_of_numpy(kind, constrained, learns):
    """Windows, commits and what they leave, with removals of the motion of the centre of mass."""
    bonds = [(*pair, length) for pair, length in zip(BONDS, LENGTHS, strict=True)]
    rows = {particle: row for row, particle in enumerate(SUBSET)}
    inner = [(rows[i], rows[j], length) for i, j, length in bonds if i in rows and j in rows]
    projection, reduced = None, None
    if constrained:
        projection = SystemProjection(system_of(MASSES, bonds), 1e-12)
        reduced = SystemProjection(system_of([*MASSES[SUBSET], 1.0], inner), 1e-12)
    scheme = kind(300.0, 5.0, 0.004, projection)
    everything, own, target = native_draft(8, 40), native_draft(3, 300), native_draft(3, 500)
    paths = []
    for engine in (SubsetEngine, NativeSubsetEngine):
        sampler = SpeculativeSampler.of_forces(
            scheme,
            MASSES,
            own,
            lambda q: np.stack([target(each) for each in q]),
            6,
            11,
            engine=lambda scheme, masses, draft, engine=engine: engine(
                scheme, masses, everything, draft, SUBSET, 11, reduced
            ),
            cm_removal_frequency=3,
            correction="secant" if learns else "none",
        )
        speeds = SPEEDS if projection is None else projection.velocities(START, SPEEDS)
        sampler.set_state(START, speeds)
        steps = [tuple(map(np.copy, sampler.advance(1))) for _ in range(60)]
        paths.append((np.array(steps), sampler.statistics.rounds, sampler.statistics.rejected))
    assert paths[0][1:] == paths[1][1:]
    np.testing.assert_allclose(paths[0][0], paths[1][0], atol=1e-10)


def test_native_shared_forces_that_fail():
    """They end the window; at its first site they are the target's failure."""
    system = system_of(MASSES, [])
    wall = openmm.CustomExternalForce("sqrt(0.3-x)")  # NaN beyond
    wall.addParticle(0, [])
    system.addForce(wall)
    shared_draft = Draft(ForceContext(system, openmm.Platform.getPlatform("Reference")))
    sampler = SpeculativeSampler.of_forces(
        Middle(300.0, 5.0, 0.004),
        MASSES,
        native_draft(3, 300),
        lambda q: np.zeros_like(q),
        6,
        11,
        engine=lambda scheme, masses, draft: NativeSubsetEngine(
            scheme, masses, shared_draft, draft, SUBSET, 11
        ),
    )
    speeds = np.zeros_like(START)
    speeds[0, 0] = 5.0
    sampler.set_state(np.zeros_like(START), speeds)
    with pytest.raises(TargetError, match="shares with the draft are not finite"):
        sampler.advance(100)
    assert 6 < sampler.state.step < 40
    assert np.isfinite(sampler.state.positions).all()
