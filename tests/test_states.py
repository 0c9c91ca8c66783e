"""A State is a place to start from: no random numbers travel in it, nor anything that may not.

Particles that feel no force give their noise away: it is what the bath added to the velocity. So
what random numbers a run has used can be read off it.
"""

import copy
import gc
import multiprocessing
import pickle

import numpy as np
import openmm
import pytest
from openmm import app, unit
from particles import PLATFORM, external_force, lsd, needs_fork, system_of
from restarting import build, digest

from openmm_lsd import BatchedTarget
from openmm_lsd.core.schemes import MOLAR_GAS_CONSTANT, Middle
from openmm_lsd.integrator.program import NOISE_STEP

MASSES = [12.0] * 8
KT = MOLAR_GAS_CONSTANT * 300.0


def free_context(integrator=None, **keywords):
    """Eight particles that feel nothing, so that every drafted step is accepted."""
    integrator = integrator or lsd(draft=system_of(masses=MASSES), **keywords)
    context = openmm.Context(system_of(masses=MASSES), integrator, PLATFORM)
    context.setPositions(np.zeros((8, 3)))
    context.setVelocities(np.zeros((8, 3)))
    return context


def velocities_of(context):
    return context.getState(velocities=True).getVelocities(asNumpy=True)._value


def noise_of(context, steps):
    """The random numbers (steps, 24) of the next steps."""
    scheme = Middle(300.0, 1.0, 0.001)
    scale = scheme.noise_scale(np.full((8, 1), 1 / 12.0))
    rows = []
    for _ in range(steps):
        before = velocities_of(context)
        context.getIntegrator().step(1)
        rows.append(((velocities_of(context) - scheme.decay * before) / scale).ravel())
    return np.array(rows)


def repeated(noise):
    """How many rows are there more than once, to the rounding of how they were found."""
    return len(noise) - len(np.unique(noise.round(6), axis=0))


def state_of(context):
    return context.getState(
        positions=True, velocities=True, parameters=True, integratorParameters=True
    )


# Random numbers


def back_and_forth(context, before_step=lambda: None):
    """Noise of a run that goes back to earlier states again and again, in every way there is."""
    early = state_of(context)
    noise = [noise_of(context, 11)]
    later = state_of(context)
    for go_back in (
        lambda: context.setState(early),
        lambda: context.setState(later),
        lambda: context.setState(later),
        lambda: context.setPositions(np.ones((8, 3))),
        lambda: context.setVelocities(np.ones((8, 3))),
        lambda: context.setVelocitiesToTemperature(300, 4),
        lambda: context.reinitialize(preserveState=True),
        lambda: context.setStepCount(0),
        lambda: context.setState(early),
    ):
        go_back()
        before_step()
        noise.append(noise_of(context, 7))
    return np.concatenate(noise)


@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("window", [1, 5, 16])
def test_no_random_number_is_used_twice(seed, window):
    noise = back_and_forth(free_context(windowLength=window, randomNumberSeed=seed))
    assert repeated(noise) == 0
    # 74 x 24 numbers from N(0, 1), within five standard errors
    assert abs(np.mean(noise**2) - 1) < 5 * np.sqrt(2 / noise.size)


def test_noise_that_travels_is_seen():
    """The fault that was: a State brought back the index of its random numbers."""
    context = free_context()

    def travel():
        context.getIntegrator().setGlobalVariableByName(NOISE_STEP, 3)

    assert repeated(back_and_forth(context, travel)) > 0


def test_a_state_holds_nothing_of_the_integrator():
    context = free_context()
    context.getIntegrator().step(20)
    plain = openmm.Context(
        system_of(masses=MASSES), openmm.LangevinMiddleIntegrator(300, 1, 0.001), PLATFORM
    )
    plain.setState(state_of(context))
    xml = openmm.XmlSerializer.serialize(state_of(context))
    assert len(xml) < len(openmm.XmlSerializer.serialize(state_of(plain))) + 100
    assert "lsd" not in xml


def _send_noise(context, sender):
    gc.disable()  # OpenMM cannot destroy the Contexts of the parent here
    try:
        sender.send(noise_of(context, 10))
    except BaseException as error:
        sender.send(repr(error))
        raise


