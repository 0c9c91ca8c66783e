"""A draft that learns: the fit, its schedule, what it may learn from, and the exact law."""

import dataclasses

import numpy as np
import openmm
import pytest
import test_law
from law import worst, z_scores
from openmm import app, unit
from test_law import TARGET, NoCorrection, Z, ensemble, plain

import openmm_lsd.learning as learning
from openmm_lsd import SpeculativeSampler
from openmm_lsd.autodraft import auto_draft
from openmm_lsd.draft import LearningDraft
from openmm_lsd.learning import Learner, RidgeRegression
from openmm_lsd.molgraph import graph_of_topology
from openmm_lsd.schemes import ABOBA, MOLAR_GAS_CONSTANT, Middle

STEM = "systems/alanine_dipeptide/alanine_dipeptide"


# The fit


@pytest.mark.parametrize("largest", [learning.LARGEST_WEIGHT, 1.5])
@pytest.mark.parametrize("differences", [False, True])
def test_ridge_regression_is_the_dense_solution(differences, largest, monkeypatch):
    monkeypatch.setattr(learning, "LARGEST_WEIGHT", largest)
    rng = np.random.default_rng(1)
    prior, memory, steps = rng.standard_normal(5), 3.0, [0.0, 1.0, 2.5]
    weights = rng.uniform(0.5, 2.0, 4)
    regression, a, b = RidgeRegression(prior), np.empty((0, 5)), np.empty(0)
    for age in steps:
        features, before = rng.standard_normal((2, 6, 4, 5))
        rows = features - before if differences else features
        values, at, importance = rng.standard_normal((6, 4)), rng.standard_normal(5), None
        scale = weights * np.ones((6, 1))
        if age > 0:
            importance = rng.uniform(0.1, 3.0, 6)
            scale *= np.sqrt(importance)[:, None]
        regression.age(age, memory)
        regression.add(
            features, before if differences else None, values - rows @ at, weights, at, importance
        )
        decay = np.exp(-0.5 * age / memory)
        a = np.concatenate([decay * a, (scale[:, :, None] * rows).reshape(-1, 5)])
        b = np.concatenate([decay * b, (scale * values).reshape(-1)])
    ridge = np.diag(np.sqrt(learning.RIDGE * np.square(a).sum(axis=0)))
    expected = np.linalg.lstsq(np.vstack([a, ridge]), np.append(b, ridge @ prior), rcond=None)[0]
    np.testing.assert_allclose(regression.solve(), expected, rtol=1e-9)


@pytest.mark.parametrize(("count", "ridge"), [(3, None), (4, 0.5), (0, 0.1), (5, 1e-6)])
def test_some_parameters_may_stay_at_the_prior(count, ridge):
    rng = np.random.default_rng(10)
    prior, rows, values = rng.standard_normal(5), rng.standard_normal((1, 30, 5)), np.ones((1, 30))
    regression = RidgeRegression(prior)
    regression.add(rows, None, values, np.ones(30), np.zeros(5))
    a = rows[0, :, :count]
    gram = a.T @ a
    gram += np.diag((learning.RIDGE if ridge is None else ridge) * np.diag(gram))
    # The others are at the prior in the equations, too.
    shift = np.linalg.solve(gram, a.T @ (values[0] - rows[0] @ prior))
    solution = regression.solve(count, ridge)
    np.testing.assert_allclose(solution[:count], prior[:count] + shift, rtol=1e-9)
    np.testing.assert_array_equal(solution[count:], prior[count:])


@pytest.mark.parametrize("entry", [-2.0, np.nan, np.inf])
def test_a_fit_that_is_not_positive_definite_is_nan(entry):
    regression = RidgeRegression(np.ones(3))
    regression.gram += np.eye(3)
    regression.gram[0, 2] = entry
    assert np.isnan(regression.solve()).all()
    np.testing.assert_array_equal(regression.solve(2), np.ones(3))


