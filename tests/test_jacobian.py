"""How a discrepancy changes with the positions, learned from differences."""

import numpy as np
import pytest
from law import Caught, make_sampler, worst, z_scores
from openmm_lsd._native import add_differences, solve_ridge
from test_law import MILD, Z, ensemble, mild_draft, plain

from openmm_lsd.core import jacobian
from openmm_lsd.core.correctors import Following
from openmm_lsd.core.jacobian import (
    LARGEST_DISPLACEMENT,
    SECANT_RIDGE,
    JacobianEstimate,
    LocalJacobian,
    Secant,
)
from openmm_lsd.core.schemes import ABOBA, Middle
from openmm_lsd.integrator.restart import pack, unpack

# Native code


@pytest.mark.parametrize("with_estimate", [False, True])
def test_sums_as_the_reference(with_estimate):
    rng = np.random.default_rng(3)
    particles, most = 7, 4
    neighbours = rng.integers(particles, size=(particles, most)).astype(np.int32)
    counts = rng.integers(1, most + 1, size=particles).astype(np.int32)
    estimate = rng.standard_normal((particles, 3 * most, 3)) if with_estimate else None
    results = []
    for add in (jacobian.add_differences, add_differences):
        rng = np.random.default_rng(4)
        gram = rng.standard_normal((particles, 3 * most, 3 * most))
        moment = rng.standard_normal((particles, 3 * most, 3))
        agreement = rng.standard_normal((2, particles))
        for batch in (3, 1):
            displacements, changes = rng.standard_normal((2, batch, particles, 3))
            displacements[:, 2] = 0.0
            sums = gram, moment, estimate, agreement
            add(displacements, changes, neighbours, counts, *sums, 20.0, 0.1)
        results.append((gram, moment, agreement))
    for reference, native in zip(*results, strict=True):
        np.testing.assert_allclose(native, reference, rtol=1e-12, atol=1e-12)


