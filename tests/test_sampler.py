"""The sampler on plain arrays: limits, bookkeeping, reproducibility, faults."""

import dataclasses
import itertools

import numpy as np
import pytest
from law import TEMPERATURE, TodaMolecule
from law import make_sampler as make
from particles import Cycling

from openmm_lsd import TargetError
from openmm_lsd.core import jumps, prediction
from openmm_lsd.core.correctors import Following
from openmm_lsd.core.jumps import JumpLimit, hold_outliers
from openmm_lsd.core.noise import LARGE, StepNoise
from openmm_lsd.core.schemes import ABOBA, Middle, remove_cm_motion

SCHEMES = [Middle, ABOBA]
STEP_SIZE = 0.02
TARGET = TodaMolecule(stiffness=0.5 / STEP_SIZE**2, coupling=0.2 / STEP_SIZE**2)
DRAFT = TodaMolecule(stiffness=0.45 / STEP_SIZE**2, coupling=0.2 / STEP_SIZE**2)
START = TARGET.starts(1, np.random.default_rng(3))


def make_sampler(
    kind=Middle, draft=DRAFT.forces, target=TARGET.forces, window=6, seed=1, **options
):
    scheme = kind(TEMPERATURE, 10.0, STEP_SIZE)
    sampler = make(scheme, TARGET.masses, draft, target, window, seed, **options)
    sampler.set_state(START[0][0], START[1][0])
    return sampler


def plain_run(scheme, steps, seed, cm_removal=0):
    """The plain scheme with the target's forces, driven by the sampler's own random numbers."""
    positions, velocities = START[0][0], START[1][0]
    inverse_masses = 1.0 / TARGET.masses[:, None]
    scale, step_noise = scheme.noise_scale(inverse_masses), StepNoise(seed, 2)
    for n in range(steps):
        if cm_removal and n % cm_removal == 0:
            velocities = remove_cm_motion(velocities, TARGET.masses[:, None])
        acceleration = TARGET.forces(scheme.site(positions, velocities)) * inverse_masses
        kick = scale * step_noise(n, 1)[0][0]
        positions, velocities = scheme.step(positions, velocities, acceleration, kick)
    return positions, velocities


@pytest.mark.parametrize("kind", SCHEMES)
@pytest.mark.parametrize("cm_removal", [0, 1, 3])
def test_draft_equal_to_target_is_the_plain_scheme(kind, cm_removal):
    sampler = make_sampler(kind, draft=TARGET.forces, cm_removal_frequency=cm_removal)
    positions, velocities = sampler.advance(60)
    expected_positions, expected_velocities = plain_run(sampler.engine.scheme, 60, 1, cm_removal)
    assert np.abs(positions - expected_positions).max() < 1e-10 * TARGET.length
    assert np.abs(velocities - expected_velocities).max() < 1e-8
    assert sampler.statistics.rejected == 0
    assert sampler.statistics.steps == 6 * sampler.statistics.rounds


@pytest.mark.parametrize("kind", SCHEMES)
def test_window_of_one_is_the_plain_scheme_whatever_the_draft(kind):
    sampler = make_sampler(kind, draft=lambda positions: 1e3 * positions, window=1)
    positions, _ = sampler.advance(30)
    assert np.abs(positions - plain_run(sampler.engine.scheme, 30, 1)[0]).max() < 1e-12
    assert sampler.statistics.steps_per_round == 1.0


@pytest.mark.parametrize("kind", SCHEMES)
@pytest.mark.parametrize("pieces", [[1] * 50, [7, 13, 30], [49, 1], [0, 50, 0]])
def test_cutting_the_run_changes_no_bit(kind, pieces):
    whole, cut = make_sampler(kind), make_sampler(kind)
    expected = whole.advance(50)
    for piece in pieces:
        result = cut.advance(piece)
    assert np.array_equal(result, expected)
    assert cut.state.step == 50


def test_other_seed_other_trajectory():
    assert not np.allclose(make_sampler(seed=1).advance(5), make_sampler(seed=2).advance(5))


def test_queued_steps_are_handed_out_one_by_one():
    """Each step handed out is one step of the scheme from the one before: two-time consistency."""
    sampler = make_sampler(ABOBA)
    for _ in range(40):
        before = sampler.state
        positions, velocities = sampler.advance(1)
        middle = before.positions + 0.5 * STEP_SIZE * before.velocities
        assert np.allclose(positions, middle + 0.5 * STEP_SIZE * velocities, atol=1e-14)


