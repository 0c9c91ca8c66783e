"""Before the first step: what plain OpenMM runs is not refused, faults of a batch are."""

import logging

import numpy as np
import openmm
import pytest
from openmm import app
from particles import (
    COLD,
    POSITIONS,
    REFERENCE,
    VELOCITIES,
    assert_close,
    external_force,
    harmonic_bonds,
    lsd,
    system_of,
)
from test_validate import FAULTS, MASSES, NotFinite, OrderDependent, Springs
from test_validate import POSITIONS as SPRING_POSITIONS

from openmm_lsd import TargetMismatchError, batched, systems
from openmm_lsd.contexts.checks import default_box, masses_of
from openmm_lsd.integrator import targetcheck
from openmm_lsd.targets import ASETarget, BatchedTarget, ContextTarget, validate_target


def twisted(state):
    """A force that is no gradient."""
    positions = state.getPositions(asNumpy=True)._value
    return 0.0, 200.0 * positions[:, [1, 2, 0]] - 30.0


def jagged(state):
    """The energy jumps wherever one looks."""
    positions = state.getPositions(asNumpy=True)._value
    energy, forces = 30.0 * (positions**2).sum(), -60.0 * positions
    return energy + 500.0 * np.sin(1e9 * positions).sum(), forces


def beside_a_wall(state):
    """Half a picometre further there is nothing."""
    positions = state.getPositions(asNumpy=True)._value
    if (positions > POSITIONS + 5e-7).any():
        raise ValueError("inside the wall")
    return 0.0, -500.0 * (positions + 0.1)


def above_a_pole(state):
    positions = state.getPositions(asNumpy=True)._value
    forces = -500.0 * (positions + 0.1)
    return 0.0, np.where(positions > POSITIONS + 5e-7, np.nan, forces)


SOUND = {
    "no gradient": (twisted, True),
    "jumps": (jagged, True),
    "beside a wall": (beside_a_wall, False),
    "above a pole": (above_a_pole, False),
}


@pytest.mark.parametrize("kind", SOUND)
def test_what_plain_openmm_runs_is_not_refused(simulate, state_of, caplog, monkeypatch, kind):
    monkeypatch.setattr(targetcheck, "FAST", np.inf)  # on a busy machine as well
    function, is_warned = SOUND[kind]
    states = []
    for integrator in (openmm.LangevinMiddleIntegrator(0, 1, 0.001), lsd(COLD, windowLength=4)):
        system = system_of(openmm.PythonForce(function))
        simulation = simulate(system, integrator, POSITIONS, -np.abs(VELOCITIES))
        simulation.step(20)
        states.append(state_of(simulation))
    assert_close(*states)
    said = [each for each in caplog.records if "minus the gradient" in each.getMessage()]
    assert len(said) == is_warned and all(each.levelno == logging.WARNING for each in said)


def test_a_batch_that_fails_is_evaluated_state_by_state(simulate, state_of, caplog):
    @batched
    def singles(positions, box, parameters):
        if len(positions) > 1:
            raise RuntimeError("no batches today")
        return 50.0 * (positions**2).sum(axis=(1, 2)), -100.0 * positions

    def singles_state(state):
        energies, forces = singles.function(state.getPositions(asNumpy=True)._value[None], None, {})
        return energies[0], forces[0]

    states = []
    for function, integrator in (
        (singles_state, openmm.LangevinMiddleIntegrator(0, 1, 0.001)),
        (singles, lsd(COLD, windowLength=4)),
    ):
        system = system_of(openmm.PythonForce(function, {}))
        simulation = simulate(system, integrator, POSITIONS, VELOCITIES)
        simulation.step(60)
        states.append(state_of(simulation))
    assert_close(*states)
    failed = simulation.integrator.statistics.failed_batches
    assert failed == simulation.integrator.statistics.rounds > 10
    assert caplog.text.count("3 batches have failed") == 1  # and no more, however many rounds
    assert caplog.text.count("one batch (RuntimeError: no batches today)") == 1
    assert f"{failed} batches that failed" in str(simulation.integrator.statistics)


class Leaky(BatchedTarget):
    """Rows of a batch disturb one another."""

    def evaluate(self, positions, box=None):
        forces = -4000.0 * positions
        return 2000.0 * (positions**2).sum(axis=(1, 2)), forces + 2e-3 * forces[-1:]


@batched
def leaky(positions, box, parameters):
    energies, forces = Leaky().evaluate(positions)
    return energies, forces if len(positions) > 1 else forces / 1.002


