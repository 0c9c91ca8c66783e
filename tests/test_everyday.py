"""What scripts do besides stepping: biases that grow, temperatures that change, and so on."""

import copy

import numpy as np
import openmm
import pytest
import restarting
from openmm import app, unit
from openmm.app.metadynamics import BiasVariable, Metadynamics
from particles import (
    COLD,
    PLATFORM,
    POSITIONS,
    VELOCITIES,
    always,
    assert_close,
    copy_state,
    lsd,
    system_of,
    target_system,
)
from restarting import barostat, build, digest

from openmm_lsd.core.errors import TargetError
from openmm_lsd.targets.torchforce import TorchForceTarget


@pytest.mark.parametrize("kind", ["force field", "auto"])
def test_a_thousand_steps_one_by_one(kind):
    one = build(kind, barostat())
    one.step(1000)
    expected = digest(one.context)
    other = build(kind, barostat())
    for _ in range(1000):
        other.step(1)
    assert digest(other.context) == expected


def test_metadynamics(simulate, state_of, monkeypatch):
    """The bias acts as soon as it has grown, and the TorchForce is not prepared anew."""
    prepared = []
    prepare = TorchForceTarget.prepare
    monkeypatch.setattr(
        TorchForceTarget, "prepare", lambda *args: prepared.append(1) or prepare(*args)
    )
    states = []
    for plain in (True, False):
        distance = openmm.CustomBondForce("r")
        distance.addBond(0, 1)
        variable = BiasVariable(distance, 0.05, 0.3, 0.01, gridWidth=60)
        system = target_system()
        bias = Metadynamics(system, [variable], 300 * unit.kelvin, 5.0, 4.0, 12)
        integrator = openmm.LangevinMiddleIntegrator(0, 1, 0.001) if plain else lsd(COLD)
        simulation = simulate(system, integrator, POSITIONS, VELOCITIES)
        for steps in (7, 30, 40):
            bias.step(simulation, steps)
            states.append(state_of(simulation))
        energy = simulation.context.getState(energy=True, groups={31}).getPotentialEnergy()
        assert energy._value > 3.0
    for ours, expected in zip(states[3:], states[:3], strict=True):
        assert_close(ours, expected)
    assert len(prepared) == (PLATFORM.getName() != "OpenCL")


def test_simulated_tempering(build, state_of):
    simulation = build()
    tempering = app.SimulatedTempering(
        simulation,
        temperatures=[300 * unit.kelvin, 320 * unit.kelvin, 345 * unit.kelvin],
        tempChangeInterval=7,
        reportInterval=700,
    )
    np.random.seed(3)
    visited = set()
    for _ in range(60):
        tempering.step(7)
        now = tempering.temperatures[tempering.currentTemperature]
        assert simulation.integrator.getTemperature() == now
        visited.add(now._value)
    assert visited == {300, 320, 345}
    assert simulation.currentStep == 420


def test_annealing_step_by_step(build, state_of):
    """At every stage the run is that of a Simulation made for this temperature."""
    simulation = build()
    for stage in range(12):
        temperature = 500 - 30 * stage
        simulation.integrator.setTemperature(temperature)
        fresh = build(temperature=temperature)
        copy_state(simulation, fresh)
        for each in (simulation, fresh):
            each.step(5 if stage % 2 else 1)
        assert state_of(simulation).equals(state_of(fresh))


def test_kinetic_energy_and_temperature_as_in_a_plain_run(build, simulate):
    plain = simulate(target_system(), openmm.LangevinMiddleIntegrator(300, 1, 0.001))
    simulation = build()
    for steps in (0, 1, 20):
        simulation.step(steps)
        state = simulation.context.getState(positions=True, velocities=True, energy=True)
        plain.context.setPositions(state.getPositions())
        plain.context.setVelocities(state.getVelocities())
        expected = plain.context.getState(energy=True).getKineticEnergy()._value
        assert state.getKineticEnergy()._value == pytest.approx(expected, rel=1e-12)
        velocities = state.getVelocities(asNumpy=True)._value
        masses = np.array([12.0, 16.0, 1.0, 14.0])
        assert expected == pytest.approx(0.5 * (masses[:, None] * velocities**2).sum(), rel=1e-12)
    # StateDataReporter asks for this, and computes the temperature from the energy without it.
    name = "computeSystemTemperature"
    assert hasattr(simulation.integrator, name) == hasattr(plain.integrator, name)


def test_positions_are_not_wrapped(simulate, state_of):
    """Molecules that leave the box go on outside, as in a plain run; wrapping is for reporters."""
    target, draft = restarting.molecules(3e5, 2.0), restarting.molecules(2.3e5, 0.0)
    velocities = np.random.default_rng(1).normal(0, 0.3, (restarting.COUNT, 3))
    velocities += np.array([9.0, -7.0, 0.0])
    states = []
    for plain in (True, False):
        integrator = (
            openmm.LangevinMiddleIntegrator(0, 1, 0.001) if plain else lsd(COLD, draft=draft)
        )
        simulation = simulate(copy.deepcopy(target), integrator, restarting.start(), velocities)
        simulation.step(400)
        states.append(state_of(simulation))
        wrapped = simulation.context.getState(positions=True, enforcePeriodicBox=True)
        assert wrapped.getPositions(asNumpy=True)._value.max() < 3.0
    assert_close(states[1], states[0], 1e-7)
    assert states[0].positions[:, 0].min() > 2.4


@pytest.mark.parametrize("fails_at", [1, 4])
def test_plain_steps_that_fail(simulate, state_of, fails_at):
    """What was done before stays; the error says why and where, and the run can go on."""
    failures = []

    def spring(state):
        if failures and failures.pop() == "fail":
            raise ArithmeticError("not converged")
        displacements = state.getPositions(asNumpy=True)._value - POSITIONS
        return 250.0 * (displacements**2).sum(), -500.0 * displacements

    system = system_of(openmm.PythonForce(spring))
    simulation = simulate(system, lsd(windowLength="auto"), POSITIONS, VELOCITIES)
    simulation.step(30)
    binding = simulation.integrator._binding
    while binding.sampler._queue:
        simulation.step(1)
    always(simulation.integrator, 1)
    start = simulation.currentStep
    failures[:] = ["fail"] + (fails_at - 1) * ["pass"]
    if fails_at == 1:
        with pytest.raises(TargetError, match=f"before step {start}: .*not converged"):
            simulation.step(8)
        assert simulation.currentStep == start
    simulation.step(8)
    assert not failures and simulation.currentStep == start + 8
    assert simulation.context.getTime()._value == pytest.approx(0.001 * (start + 8))
    assert np.isfinite(state_of(simulation).positions).all()


def test_force_groups_that_change_between_plain_steps(simulate, state_of):
    """OpenMM's CustomIntegrator keeps to the groups of its first step."""
    states = []
    for plain in (True, False):
        system = target_system()
        pull = openmm.CustomExternalForce("40*x")
        for index in range(system.getNumParticles()):
            pull.addParticle(index)
        pull.setForceGroup(1)
        system.addForce(pull)
        integrator = (
            openmm.LangevinMiddleIntegrator(0, 1, 0.001)
            if plain
            else lsd(COLD, windowLength="auto")
        )
        simulation = simulate(system, integrator, POSITIONS, VELOCITIES)
        for groups in ({0}, {0, 1}, {0}):
            integrator.setIntegrationForceGroups(groups)
            simulation.step(1)
            if not plain:
                always(integrator, 1)
            simulation.step(19)
        states.append(state_of(simulation))
    assert_close(states[1], states[0], 1e-7)