def test_statistics_count():
    sampler = make_sampler(target=lambda x: 1.3 * TARGET.forces(x))
    sampler.advance(200)
    counts = sampler.statistics
    assert counts.rejected > 0 and counts.accepted > 0
    last_of_window = counts.steps - counts.accepted - counts.rejected
    assert 0 <= last_of_window <= counts.rounds - counts.rejected
    assert counts.rounds == counts.rejected + last_of_window
    assert 200 <= counts.steps < 206
    assert counts.steps_per_round == counts.steps / counts.rounds
    assert "steps per round" in str(counts)
    assert min(counts.draft_seconds, counts.target_seconds, counts.overhead_seconds) > 0


@pytest.mark.filterwarnings("ignore:invalid value encountered in multiply")  # 0 times inf
def test_flushed_evaluations_become_the_corrections_of_their_own_steps(monkeypatch):
    monkeypatch.setattr(jumps, "MAX_JUMP", np.inf)
    monkeypatch.setattr(jumps, "MAX_ERROR", np.inf)
    monkeypatch.setattr(prediction, "SOLVED_EVERY", np.inf)
    seen = {}

    class Recorder(Following):
        def next(self, measured, window, ahead):
            result = super().next(measured, window, ahead)
            seen[measured.step] = measured, result
            return result

    make_sampler(target=lambda x: 1.4 * TARGET.forces(x), correction=Recorder).advance(100)
    cut_short = 0
    for measured, corrections in seen.values():
        sites, discrepancies = measured.sites, measured.discrepancies
        committed = measured.committed
        kept = len(discrepancies) - committed
        cut_short += kept > 0
        for own, rows in ((corrections.forces, discrepancies), (corrections.sites, sites)):
            assert np.array_equal(own[:kept], rows[committed:])
            assert (own[kept:] == rows[-1]).all()
    assert cut_short > 5


def test_a_leap_is_replaced_by_the_row_before_it():
    rows = np.zeros((6, 2, 3))
    rows[:, 0, 0] = [0.0, 9.0, 9.5, 30.0, 9.7, 9.8]  # the atom's third row is committed
    rows[:, 1, 2] = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    expected = rows.copy()
    expected[3:, 0, 0] = 9.5
    limit, errors = np.array([[2.0], [2.0]]), np.zeros_like(rows)
    assert np.array_equal(hold_outliers(rows, errors, 3, limit, limit), expected)
    # The leap is among committed steps: real.
    assert hold_outliers(rows, errors, 5, limit, limit) is rows


def test_where_the_draft_was_led_astray_the_last_sound_row_is_held():
    rows = np.arange(36.0).reshape(6, 2, 3)
    limit, errors = np.array([[1e3], [1e3]]), np.zeros_like(rows)
    errors[1, 1, 2] = 2.1e3  # at a committed step: what comes after it is sound
    assert hold_outliers(rows, errors, 3, limit, 2 * limit) is rows
    errors[3, 1, 0] = -2.1e3  # measured where the step should be; not those after it
    expected = rows.copy()
    expected[4:, 1] = rows[3, 1]
    assert np.array_equal(hold_outliers(rows, errors, 3, limit, 2 * limit), expected)
    errors[5] = 1e9  # the last: nothing comes after it
    assert np.array_equal(hold_outliers(rows, errors, 3, limit, 2 * limit), expected)


def bond_forces(positions, stiffness, reach):
    """A bond of 0.1 nm, harmonic, whose force dies off where it is stretched far."""
    bond = positions[..., 1, :] - positions[..., 0, :]
    length = np.linalg.norm(bond, axis=-1, keepdims=True)
    stretch = length - 0.1
    force = stiffness * stretch * np.exp(-((stretch / reach) ** 2)) * bond / length
    return np.stack([force, -force], axis=-2)


@pytest.mark.parametrize("kind", SCHEMES)
@pytest.mark.parametrize("heals", [True, False])
def test_one_mishap_does_not_feed_itself(kind, heals, monkeypatch):
    """Wrong corrections lead to wild sites, where the next corrections are measured.

    Without the limit on leaps the run never recovers, which shows that this test sees it.
    """
    if not heals:
        monkeypatch.setattr(jumps, "MAX_JUMP", 1e9)
        monkeypatch.setattr(jumps, "MAX_ERROR", 1e9)
        monkeypatch.setattr(jumps, "JUMP_BEYOND_SEEN", np.inf)
    sampler = make(
        kind(TEMPERATURE, 1.0, 0.001),
        [1.0, 12.0],
        lambda positions: bond_forces(positions, 3.0e5, np.inf),
        lambda positions: bond_forces(positions, 3.6e5, 0.03),
        16,
        1,
    )
    rng = np.random.default_rng(4)
    speeds = np.array([[1.6], [0.46]])
    sampler.set_state([[0, 0, 0], [0.1, 0, 0]], speeds * rng.standard_normal((2, 3)))
    sampler.advance(500)
    assert sampler.statistics.steps_per_round > 4.0
    record = sampler.snapshot()
    record["corrections"][0] += 1e5 * rng.standard_normal((16, 2, 3))
    sampler.restore(record)
    sampler.advance(100)
    before = dataclasses.replace(sampler.statistics)
    sampler.advance(1000)
    since = sampler.statistics.since(before)
    assert (since.steps_per_round > 4.0) == heals, since


