"""A draft that learns: the fit, its schedule, what it may learn from, and the exact law."""

import dataclasses
import threading
import types
from itertools import pairwise

import numpy as np
import openmm
import pytest
import test_law
from law import Caught, make_sampler, worst, z_scores
from openmm import app, unit
from test_law import TARGET, Z, ensemble, plain

import openmm_lsd.drafts.learning as learning
from openmm_lsd import SpeculativeSampler
from openmm_lsd.core import beside, jacobian, lessons, prediction
from openmm_lsd.core.engine import NumpyEngine
from openmm_lsd.core.schemes import ABOBA, MOLAR_GAS_CONSTANT, Middle
from openmm_lsd.drafts.autodraft import auto_draft
from openmm_lsd.drafts.draft import LearningDraft
from openmm_lsd.drafts.learning import Learner, RidgeRegression
from openmm_lsd.drafts.molgraph import graph_of_topology
from openmm_lsd.drafts.nativeengine import NativeEngine

STEM = "systems/alanine_dipeptide/alanine_dipeptide"


# The fit


@pytest.mark.parametrize("count", [None, 3])
def test_ridge_regression_is_the_dense_solution(count):
    """Of states and of differences, the older the less; or for the first parameters only."""
    rng = np.random.default_rng(1)
    prior, importance, ridge = rng.standard_normal(5), 7.0, 0.01
    weights = rng.uniform(0.5, 2.0, 4)
    regression = RidgeRegression(prior)
    rows, values = [], []
    for turn in range(6):
        features, before = rng.standard_normal((2, 2, 4, 5))
        right, at = rng.standard_normal((2, 4)), rng.standard_normal(5)
        is_difference = turn % 2 == 1
        regression.age(0.8)
        regression.add(
            features,
            before if is_difference else None,
            right,
            weights,
            at,
            importance if is_difference else 1.0,
        )
        used = features - before if is_difference else features
        scale = np.sqrt(0.8 ** (5 - turn) * (importance if is_difference else 1.0)) * weights
        rows.append((scale[:, None] * used).reshape(-1, 5))
        values.append((scale * (right + used @ at)).reshape(-1))
    a, b = np.concatenate(rows)[:, :count], np.concatenate(values)
    b = b - np.concatenate(rows)[:, 5 if count is None else count :] @ prior[len(a[0]) :]
    held = np.diag(np.sqrt(ridge * np.square(a).sum(axis=0)))
    expected = prior.copy()
    expected[:count] = np.linalg.lstsq(
        np.vstack([a, held]), np.append(b, held @ prior[:count]), rcond=None
    )[0]
    np.testing.assert_allclose(regression.solve(ridge, count), expected, rtol=1e-9)


def test_weights_do_not_grow_without_bound():
    regression = RidgeRegression(np.zeros(1))
    for _ in range(100):
        regression.age(0.5)
        ones = np.ones((1, 1, 1))
        regression.add(ones, None, 3.0 * ones[0], np.ones(1), np.zeros(1))
    assert regression.weight < learning.LARGEST_WEIGHT
    np.testing.assert_allclose(regression.solve(0.5), [2.0])


def test_what_no_equation_contains_stays_at_its_prior():
    regression = RidgeRegression(np.array([1.0, 2.0, 3.0]))
    features = np.random.default_rng(2).standard_normal((1, 20, 3)) * [1, 0, 1]
    regression.add(features, None, features @ [5.0, 7.0, -1.0], np.ones(20), np.zeros(3))
    np.testing.assert_allclose(regression.solve(0.001), [5.0, 2.0, -1.0], atol=0.1)
    assert regression.solve(0.001)[1] == 2.0


def test_nothing_to_learn():
    assert RidgeRegression(np.zeros(0)).solve(0.001).shape == (0,)
    np.testing.assert_array_equal(RidgeRegression(np.ones(2)).solve(0.001, 0), np.ones(2))


def test_no_solution_is_not_finite():
    regression = RidgeRegression(np.ones(2))
    regression.gram[:] = [[1.0, 2.0], [0.0, 1.0]]  # no sum of squares is that
    assert np.isnan(regression.solve(0.0)).all()


class Recorded:
    """Blocks of equations, as ``add`` is given them; one parameter."""

    def __init__(self):
        self.states, self.differences = [], []

    def __call__(self, sites, before, residuals, weights, offset, scales, gram, moment):
        kept = self.states if before is None else self.differences
        gram += 1.0
        for row in range(len(sites)):
            step = sites[row].flat[0]
            assert (residuals[row] == (10.0 * step if before is None else 10.0)).all()
            assert before is None or before[row].flat[0] == step - 1
            kept.append(int(step))