def test_a_system_whose_batch_leaks_is_refused(simulate, refused):
    simulation = simulate(
        system_of(openmm.PythonForce(leaky, {})), lsd(windowLength=4), POSITIONS, VELOCITIES
    )
    refused(simulation, TargetMismatchError, "rows of a batch and states alone")


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize(
    "kind", [kind for kind in FAULTS if kind not in (OrderDependent, NotFinite)]
)
def test_faults_of_a_given_target_are_found(simulate, monkeypatch, kind, slow):
    """Where the System has no forces that could say what is right."""
    if slow:
        monkeypatch.setattr(targetcheck, "SLOW", 0.0)
    system, draft = openmm.System(), openmm.System()
    for each in (system, draft):
        for mass in MASSES:
            each.addParticle(float(mass))
    bonds = openmm.HarmonicBondForce()
    bonds.addBond(0, 1, 0.1, 2e5)
    bonds.addBond(1, 2, 0.12, 2e5)
    bonds.setUsesPeriodicBoundaryConditions(True)
    draft.addForce(bonds)

    def run(target):
        integrator = lsd(draft=draft, windowLength=4, target=target)
        simulation = simulate(system, integrator, SPRING_POSITIONS, np.zeros((3, 3)))
        simulation.step(1)

    run(Springs())
    with pytest.raises(TargetMismatchError, match=FAULTS[kind]):
        run(kind())


class Counted(Springs):
    def __init__(self):
        self.states = 0

    def evaluate(self, positions, box=None):
        self.states += len(positions)
        return super().evaluate(positions, box)


