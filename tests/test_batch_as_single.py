"""A batch is given what a single evaluation is given: time, step count, force groups, one thread.

The measure is plain OpenMM doing the same, without noise where trajectories are compared.
"""

import itertools
import math
import threading

import numpy as np
import openmm
import pytest
from law import make_sampler
from particles import (
    BOX,
    COLD,
    MASSES,
    PAIRS,
    POSITIONS,
    REFERENCE,
    SEED,
    VELOCITIES,
    always,
    draft_system,
    external_force,
    harmonic_bonds,
    lsd,
    system_of,
)

from openmm_lsd import batched, systems
from openmm_lsd.contexts.forcecontext import ForceContext
from openmm_lsd.core.clock import Clock, Times
from openmm_lsd.core.schemes import SCHEMES
from openmm_lsd.drafts.draft import Draft
from openmm_lsd.integrator.barostat import BarostatMoves
from openmm_lsd.targets import ContextTarget, PythonForceTarget, SystemTarget

STEP = 0.001  # ps
PERIOD = 0.016  # ps, so that the field is another at every site of a window


# Time and step count


def push(time):
    return 3000.0 * math.cos(2 * math.pi * time / PERIOD + 0.3)


def field(state):
    """A force along x that depends on the time, for OpenMM."""
    positions = state.getPositions(asNumpy=True)._value
    force = push(state.getTime()._value)
    return -force * positions[:, 0].sum(), np.tile([force, 0.0, 0.0], (len(positions), 1))


def field_by_step_count(state):
    positions = state.getPositions(asNumpy=True)._value
    force = push(STEP * state.getStepCount())
    return -force * positions[:, 0].sum(), np.tile([force, 0.0, 0.0], (len(positions), 1))


def uniform(forces, positions):
    """Energies and forces of a force along x of each state."""
    result = np.zeros_like(positions)
    result[..., 0] = np.array(forces)[:, None]
    return -np.sum(result * positions, axis=(1, 2)), result


@batched
def batched_field(positions, box, parameters, times):
    return uniform([push(time) for time in times], positions)


@batched
def batched_field_by_step_count(positions, box, parameters, *, step_counts):
    return uniform([push(STEP * count) for count in step_counts], positions)


@batched
def batched_field_singles_only(positions, box, parameters, times):
    if len(positions) > 1:
        raise RuntimeError("one at a time")
    return uniform([push(time) for time in times], positions)


def in_cv(force):
    result = openmm.CustomCVForce("2*(half)")
    result.addCollectiveVariable("half", force)
    halved = openmm.CustomCVForce("0.5*inner")
    halved.addCollectiveVariable("inner", result)
    return halved


def in_atm(force):
    result = openmm.ATMForce("u0")
    result.addForce(force)
    for _ in POSITIONS:
        result.addParticle(openmm.Vec3(0, 0, 0))
    return result


FIELDS = {
    "one state": lambda: openmm.PythonForce(field),
    "step count": lambda: openmm.PythonForce(field_by_step_count),
    "batched": lambda: openmm.PythonForce(batched_field, {}),
    "batched, step count": lambda: openmm.PythonForce(batched_field_by_step_count, {}),
    "batches fail": lambda: openmm.PythonForce(batched_field_singles_only, {}),
    "in collective variables": lambda: in_cv(openmm.PythonForce(field)),
    "in an ATMForce": lambda: in_atm(openmm.PythonForce(field)),
}


def field_system(kind, *forces):
    return system_of(harmonic_bonds(1700.0), FIELDS[kind](), *forces)


def cold_pair(simulate, system, window):
    """A plain Simulation and one by LSD; with window 0 LSD does plain steps.

    The draft is as good as the target, so that steps are queued when something is changed.
    """
    integrators = (openmm.LangevinMiddleIntegrator(0, 1, STEP), cold_lsd(window or "auto"))
    pair = [simulate(system(), each, POSITIONS, VELOCITIES) for each in integrators]
    if window == 0:
        pair[1].step(1)
        always(pair[1].integrator, 1)
        reset(pair[1])
    return pair


def cold_lsd(window):
    return lsd(COLD, 1, STEP, draft=field_system("one state"), windowLength=window)