def test_what_is_very_old_is_forgotten():
    rng = np.random.default_rng(7)
    fresh, aged = (RidgeRegression(np.zeros(3)) for _ in range(2))
    aged.add(rng.standard_normal((1, 4, 3)), None, np.ones((1, 4)), np.ones(4), np.zeros(3))
    aged.age(1e6, 1.0)
    for regression in (fresh, aged):
        rows = np.random.default_rng(8).standard_normal((1, 4, 3))
        regression.add(rows, None, rows @ [1.0, 2.0, 3.0], np.ones(4), np.zeros(3))
    np.testing.assert_array_equal(aged.solve(), fresh.solve())


def test_what_no_equation_contains_stays_at_its_prior():
    regression = RidgeRegression(np.array([1.0, 2.0, 3.0]))
    features = np.random.default_rng(2).standard_normal((2, 20, 3)) * [1, 0, 1]
    regression.add(features, None, features @ [5.0, 7.0, -1.0], np.ones(20), np.zeros(3))
    np.testing.assert_allclose(regression.solve(), [5.0, 2.0, -1.0], atol=0.1)
    assert regression.solve()[1] == 2.0


def test_a_learner_forgets_step_by_step():
    """The same whether its steps come at once or one by one."""
    rng = np.random.default_rng(9)
    features, values = rng.standard_normal((40, 6, 4)), rng.standard_normal((40, 2, 3))
    memory = np.exp(np.arange(-39, 1) / learning.MEMORY)
    expected = np.triu(np.einsum("b,bep,beq->pq", memory, features, features))
    for sizes in ([1] * 40, [40]):
        learner, begin = Learner(np.zeros(4), np.ones(2)), 0
        for size in sizes:
            rows = slice(begin, begin + size)
            regression, begin = learner._regression, begin + size
            learner._next_fit = 1000
            assert not learner.learn(features[rows], values[rows], size)
        np.testing.assert_allclose(regression.gram / regression.weight, expected, rtol=1e-11)


def test_schedule_counts_steps_however_they_come():
    """What is learned from, and when parameters change, does not depend on the size of rounds."""
    results = []
    for sizes in ([1] * 1200, [7] * 171 + [3], [1200]):
        learner = Learner(np.zeros(1), np.ones(1))
        rows, changes, seen = [], [], 0
        for size in sizes:
            chosen = learner.chosen(size)
            rows += [seen + row for row in chosen]
            features = np.ones((len(chosen), 3, 1))
            if learner.learn(features, np.ones((len(chosen), 1, 3)), size):
                changes.append(seen + size)
            seen += size
        results.append((rows, changes))
    one_by_one, by_sevens, _ = results
    assert one_by_one[1] == [16, 32, 64, 128, 256, 512, 1024]
    assert by_sevens[1] == [21, 35, 70, 133, 259, 518, 1029]
    early = [row for row in one_by_one[0] if row < 256]
    assert early == list(range(0, 256, 2)) and one_by_one[0][128:] == list(range(260, 1200, 10))


def test_a_fit_that_is_not_finite_is_not_taken(caplog):
    learner = Learner(np.array([3.0]), np.ones(1))
    assert not learner.learn(np.full((1, 3, 1), np.nan), np.ones((1, 1, 3)), 20)
    assert learner.parameters.tolist() == [3.0] and "not finite" in caplog.text


# A target that the valence force field can be


class Known:
    """Alanine dipeptide with a valence force field of other parameters as the target."""

    def __init__(self):
        prmtop = app.AmberPrmtopFile(f"{STEM}.prmtop")
        self.topology = prmtop.topology
        positions = app.AmberInpcrdFile(f"{STEM}.inpcrd").getPositions(asNumpy=True)
        self.positions = positions.value_in_unit(unit.nanometer)
        self.system = prmtop.createSystem()
        self.masses = np.array([a.element.mass._value for a in self.topology.atoms()])
        self.terms, self.guesses = auto_draft(graph_of_topology(self.topology), self.positions)
        scale = np.random.default_rng(3).uniform(0.7, 1.6, len(self.guesses))
        self._target = LearningDraft(self.terms, scale * self.guesses, self.masses)

    def target(self, states):
        return np.array([self._target(state) for state in states])

    def draft(self, base=None):
        guesses = self.guesses if base is None else 0.0 * self.guesses
        return LearningDraft(self.terms, guesses, self.masses, base)

    def sampler(self, draft, seed=1, kind=Middle, window=16, sampler_class=SpeculativeSampler):
        sampler = sampler_class(
            kind(300.0, 1.0, 0.001), self.masses, draft, self.target, window, seed
        )
        speeds = np.sqrt(MOLAR_GAS_CONSTANT * 300.0 / self.masses)[:, None]
        velocities = speeds * np.random.default_rng(4).standard_normal(self.positions.shape)
        sampler.set_state(self.positions, velocities)
        return sampler


