"""How a discrepancy goes on after the last step that was measured."""

import numpy as np
import pytest
from law import Caught, worst, z_scores
from test_law import MILD, Z, ensemble, mild_draft, plain

from openmm_lsd import _native
from openmm_lsd.core import jacobian, prediction
from openmm_lsd.core.correctors import Following
from openmm_lsd.core.jacobian import LARGEST_DISPLACEMENT, LocalJacobian
from openmm_lsd.core.prediction import AHEAD, ORDER, Kernels, Prediction
from openmm_lsd.core.schemes import Middle
from openmm_lsd.integrator.restart import pack, unpack

NATIVE = Kernels(_native.changes_in_time, _native.add_lagged, _native.predict_changes)
PARTICLES = 5
NO_LIMIT = np.full((PARTICLES, 1), 1e9)


def some_jacobian(rng, scale=1e3):
    neighbours = rng.integers(PARTICLES, size=(PARTICLES, 3)).astype(np.int32)
    return LocalJacobian(neighbours, scale * rng.standard_normal((PARTICLES, 3, 3, 3)))


# Native code


def test_native_code_as_the_reference():
    rng = np.random.default_rng(1)
    local = some_jacobian(rng)
    sites = LARGEST_DISPLACEMENT * rng.standard_normal((20, PARTICLES, 3))
    discrepancies = rng.standard_normal(sites.shape)
    changes = [each.changes_in_time(sites, discrepancies, *local) for each in (Kernels(), NATIVE)]
    np.testing.assert_allclose(changes[1], changes[0], rtol=1e-12, atol=1e-12)
    results = []
    for kernels in (Kernels(), NATIVE):
        sums = np.ones((PARTICLES, ORDER, ORDER)), np.ones((PARTICLES, ORDER))
        kernels.add_lagged(changes[0], *sums, 30.0)
        kernels.add_lagged(changes[0][:ORDER], *sums, 30.0)  # nothing follows
        results.append(sums)
    for reference, native in zip(*results, strict=True):
        np.testing.assert_allclose(native, reference, rtol=1e-12, atol=1e-12)
    latest = slice(-ORDER - 1, None)
    coefficients = 0.5 * rng.standard_normal((PARTICLES, ORDER))
    largest = np.full((PARTICLES, 1), 2.0)
    arguments = sites[latest], discrepancies[latest], *local, coefficients, largest, AHEAD
    reference, native = (each.predict_changes(*arguments) for each in (Kernels(), NATIVE))
    np.testing.assert_allclose(native, reference, rtol=1e-12, atol=1e-12)
    steps = np.diff(reference, axis=0, prepend=0.0)
    assert (np.abs(steps) > 2.0 - 1e-9).any() and (np.abs(steps) < 2.0 + 1e-9).all()


def test_arrays_that_do_not_fit_are_errors():
    rng = np.random.default_rng(1)
    neighbours, blocks = some_jacobian(rng)
    rows = np.zeros((ORDER + 1, PARTICLES, 3))
    sums = np.zeros((PARTICLES, ORDER, ORDER)), np.zeros((PARTICLES, ORDER))
    for wrong in (
        (rows, rows[1:], neighbours, blocks),
        (rows, rows[:, 1:], neighbours, blocks),
        (rows[:0], rows[:0], neighbours, blocks),
        (rows, rows, neighbours[1:], blocks),
        (rows, rows, neighbours, blocks[:, 1:]),
        (rows, rows, neighbours - PARTICLES, blocks),
    ):
        with pytest.raises(ValueError, match=r"fit together|not there"):
            _native.changes_in_time(*wrong)
    for wrong in ((rows[:, 1:], *sums), (rows, sums[0][:, 1:], sums[1])):
        with pytest.raises(ValueError, match="fit together"):
            _native.add_lagged(*wrong, 30.0)
    for wrong in (
        (rows[1:], rows, neighbours, blocks, sums[1], NO_LIMIT),
        (rows, rows, neighbours, blocks, sums[1][1:], NO_LIMIT),
        (rows, rows, neighbours, blocks, sums[1], NO_LIMIT[1:]),
    ):
        with pytest.raises(ValueError, match="fit together"):
            _native.predict_changes(*wrong, AHEAD)