def reset(simulation):
    simulation.context.setPositions(POSITIONS)
    simulation.context.setVelocities(VELOCITIES)
    simulation.context.setTime(0.0)
    simulation.context.setStepCount(0)


def assert_same_states(pair, state_of, tolerance=1e-9):
    plain, own = map(state_of, pair)
    np.testing.assert_allclose(own.positions, plain.positions, rtol=0, atol=tolerance)
    assert own[2:] == plain[2:]


@pytest.mark.parametrize("window", [0, 1, 8])
@pytest.mark.parametrize("kind", FIELDS)
def test_forces_see_the_time_of_their_own_step(simulate, state_of, kind, window):
    """From time zero and another, across windows, and after the time was set in between."""
    pair = cold_pair(simulate, lambda: field_system(kind), window)
    for simulation in pair:
        simulation.context.setTime(0.0101)
        simulation.context.setStepCount(3)
        for steps in (1, 3, 20):
            simulation.step(steps)
    assert_same_states(pair, state_of)
    for simulation in pair:
        simulation.context.setTime(0.5)
        simulation.step(13)
        simulation.context.setStepCount(1000)
        simulation.step(13)
    assert_same_states(pair, state_of)


def test_every_call_is_at_the_time_of_a_plain_run(simulate):
    """To the last bit, and at the positions that belong to it; plain steps in between."""
    seen = []

    def watched(state):
        seen.append((state.getStepCount(), state.getTime()._value))
        return field(state)

    def run(integrator):
        system = system_of(harmonic_bonds(1700.0), openmm.PythonForce(watched))
        simulation = simulate(system, integrator, POSITIONS, VELOCITIES)
        simulation.step(1)
        seen.clear()
        simulation.step(10)
        if hasattr(integrator, "round_callbacks"):
            tuner = always(integrator, 1)
            simulation.step(10)
            tuner.window = 5
        else:
            simulation.step(10)
        simulation.step(20)
        return dict(seen), {step for step, _ in seen}

    plain, steps = run(openmm.LangevinMiddleIntegrator(0, 1, STEP))
    assert steps == set(range(1, 41))
    for window in (8, "auto"):
        own, own_steps = run(lsd(COLD, 1, STEP, windowLength=window))
        assert steps <= own_steps | set(range(8))
        assert {step: own[step] for step in steps & own_steps} == {
            step: plain[step] for step in steps & own_steps
        }


@pytest.mark.parametrize("kind", ["one state", "batched", "in collective variables"])
def test_time_after_a_checkpoint(simulate, state_of, tmp_path, kind):
    """Loaded to the last bit; and if the time is then set, as a plain run from there."""
    path = str(tmp_path / "checkpoint")
    first = simulate(field_system(kind), lsd(300, 1, STEP), POSITIONS, VELOCITIES)
    first.context.setTime(0.0042)
    first.step(21)
    first.saveCheckpoint(path)
    first.step(21)

    again = simulate(field_system(kind), lsd(300, 1, STEP), POSITIONS, VELOCITIES)
    again.loadCheckpoint(path)
    again.step(21)
    assert state_of(again).equals(state_of(first))


@pytest.mark.parametrize("is_set_before", [True, False])
@pytest.mark.parametrize("kind", ["one state", "batched", "in collective variables"])
def test_time_set_beside_a_checkpoint(simulate, state_of, tmp_path, kind, is_set_before):
    """Steps that are queued in it belong to another time."""
    path = str(tmp_path / "checkpoint")
    pair = cold_pair(simulate, lambda: field_system(kind), 8)
    pair[1].step(21)
    if is_set_before:
        pair[1].context.setTime(0.0307)
    pair[1].saveCheckpoint(path)
    pair[1] = simulate(field_system(kind), cold_lsd(8))
    pair[1].loadCheckpoint(path)
    if not is_set_before:
        pair[1].context.setTime(0.0307)
    positions, velocities, time, step = state_of(pair[1])
    assert time == 0.0307
    pair[0].context.setPositions(positions)
    pair[0].context.setVelocities(velocities)
    pair[0].context.setTime(time)
    pair[0].context.setStepCount(step)
    for simulation in pair:
        simulation.step(20)
    assert_same_states(pair, state_of)