def steps_for(learner, first, count):
    """Steps whose numbers are their sites; ten times that are the discrepancies."""
    sites = np.repeat(np.arange(first, first + count, dtype=float), 3).reshape(-1, 1, 3)
    return learner.learn(sites, 10.0 * sites)


def test_schedule_counts_steps_however_they_come():
    """What is learned from, and when parameters change, does not depend on the size of rounds."""
    results = []
    for sizes in ([1] * 5000, [7] * 714 + [2], [5000]):
        add = Recorded()
        learner = Learner(np.zeros(1), np.ones(1), (), add)
        changes, seen = [], 0
        for size in sizes:
            if steps_for(learner, seen, size):
                changes.append(seen + size)
            seen += size
        learner.add_equations()
        results.append((add.states, add.differences, changes))
    one_by_one, by_sevens, at_once = results
    assert one_by_one[0] == by_sevens[0] == at_once[0]
    assert one_by_one[2][:8] == [16, 32, 64, 128, 256, 512, 1024, 2048]
    assert by_sevens[2][:8] == [21, 35, 70, 133, 259, 518, 1029, 2051]
    expected = [
        *range(0, 128, 2),
        *range(128, 512, 4),
        *range(520, 2048, 20),
        *range(2100, 5000, 60),
    ]
    assert at_once[0] == expected
    assert at_once[1] == expected[1:]
    # The discrepancy before a fit is not that of the same draft.
    after_fits = {step for step in one_by_one[2] if step in expected}
    assert len(after_fits) > 4
    assert one_by_one[1] == [step for step in expected[1:] if step not in after_fits]


def test_steps_before_an_interruption_are_not_neighbours():
    add = Recorded()
    learner = Learner(np.zeros(1), np.ones(1), (), add)
    steps_for(learner, 0, 2)
    learner.break_sequence()
    steps_for(learner, 100, 2)
    learner.add_equations()
    assert add.states == [0, 100] and add.differences == []


def test_steps_in_two_boxes_are_not_neighbours(known, monkeypatch):
    """A barostat's move lies between them: forces have changed for another reason."""
    calls = []

    class Watched(Learner):
        def __init__(self, prior, masses, stages, add, *rest):
            def watched(sites, before, *others):
                calls.append((len(sites), before is not None))
                add(sites, before, *others)

            super().__init__(prior, masses, stages, watched, *rest)

    monkeypatch.setattr("openmm_lsd.drafts.draft.Learner", Watched)
    draft = known.draft()
    sites = np.repeat(known.positions[None], 3, axis=0)
    for turn, edge in enumerate((3.0, 3.0, 3.1, 3.2)):
        draft.set_environment(edge * np.eye(3), {})
        draft.learn(3 * turn, sites, 0.0 * sites)
    draft.set_environment(None, {})
    # Every second of twelve steps; step 6 comes just after the first move.
    assert calls == [(3, False), (2, True), (2, False), (1, True), (1, False), (1, True)]


def test_more_parameters_as_more_is_known():
    """Stages are fitted when there are six equations for each of their parameters."""
    rng = np.random.default_rng(5)
    prior = np.arange(40.0)
    learner = Learner(prior, np.ones(2), (2, 20, 40))
    changed = []
    for _ in range(8):
        learner.learn(rng.standard_normal((16, 6, 40)), rng.standard_normal((16, 2, 3)))
        changed.append(np.count_nonzero(learner.parameters != prior))
    # Fits after 16, 32, 64, 128 steps; six equations from every second one.
    assert changed == [2, 2, 2, 20, 20, 20, 20, 40]


def test_a_fit_that_is_not_finite_is_not_taken(caplog):
    learner = Learner(np.array([3.0]), np.ones(1))
    assert not learner.learn(np.full((20, 3, 1), np.nan), np.ones((20, 1, 3)))
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
        self.start = auto_draft(graph_of_topology(self.topology), self.positions)
        self._target = LearningDraft(self.changed(3), self.masses)

    def changed(self, seed):
        """The force field with other parameters."""
        scale = np.random.default_rng(seed).uniform(0.7, 1.6, len(self.start.guesses))
        return self.start._replace(guesses=scale * self.start.guesses)

    def target(self, states):
        return np.array([self._target(state) for state in states])

    def draft(self, base=None):
        start = self.start if base is None else self.start.without_guesses()
        return LearningDraft(start, self.masses, base)

    def sampler(self, draft, seed=1, kind=Middle, window=16, target=None, **options):
        scheme, target = kind(300.0, 1.0, 0.001), target or self.target
        options = {"engine": NativeEngine} | options
        sampler = make_sampler(scheme, self.masses, draft, target, window, seed, **options)
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
    untaught = known.sampler(lambda positions: guesses(positions), kind=kind, engine=NumpyEngine)
    untaught.advance(400)
    assert learned > 10 and untaught.statistics.steps_per_round < 6
    assert after.learning_seconds > 0 and "learning" in str(after)


