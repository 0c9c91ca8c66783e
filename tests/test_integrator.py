"""LSDIntegrator in an unmodified app.Simulation: its trajectory, its settings, its statistics."""

import dataclasses
import io
import signal
from pathlib import Path

import numpy as np
import openmm
import pytest
from law import make_sampler
from mdtraj.formats import DCDTrajectoryFile
from openmm import app, unit
from particles import (
    MASSES,
    ON_DEVICE,
    PLATFORM,
    POSITIONS,
    REFERENCE,
    ROUNDING,
    SEED,
    VELOCITIES,
    Bonds,
    always,
    assert_close,
    draft_system,
    harmonic_bonds,
    lsd,
    needs_double,
    needs_frequency,
    system_of,
    target_system,
    torch_force,
)

from openmm_lsd import LSDIntegrator
from openmm_lsd.contexts.forcecontext import ForceContext
from openmm_lsd.core.noise import StepNoise
from openmm_lsd.core.schemes import ABOBA, Middle
from openmm_lsd.drafts.draft import Draft
from openmm_lsd.drafts.nativeengine import NativeEngine

ALANINE = Path(__file__).parents[1] / "systems" / "alanine_dipeptide"


@pytest.fixture(scope="module")
def prmtop():
    return app.AmberPrmtopFile(str(ALANINE / "alanine_dipeptide.prmtop"))


@pytest.fixture(scope="module")
def alanine_positions():
    inpcrd = app.AmberInpcrdFile(str(ALANINE / "alanine_dipeptide.inpcrd"))
    return np.array(inpcrd.positions.value_in_unit(unit.nanometer))


def perturbed_bonds(system):
    for force in system.getForces():
        if isinstance(force, openmm.HarmonicBondForce):
            for index in range(force.getNumBonds()):
                i, j, length, constant = force.getBondParameters(index)
                force.setBondParameters(index, i, j, 1.01 * length, 1.1 * constant)
    return system


@pytest.fixture(scope="module")
def alanine(prmtop, alanine_positions):
    """Function: an app.Simulation of alanine dipeptide whose target has stiffer, longer bonds."""

    def make(integrator=None):
        if integrator is None:
            integrator = lsd(draft=prmtop.createSystem())
        system = perturbed_bonds(prmtop.createSystem())
        simulation = app.Simulation(prmtop.topology, system, integrator, PLATFORM)
        simulation.context.setPositions(alanine_positions)
        simulation.context.setVelocitiesToTemperature(300, SEED)
        return simulation

    return make


# The Context after a step


def test_time_and_step_count_as_in_a_plain_run(alanine, state_of):
    speculative, plain = alanine(), alanine(openmm.LangevinMiddleIntegrator(300, 1, 0.001))
    for n in (1, 3, 10, 17, 0):
        for simulation in (speculative, plain):
            simulation.integrator.step(n)
        assert state_of(speculative)[2:] == state_of(plain)[2:]
        for simulation in (speculative, plain):
            simulation.step(n)
        assert state_of(speculative)[2:] == state_of(plain)[2:]
        assert speculative.currentStep == plain.currentStep
    assert speculative.currentStep == 62
    for simulation in (speculative, plain):
        simulation.context.setTime(5 * unit.picosecond)
        simulation.step(3)
    assert state_of(speculative)[2:] == state_of(plain)[2:]