@pytest.fixture(scope="module")
def known():
    return Known()


@pytest.mark.parametrize("kind", [Middle, ABOBA])
def test_a_target_within_reach_is_learned(known, kind):
    sampler = known.sampler(known.draft(), kind=kind)
    sampler.advance(600)
    before = dataclasses.replace(sampler.statistics)
    sampler.advance(400)
    after = sampler.statistics
    learned = (after.steps - before.steps) / (after.rounds - before.rounds)
    guesses = known.draft()
    untaught = known.sampler(lambda positions: guesses(positions), kind=kind)
    untaught.advance(400)
    assert learned > 10 and untaught.statistics.steps_per_round < 6
    assert after.learning_seconds > 0 and "learning" in str(after)


def test_stored_corrections_belong_to_the_present_draft(known):
    """After a fit a correction is the target's force at the old site minus the new draft's."""

    class Watching(SpeculativeSampler):
        fits = 0

        def _learn_last_round(self):
            lesson, parameters = self._lesson, self._draft.parameters
            super()._learn_last_round()
            if lesson is not None and not np.array_equal(parameters, self._draft.parameters):
                last = min(lesson.committed, len(lesson.sites) - 1)
                expected = lesson.target_forces[last] - self._draft(lesson.sites[last])
                np.testing.assert_allclose(self._corrections[0], expected, atol=1e-8)
                self.fits += 1

    sampler = known.sampler(known.draft(), sampler_class=Watching)
    sampler.advance(200)
    assert sampler.fits >= 3


