"""The window tuner on a simulated clock, and the law while windows change."""

import numpy as np
import openmm
import pytest
from law import make_sampler, speculative_ensemble, worst, z_scores
from openmm import app
from particles import (
    COLD,
    POSITIONS,
    THREE_POSITIONS,
    THREE_VELOCITIES,
    VELOCITIES,
    Always,
    Cycling,
    always,
    assert_close,
    external_force,
    lsd,
    soft_draft,
    spring_forces,
    springs,
    system_of_three,
    target_system,
)
from test_law import RUNS, STEPS, TARGET, Z, draft, make_scheme, plain

import openmm_lsd.core.statistics
from openmm_lsd import LSDIntegrator, SpeculativeSampler, TargetError
from openmm_lsd.core.noise import StepNoise
from openmm_lsd.core.schemes import ABOBA, Middle
from openmm_lsd.core.tuning import WARMUP_ROUNDS, WINDOWS, Acceptance, WindowTuner
from openmm_lsd.targets import BatchedTarget


class Machine:
    """Rounds of a target whose batch of B takes ``fixed + each * B``; one in 30 is disturbed.

    Other programs slow it by a factor whose logarithm wanders by ``wander``, as fast as 2000 units
    of ``work`` take to pass.
    """

    def __init__(self, fixed, each, acceptance, noise=0.1, seed=1, wander=0.0):
        self.fixed, self.each, self.acceptance, self.noise = fixed, each, acceptance, noise
        self.rng, self.wander = np.random.default_rng(seed), wander
        self.slowed = wander * self.rng.standard_normal()
        self.work = 0.0  # seconds that it would have taken without other programs

    def round(self, window):
        steps = 1
        while steps < window and self.rng.random() < self.acceptance:
            steps += 1
        seconds = (self.fixed + self.each * window) * self.rng.lognormal(0.0, self.noise)
        seconds *= 1 + (self.rng.random() < 1 / 30)
        self.work += seconds
        kept = np.exp(-seconds / 2000)
        self.slowed *= kept
        self.slowed += self.wander * np.sqrt(1 - kept**2) * self.rng.standard_normal()
        return steps, seconds * np.exp(self.slowed)

    def seconds_per_step(self, window):
        steps = sum(self.acceptance**k for k in range(window))
        return (self.fixed + self.each * window) / steps

    def best(self):
        return min(self.seconds_per_step(window) for window in WINDOWS)


def run(tuner, machine, steps):
    """Work of so many steps; the tuner chooses the windows."""
    done = 0
    while done < steps:
        committed, seconds = machine.round(tuner.window)
        tuner.record(committed, seconds)
        done += committed
    return machine.work


MACHINES = {
    "GPU": (1.0, 0.01, 0.9),
    "GPU, good draft": (1.0, 0.01, 0.97),
    "CPU": (1.0, 0.25, 0.85),
    "expensive batch": (0.2, 0.8, 0.9),
    "bad draft": (1.0, 0.3, 0.05),
}


@pytest.mark.parametrize(("steps", "most"), [(1000, 1.35), (5000, 1.15)])
@pytest.mark.parametrize("name", MACHINES)
def test_finds_a_fast_window_and_pays_little_for_it(name, steps, most):
    """Over eight machines of the kind; plain steps at the end of the scale are 17 times slower."""
    quality, cost = [], []
    for seed in range(8):
        tuner, machine = WindowTuner(), Machine(*MACHINES[name], seed=seed)
        cost.append(run(tuner, machine, steps) / (steps * machine.best()))
        quality.append(machine.seconds_per_step(tuner._standing) / machine.best())
    assert np.mean(quality) < 1.15, quality
    assert np.mean(cost) < most, cost  # of it 1.035 for the disturbances


def steps_of_rounds(window, rounds, rng, chances=(0.5, 0.75, 0.92)):
    """Where it goes on by chances that depend on how often a step was measured."""
    measured, result = [], []
    for _ in range(rounds):
        measured += [0] * (window - len(measured))
        steps = 1
        while steps < window and rng.random() < chances[min(measured[steps - 1], 2)]:
            steps += 1
        measured = [each + 1 for each in measured[steps:]]
        result.append(steps)
    return result


@pytest.mark.parametrize("window", [4, 8, 16])
def test_rounds_of_one_window_tell_of_all(window):
    rng = np.random.default_rng(1)
    acceptance = Acceptance()
    for steps in steps_of_rounds(window, 1000, rng):
        acceptance.record(window, steps)
    expected = acceptance.steps()
    truth = {each: np.mean(steps_of_rounds(each, 4000, rng)) for each in (2, 4, 8, 12, 16, 24)}
    assert truth[16] > 2 * truth[4]
    for each, steps in truth.items():
        assert abs(expected[each] / steps - 1) < 0.15, (each, expected[each], steps)