def test_what_committed_steps_show_limits_jumps():
    """Heavy atoms jump far less than MAX_JUMP allows."""
    scheme = Middle(TEMPERATURE, 10.0, STEP_SIZE)
    jump_limit = JumpLimit(scheme, TARGET.masses[:, None])
    speeds = scheme.thermal_speed(1 / TARGET.masses[:, None])
    limit = jumps.MAX_JUMP * TARGET.masses[:, None] * speeds / STEP_SIZE
    np.testing.assert_allclose(jump_limit.update(np.zeros((1, 2, 3))), limit)
    rows = np.zeros((3, 2, 3))
    rows[1] = 0.01 * limit
    np.testing.assert_allclose(jump_limit.update(rows), 0.08 * limit)
    np.testing.assert_allclose(jump_limit.update(0.5 * rows), 0.0792 * limit)
    np.testing.assert_allclose(jump_limit.update(50 * rows), limit)


@pytest.mark.parametrize("correction", ["per-step", "constant", "none"])
def test_better_corrections_commit_more(correction):
    rates = {}
    for name in ("none", correction):
        sampler = make_sampler(
            draft=lambda x: DRAFT.forces(x) + 0.3 * DRAFT.stiffness * DRAFT.length,
            correction=name,
        )
        sampler.advance(300)
        rates[name] = sampler.statistics.steps_per_round
    assert correction == "none" or rates[correction] > 1.3 * rates["none"]


def test_callbacks_see_every_round():
    rounds = []
    sampler = make_sampler(round_callbacks=[rounds.append])
    sampler.advance(200)
    statistics = sampler.statistics
    assert len(rounds) == statistics.rounds
    assert sum(each.committed for each in rounds) == statistics.steps
    assert sum(each.rejected for each in rounds) == statistics.rejected
    shifts = [shift for each in rounds for shift in each.noise_shifts]
    assert len(shifts) == statistics.accepted + statistics.rejected
    assert sum(shifts) == pytest.approx(statistics.noise_shifts)
    assert rounds[0].kept == 0
    for before, each in itertools.pairwise(rounds):
        assert each.step == before.step + before.committed
        assert each.kept == before.verified - before.committed
        assert each.drafted == each.verified == 6
        assert len(each.noise_shifts) == each.committed - (each.committed == 6)
        assert each.rejected or each.committed == 6
        often = [*before.times_measured, *[0] * (6 - before.kept)]
        assert list(each.times_measured) == [times + 1 for times in often[before.committed :]]
    examined = np.zeros((4, 3))
    for each in rounds:
        often = [min(3, times) for times in [*each.times_measured, *[0] * 6]]
        for times, shift in zip(often, each.noise_shifts, strict=False):
            examined[times] += 1, 0, shift
        examined[often[each.committed - 1], 1] += each.rejected
    assert (examined[:3, 0] > 0).all() and (examined[:2, 1] > 0).all()
    np.testing.assert_allclose(statistics.examined, examined)
    assert statistics.noise_shifts_by_measurement[1] == pytest.approx(
        examined[1, 2] / examined[1, 0]
    )
    assert statistics.examined[:, 1].sum() == statistics.rejected


class Jumps:
    """Moves the particles before every fourth step."""

    next_step = 4

    def apply(self, state):
        self.next_step = state.step + 4
        return state.positions + 0.05 * TARGET.length, state.velocities