@pytest.mark.parametrize("learning", [False, True])
@pytest.mark.parametrize("kind", ["one state", "batches fail", "in collective variables"])
def test_draft_that_depends_on_time(simulate, kind, learning):
    """Equal to the target: nothing can be rejected, if both see the same time at every site."""
    draft, target = field_system(kind), field_system(kind)
    integrator = lsd(300, 1, STEP, draft=draft, windowLength=8, learning=learning)
    simulation = simulate(target, integrator, POSITIONS, VELOCITIES)
    simulation.context.setTime(0.0042)
    simulation.step(80)
    assert integrator.statistics.rejected == 0
    assert integrator.statistics.mean_noise_shift < 1e-9


class LearningField(Draft):
    """A draft that says after every round that it has changed."""

    def start(self, step):
        pass

    def learn(self, step, sites, discrepancies):
        self(sites[0], Times.same(1, 0.0123))  # its Context is left at another time
        return True


def test_corrections_after_learning_are_those_of_their_times():
    context = ForceContext(field_system("one state"), REFERENCE)
    run = make_sampler(
        SCHEMES["middle"](300.0, 1.0, STEP),
        MASSES,
        LearningField(context),
        context.forces,
        8,
        SEED,
        clock=Clock(),
    )
    run._clock.set(0, 0.0042, 0, STEP)
    run.set_state(POSITIONS, VELOCITIES)
    run.advance(60)
    assert run.statistics.rejected == 0 and run.statistics.rounds == 8


def test_energies_of_barostat_moves_are_those_of_their_step(simulate, monkeypatch):
    seen, moving = [], [None]
    apply = BarostatMoves.apply

    def watched(state):
        if moving[0] is not None:
            seen.append((moving[0], state.getStepCount(), state.getTime()._value))
        return field(state)

    def watched_apply(self, state):
        moving[0] = state.step
        try:
            return apply(self, state)
        finally:
            moving[0] = None

    monkeypatch.setattr(BarostatMoves, "apply", watched_apply)
    force = openmm.PythonForce(watched)
    force.setUsesPeriodicBoundaryConditions(True)
    system = system_of(harmonic_bonds(), force, openmm.MonteCarloBarostat(1.0, 300.0, 7))
    simulation = simulate(system, lsd(300, 1, STEP, windowLength=5), POSITIONS, VELOCITIES)
    simulation.step(40)
    assert len({step for step, *_ in seen}) == 5
    for step, count, time in seen:
        assert count == step and abs(time - STEP * step) < 1e-12


def test_targets_without_time_are_not_told(simulate):
    """No array is made for those that cannot use it."""
    simulation = simulate(draft_system(), lsd(), POSITIONS, VELOCITIES)
    simulation.step(3)
    assert simulation.integrator._binding.sampler._clock is None
    assert not simulation.integrator._binding.pair.target.uses_times


def test_clock_adds_as_openmm_does():
    clock = Clock()
    clock.set(4, 0.7, 100, STEP)
    expected = [0.7]
    for _ in range(30):
        expected.append(expected[-1] + STEP)
    for step, length in ((4, 8), (4, 3), (9, 8), (20, 14)):
        times = clock.times(step, length)
        assert times.times.tolist() == expected[step - 4 : step - 4 + length]
        assert times.step_counts.tolist() == list(range(96 + step, 96 + step + length))
    with pytest.raises(ValueError, match="step 19"):
        clock.times(19, 2)


@pytest.mark.parametrize("kind", FIELDS)
def test_times_of_a_batch_row_by_row(kind):
    """Any target, asked by itself; without times they are zero, as in a new Context."""
    system = system_of(FIELDS[kind]())
    target = SystemTarget(system, POSITIONS)
    assert target.uses_times
    states = np.repeat(POSITIONS[None], 5, axis=0)
    times = Times(STEP * np.array([7.0, 0.0, 3.0, 12.0, 5.0]), np.array([7, 0, 3, 12, 5]))
    size = 1 if kind == "batches fail" else 5
    for first in range(0, 5, size):
        rows = slice(first, first + size)
        forces = target.evaluate_at(states[rows], None, times.rows(rows))[1]
        expected = [push(time) for time in times.times[rows]]
        np.testing.assert_allclose(forces[:, 2, 0], expected, rtol=1e-12)
        forces = target.evaluate(states[rows])[1]
        np.testing.assert_allclose(forces[:, 2, 0], push(0.0), rtol=1e-12)