def test_solutions_as_the_reference():
    rng = np.random.default_rng(3)
    columns = rng.standard_normal((5, 40, 12))
    gram = columns.swapaxes(1, 2) @ columns
    moment = rng.standard_normal((5, 12, 3))
    counts = np.array([4, 1, 3, 2, 4], dtype=np.int32)
    for atom, count in enumerate(counts):
        gram[atom, 3 * count :], gram[atom, :, 3 * count :] = 0.0, 0.0
        moment[atom, 3 * count :] = 0.0
    arguments = gram, moment, counts, 0.5
    result = solve_ridge(*arguments)
    np.testing.assert_allclose(result, jacobian.solve_ridge(*arguments), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose((gram + 0.5 * np.eye(12)) @ result, moment, atol=1e-10)


def test_arrays_that_do_not_fit_are_errors():
    floats, neighbours = np.zeros((2, 3, 3)), np.zeros((3, 2), dtype=np.int32)
    sums = np.zeros((3, 6, 6)), np.zeros((3, 6, 3)), None, np.zeros((2, 3))
    counts = np.full(3, 2, dtype=np.int32)
    add_differences(floats, floats, neighbours, counts, *sums, 20.0, 0.1)
    for wrong in (
        (floats[:1], neighbours, counts, *sums),
        (floats, neighbours[:2], counts, *sums),
        (floats, neighbours + 3, counts, *sums),
        (floats, neighbours, counts + 1, *sums),
        (floats, neighbours, counts[:2], *sums),
        (floats, neighbours, counts, sums[1], *sums[1:]),
        (floats, neighbours, counts, *sums[:2], floats, sums[3]),
        (floats, neighbours, counts, *sums[:3], np.zeros((2, 4))),
    ):
        with pytest.raises(ValueError, match=r"fit together|neighbour"):
            add_differences(floats, *wrong, 20.0, 0.1)
    with pytest.raises(ValueError, match="fit together"):
        solve_ridge(sums[0], sums[1][:, 1:], counts, 0.5)
    with pytest.raises(ValueError, match="more neighbours"):
        solve_ridge(*sums[:2], counts + 1, 0.5)


# Estimates

MASSES = np.array([12.0, 1.0, 16.0, 0.0, 14.0, 1.0])
CHAIN = 0.2 * np.arange(6.0)[:, None] * np.eye(3)[0]  # nm
# Each atom sees those next to it, and nobody the fourth, which has no mass.
SEEN = [[0, 1], [0, 1, 2], [1, 2], [], [4, 5], [4, 5]]
MOBILE = (MASSES > 0)[:, None]


class LinearField:
    """Discrepancies that are linear in the positions of an atom and those it sees, with errors."""

    def __init__(self, seed):
        self._rng = np.random.default_rng(seed)
        self.matrix = np.zeros((6, 3, 6, 3))
        for atom, seen in enumerate(SEEN):
            self.matrix[atom][:, seen] = 1e4 * self._rng.standard_normal((3, len(seen), 3))

    def __call__(self, displacements):
        return np.einsum("iajb,njb->nia", self.matrix, displacements)

    def displacements(self, count, size):
        return size * self._rng.standard_normal((count, 6, 3)) * MOBILE

    def show(self, estimate, step, rounds, error=0.0):
        """Rounds of ten steps, eight of which were measured before; the next step."""
        for _ in range(rounds):
            here = self.displacements(10, 0.005)
            before = here[:8] + self.displacements(8, 0.001)
            forces = [
                self(each) + error * self._rng.standard_normal(each.shape)
                for each in (here, before)
            ]
            estimate.learn(step, CHAIN + here, forces[0], CHAIN + before, forces[1])
            step += 10
        return step

    def error_of(self, found):
        displacements = self.displacements(50, 0.002)
        expected = self(displacements)
        return np.linalg.norm(found(displacements) - expected) / np.linalg.norm(expected)


@pytest.fixture
def field():
    return LinearField(1)


def test_a_linear_discrepancy_is_found(field):
    estimate = JacobianEstimate(MASSES)
    assert estimate.jacobian is None
    field.show(estimate, 0, 60)
    assert field.error_of(estimate.jacobian) < 0.6  # the ridge is strong
    one = field.displacements(3, 0.002)
    np.testing.assert_array_equal(estimate.jacobian(one)[1], estimate.jacobian(one[1]))
    far = estimate.jacobian(np.full((6, 3), 1.0))
    np.testing.assert_array_equal(far, estimate.jacobian(np.full((6, 3), LARGEST_DISPLACEMENT)))


def test_what_has_changed_is_found_again(field):
    estimate = JacobianEstimate(MASSES)
    step = field.show(estimate, 0, 60)
    other = LinearField(2)
    assert other.error_of(estimate.jacobian) > 1.0
    other.show(estimate, step, 100)
    assert other.error_of(estimate.jacobian) < 0.6


def test_what_does_not_agree_does_not_count(field):
    """Differences that are nothing but noise: what is solved for is not taken at its word."""
    estimate = JacobianEstimate(MASSES)
    field.show(estimate, 0, 60, error=1e4)
    sizes = []
    for trust in (estimate._sums.agreement, np.ones((2, 6))):
        estimate._sums = estimate._sums._replace(agreement=trust)
        estimate._publish()
        sizes.append(np.linalg.norm(estimate.jacobian(field.displacements(50, 0.002))))
    assert sizes[0] < 0.5 * sizes[1]


def test_neighbours_that_stay_keep_what_is_known(field):
    """A seventh atom comes by; the estimate is not solved for again."""
    estimate = JacobianEstimate(np.append(MASSES, 1.0))
    away, near = np.array([[0.0, 5.0, 0.0]]), np.array([[0.05, 0.05, 0.0]])
    rng = np.random.default_rng(2)

    def learn(step, rounds, position):
        for _ in range(rounds):
            d = np.concatenate(
                [field.displacements(10, 0.005), 0.005 * rng.standard_normal((10, 1, 3))], axis=1
            )
            e = (
                d[:8]
                + 0.001 * rng.standard_normal((8, 7, 3)) * np.append(MASSES > 0, True)[:, None]
            )
            start = np.concatenate([CHAIN, position])
            forces = [np.pad(field(each[:, :6]), ((0, 0), (0, 1), (0, 0))) for each in (d, e)]
            estimate.learn(step, start + d, forces[0], start + e, forces[1])
            step += 10
        return step

    def error():
        return field.error_of(
            lambda d: estimate.jacobian(np.pad(d, ((0, 0), (0, 1), (0, 0))))[:, :6]
        )

    learn(0, 60, away)
    before, known = estimate._neighbours, error()
    assert known < 0.6 and 6 not in before[:6]
    estimate._choose_neighbours(np.concatenate([CHAIN, near]))
    assert 6 in estimate._neighbours[0]
    assert error() < known + 0.01


def test_what_is_not_finite_or_far_away_is_not_learned(field):
    estimate = JacobianEstimate(MASSES)
    step = field.show(estimate, 0, 60)
    nothing = np.empty((0, 6, 3))
    wrong = np.full((10, 6, 3), np.nan)
    estimate.learn(step, CHAIN + field.displacements(10, 0.005), wrong, nothing, nothing)
    far = CHAIN + field.displacements(10, 10.0)
    estimate.learn(step + 10, far, np.zeros_like(far), nothing, nothing)
    field.show(estimate, step + 20, 5)
    assert field.error_of(estimate.jacobian) < 0.6


@pytest.mark.parametrize("rounds", [0, 3, 60])
def test_goes_on_as_if_it_had_not_been_saved(rounds):
    estimates, jacobians = [JacobianEstimate(MASSES), JacobianEstimate(MASSES)], []
    first = LinearField(1)
    step = first.show(estimates[0], 0, rounds)
    estimates[1].restore(unpack(pack(estimates[0].snapshot())))
    for estimate in estimates:
        LinearField(5).show(estimate, step, 12)
        jacobians.append(estimate.jacobian)
    for one, other in zip(*jacobians, strict=True):
        np.testing.assert_array_equal(one, other)


def test_steps_that_are_done_again_are_forgotten(field):
    estimate = JacobianEstimate(MASSES)
    estimate.start(0)
    step = field.show(estimate, 0, 60)
    estimate.start(step + 100)  # plain steps lie between
    assert estimate.jacobian is not None
    field.show(estimate, step + 100, 1)
    estimate.start(step + 100)
    assert estimate.jacobian is None
    LinearField(3).show(estimate, step + 100, 60)
    again = JacobianEstimate(MASSES)
    LinearField(3).show(again, step + 100, 60)
    np.testing.assert_array_equal(estimate.jacobian.blocks, again.jacobian.blocks)


# Secants


def test_a_secant_counts_along_its_displacement_and_j_for_the_rest():
    """Two pairs of atoms that do not see each other; the last neighbour is padding."""
    neighbours = np.array([[0, 1, 0], [1, 0, 1], [2, 3, 2], [3, 2, 3]], dtype=np.int32)
    rng = np.random.default_rng(1)
    blocks = rng.standard_normal((4, 3, 3, 3))
    blocks[:, 2] = 0.0
    local = LocalJacobian(neighbours, blocks)
    masses = np.array([[1.0], [12.0], [3.0], [5.0]])
    moved, changes = 1e-3 * rng.standard_normal((4, 3)), rng.standard_normal((4, 3))
    secant = Secant(moved, changes)
    whole = local.with_secant(moved, secant, masses)
    share = 1.0 / (1.0 + SECANT_RIDGE)
    np.testing.assert_allclose(whole, share * changes + (1.0 - share) * local(moved))
    half = moved * np.array([[0.5], [0.5], [-1.0], [-1.0]])
    expected = np.array([[0.5], [0.5], [-1.0], [-1.0]]) * whole
    np.testing.assert_allclose(local.with_secant(half, secant, masses), expected)
    across = np.zeros((4, 3))
    across[0] = np.cross(moved[0], [0.0, 0.0, 1.0])
    across[2] = np.cross(moved[2], [0.0, 0.0, 1.0])
    np.testing.assert_allclose(local.with_secant(across, secant, masses), local(across))
    # Extrapolation has an end, and a secant of nothing says nothing.
    far = local.with_secant(5 * moved, secant, masses)
    left = local(5 * moved - jacobian.LARGEST_SHARE * moved)
    np.testing.assert_allclose(far, jacobian.LARGEST_SHARE * changes + left)
    nothing = Secant(np.zeros((4, 3)), changes)
    np.testing.assert_array_equal(local.with_secant(moved, nothing, masses), local(moved))


def test_secants_are_what_changed_from_one_round_to_the_next():
    """Of steps that were drafted in both; none across a change of the draft."""

    class Recorder(Following):
        measured, compared = {}, 0

        def next(self, measured, window, ahead):
            result = super().next(measured, window, ahead)
            sites, before = measured.sites, self.measured
            pairs = zip(sites, measured.discrepancies, strict=True)
            self.measured = dict(enumerate(pairs, measured.step))
            if before:
                for row in range(window):
                    number = measured.end + row
                    expected = np.zeros((2, *sites.shape[1:]))
                    if number in before and number in self.measured:
                        now, then = self.measured[number], before[number]
                        expected = np.array(now) - np.array(then)
                        Recorder.compared += 1
                    np.testing.assert_array_equal([s[row] for s in result.secant], expected)
            return result

    starts = MILD.starts(1, np.random.default_rng(1))
    scheme = Middle(300.0, 1.0, 0.02)
    sampler = make_sampler(scheme, MILD.masses, mild_draft, MILD.forces, 6, 1, correction=Recorder)
    sampler.set_state(*(each[0] for each in starts))
    sampler.advance(60)
    assert Recorder.compared > 20


# The exact law


@pytest.fixture(scope="module")
def reference():
    return plain(MILD)


@pytest.fixture
def eager(monkeypatch):
    """Learns from all steps, forgets at once and solves after every round; everything is near."""
    for name, value in (
        ("REACH", np.inf),
        ("LARGEST_DISPLACEMENT", np.inf),
        ("LARGEST_DIFFERENCE", np.inf),
        ("STRIDE_OF_REDRAFTED", 1),
        ("STRIDE_OF_CONSECUTIVE", 1),
        ("FIRST_SOLUTION", 1),
        ("SOLVED_EVERY", 1),
        ("RIDGE", 1e-3),
        ("MEMORY", 1.0),
    ):
        monkeypatch.setattr(jacobian, name, value)


class Watched(Following):
    """Counts the windows that are drafted with a Jacobian, and with secants."""

    with_jacobian = with_secants = rounds = 0

    def complete(self, corrections):
        result = super().complete(corrections)
        secant = result.secant
        Watched.with_secants += secant is not None and secant.displacements.any()
        Watched.rounds += 1
        Watched.with_jacobian += result.jacobian is not None
        return result


class LearnsAhead(Following):
    """Learns from sites that the noise of uncommitted steps has shaped."""

    def next(self, measured, window, ahead):
        rows = slice(measured.committed, None)
        sites, discrepancies = measured.sites[rows], measured.discrepancies[rows]
        if len(sites) >= 2:
            nothing = np.empty((2, 0, *sites.shape[1:]))
            self._jacobian.learn(measured.step, sites, discrepancies, *nothing)
        return super().next(measured, window, ahead)

    def learn(self, lessons, sites, discrepancies):
        """From nothing else."""


@pytest.mark.parametrize("kind", [ABOBA])
def test_law_with_a_jacobian(kind, reference, eager):
    states, rate = ensemble(kind, MILD, draft=mild_draft, correction=Watched)
    assert 0.15 < rate < 0.9 and Watched.with_jacobian > 0.5 * Watched.rounds
    assert Watched.with_secants > 0.1 * Watched.rounds
    name, score = worst(z_scores(states, reference[kind]))
    assert abs(score) < Z, f"{name}: z = {score:.1f}"


def test_learning_from_sites_ahead_is_caught(reference, eager):
    until = Caught(reference[Middle], Z)
    states, _ = ensemble(Middle, MILD, draft=mild_draft, correction=LearnsAhead, until=until)
    name, score = worst(z_scores(states, reference[Middle]))
    assert abs(score) > Z, f"{name}: z = {score:.1f}"


class SecantsToTheNextStep(Following):
    """Compares with the next site, which the noise of the step has shaped already."""

    def next(self, measured, window, ahead):
        secant = Secant(*np.zeros((2, window, *measured.sites.shape[1:])))
        for array, rows in zip(secant, (measured.sites, measured.discrepancies), strict=True):
            changes = np.diff(rows[measured.committed :], axis=0)
            array[: len(changes)] = changes
        return super().next(measured, window, ahead)._replace(secant=secant)


def test_a_secant_to_the_next_step_is_caught(reference, eager):
    until = Caught(reference[Middle], Z)
    states, _ = ensemble(
        Middle, MILD, draft=mild_draft, correction=SecantsToTheNextStep, until=until
    )
    name, score = worst(z_scores(states, reference[Middle]))
    assert abs(score) > Z, f"{name}: z = {score:.1f}"