def fails_now_and_then():
    calls = itertools.count()

    def target(positions):
        forces = TARGET.forces(positions)
        if next(calls) % 3 == 1:
            forces[len(forces) // 2 + 1 :] = np.nan
        return forces

    return target


def plain_steps(state, n):
    """Any others will do: what matters is that they are not drafted."""
    return state.positions + 0.01 * TARGET.length, state.velocities, n


def advance_through_snapshots(sampler, callbacks):
    """Ten steps at a time, each by a sampler that takes over from the last."""
    for _ in range(20):
        record = sampler.snapshot()
        sampler = make_sampler(round_callbacks=callbacks)
        sampler.restore(record)
        sampler.advance(10)


@pytest.mark.parametrize(
    "change", ["failed sites", "interventions", "windows", "plain steps", "snapshots"]
)
def test_times_measured_are_those_of_the_steps(change):
    """Counted here by the index of the step: one that was left out once begins anew."""
    options = {
        "failed sites": {"target": fails_now_and_then()},
        "interventions": {"intervention": Jumps()},
        "windows": {"tuner": Cycling()},
        "plain steps": {"tuner": Cycling()},
    }.get(change, {})
    rounds = []
    sampler = make_sampler(round_callbacks=[rounds.append], **options)
    if change == "snapshots":
        advance_through_snapshots(sampler, [rounds.append])
    else:
        sampler.advance(200, plain_steps if change == "plain steps" else None)
    occurred = {
        "failed sites": lambda: any(each.verified < each.drafted for each in rounds),
        "interventions": lambda: sampler.statistics.shortened_windows > 0,
        "windows": lambda: {each.drafted for each in rounds} == {1, 2, 3, 5},
        "plain steps": lambda: sum(each.committed for each in rounds) < sampler.state.step,
        "snapshots": lambda: True,
    }
    assert occurred[change]() and any(each.kept for each in rounds)
    counts, next_step = {}, 0
    for each in rounds:
        if each.step != next_step:
            counts = {}
        drafted = range(each.step, each.step + each.drafted)
        assert list(each.times_measured) == [counts[step] for step in drafted if step in counts]
        next_step = each.step + each.committed
        verified = range(next_step, each.step + each.verified)
        counts = {step: counts.get(step, 0) + 1 for step in verified}


def test_nothing_was_measured_before_where_nothing_is_kept():
    """Other corrections, another state."""
    for correction in ("constant", "none"):
        rounds = []
        sampler = make_sampler(correction=correction, round_callbacks=[rounds.append])
        sampler.advance(40)
        assert not any(each.kept for each in rounds)
        assert sampler.statistics.examined[0, 0] > 0 and not sampler.statistics.examined[1:].any()
        assert sampler.statistics.noise_shifts_by_measurement[1:] == [None] * 3
    rounds = []
    sampler = make_sampler(round_callbacks=[rounds.append])
    sampler.advance(40)
    assert any(each.kept for each in rounds)
    sampler.set_state(START[0][0], START[1][0])
    rounds.clear()
    sampler.advance(1)
    assert rounds[0].kept == 0


def test_speculative_evaluations_do_not_touch_what_was_handed_out():
    sampler = make_sampler()
    positions, velocities = sampler.advance(3)
    copies = positions.copy(), velocities.copy()
    sampler.advance(20)
    assert np.array_equal(positions, copies[0]) and np.array_equal(velocities, copies[1])


def test_particles_of_zero_mass_do_not_move():
    scheme = Middle(TEMPERATURE, 10.0, STEP_SIZE)
    sampler = make(scheme, [1.0, 0.0], DRAFT.forces, TARGET.forces, 5, 1, cm_removal_frequency=1)
    sampler.set_state(START[0][0], START[1][0])
    positions, _ = sampler.advance(25)
    assert np.array_equal(positions[1], START[0][0][1])
    assert not np.allclose(positions[0], START[0][0][0])


def failing_from(call, row, how):
    """The target; in one of its calls it fails at ``row`` of the batch."""
    calls = [0]

    def target(positions):
        calls[0] += len(positions) > 1
        forces = TARGET.forces(positions)
        if calls[0] == call and len(positions) > row:
            if how == "nan":
                forces[row, 1, 2] = np.nan
            elif len(positions) > 1 or row == 0:
                raise RuntimeError("did not converge")
        return forces

    return target


@pytest.mark.parametrize("how", ["nan", "exception"])
def test_failing_first_site_is_an_error_at_the_last_committed_state(how):
    sampler = make_sampler(target=failing_from(4, 0, how))
    with pytest.raises(TargetError, match="step") as caught:
        sampler.advance(1000)
    state = sampler.state
    assert caught.value.step == state.step > 0
    assert caught.value.atom == (1 if how == "nan" else None)
    assert np.array_equal(make_sampler().advance(state.step)[0], state.positions)


@pytest.mark.parametrize("how", ["nan", "exception"])
def test_failing_later_site_only_ends_the_window(how):
    sampler = make_sampler(target=failing_from(3, 2, how))
    sampler.advance(100)
    assert sampler.state.step == 100
    if how == "nan":
        assert sampler.statistics.failed_sites == 1


def test_target_that_always_fails_in_batches_still_runs():
    def target(positions):
        if len(positions) > 1:
            raise RuntimeError("one at a time")
        return TARGET.forces(positions)

    sampler = make_sampler(target=target)
    assert np.array_equal(sampler.advance(40), make_sampler().advance(40))


def test_wrong_shape_from_the_target_is_said():
    with pytest.raises(TargetError, match="shape"):
        make_sampler(target=lambda x: TARGET.forces(x)[:, :1]).advance(1)


def broken_draft(positions):
    if positions[0, 0] > 0.2 * TARGET.length:
        raise RuntimeError("no draft here")
    return DRAFT.forces(positions)


def exploding_draft(positions):
    return np.full_like(positions, 1e300) if positions[0, 0] > 0 else DRAFT.forces(positions)


def nan_draft(positions):
    return np.full_like(positions, np.nan)


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("draft", [exploding_draft, nan_draft])
def test_a_draft_may_propose_anything(draft):
    sampler = make_sampler(draft=draft)
    positions, velocities = sampler.advance(60)
    assert np.isfinite(positions).all() and np.isfinite(velocities).all()
    assert np.abs(positions).max() < 10 * TARGET.length


def test_draft_that_raises_at_a_committed_state_is_an_error():
    with pytest.raises(RuntimeError, match="no draft here"):
        make_sampler(draft=broken_draft).advance(500)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"window": 0}, "window is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"correction": "maybe"}, "correction is 'maybe'"),
    ],
)
def test_bad_arguments(change, words):
    with pytest.raises(ValueError, match=words):
        make_sampler(**change)