@needs_double
@pytest.mark.parametrize("scheme", [Middle, ABOBA])
def test_context_shows_the_committed_state(simulate, state_of, scheme):
    """The Context shows what the sampler alone, given the same forces, commits."""

    def target(positions):
        return -6.0 * (positions - [0.1, 0.0, 0.0]) * np.array(MASSES)[:, None]

    force = openmm.CustomExternalForce("3*m*((x-0.1)^2+y^2+z^2)")
    force.addPerParticleParameter("m")
    for index, mass in enumerate(MASSES):
        force.addParticle(index, [mass])
    integrator = lsd(scheme=scheme.name, target=target)
    simulation = simulate(system_of(force), integrator, POSITIONS, VELOCITIES)

    draft = Draft(ForceContext(draft_system(), REFERENCE))
    made = scheme(300.0, 1.0, 0.001)
    sampler = make_sampler(made, MASSES, draft, target, 16, SEED, engine=NativeEngine)
    sampler.set_state(POSITIONS, VELOCITIES)
    for n in (1, 2, 7, 30, 5):
        simulation.step(n)
        positions, velocities = sampler.advance(n)
        state = state_of(simulation)
        np.testing.assert_array_equal(state.positions, positions)
        np.testing.assert_array_equal(state.velocities, velocities)
    assert integrator.statistics.rejected > 0


# However step() is cut


CUTS = [[50], [1] * 50, [7, 13, 1, 10, 19], [16, 16, 16, 2]]


@pytest.fixture(scope="module")
def alanine_reference(alanine, state_of):
    """The states after 0 to 50 steps, by calls of integrator.step(1)."""
    simulation = alanine()
    states = [state_of(simulation)]
    for _ in range(50):
        simulation.integrator.step(1)
        states.append(state_of(simulation))
    assert simulation.integrator.statistics.steps_per_round > 1.5  # else nothing is queued
    return states


@pytest.mark.parametrize("through", ["integrator", "simulation"])
@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_same_trajectory_however_step_is_cut(alanine, alanine_reference, state_of, cuts, through):
    simulation = alanine()
    for n in cuts:
        (simulation if through == "simulation" else simulation.integrator).step(n)
        assert state_of(simulation).equals(alanine_reference[simulation.currentStep])


@pytest.mark.parametrize("interval", [1, 3, 7])
def test_reporters_do_not_change_the_trajectory(
    alanine, alanine_reference, state_of, tmp_path, interval
):
    simulation = alanine()
    table = io.StringIO()
    simulation.reporters.append(app.DCDReporter(str(tmp_path / "out.dcd"), interval))
    simulation.reporters.append(
        app.StateDataReporter(
            table, interval, step=True, time=True, potentialEnergy=True, kineticEnergy=True
        )
    )
    simulation.step(50)
    assert state_of(simulation).equals(alanine_reference[50])

    reported = range(interval, 51, interval)
    with DCDTrajectoryFile(str(tmp_path / "out.dcd")) as file:
        frames = file.read()[0] / 10.0
    expected = np.array([alanine_reference[step].positions for step in reported])
    np.testing.assert_allclose(frames, expected, rtol=0, atol=1e-6)

    rows = np.genfromtxt(io.StringIO(table.getvalue()), delimiter=",")
    np.testing.assert_array_equal(rows[:, 0], list(reported))
    fresh = alanine(openmm.VerletIntegrator(0.001))
    for step, row in zip(reported, rows, strict=True):
        state = alanine_reference[step]
        fresh.context.setPositions(state.positions)
        energy = fresh.context.getState(energy=True).getPotentialEnergy()
        np.testing.assert_allclose(
            row[2], energy.value_in_unit(unit.kilojoule_per_mole), rtol=0, atol=1e-9 * ROUNDING
        )
        masses = [
            fresh.system.getParticleMass(i).value_in_unit(unit.dalton)
            for i in range(fresh.system.getNumParticles())
        ]
        kinetic = 0.5 * np.sum(np.array(masses)[:, None] * state.velocities**2)
        np.testing.assert_allclose(row[3], kinetic, rtol=0, atol=1e-9 * ROUNDING)


def test_queries_do_not_flush_the_window(alanine, alanine_reference, state_of):
    simulation = alanine()
    for _ in range(10):
        simulation.step(5)
        context = simulation.context
        context.getState(energy=True, forces=True, parameters=True, integratorParameters=True)
        context.getState(forces=True, groups={0})
        context.getState(positions=True, enforcePeriodicBox=True)
        context.getParameters()
        context.createCheckpoint()
        simulation.integrator.getTemperature()
        str(simulation.integrator.statistics)
    assert state_of(simulation).equals(alanine_reference[50])