@pytest.mark.parametrize("wander", [0.0, 0.3])
@pytest.mark.parametrize("settings", [(0.0, 1.0, 0.5), (1.0, 0.3, 0.02), (0.4, 0.6, 0.75)])
def test_never_much_slower_than_plain_steps(settings, wander):
    """The last of the machines is as fast with a window of two or four."""
    works = []
    for kind in (WindowTuner, lambda: Always(1)):
        machines = [Machine(*settings, seed=seed, wander=wander) for seed in range(4)]
        works.append(sum(run(kind(), machine, 5000) for machine in machines))
    assert works[0] < works[1] / 0.95


def test_old_timings_of_other_windows_do_not_count():
    """The machine becomes half as fast for all windows: none is better than it was."""
    tuner, machine = WindowTuner(), Machine(1.0, 0.25, 0.85, noise=0.0)
    run(tuner, machine, 5000)
    tuner._next_probe += 1000
    while tuner._probes or tuner._on_trial is not None:
        tuner.record(*machine.round(tuner.window))
    before = tuner.window
    windows = set()
    for _ in range(40):
        committed, seconds = machine.round(tuner.window)
        tuner.record(committed, 2.0 * seconds)
        windows.add(tuner.window)
    assert windows == {before}


@pytest.mark.parametrize("window", [1, 48, 7])
def test_goes_on_with_the_window_of_a_checkpoint(window):
    """Whether it has been tried here or not."""
    tuner = WindowTuner()
    settings = (1.0, 0.02, 0.5)
    run(tuner, Machine(*settings), 500)
    before = tuner.window
    tuner.resume_at(window)
    assert tuner.window == (window if window in WINDOWS else before)
    machine = Machine(*settings, seed=2)
    run(tuner, machine, 1000)
    assert machine.seconds_per_step(tuner.window) < 1.15 * machine.best()


def test_plain_steps_where_nothing_is_faster_and_says_so_once(caplog):
    tuner, machine = WindowTuner(), Machine(0.0, 1.0, 0.5)
    run(tuner, machine, 2000)
    assert tuner.window == 1
    assert caplog.text.count("no window is faster than plain dynamics") == 1


def test_a_draft_that_has_just_begun_to_learn_is_not_judged():
    """As bad as it is at first, plain steps would be the fastest, and teach it nothing."""
    chosen = {}
    for learns in (True, False):
        tuner, ignorant = WindowTuner(learns=learns), Machine(1.0, 0.25, 0.02)
        for _ in range(WARMUP_ROUNDS):
            tuner.record(*ignorant.round(tuner.window))
        learned = Machine(1.0, 0.25, 0.85)
        chosen[learns] = []
        while learned.work < 100.0:
            chosen[learns].append(tuner._standing)
            tuner.record(*learned.round(tuner.window))
    assert 1 in chosen[False]
    assert 1 not in chosen[True]


def test_looks_again_when_the_draft_has_learned():
    tuner = WindowTuner()
    run(tuner, Machine(1.0, 0.02, 0.5), 500)
    short, windows = tuner.window, []
    better = Machine(1.0, 0.02, 0.95)
    run(tuner, better, 3000)
    for _ in range(100):
        run(tuner, better, 10)
        windows.append(tuner.window)
    assert np.median(windows) >= 16 > short


class Noting(Always):
    """Notes what rounds took."""

    def __init__(self, window):
        super().__init__(window)
        self.seconds = []

    def record(self, committed, seconds, rounds=1):
        self.seconds.append(seconds)


class Retuned(SpeculativeSampler):
    def __init__(self, *args, **options):
        super().__init__(*args, tuner=Cycling(), **options)


@pytest.mark.parametrize("kind", [Middle, ABOBA])
def test_law_while_windows_change(kind):
    starts = TARGET.starts(RUNS, np.random.default_rng(13))
    states, rate = speculative_ensemble(
        make_scheme(kind), TARGET.forces, draft, TARGET.masses, starts, STEPS, 13,
        sampler=Retuned,
    )  # fmt: skip
    assert 0.15 < rate < 0.85
    name, score = worst(z_scores(states, plain(TARGET)[kind]))
    assert abs(score) < Z, f"{name}: z = {score:.1f}"