def test_bad_states():
    sampler = make_sampler()
    with pytest.raises(ValueError, match=r"shape \(1, 3\); expected \(2, 3\)"):
        sampler.set_state(np.zeros((1, 3)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="atom 1"):
        sampler.set_state(np.array([[0, 0, 0], [0, np.inf, 0]]), np.zeros((2, 3)))
    fresh = make(sampler.engine.scheme, TARGET.masses, DRAFT.forces, TARGET.forces, 4, 1)
    with pytest.raises(RuntimeError, match="set_state"):
        fresh.advance(1)


@pytest.mark.parametrize("particles", [5, LARGE + 1])
def test_noise_is_a_function_of_seed_and_step(particles):
    """However many steps are asked for at once, and in which order."""
    seven, eight = StepNoise(7, particles), StepNoise(8, particles)
    noise, uniform = seven(1000, 40)
    for first, count in ((1000, 1), (1013, 5), (1007, 33), (1001, 2), (1039, 1)):
        for again in (seven(first, count), StepNoise(7, particles)(first, count)):
            rows = slice(first - 1000, first - 1000 + count)
            assert np.array_equal(noise[rows], again[0])
            assert np.array_equal(uniform[rows], again[1])
    assert len(np.unique(noise)) == noise.size
    for other in (eight(1000, 40), seven(1040, 8), seven(2**40, 40)):
        assert not np.isin(noise, other[0]).any()


@pytest.mark.parametrize(("particles", "steps"), [(4, 20_000), (LARGE + 1, 300)])
def test_noise_is_standard_normal_and_uniform(particles, steps):
    step_noise = StepNoise(1, particles)
    rows = [step_noise(step, 5) for step in range(0, steps, 5)]
    noise, uniform = (np.concatenate(each) for each in zip(*rows, strict=True))
    uniform = np.exp(uniform)
    count = noise.size
    assert abs(noise.mean()) < 5.5 / np.sqrt(count)
    assert abs(noise.var() - 1) < 5.5 * np.sqrt(2 / count)
    assert abs(uniform.mean() - 0.5) < 5.5 / np.sqrt(12 * len(uniform))
    # Neither from step to step nor between the numbers of one step is there a correlation.
    for product in (noise[1:] * noise[:-1], noise * (uniform - 0.5)[:, None, None]):
        assert abs(product.mean()) < 5.5 * product.std() / np.sqrt(product.size)


def test_records_that_kept_unverified_sites_continue():
    """As those of before, where the window was cut short at a site that failed."""
    sampler = make_sampler(target=failing_from(3, 3, "nan"))
    while not sampler.statistics.failed_sites:
        sampler.advance(1)
    record = sampler.snapshot()
    lesson = record["lesson"]
    extra = lesson["sites"][-1:] + 0.01
    before = {**record, "lesson": {**lesson, "sites": np.append(lesson["sites"], extra, 0)}}
    paths = []
    for each in (record, before):
        other = make_sampler()
        other.restore(each)
        paths.append(other.advance(60))
    assert np.array_equal(*paths)