def test_a_system_made_from_a_target_is_told_the_time(simulate, state_of):
    """As the plain run of the same function, in plain OpenMM and by LSD."""
    inner = field_system("one state")

    def made():
        return systems.with_target(inner, SystemTarget(inner, POSITIONS))

    pair = cold_pair(simulate, lambda: field_system("one state"), 8)
    pair.append(simulate(made(), lsd(COLD, 1, STEP), POSITIONS, VELOCITIES))
    plain = openmm.LangevinMiddleIntegrator(0, 1, STEP)
    pair.append(simulate(made(), plain, POSITIONS, VELOCITIES))
    for simulation in pair:
        for force in simulation.system.getForces():
            if isinstance(force, openmm.CMMotionRemover):
                force.setFrequency(1000)
        simulation.context.reinitialize(preserveState=True)
        simulation.context.setStepCount(1)
        simulation.context.setTime(0.0051)
        simulation.step(30)
    for simulation in pair[1:]:
        assert_same_states((pair[0], simulation), state_of)


# Force groups


def grouped_system():
    """PME with two groups of its own, bonds, a PythonForce, a CustomCVForce."""
    charges = openmm.NonbondedForce()
    charges.setNonbondedMethod(openmm.NonbondedForce.PME)
    charges.setCutoffDistance(0.9)
    for charge in (0.4, -0.5, 0.3, -0.2):
        charges.addParticle(charge, 0.3, 0.5)
    charges.setForceGroup(1)
    charges.setReciprocalSpaceForceGroup(2)
    variable = openmm.CustomCVForce("50*v")
    angle = openmm.CustomAngleForce("theta^2")
    angle.addAngle(0, 1, 2, [])
    angle.setForceGroup(7)  # groups inside count for nothing
    variable.addCollectiveVariable("v", angle)
    python = openmm.PythonForce(static_field)
    forces = [charges, harmonic_bonds(), python, variable]
    for group, force in zip((1, 3, 4, 31), forces, strict=True):
        force.setForceGroup(group)
    return system_of(*forces)


def static_field(state):
    positions = state.getPositions(asNumpy=True)._value
    return 40.0 * (positions**2).sum(), -80.0 * positions


GROUPS = (1, 2, 3, 4, 31)
SUBSETS = [set(s) for n in range(1, 6) for s in itertools.combinations(GROUPS, n)]


@pytest.fixture(scope="module")
def grouped_context():
    context = openmm.Context(grouped_system(), openmm.VerletIntegrator(0.001), REFERENCE)
    context.setPositions(POSITIONS)
    return context


@pytest.mark.parametrize("groups", SUBSETS, ids=str)
def test_force_groups_mean_what_they_mean_in_the_context(grouped_context, groups):
    bits = sum(1 << group for group in groups)
    target = SystemTarget(grouped_system(), POSITIONS, groups=bits)
    state = grouped_context.getState(energy=True, forces=True, groups=groups)
    energies, forces = target.evaluate(np.repeat(POSITIONS[None], 2, axis=0), BOX)
    for row in range(2):
        np.testing.assert_allclose(energies[row], state.getPotentialEnergy()._value, atol=1e-8)
        np.testing.assert_allclose(forces[row], state.getForces(asNumpy=True)._value, atol=1e-7)


@pytest.mark.parametrize("groups", [{1}, {2}, {2, 31}, {1, 3, 4}, set(GROUPS)], ids=str)
def test_dynamics_in_some_force_groups(simulate, state_of, groups):
    pair = []
    for integrator in (openmm.LangevinMiddleIntegrator(0, 1, STEP), lsd(COLD, 1, STEP)):
        integrator.setIntegrationForceGroups(groups)
        pair.append(simulate(grouped_system(), integrator, POSITIONS, VELOCITIES))
    for simulation in pair:
        simulation.step(20)
    assert_same_states(pair, state_of)
    for simulation in pair:
        simulation.integrator.setIntegrationForceGroups({2, 3})
    pair[0] = simulate(grouped_system(), pair[0].integrator.__copy__(), POSITIONS, VELOCITIES)
    reset(pair[1])
    for simulation in pair:
        simulation.step(20)
    assert_same_states(pair, state_of)