@pytest.mark.parametrize("at_once", [True, False])
def test_stored_corrections_belong_to_the_present_draft(known, monkeypatch, at_once):
    """After a fit a correction is the target's force at the old site minus the new draft's."""
    monkeypatch.setattr(lessons, "LEARNED_AT_ONCE", np.inf if at_once else 0)
    monkeypatch.setattr(prediction, "SOLVED_EVERY", np.inf)

    class Watching(SpeculativeSampler):
        fits = 0

        def _round(self):
            parameters, last = draft.parameters, self._lessons.last
            if at_once:
                self._learn_at_once()
            else:
                super()._round()
                last = self._lessons.last
            if not np.array_equal(parameters, draft.parameters):
                row = min(last.committed, len(last.sites) - 1)
                expected = last.target_forces[row] - draft(last.sites[row])
                corrections = self._outlook.corrections
                assert corrections.secant is None and self._lessons.ahead is None
                np.testing.assert_allclose(corrections.forces[0], expected, atol=1e-8)
                self.fits += 1
            if at_once:
                super()._round()

    draft = known.draft()
    sampler = known.sampler(draft, sampler=Watching)
    sampler.advance(200)
    assert sampler.fits >= 3


def test_learning_goes_on_while_the_target_is_evaluated(known, monkeypatch):
    monkeypatch.setattr(lessons, "LEARNED_AT_ONCE", 0)
    begun, learned, forces = threading.Event(), [], known.target
    threads = threading.active_count()
    draft = known.draft()
    learn = draft.learn

    def waiting_learn(*lesson):
        together = begun.wait(5.0)
        learned.append(together)
        return learn(*lesson)

    def target(positions):
        begun.set()
        result = forces(positions)
        if len(learned) >= 3:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(draft, "learn", waiting_learn)
    monkeypatch.setattr(known, "target", target)
    sampler = known.sampler(draft)
    with pytest.raises(KeyboardInterrupt):
        for _ in range(200):
            begun.clear()
            sampler.advance(1)
    assert all(learned) and len(learned) >= 3
    assert threading.active_count() == threads  # nothing is left running


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
    np.testing.assert_array_equal(draft.parameters, known.start.guesses)
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
    assert not np.array_equal(draft.parameters, known.start.guesses)


@pytest.mark.parametrize("back", [0, 1, 30, 60])
def test_only_the_past_of_a_new_start_is_learned(known, back):
    """Rounds wait to be learned from together; a new start makes it plain what is past."""
    learned = []

    class Recorded(LearningDraft):
        def learn(self, step, sites, discrepancies):
            learned.append((step, step + len(sites)))
            return super().learn(step, sites, discrepancies)

    sampler = known.sampler(Recorded(known.start, known.masses))
    sampler.advance(700)
    assert any(end - step > 40 for step, end in learned)
    assert all(end == step for (_, end), (step, _) in pairwise(learned))
    known_until, state = learned[-1][1], sampler.state
    assert known_until < state.step
    start = state.step - back
    sampler.set_state(state.positions, state.velocities, start)
    assert learned[-1][1] <= max(start, known_until)
    if back == 0:
        assert state.step - sampler.window < learned[-1][1]


def test_an_interrupted_lesson_changes_nothing_but_speed(known):
    class Interrupted(LearningDraft):
        countdown = 4

        def learn(self, *arguments):
            result = super().learn(*arguments)
            self.countdown -= 1
            if self.countdown == 0:
                raise KeyboardInterrupt
            return result

    draft = Interrupted(known.start, known.masses)
    sampler = known.sampler(draft)
    with pytest.raises(KeyboardInterrupt):
        sampler.advance(500)
    step = sampler.state.step
    assert 0 < step < 500
    sampler.advance(500 - step)
    assert sampler.state.step == 500


def test_on_top_of_a_force_field(known):
    """amber's forces lack nothing but what the target has more: that is what is fitted."""
    from openmm_lsd.contexts.forcecontext import ForceContext

    base = ForceContext(known.system, openmm.Platform.getPlatform("Reference"))
    target = known.draft(base)
    bonds = known.start._replace(guesses=0.2 * known.start.guesses)
    stiffer = LearningDraft(bonds, known.masses, base)
    np.testing.assert_allclose(target(known.positions), base.forces(known.positions[None])[0])
    sampler = known.sampler(
        target, target=lambda states: np.array([stiffer(state) for state in states])
    )
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
        features = np.array([self.features(site) for site in sites])
        changed = self._learner.learn(features, discrepancies)
        self.fits += changed
        return changed