def test_a_longer_window_keeps_what_is_known():
    """Corrections of the steps there were, and the last of them for the others."""
    sampler = make_sampler(make_scheme(Middle), TARGET.masses, draft, TARGET.forces, 4, 1)
    positions, velocities = TARGET.starts(1, np.random.default_rng(1))
    sampler.set_state(positions[0], velocities[0])
    sampler.advance(5)
    before = sampler._outlook.corrections
    for window, rows in ((6, [0, 1, 2, 3, 3, 3]), (2, [0, 1])):
        sampler._set_window(window)
        np.testing.assert_array_equal(sampler._outlook.corrections.forces, before.forces[rows])
        np.testing.assert_array_equal(sampler._outlook.corrections.sites, before.sites[rows])


def test_rounds_are_timed_with_what_lies_between_them(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(openmm_lsd.core.statistics, "perf_counter", lambda: now[0])

    def target(positions):
        now[0] += 2.0
        return TARGET.forces(positions)

    def watch(became):
        now[0] += 5.0

    tuner = Noting(4)
    options = {"tuner": tuner, "round_callbacks": [watch]}
    sampler = make_sampler(make_scheme(Middle), TARGET.masses, draft, target, 4, 1, **options)
    positions, velocities = TARGET.starts(1, np.random.default_rng(1))
    sampler.set_state(positions[0], velocities[0])
    for _ in range(10):
        sampler.advance(3)
        now[0] += 100.0  # the caller's own time is not a round's
    assert tuner.seconds == [2.0] + [7.0] * (sampler.statistics.rounds - 1)
    assert sampler.statistics.seconds == sum(tuner.seconds) + 5.0


@pytest.mark.parametrize("scheme", ["middle", "aboba"])
def test_plain_steps_are_the_contexts_own(simulate, build_cold, state_of, scheme):
    """Without noise windows and plain steps give one trajectory, whenever they change places."""

    def stepped(windows):
        integrator = lsd(COLD, windowLength="auto", scheme=scheme)
        simulation = simulate(target_system(), integrator, POSITIONS, VELOCITIES)
        integrator.step(1)
        tuner = always(integrator, 1)
        for count, window in windows:
            tuner.window = window
            integrator.step(count)
        return state_of(simulation), tuner.seen, integrator.statistics

    mixed, seen, statistics = stepped([(23, 1), (7, 4), (1, 1), (30, 1), (8, 3)])
    assert {(10, 10), (3, 3)} <= set(seen)
    assert statistics.steps >= 70
    windows, seen, _ = stepped([(69, 4)])
    assert all(rounds == 1 for _, rounds in seen)
    assert_close(mixed, windows)
    assert mixed.step == 70


def test_plain_middle_steps_are_those_of_langevin_middle_integrator(simulate, state_of):
    """To the last bit, for they are done by the same kernel with the same random numbers."""

    def stepped(integrator):
        simulation = simulate(target_system(), integrator)
        if isinstance(integrator, LSDIntegrator):
            simulation.context.setPositions(POSITIONS)
            integrator.step(1)
            always(integrator, 1)
        simulation.context.setPositions(POSITIONS)
        simulation.context.setVelocities(VELOCITIES)
        simulation.context.setStepCount(0)
        integrator.step(30)
        integrator.setTemperature(500)
        integrator.setFriction(5)
        integrator.setStepSize(0.0005)
        integrator.step(30)
        return state_of(simulation)

    plain = openmm.LangevinMiddleIntegrator(300, 1, 0.001)
    plain.setRandomNumberSeed(7)
    expected = stepped(plain)
    found = stepped(lsd(windowLength="auto", randomNumberSeed=7))
    np.testing.assert_array_equal(found.positions, expected.positions)
    np.testing.assert_array_equal(found.velocities, expected.velocities)


@pytest.mark.parametrize("change", ["velocities", "velocities, checkpoint", "temperature"])
@pytest.mark.parametrize("tuned", [True, False])
def test_noise_of_discarded_steps(simulate, monkeypatch, change, tuned):
    """A tuner has seen what became of it, so it must not decide on other steps."""
    drawn, draw = [], StepNoise.draw
    monkeypatch.setattr(
        StepNoise, "draw", lambda self, *given: drawn.append(given) or draw(self, *given)
    )
    integrator = lsd(windowLength="auto" if tuned else 8)
    simulation = simulate(target_system(), integrator, POSITIONS, VELOCITIES)
    integrator.step(1)
    if tuned:
        always(integrator, 8)
    sampler = integrator.probe().sampler
    while len(sampler._queue) < 2:
        integrator.step(1)
    shown, front = sampler.state.step, sampler.next_draft_step
    if change == "temperature":
        integrator.setTemperature(310)
    else:
        simulation.context.setVelocities(VELOCITIES)
    if change == "velocities, checkpoint":
        simulation.context.loadCheckpoint(simulation.context.createCheckpoint())
    integrator.step(1)
    assert drawn[-1][0] == (front if tuned else shown)
    assert drawn[-1][2] == shown == simulation.context.getStepCount() - 1
    integrator.step(20)
    assert simulation.context.getStepCount() == shown + 21


@pytest.mark.parametrize("edit", [False, True])
def test_a_tuner_does_not_know_the_future_of_a_checkpoint(simulate, edit):
    integrator = lsd(windowLength="auto")
    simulation = simulate(target_system(), integrator, POSITIONS, VELOCITIES)
    integrator.step(30)
    checkpoint = simulation.context.createCheckpoint()
    integrator.step(100)
    knows = integrator._binding.tuner
    simulation.context.loadCheckpoint(checkpoint)
    if edit:
        integrator.setTemperature(310)
    integrator.step(1)
    tuner = integrator._binding.tuner
    assert tuner is not knows and tuner.windows == knows.windows
    assert integrator.probe().sampler._tuner is tuner


def test_plain_steps_that_fail_leave_the_last_committed_state(simulate, state_of):
    cliff = external_force("sqrt(0.3-x)", 3)  # not a number beyond
    integrator = lsd(draft=soft_draft(), windowLength="auto")
    simulation = simulate(
        system_of_three(springs(), cliff), integrator, THREE_POSITIONS, THREE_VELOCITIES
    )
    integrator.step(5)
    always(integrator, 1)
    simulation.context.setVelocities([[20.0, 0, 0]] * 3)
    before = state_of(simulation)
    with pytest.raises(TargetError, match="not finite, before step 15"):
        integrator.step(10)
    assert state_of(simulation).equals(before)
    assert simulation.context.getStepCount() == 5


@pytest.mark.parametrize("given", [True, False])
def test_a_target_that_was_given_does_the_plain_steps(simulate, given):
    integrator = lsd(
        draft=soft_draft(), windowLength="auto", target=spring_forces if given else None
    )
    system = system_of_three() if given else system_of_three(springs())
    simulation = simulate(system, integrator, THREE_POSITIONS, THREE_VELOCITIES)
    integrator.step(1)
    tuner = always(integrator, 1)
    integrator.step(30)
    assert simulation.context.getStepCount() == 31
    assert max(tuner.seen) == ((1, 1) if given else (10, 10))


class Preparing(BatchedTarget):
    """Notes what it was prepared for."""

    def __init__(self):
        self.sizes = []

    def prepare(self, positions, batch, box=None):
        self.sizes.append(batch)
        assert positions.shape == THREE_POSITIONS.shape
        if batch == 5:
            raise RuntimeError("no way to prepare")

    def evaluate(self, positions, box=None):
        return np.zeros(len(positions)), spring_forces(positions)


def test_the_target_is_prepared_once_for_windows_that_last(simulate, monkeypatch):
    monkeypatch.setattr("openmm_lsd.integrator.boundtarget.SETTLED_ROUNDS", 4)
    target = Preparing()
    integrator = lsd(draft=soft_draft(), windowLength="auto", target=target)
    simulation = simulate(system_of_three(), integrator, THREE_POSITIONS, THREE_VELOCITIES)
    simulation.step(1)
    tuner = always(integrator, 3)
    before = len(target.sizes)
    for window, steps in ((2, 2), (3, 60), (5, 100), (3, 60), (2, 2), (5, 100)):
        tuner.window = window
        integrator.step(steps)
    assert target.sizes[before:] == [3, 5]


def test_through_the_integrator():
    stem = "systems/alanine_dipeptide/alanine_dipeptide"
    prmtop = app.AmberPrmtopFile(f"{stem}.prmtop")
    integrator = LSDIntegrator(
        *(300, 1, 0.001, "auto"), topology=prmtop.topology, randomNumberSeed=1
    )
    context = openmm.Context(
        prmtop.createSystem(), integrator, openmm.Platform.getPlatform("Reference")
    )
    context.setPositions(app.AmberInpcrdFile(f"{stem}.inpcrd").positions)
    context.setVelocitiesToTemperature(300, 1)
    integrator.step(800)
    assert context.getState().getStepCount() == 800
    assert integrator._binding.tuner.window in WINDOWS
    with pytest.raises(TypeError, match="positive integer or 'auto'"):
        LSDIntegrator(300, 1, 0.001, "auto", windowLength="long")