# What is predicted

STILL = LocalJacobian(np.arange(PARTICLES, dtype=np.int32)[:, None], np.zeros((PARTICLES, 1, 3, 3)))


def oscillation(steps, seed=1):
    """Two periods for each atom, 9 and 20 steps, with phases of their own."""
    phases = np.random.default_rng(seed).uniform(0, 2 * np.pi, (2, PARTICLES, 3))
    times = np.asarray(steps)[:, None, None]
    return 300 * np.sin(2 * np.pi * times / 9 + phases[0]) + 500 * np.sin(
        2 * np.pi * times / 20 + phases[1]
    )


def show(model, local, first, last, sites=None, length=8):
    """Rounds of so many steps of an oscillation, less one at their ends."""
    for step in range(first, last, length):
        steps = np.arange(step, min(step + length, last))
        here = np.zeros((len(steps), PARTICLES, 3)) if sites is None else sites[steps]
        model.learn(step, here, oscillation(steps) + linear(local, here), local)


def linear(local, sites):
    """J times positions."""
    return np.einsum("nmij,bnmj->bni", local.blocks, sites[:, local.neighbours])


@pytest.mark.parametrize("kernels", [Kernels(), NATIVE])
def test_an_oscillation_goes_on(kernels):
    model = Prediction(PARTICLES, kernels)
    show(model, STILL, 0, 400)
    steps = np.arange(400, 410)
    found = model.predict(np.zeros((10, PARTICLES, 3)), oscillation(steps), STILL, NO_LIMIT)
    expected = oscillation(410 + np.arange(AHEAD)) - oscillation([409])
    errors = np.linalg.norm(found - expected, axis=(1, 2)) / np.linalg.norm(expected, axis=(1, 2))
    assert found.shape == (AHEAD, PARTICLES, 3)
    assert errors[0] < 0.2 and errors.max() < 0.9  # the ridge; held: 1


def test_what_j_explains_is_left_to_it():
    rng = np.random.default_rng(2)
    local = some_jacobian(rng, 1e5)
    sites = 1e-3 * rng.standard_normal((420, PARTICLES, 3)).cumsum(axis=0)
    models = [Prediction(PARTICLES), Prediction(PARTICLES)]
    show(models[0], STILL, 0, 400)
    show(models[1], local, 0, 400, sites)
    steps = np.arange(400, 410)
    at = sites[steps]
    plain_ = models[0].predict(np.zeros_like(at), oscillation(steps), STILL, NO_LIMIT)
    moved = models[1].predict(at, oscillation(steps) + linear(local, at), local, NO_LIMIT)
    np.testing.assert_allclose(moved, plain_, rtol=1e-6, atol=1e-6 * np.abs(plain_).max())


def test_nothing_is_predicted_from_nothing():
    model, rows = Prediction(PARTICLES), np.zeros((10, PARTICLES, 3))
    assert model.predict(rows, rows, STILL, NO_LIMIT) is None
    show(model, STILL, 0, 40)
    assert model.predict(rows, rows, STILL, NO_LIMIT) is None
    show(model, STILL, 40, 100)
    assert model.predict(rows, rows, STILL, NO_LIMIT) is not None
    assert model.predict(rows, rows, None, NO_LIMIT) is None
    assert model.predict(rows[:ORDER], rows[:ORDER], STILL, NO_LIMIT) is None
    unmoved = Prediction(PARTICLES)
    for step in range(0, 100, 10):
        unmoved.learn(step, rows, rows, STILL)
    np.testing.assert_array_equal(unmoved.predict(rows, rows, STILL, NO_LIMIT), 0.0)
    unmoved.learn(100, rows, np.full_like(rows, np.nan), STILL)
    for step in range(110, 200, 10):
        unmoved.learn(step, rows, rows, STILL)
    assert unmoved.predict(rows, rows, STILL, NO_LIMIT) is not None