class LearnsFromTheNextSite(NumpyEngine):
    """Learns from the first site of the window that the noise of an uncommitted step has shaped."""

    def __init__(self, scheme, masses, draft):
        super().__init__(scheme, masses, draft)
        self.trainable = None  # nothing else teaches the draft
        draft.start(0)

    def commit(self, state, window, target_forces, draws):
        committed = super().commit(state, window, target_forces, draws)
        row = len(committed.positions) + 1
        if row < len(target_forces):
            discrepancy = target_forces[row] - window.draft_forces[row]
            self._draft.learn(state.step, window.sites[row : row + 1], discrepancy[None])
        return committed


@pytest.fixture(scope="module")
def reference():
    return plain(TARGET)


@pytest.fixture
def eager(monkeypatch):
    """Learns from every step, forgets at once and fits after every round."""
    for name, value in (
        ("FIRST_FIT", 1),
        ("STRIDES", ()),
        ("LAST_STRIDE", 1),
        ("LATE_FITS", 1),
        ("LAST_FITS", 1),
        ("MEMORY", 0.1),
        ("RIDGE_OF_ONE_STEP", 1e-4),
        ("LEAST_RIDGE", 1e-4),
    ):
        monkeypatch.setattr(learning, name, value)


class ThreadInTurn:
    """Does all of it when it is started or when it is waited for, by lot."""

    _lots = np.random.default_rng(21)

    def __init__(self, target):
        self._target, self._waits = target, self._lots.random() < 0.5

    def start(self):
        if not self._waits:
            self._target()

    def join(self):
        if self._waits:
            self._target()


@pytest.fixture
def in_turn(monkeypatch):
    """No threads: to wake one takes longer than what it has to do here."""
    monkeypatch.setattr(beside, "threading", types.SimpleNamespace(Thread=ThreadInTurn))


def learned_ensemble(kind, **options):
    draft = LinearDraft()
    states, rate = ensemble(kind, TARGET, draft=draft, **options)
    return states, rate, draft.fits / test_law.RUNS


@pytest.mark.parametrize(
    ("kind", "correction", "at_once"),  # every two of the three choices together
    [
        (Middle, "secant", lessons.LEARNED_AT_ONCE),
        (Middle, "none", 0),
        (ABOBA, "secant", 0),
        (ABOBA, "none", lessons.LEARNED_AT_ONCE),
    ],
)
def test_law_while_learning(kind, correction, at_once, reference, eager, in_turn, monkeypatch):
    monkeypatch.setattr(lessons, "LEARNED_AT_ONCE", at_once)
    states, rate, fits = learned_ensemble(kind, correction=correction)
    assert 0.15 < rate < 0.9 and fits > 1
    name, score = worst(z_scores(states, reference[kind]))
    assert abs(score) < Z, f"{name}: z = {score:.1f}"


@pytest.mark.parametrize("correction", ["secant", "none"])
def test_threads_take_the_same_path(correction, eager, monkeypatch, request):
    """However they and the evaluation of the target come one after another."""
    monkeypatch.setattr(lessons, "LEARNED_AT_ONCE", 0)
    states, _, fits = learned_ensemble(Middle, correction=correction, runs=100)
    assert fits > 0
    request.getfixturevalue("in_turn")
    for _ in range(2):  # other lots
        again, *_ = learned_ensemble(Middle, correction=correction, runs=100)
        np.testing.assert_array_equal(again, states)


def test_law_while_learning_with_a_jacobian(reference, eager, monkeypatch):
    """No secant leads across a change of the draft: it would compare with later sites."""
    monkeypatch.setattr(lessons, "LEARNED_AT_ONCE", np.inf)
    for name, value in (
        ("REACH", np.inf),
        ("LARGEST_DISPLACEMENT", np.inf),
        ("LARGEST_DIFFERENCE", np.inf),
        ("STRIDE_OF_REDRAFTED", 1),
        ("FIRST_SOLUTION", 1),
        ("SOLVED_EVERY", 1),
        ("RIDGE", 1e-3),
        ("MEMORY", 1.0),
    ):
        monkeypatch.setattr(jacobian, name, value)
    states, rate, fits = learned_ensemble(Middle)
    assert 0.15 < rate < 0.9 and fits > 1
    name, score = worst(z_scores(states, reference[Middle]))
    assert abs(score) < Z, f"{name}: z = {score:.1f}"


@pytest.mark.parametrize("kind", [Middle])
def test_learning_from_uncommitted_steps_is_caught(kind, reference, eager):
    """Without corrections, which take back most of what a fit changes."""
    until = Caught(reference[kind], Z)
    states, _, _ = learned_ensemble(
        kind, correction="none", engine=LearnsFromTheNextSite, until=until
    )
    name, score = worst(z_scores(states, reference[kind]))
    assert abs(score) > Z, f"{name}: z = {score:.1f}"