def forked_noise(context):
    """Of the next ten steps, done in a child of a fork."""
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=_send_noise, args=(context, sender))
    process.start()
    assert receiver.poll(60), "the child hangs"
    noise = receiver.recv()
    process.join(60)
    assert isinstance(noise, np.ndarray), noise
    return noise


@needs_fork
@pytest.mark.parametrize("window", [8, "auto"])
@pytest.mark.parametrize("steps", [0, 5])
def test_processes_do_not_share_noise(window, steps):
    """Parent and children of a fork go on from one state, each with its own random numbers."""
    context = free_context(randomNumberSeed=None, windowLength=window)
    context.getIntegrator().step(steps)
    if window == "auto" and steps:
        context.getIntegrator()._binding.tuner.window = 1  # plain steps, by OpenMM's own generator
    noise = [forked_noise(context), forked_noise(context), noise_of(context, 10)]
    assert repeated(np.concatenate(noise)) == 0


def _noise_in_a_child(integrator, sender):
    sender.send(noise_of(free_context(integrator), 10))


def test_spawned_processes_do_not_share_noise():
    """The integrator travels as a pickle, without the random numbers of its Context."""
    context = free_context(randomNumberSeed=None)
    context.getIntegrator().step(3)
    spawn, noise = multiprocessing.get_context("spawn"), [noise_of(context, 10)]
    receiver, sender = spawn.Pipe(duplex=False)
    arguments = (context.getIntegrator(), sender)
    children = [spawn.Process(target=_noise_in_a_child, args=arguments) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        assert receiver.poll(120)
        noise.append(receiver.recv())
        child.join(60)
    assert repeated(np.concatenate(noise)) == 0


@needs_fork
def test_a_seed_is_the_same_in_a_fork():
    """As with OpenMM's integrators: who gives a seed asks for the same numbers."""
    context = free_context(randomNumberSeed=5)
    context.getIntegrator().step(5)
    np.testing.assert_allclose(forked_noise(context), noise_of(context, 10), atol=1e-9)


@pytest.mark.parametrize(
    "clone", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x)), lambda x: None]
)
def test_contexts_do_not_share_noise(clone):
    context = free_context(randomNumberSeed=None)
    context.getIntegrator().step(3)
    other = free_context(clone(context.getIntegrator()), randomNumberSeed=None)
    other.setState(state_of(context))
    assert repeated(np.concatenate([noise_of(each, 20) for each in (context, other)])) == 0


# Where a State may come from