def test_seeds(alanine, prmtop, state_of):
    def positions(seed):
        simulation = alanine(lsd(draft=prmtop.createSystem(), randomNumberSeed=seed))
        simulation.step(3)
        return state_of(simulation).positions

    seeds = [5, 6, -(2**31)] if ON_DEVICE else [5, 6, -5, -6, 2**31 - 1, -(2**31)]
    runs = [positions(seed) for seed in seeds]
    for i, seed in enumerate(seeds):
        assert np.array_equal(runs[i], positions(seed))
        for run in runs[:i]:
            assert not np.array_equal(runs[i], run)
    assert not np.array_equal(positions(None), positions(None))
    assert not np.array_equal(positions(0), positions(0))


# Draft equal to target, CMMotionRemover, massless particles


@pytest.mark.parametrize(
    "massless", [(), pytest.param((2, 9), marks=needs_double)], ids=["", "massless"]
)
@pytest.mark.parametrize("frequency", [None, 1, 3])
def test_draft_equal_to_target_without_noise(
    build_cold, prmtop, alanine_positions, state_of, frequency, massless
):
    if ON_DEVICE and massless and frequency:
        pytest.skip("a device gives particles without mass the velocity of the others' centre")
    states = []
    for plain in (False, True):
        systems = [prmtop.createSystem(removeCMMotion=False) for _ in range(2)]
        for system in systems:
            for index in massless:
                system.setParticleMass(index, 0.0)
        target, draft = systems
        if frequency is not None:
            target.addForce(openmm.CMMotionRemover(frequency))
        velocities = np.random.default_rng(3).normal(0.1, 0.4, alanine_positions.shape)
        simulation = build_cold(
            target, plain=plain, positions=alanine_positions, velocities=velocities, draft=draft
        )
        simulation.context.setStepCount(1)
        for n in (1, 4, 45):
            simulation.step(n)
            states.append(state_of(simulation))
        if not plain:
            assert simulation.integrator.statistics.rejected == 0
            assert simulation.integrator.statistics.steps_per_round == 16
        for index in massless:
            np.testing.assert_array_equal(states[-1].positions[index], alanine_positions[index])
            np.testing.assert_array_equal(states[-1].velocities[index], velocities[index])
    for speculative, plain in zip(states[:3], states[3:], strict=True):
        assert_close(speculative, plain)


@needs_double
@pytest.mark.parametrize("scheme", [Middle, ABOBA])
@pytest.mark.parametrize("frequency", [0, pytest.param(3, marks=needs_frequency)])
def test_draft_equal_to_target_is_the_plain_scheme(simulate, state_of, scheme, frequency):
    """The plain scheme, driven by the same noise."""
    target = draft_system()
    if frequency:
        target.addForce(openmm.CMMotionRemover(frequency))
    integrator = lsd(300, 5, 0.002, scheme=scheme.name)
    simulation = simulate(target, integrator, POSITIONS, VELOCITIES)
    plain = scheme(300.0, 5.0, 0.002)
    forces = Draft(ForceContext(draft_system(), REFERENCE))
    masses = np.array(MASSES)[:, None]
    positions, velocities = POSITIONS, VELOCITIES
    step_noise = StepNoise(SEED, 4)
    for step in range(40):
        if frequency and step % frequency == 0:
            velocities = velocities - (masses * velocities).sum(0) / masses.sum()
        noise = step_noise(step, 1)[0][0]
        site = plain.site(positions, velocities)
        kick = plain.noise_scale(1 / masses) * noise
        positions, velocities = plain.step(positions, velocities, forces(site) / masses, kick)
    simulation.step(40)
    np.testing.assert_allclose(state_of(simulation).positions, positions, rtol=0, atol=1e-11)
    np.testing.assert_allclose(
        state_of(simulation).velocities, velocities, rtol=0, atol=1e-9 * ROUNDING
    )