# Python that belongs to the user


class OneAtATime:
    """A function that notices whether it is called by two threads at once."""

    def __init__(self):
        self.inside, self.most, self.threads = 0, 0, set()
        self.lock = threading.Lock()

    def __call__(self, state):
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.threads.add(threading.get_ident())
        threading.Event().wait(0.002)  # lets go of Python's lock
        with self.lock:
            self.inside -= 1
        return static_field(state)


watch = OneAtATime()


def watched_field(state):
    """By name, as functions inside other forces are copied."""
    return watch(state)


HOLDERS = {"collective variables": in_cv, "ATMForce": in_atm}


@pytest.mark.parametrize("contexts", [None, 3])
@pytest.mark.parametrize("holder", HOLDERS)
def test_python_is_called_by_one_thread_at_a_time(holder, contexts):
    system = system_of(HOLDERS[holder](openmm.PythonForce(watched_field)))
    target = ContextTarget(system, contexts=contexts, cores=3)
    watch.__init__()
    states = POSITIONS + 0.01 * np.random.default_rng(1).standard_normal((6, 4, 3))
    target.prepare(POSITIONS, 6)
    forces = target.evaluate(states)[1]
    np.testing.assert_allclose(forces, -80.0 * states, rtol=1e-9)
    assert watch.most == 1 and watch.threads == {threading.get_ident()}


def beside_all(force):
    """In a CustomCVForce with a variable of all particles, which has no batched form."""
    result = in_cv(force)
    result.addCollectiveVariable("all", openmm.RMSDForce(POSITIONS))
    return result


def test_other_forces_keep_their_contexts():
    """Only those that hold Python are alone."""
    python, angles = openmm.PythonForce(watched_field), openmm.CustomAngleForce("theta^2")
    angles.addAngle(0, 1, 2, [])
    system = system_of(beside_all(python), angles, harmonic_bonds())
    target = SystemTarget(system, POSITIONS)
    with_python, others = sorted(target.in_contexts, key=lambda part: part._contexts is None)
    assert (with_python._contexts, others._contexts) == (1, None)
    whole = ForceContext(
        system_of(
            beside_all(openmm.PythonForce(watched_field)), angles.__copy__(), harmonic_bonds()
        ),
        REFERENCE,
    )
    for part, expected in zip(
        target.evaluate(POSITIONS[None]), whole.evaluate(POSITIONS[None]), strict=True
    ):
        np.testing.assert_allclose(part, expected, rtol=1e-9, atol=1e-9)
    target.refresh(system.getForces())
    np.testing.assert_allclose(target.evaluate(POSITIONS[None])[1], whole.forces(POSITIONS[None]))


def test_python_next_to_python_is_called_by_one_thread_at_a_time(simulate):
    """At the top, in a collective variable, and in the draft."""
    watch.__init__()

    def system():
        return system_of(
            harmonic_bonds(),
            openmm.PythonForce(watched_field),
            in_cv(openmm.PythonForce(watched_field)),
            external_force("x^2", 4),
        )

    integrator = lsd(draft=system(), windowLength=4)
    simulation = simulate(system(), integrator, POSITIONS, VELOCITIES)
    simulation.step(8)
    assert watch.most == 1 and integrator.statistics.rejected == 0


def test_function_with_times_by_itself():
    """What OpenMM calls is told the time as well."""
    context = ForceContext(system_of(openmm.PythonForce(batched_field, {})), REFERENCE)
    times = Times.same(1, 0.0033, 5)
    assert context.forces(POSITIONS[None], times)[0, 2, 0] == pytest.approx(push(0.0033))
    system = system_of(openmm.PythonForce(batched_field, {}))
    target = PythonForceTarget(system.getForce(0), POSITIONS)
    assert target.batched is batched_field and target.uses_times
    assert not batched(lambda positions, box, parameters: None).uses_times
    assert len(PAIRS) == 6