WRITERS = {
    "the same": {},
    "another seed": {"seed": 6},
    "no seed": {"seed": None},
    "another window": {"window": 5},
    "a tuned window": {"window": "auto"},
    "another scheme": {"scheme": "aboba"},
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kind", ["force field", "learning", "auto"])
def test_a_state_is_a_place_to_start_from(tmp_path, kind, writer):
    """Whoever has written it, the run is that of a new Simulation in that state, to the bit."""
    file = str(tmp_path / "state.xml")
    source = build("force field" if writer == "another scheme" else "auto", **WRITERS[writer])
    source.step(40)
    source.saveState(file)
    loaded, fresh = build(kind), build(kind)
    loaded.loadState(file)
    assert digest(loaded.context) == digest(source.context)
    state = state_of(source.context)
    fresh.context.setTime(state.getTime())
    fresh.context.setStepCount(state.getStepCount())
    fresh.context.setPositions(state.getPositions())
    fresh.context.setVelocities(state.getVelocities())
    for each in (loaded, fresh):
        each.step(60)
    assert digest(loaded.context) == digest(fresh.context)


def test_states_of_plain_integrators():
    context, plain = (
        openmm.Context(system_of(masses=MASSES), integrator, PLATFORM)
        for integrator in (
            lsd(draft=system_of(masses=MASSES)),
            openmm.LangevinMiddleIntegrator(300, 1, 0.001),
        )
    )
    plain.setPositions(np.zeros((8, 3)))
    plain.getIntegrator().step(20)
    context.setState(state_of(plain))
    context.getIntegrator().step(20)
    plain.setState(state_of(context))
    assert plain.getStepCount() == 40
    assert np.array_equal(velocities_of(plain), velocities_of(context))


# What a change costs


class Counted:
    """A target of one's own that counts the states it is asked for."""

    def __init__(self):
        self.states = 0

    def __call__(self, positions):
        self.states += len(positions)
        return -400.0 * positions


def test_moving_a_state_evaluates_nothing():
    """All states that the target is asked for are those of windows: K in every round."""
    target = Counted()
    system = system_of(external_force("200*(x^2+y^2+z^2)", 8), masses=MASSES)
    draft = system_of(external_force("180*(x^2+y^2+z^2)", 8), masses=MASSES)
    integrator = lsd(draft=draft, target=target, windowLength=4)
    context = openmm.Context(system, integrator, PLATFORM)
    states = []
    for _ in range(3):
        context.setPositions(np.random.default_rng(1).normal(0, 0.05, (8, 3)))
        context.setVelocitiesToTemperature(300)
        integrator.step(5)
        states.append(state_of(context))
    target.states, rounds = 0, integrator.statistics.rounds
    for _ in range(10):
        for index, state in enumerate(states):
            context.setState(state)
            integrator.setTemperature(300 + 20 * index)
            integrator.step(5)
            states[index] = state_of(context)
    assert target.states == 4 * (integrator.statistics.rounds - rounds)


def test_a_parameter_is_checked_once_for_every_value():
    """As replica exchange moves between values; a target that ignores it is found at the first."""

    def run(evaluate):
        target = Counted()
        force = external_force("lambda*200*(x^2+y^2+z^2)", 8)
        force.addGlobalParameter("lambda", 1.0)
        draft = system_of(external_force("180*(x^2+y^2+z^2)", 8), masses=MASSES)
        integrator = lsd(draft=draft, target=evaluate(target), windowLength=4)
        context = openmm.Context(system_of(force, masses=MASSES), integrator, PLATFORM)
        context.setPositions(np.random.default_rng(1).normal(0, 0.05, (8, 3)))
        extra = []
        for value in (1.0, 1.5, 1.0, 1.5, 1.0, 1.5):
            context.setParameter("lambda", value)
            target.states, rounds = 0, integrator.statistics.rounds
            integrator.step(5)
            extra.append(target.states - 4 * (integrator.statistics.rounds - rounds))
        return extra

    class Obeys(BatchedTarget):
        gives_energies = False

        def __init__(self, counted):
            self.counted, self.value = counted, 1.0

        def set_parameters(self, parameters):
            self.value = parameters["lambda"]

        def evaluate(self, positions, box=None):
            return np.full(len(positions), np.nan), self.value * self.counted(positions)

    extra = run(Obeys)
    assert extra[0] > 0 and extra[1] > 0
    assert extra[3:] == [0, 0, 0]
    with pytest.raises(ValueError, match="forces of the target and of the Context"):
        run(lambda counted: counted)


# Replica exchange and simulated tempering, where every mean energy is known

SPRING, DRAFT_SPRING = 2000.0, 1700.0


def three_particles(stiffness):
    return system_of(external_force(f"{stiffness}*(x^2+y^2+z^2)", 3), masses=[12.0] * 3)


def harmonic_simulation(simulate, plain=False):
    if plain:
        integrator = openmm.LangevinMiddleIntegrator(300, 20, 0.004)
    else:
        integrator = lsd(
            300, 20, 0.004, draft=three_particles(DRAFT_SPRING), windowLength=8, randomNumberSeed=3
        )
    simulation = simulate(three_particles(SPRING), integrator, np.zeros((3, 3)))
    simulation.context.setVelocitiesToTemperature(300, 1)
    return simulation


class SharedNoise(app.ReplicaExchangeSampler):
    """The fault that was: the index of the random numbers travels with the replica."""

    done = 0

    def simulateReplica(self, index, steps=None):  # noqa: N802 (OpenMM's name)
        self.done += index == 0
        noise_step = self.stepsPerIteration * (self.done - 1)
        self.simulation.integrator.setGlobalVariableByName(NOISE_STEP, noise_step)
        super().simulateReplica(index, steps)


def exchange(simulation, temperatures, iterations, kind=app.ReplicaExchangeSampler):
    """Potential energies (iterations, states) over what they are on average, 4.5 kT."""
    sampler = kind([{"temperature": t * unit.kelvin} for t in temperatures], simulation, 25)
    exact = 4.5 * MOLAR_GAS_CONSTANT * np.array(temperatures)
    rows = []

    def report(sampler):
        row = np.zeros(len(temperatures))
        for replica, state in enumerate(sampler.replicaStateIndex):
            row[state] = sampler.replicaStateEnergy[replica][state]._value
        rows.append(row / exact)

    sampler.reporters.append(report)
    sampler.simulate(iterations)
    return np.array(rows[iterations // 20 :])


def errors_of_means(rows):
    """Standard errors, from 20 blocks."""
    blocks = rows[: len(rows) // 20 * 20].reshape(20, -1, rows.shape[1]).mean(axis=1)
    return blocks.std(axis=0, ddof=1) / np.sqrt(20)


TEMPERATURES = [300.0, 330.0, 363.0, 400.0]
# Four means and six correlations in each of three runs; t with 19 degrees of freedom beyond 6.5
# has a chance of 3e-6, and a mean that is off by 8 % shows.
Z = 6.5


@pytest.mark.parametrize("plain", [False, True])
def test_replica_exchange(simulate, plain):
    rows = exchange(harmonic_simulation(simulate, plain), TEMPERATURES, 1500)
    error = errors_of_means(rows)
    assert (error < 0.03).all()
    assert (np.abs(rows.mean(axis=0) - 1) < Z * error).all(), (rows.mean(axis=0), error)
    correlations = np.corrcoef(rows.T)[np.triu_indices(4, 1)]
    # Energies of one replica forget in two iterations or so.
    assert np.abs(correlations).max() < Z * np.sqrt(2 / len(rows)), correlations


def test_replicas_that_share_noise_are_caught(simulate):
    rows = exchange(harmonic_simulation(simulate), [300.0] * 3, 300, SharedNoise)
    correlations = np.corrcoef(rows.T)[np.triu_indices(3, 1)]
    assert np.abs(correlations).max() > Z * np.sqrt(2 / len(rows))


def test_replicas_from_one_state_part(simulate):
    sampler = app.ReplicaExchangeSampler(
        [{"temperature": 300 * unit.kelvin}] * 3, harmonic_simulation(simulate), 20
    )
    for _ in range(3):
        for index in range(3):
            sampler.simulateReplica(index)
    ends = np.array(
        [each.getPositions(asNumpy=True)._value for each in sampler.replicaConformation]
    )
    spread = np.sqrt(KT / (2 * SPRING))  # of each coordinate
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(ends[i] - ends[j]).max() > 0.3 * spread


@pytest.mark.parametrize("plain", [False, True])
def test_simulated_tempering(simulate, plain):
    simulation = harmonic_simulation(simulate, plain)
    # The weights of harmonic particles are known: free energies are -9/2 log T, kinetic part left.
    weights = [-4.5 * np.log(t / 300) for t in (300.0, 340.0, 380.0)]
    tempering = app.SimulatedTempering(
        simulation,
        temperatures=[t * unit.kelvin for t in (300.0, 340.0, 380.0)],
        weights=weights,
        tempChangeInterval=25,
        reportFile=None,
    )
    rows = [[] for _ in range(3)]
    for _ in range(4000):
        simulation.step(25)
        index = tempering.currentTemperature
        kelvin = tempering.temperatures[index].value_in_unit(unit.kelvin)
        energy = simulation.context.getState(energy=True).getPotentialEnergy()._value
        rows[index].append(energy / (4.5 * MOLAR_GAS_CONSTANT * kelvin))
    for own in rows:
        assert len(own) > 600
        mean, error = np.mean(own), errors_of_means(np.array(own)[:, None])[0]
        assert abs(mean - 1) < Z * error and error < 0.04, (mean, error)