@needs_double
@pytest.mark.parametrize("frequency", [1, 3])
def test_massless_particles_and_cm_removal_with_noise(simulate, state_of, frequency):
    """Massless particles stay and keep their velocities; the others lose their momentum."""
    masses = [12.0, 0.0, 1.0, 14.0]
    system = system_of(
        harmonic_bonds(2500.0), torch_force(Bonds), openmm.CMMotionRemover(frequency), masses=masses
    )
    integrator = lsd(draft=draft_system(masses))
    simulation = simulate(system, integrator, POSITIONS, VELOCITIES)
    simulation.step(30)
    state = state_of(simulation)
    np.testing.assert_array_equal(state.positions[1], POSITIONS[1])
    np.testing.assert_array_equal(state.velocities[1], VELOCITIES[1])
    mobile = [0, 2, 3]
    assert (np.abs(state.positions[mobile] - POSITIONS[mobile]) > 1e-4).any(axis=1).all()
    assert integrator.statistics.rejected > 0


def test_target_without_torch_force(build_cold, prmtop, alanine_positions, state_of):
    states = []
    for plain in (False, True):
        target, draft = perturbed_bonds(prmtop.createSystem()), prmtop.createSystem()
        velocities = np.random.default_rng(3).normal(0.0, 0.4, (22, 3))
        simulation = build_cold(
            target, plain=plain, positions=alanine_positions, velocities=velocities, draft=draft
        )
        simulation.step(40)
        states.append(state_of(simulation))
    assert_close(*states)


@pytest.mark.parametrize("platform", [None, "Reference", REFERENCE, "CPU"])
def test_platform_of_the_draft(build_cold, state_of, platform):
    states = []
    for plain in (False, True):
        keywords = {} if plain else {"draftPlatform": platform}
        simulation = build_cold(system_of(harmonic_bonds(2500.0)), plain=plain, **keywords)
        simulation.step(20)
        states.append(state_of(simulation))
    assert_close(*states)


# Getters, setters, statistics


def test_getters_and_setters():
    plain = openmm.LangevinMiddleIntegrator(
        300 * unit.kelvin, 1 / unit.picosecond, 2 * unit.femtoseconds
    )
    integrator = LSDIntegrator(
        300 * unit.kelvin, 1 / unit.picosecond, 2 * unit.femtoseconds, draft_system()
    )
    assert isinstance(integrator, openmm.CustomIntegrator)
    assert integrator.getTemperature() == plain.getTemperature() == 300 * unit.kelvin
    assert integrator.getFriction() == plain.getFriction() == 1 / unit.picosecond
    assert integrator.getStepSize() == plain.getStepSize() == 0.002 * unit.picosecond
    assert integrator.getRandomNumberSeed() == plain.getRandomNumberSeed() == 0
    for each in (integrator, plain):
        each.setTemperature(310)
        each.setFriction(0.5 / unit.femtosecond)
        each.setStepSize(0.5 * unit.femtosecond)
        each.setRandomNumberSeed(17)
    for getter in ("getTemperature", "getFriction", "getStepSize", "getRandomNumberSeed"):
        assert getattr(integrator, getter)() == getattr(plain, getter)()
    integrator.setTemperature(320 * unit.kelvin)
    integrator.setFriction(3)
    integrator.setStepSize(0.001)
    assert integrator.getTemperature() == 320 * unit.kelvin
    assert integrator.getFriction() == 3 / unit.picosecond
    assert integrator.getStepSize() == 1 * unit.femtosecond
    assert lsd(randomNumberSeed=5).getRandomNumberSeed() == 5