def test_the_same_seed_learns_the_same(known):
    runs = []
    for pieces in ([300], [1] * 40 + [260]):
        draft = known.draft()
        sampler = known.sampler(draft)
        for piece in pieces:
            state = sampler.advance(piece)
        runs.append((*state, draft.parameters))
    for ours, theirs in zip(*runs, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_noise_that_is_used_again_is_forgotten(known):
    """A run taken up at an earlier step is what it was the first time, draft included."""
    draft = known.draft()
    sampler = known.sampler(draft)
    start = sampler.state
    first = sampler.advance(200)
    learned = draft.parameters
    sampler.set_state(start.positions, start.velocities, 0)
    np.testing.assert_array_equal(draft.parameters, known.guesses)
    second = sampler.advance(200)
    for ours, theirs in zip(first, second, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(draft.parameters, learned)


def test_what_was_handed_out_is_all_that_was_learned(known):
    """New velocities at any step do not cost what was learned, for no later step was."""
    draft = known.draft()
    sampler = known.sampler(draft)
    rng = np.random.default_rng(5)
    for _ in range(40):
        state = sampler.advance(3)
        velocities = state[1] + 0.01 * rng.standard_normal(state[1].shape)
        sampler.set_state(state[0], velocities, sampler.state.step)
    assert not np.array_equal(draft.parameters, known.guesses)


def test_an_interrupted_lesson_changes_nothing_but_speed(known):
    class Interrupted(LearningDraft):
        countdown = 4

        def learn(self, *arguments):
            result = super().learn(*arguments)
            self.countdown -= 1
            if self.countdown == 0:
                raise KeyboardInterrupt
            return result

    draft = Interrupted(known.terms, known.guesses, known.masses)
    sampler = known.sampler(draft)
    with pytest.raises(KeyboardInterrupt):
        sampler.advance(500)
    step = sampler.state.step
    assert 0 < step < 500
    sampler.advance(500 - step)
    assert sampler.state.step == 500


def test_on_top_of_a_force_field(known):
    """amber's forces lack nothing but what the target has more: that is what is fitted."""
    from openmm_lsd.contexts import ForceContext

    base = ForceContext(known.system, openmm.Platform.getPlatform("Reference"))
    target = known.draft(base)
    stiffer = LearningDraft(known.terms, 0.2 * known.guesses, known.masses, base)
    np.testing.assert_allclose(target(known.positions), base.forces(known.positions[None])[0])
    sampler = known.sampler(target)
    sampler._target = lambda states: np.array([stiffer(state) for state in states])
    sampler.advance(600)
    before = dataclasses.replace(sampler.statistics)
    sampler.advance(300)
    after = sampler.statistics
    assert (after.steps - before.steps) / (after.rounds - before.rounds) > 12


# The exact law


class LinearDraft:
    """Springs to the origin and constant forces, learned with the Learner's own code."""

    def __init__(self):
        prior = np.repeat([0.2 * TARGET.stiffness, 0.0], [2, 6])
        self._learner = Learner(prior, TARGET.masses)
        self.fits = 0

    @staticmethod
    def features(positions):
        springs = np.zeros((6, 2))
        springs[:3, 0], springs[3:, 1] = -positions
        return np.hstack([springs, TARGET.stiffness * TARGET.length * np.eye(6)])

    def __call__(self, positions):
        return (self.features(positions) @ self._learner.parameters).reshape(2, 3)

    def start(self, step):
        self._learner.reset()

    def learn(self, step, sites, discrepancies):
        chosen = self._learner.chosen(len(sites))
        features = np.array([self.features(sites[row]) for row in chosen]).reshape(-1, 6, 8)
        changed = self._learner.learn(features, discrepancies[chosen], len(sites))
        self.fits += changed
        return changed


class LearnsFromTheNextSite(NoCorrection):
    """Learns from the first site of the window that the noise of an uncommitted step has shaped."""

    def _learn_last_round(self):
        lesson = self._lesson
        if lesson is not None and lesson.committed + 1 < len(lesson.target_forces):
            rows = slice(lesson.committed + 1, None)
            self._lesson = lesson._replace(
                sites=lesson.sites[rows],
                target_forces=lesson.target_forces[rows],
                discrepancies=lesson.discrepancies[rows],
                committed=1,
            )
        super()._learn_last_round()


@pytest.fixture(scope="module")
def reference():
    return plain(TARGET)


@pytest.fixture
def eager(monkeypatch):
    """Learns from every step, forgets at once and fits after every round."""
    for name, value in (
        ("FIRST_FIT", 1),
        ("EARLY", 1),
        ("MIDDLE", 1),
        ("EARLY_STRIDE", 1),
        ("LATE_STRIDE", 1),
        ("LATE_FITS", 1),
        ("MEMORY", 0.1),
        ("RIDGE", 1e-4),
    ):
        monkeypatch.setattr(learning, name, value)


def learned_ensemble(kind, **options):
    draft = LinearDraft()
    states, rate = ensemble(kind, TARGET, draft=draft, **options)
    return states, rate, draft.fits / test_law.RUNS


@pytest.mark.parametrize("kind", [Middle, ABOBA])
@pytest.mark.parametrize("sampler_class", [SpeculativeSampler, NoCorrection])
def test_law_while_learning(kind, sampler_class, reference, eager):
    states, rate, fits = learned_ensemble(kind, sampler_class=sampler_class)
    assert 0.15 < rate < 0.9 and fits > 1
    name, score = worst(z_scores(states, reference[kind]))
    assert abs(score) < Z, f"{name}: z = {score:.1f}"


@pytest.mark.parametrize("kind", [Middle, ABOBA])
def test_learning_from_uncommitted_steps_is_caught(kind, reference, eager):
    """Without corrections, which take back most of what a fit changes."""
    states, _, _ = learned_ensemble(kind, sampler_class=LearnsFromTheNextSite)
    name, score = worst(z_scores(states, reference[kind]))
    assert abs(score) > Z, f"{name}: z = {score:.1f}"