@pytest.mark.parametrize("steps", [0, 30, 130])
def test_goes_on_as_if_it_had_not_been_saved(steps):
    models, found = [Prediction(PARTICLES), Prediction(PARTICLES)], []
    show(models[0], STILL, 0, steps)
    models[1].restore(unpack(pack(models[0].snapshot())))
    for model in models:
        show(model, STILL, steps, steps + 100, length=10)
        rows = oscillation(np.arange(200, 210))
        found.append(model.predict(np.zeros_like(rows), rows, STILL, NO_LIMIT))
    np.testing.assert_array_equal(*found)


def test_steps_that_are_done_again_are_forgotten():
    rows = oscillation(np.arange(10))
    model = Prediction(PARTICLES)
    show(model, STILL, 0, 200)
    model.start(300)  # plain steps lie between
    assert model.predict(rows, rows, STILL, NO_LIMIT) is not None
    show(model, STILL, 300, 308)
    model.start(300)
    assert model.predict(rows, rows, STILL, NO_LIMIT) is None


@pytest.mark.parametrize("gap", [0, 50])
def test_steps_on_both_sides_of_an_interruption_are_not_compared(gap):
    """The second half is that of a draft that is off by a constant, or comes later."""
    models = [Prediction(PARTICLES), Prediction(PARTICLES)]
    nothing = np.zeros((8, PARTICLES, 3))
    for model, offset in zip(models, (0.0, 1e4), strict=True):
        show(model, STILL, 0, 24)
        if not gap:
            model.interrupt()
        for step in range(24, 200, 8):
            rows = oscillation(np.arange(step, step + 8)) + offset
            model.learn(step + gap, nothing, rows, STILL)
    rows = oscillation(np.arange(200, 208))
    found = [model.predict(nothing, rows, STILL, NO_LIMIT) for model in models]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6, atol=1e-6)


# The exact law


@pytest.fixture(scope="module")
def reference():
    return plain(MILD)


@pytest.fixture
def eager(monkeypatch):
    """Learns from all steps, forgets at once; windows of these tests are short."""
    for module, name, value in (
        (jacobian, "REACH", np.inf),
        (jacobian, "FIRST_SOLUTION", 1),
        (jacobian, "SOLVED_EVERY", 1),
        (prediction, "ORDER", 1),
        (prediction, "SOLVED_EVERY", 1),
        (prediction, "RIDGE", 1e-3),
        (prediction, "MEMORY", 1.0),
    ):
        monkeypatch.setattr(module, name, value)


class Watched(Following):
    """Counts the windows that end in predicted steps."""

    predicted = rounds = 0

    def next(self, measured, window, ahead):
        result = super().next(measured, window, ahead)
        Watched.rounds += 1
        Watched.predicted += not np.array_equal(result.forces[-1], result.forces[-2])
        return result


class PredictsBackwards(Following):
    """Adds what is predicted to the steps before as well, whose noise has shaped it."""

    def next(self, measured, window, ahead):
        result = super().next(measured, window, ahead)
        kept = len(measured.sites) - measured.committed
        if kept < window:
            result.forces[:kept] += result.forces[kept] - measured.discrepancies[-1]
        return result


@pytest.mark.parametrize("kind", [Middle])
def test_law_with_predictions(kind, reference, eager):
    states, rate = ensemble(kind, MILD, draft=mild_draft, correction=Watched)
    assert 0.15 < rate < 0.9 and Watched.predicted > 0.1 * Watched.rounds
    name, score = worst(z_scores(states, reference[kind]))
    assert abs(score) < Z, f"{name}: z = {score:.1f}"


def test_predictions_of_earlier_steps_are_caught(reference, eager):
    until = Caught(reference[Middle], Z)
    states, _ = ensemble(
        Middle, MILD, draft=mild_draft, correction=PredictsBackwards, runs=1_000, until=until
    )
    name, score = worst(z_scores(states, reference[Middle]))
    assert abs(score) > Z, f"{name}: z = {score:.1f}"