def test_statistics(build):
    simulation = build(windowLength=8)
    integrator = simulation.integrator
    nothing = integrator.statistics
    assert dataclasses.is_dataclass(nothing)
    assert (nothing.rounds, nothing.steps, nothing.steps_per_round) == (0, 0, 0)
    assert nothing.acceptance_rate == 0
    assert "0 steps in 0 rounds" in str(nothing)

    simulation.step(60)
    counted = integrator.statistics
    assert 60 <= counted.steps < 60 + 8
    # A round ends with a rejection or with the last step of the window, which is neither.
    assert counted.steps == counted.accepted + counted.rounds
    assert 0 < counted.rejected <= counted.rounds
    assert counted.rounds < counted.steps
    assert counted.steps_per_round == counted.steps / counted.rounds
    tried = counted.accepted + counted.rejected
    assert counted.acceptance_rate == counted.accepted / tried
    for seconds in ("draft_seconds", "target_seconds", "overhead_seconds"):
        assert getattr(counted, seconds) > 0
    for text in (
        f"{counted.steps} steps in {counted.rounds} rounds",
        f"{counted.steps_per_round:.2f} steps per round",
        f"{counted.acceptance_rate:.3f}",
    ):
        assert text in str(counted)
    assert nothing.steps == 0  # a copy

    integrator.setTemperature(310)
    simulation.step(5)
    assert integrator.statistics.steps >= counted.steps + 5


def test_statistics_of_a_perfect_draft(simulate):
    simulation = simulate(draft_system(), lsd(windowLength=10), POSITIONS, VELOCITIES)
    simulation.step(40)
    statistics = simulation.integrator.statistics
    assert (statistics.rounds, statistics.steps) == (4, 40)
    assert (statistics.accepted, statistics.rejected) == (36, 0)
    assert (statistics.steps_per_round, statistics.acceptance_rate) == (10, 1)


@pytest.mark.parametrize("windows", [[1], [1, 8], [3, 1, 5]])
def test_fixed_atoms_stay_whatever_their_velocity(simulate, windows):
    """Plain steps and windows in turns, as a tuned run does them."""
    system, draft = system_of(harmonic_bonds(2500.0)), draft_system()
    for each in (system, draft):
        each.setParticleMass(1, 0.0)
    integrator = lsd(draft=draft, windowLength="auto")
    simulation = simulate(system, integrator, POSITIONS, VELOCITIES)
    simulation.step(1)
    tuner = always(integrator, 1)
    for _ in range(4):
        for window in windows:
            tuner.window = window
            simulation.step(7)
    state = simulation.context.getState(positions=True, velocities=True)
    np.testing.assert_array_equal(state.getPositions(asNumpy=True)._value[1], POSITIONS[1])
    np.testing.assert_array_equal(state.getVelocities(asNumpy=True)._value[1], VELOCITIES[1])


def test_a_step_within_a_step(simulate):
    simulation = simulate(target_system(), lsd(), POSITIONS, VELOCITIES)
    refusals = []

    def step(_):
        with pytest.raises(RuntimeError, match=r"step\(\) was called while step\(\) runs"):
            simulation.integrator.step(1)
        refusals.append(1)

    simulation.integrator.round_callbacks.append(step)
    simulation.step(10)
    assert refusals and simulation.currentStep == 10


@pytest.mark.parametrize("window", [8, "auto"])
def test_interrupt_in_a_users_function(simulate, window):
    """OpenMM makes an exception without a text of it; it is no fault of the target."""
    calls = []

    def pull(state):
        calls.append(1)
        if len(calls) == 150:
            signal.raise_signal(signal.SIGINT)
        positions = state.getPositions(asNumpy=True)._value
        return 100 * float((positions**2).sum()), -200 * positions

    integrator = lsd(windowLength=window)
    system = system_of(openmm.PythonForce(pull), harmonic_bonds(2500.0))
    simulation = simulate(system, integrator, POSITIONS, VELOCITIES)
    simulation.step(1)
    if window == "auto":
        always(integrator, 1)
    with pytest.raises(KeyboardInterrupt):
        simulation.step(500)
    assert len(calls) == 150
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    before = simulation.currentStep
    simulation.step(5)
    assert simulation.currentStep == before + 5