@pytest.mark.parametrize(("is_slow", "most"), [(False, 26), (True, 12)])
def test_a_slow_target_is_evaluated_at_few_states(simulate, monkeypatch, caplog, is_slow, most):
    """Besides the window itself; and what it takes is said."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(targetcheck, "SLOW", 0.0 if is_slow else np.inf)
    monkeypatch.setattr(targetcheck, "SLOW_SET_UP", 0.0 if is_slow else np.inf)
    system, target = openmm.System(), Counted()
    for mass in MASSES:
        system.addParticle(float(mass))
    integrator = lsd(draft="auto", windowLength=5, target=target)
    simulation = simulate(system, integrator, SPRING_POSITIONS, np.zeros((3, 3)))
    simulation.step(1)
    assert target.states <= most + 5
    assert simulation.integrator.statistics.plain_step_seconds > 0
    messages = [each for each in caplog.records if each.name == "openmm_lsd.integrator.targetcheck"]
    assert [each.levelno for each in messages].count(logging.WARNING) == is_slow
    assert "the target is new" in messages[0].getMessage()
    said = [each.getMessage() for each in messages if each.levelno == logging.WARNING]
    assert not is_slow or "prepared and checked" in said[0]


@pytest.fixture(scope="module")
def water_states():
    """States of a small box with a short cutoff, where energies jump; System, states, box."""
    pdb = app.PDBFile("systems/amoeba_water/amoeba_water.pdb")
    system = app.ForceField("tip3p.xml").createSystem(
        pdb.topology,
        nonbondedMethod=app.CutoffPeriodic,
        nonbondedCutoff=0.5,
        constraints=None,
        rigidWater=False,
    )
    integrator = openmm.LangevinMiddleIntegrator(300, 1, 0.0005)
    integrator.setRandomNumberSeed(5)
    simulation = app.Simulation(pdb.topology, system, integrator, REFERENCE)
    simulation.context.setPositions(pdb.positions)
    openmm.LocalEnergyMinimizer.minimize(simulation.context, maxIterations=100)
    simulation.context.setVelocitiesToTemperature(300, 1)
    states = []
    for _ in range(40):
        simulation.step(20)
        state = simulation.context.getState(positions=True)
        states.append(np.array(state.getPositions(asNumpy=True)._value))
    return system, states, default_box(system)


def test_jumps_at_a_cutoff_are_no_fault(water_states):
    system, states, box = water_states
    target = ContextTarget(system, platforms={"Reference": {}}, contexts=1)
    for positions in states:
        validate_target(target, positions, masses_of(system), box=box, rows=False)


def test_a_small_fault_beside_jumps_is_found(water_states):
    """Energies 10 % too large, or a force on one kind of atom, at every state."""
    system, states, box = water_states

    class Wrong(ContextTarget):
        def evaluate_at(self, positions, box=None, times=None):
            energies, forces = super().evaluate_at(positions, box, times)
            return self.factor * energies, forces + self.offset

    target = Wrong(system, platforms={"Reference": {}}, contexts=1)
    oxygens = np.zeros((system.getNumParticles(), 3))
    oxygens[::3, 0] = 150.0
    for target.factor, target.offset in ((1.1, 0.0), (1.0, oxygens)):
        for positions in states[::8]:
            with pytest.raises(TargetMismatchError, match="numerical gradient"):
                validate_target(target, positions, masses_of(system), box=box, rows=False)


def test_the_check_is_at_the_present_time(simulate, state_of):
    """A target given by the user is told of the time, too."""

    class Pushed(BatchedTarget):
        uses_times = True

        def evaluate(self, positions, box=None):
            raise AssertionError("it was asked without a time")

        def evaluate_at(self, positions, box=None, times=None):
            assert (times.times >= 0.0049).all()
            forces = -200.0 * positions + 1e4 * times.times[:, None, None]
            energies = 100.0 * np.sum(positions**2, axis=(1, 2))
            energies -= 1e4 * times.times * positions.sum(axis=(1, 2))
            return energies, forces

    def pushed(state):
        positions = state.getPositions(asNumpy=True)._value
        assert state.getTime()._value >= 0.0049
        return 0.0, -200.0 * positions + 1e4 * state.getTime()._value

    states = []
    for system, integrator in (
        (system_of(openmm.PythonForce(pushed)), openmm.LangevinMiddleIntegrator(0, 1, 0.001)),
        (system_of(), lsd(COLD, windowLength=4, target=Pushed())),
        (system_of(openmm.PythonForce(pushed)), lsd(COLD, windowLength=4)),
    ):
        simulation = simulate(system, integrator, POSITIONS, VELOCITIES)
        simulation.context.setTime(0.005)
        simulation.step(30)
        states.append(state_of(simulation))
    for state in states[1:]:
        assert_close(state, states[0])


def test_forces_of_another_potential_are_refused(simulate, refused):
    target = ContextTarget(system_of(harmonic_bonds(2100.0)), contexts=1)
    system = system_of(harmonic_bonds(2000.0), external_force("x^2", 4))
    simulation = simulate(system, lsd(target=target), POSITIONS, VELOCITIES)
    refused(simulation, TargetMismatchError, "forces of the target and of the Context")


# Evaluated one after another


def loop_in_python(state):
    positions = state.getPositions(asNumpy=True)._value
    return 0.0, -500.0 * positions


@batched
def springs_of_all(positions, box, parameters):
    return 250.0 * (positions**2).sum(axis=(1, 2)), -500.0 * positions


class Calculator:
    """As much of an ASE calculator as ASETarget asks for."""

    implemented_properties = ("energy", "forces")

    def get_property(self, name, atoms, allow_calculation=True):
        return 0.0 if name == "energy" else -0.1 * atoms.positions


def of_ase():
    pytest.importorskip("ase")
    return ASETarget(Calculator(), np.ones(len(POSITIONS), dtype=int))


def force_of(kind):
    if kind == "a target of ASE":
        return systems.with_target(system_of(), of_ase())
    function = loop_in_python if kind == "PythonForce" else springs_of_all
    return system_of(openmm.PythonForce(function))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("PythonForce", "decorator openmm_lsd.batched"),
        ("a target of ASE", "ASE calculator"),
        ("batched", None),
    ],
)
def test_what_gains_nothing_is_said_once(simulate, caplog, kind, says):
    targetcheck._warn_of_no_gain.cache_clear()
    for _ in range(2):
        simulate(force_of(kind), lsd(windowLength=4), POSITIONS, VELOCITIES).step(4)
    assert caplog.text.count("evaluated one after another") == (says is not None)
    assert says is None or says in caplog.text


class Prepared(BatchedTarget):
    """Notes for how many states it is prepared."""

    def __init__(self):
        self.sizes = []

    def evaluate(self, positions, box=None):
        return 250.0 * (positions**2).sum(axis=(1, 2)), -500.0 * positions

    def prepare(self, positions, batch, box=None):
        assert positions.shape == (2, 3)
        self.sizes.append(batch)


def test_a_target_in_a_system_is_prepared(simulate):
    target = Prepared()
    system = systems.with_target(system_of(), target, atoms=[1, 0])
    simulate(system, lsd(windowLength=4), POSITIONS, VELOCITIES).step(4)
    assert target.sizes == [4]
