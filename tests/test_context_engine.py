"""The engine that drafts in a Context: its law, its steps, and what it leaves to the other.

The law as in test_law_of_mixed_systems.py, of five particles that nothing holds in place, so that
removing the motion of their centre of mass matters. Each planted fault must be caught. Where the
rest has no noise both engines must take the same path for the same noise of the subset.
"""

import copy
import dataclasses
import functools
import gc
import logging
import signal
import subprocess
import sys
import weakref
from contextlib import contextmanager

import numpy as np
import openmm
import pytest
from ensembles import Z, assert_same_forces, reference_of, score_of
from openmm import app
from pages import ROOT
from particles import (
    COLD,
    ON_DEVICE,
    PLATFORM,
    PRECISION,
    lsd,
    needs_bits,
    needs_fork,
    not_on_devices,
    planted,
)
from test_law_of_mixed_systems import LIGAND, WATER, build, slow_draft
from test_mixed_systems import box_of, chain_forces, python_force
from test_rigid_molecules import DIPEPTIDE, create, relaxed

from openmm_lsd import LSDIntegrator, TargetError, batched
from openmm_lsd.core.noise import NoiseOfRest
from openmm_lsd.drafts import rolloutcontext
from openmm_lsd.drafts.contextengine import ContextEngine
from openmm_lsd.drafts.draftingprogram import DraftingProgram
from openmm_lsd.drafts.nativeengine import NativeSubsetEngine
from openmm_lsd.integrator import enginechoice

only_on_devices = pytest.mark.skipif(not ON_DEVICE, reason="they sort atoms")
TOLERANCE = 1e-4 if ON_DEVICE else 1e-6  # of positions in nm
FREE_STIFFNESS, FREE_LENGTH = 12_000.0, 0.20


@batched
def free_spring(positions, box, parameters):
    """A spring that pulls two atoms apart."""
    apart = positions[:, 1] - positions[:, 0]
    length = np.linalg.norm(apart, axis=1)
    stretch = length - FREE_LENGTH
    energies = 0.5 * FREE_STIFFNESS * stretch**2
    pull = FREE_STIFFNESS * stretch
    forces = np.empty_like(positions)
    forces[:, 0] = (pull / length)[:, None] * apart
    forces[:, 1] = -forces[:, 0]
    return energies, forces


def without(system, *kinds):
    for index in reversed(range(system.getNumForces())):
        if isinstance(system.getForce(index), kinds):
            system.removeForce(index)


@functools.cache
def free_case(barostat=False):
    """Springs to the water in the place of a trap."""
    case = build(barostat)
    without(case.in_openmm, openmm.CustomBondForce)
    for system in (case.target, case.draft, case.in_openmm):
        without(system, openmm.CustomExternalForce, openmm.PythonForce)
        springs = openmm.HarmonicBondForce()
        for atom in LIGAND:
            springs.addBond(atom, WATER[0], 0.33, 1_500.0)
        system.addForce(springs)
    slow = openmm.PythonForce(free_spring)
    slow.setParticles(LIGAND)
    case.target.addForce(slow)
    same = openmm.HarmonicBondForce()
    same.addBond(*LIGAND, FREE_LENGTH, FREE_STIFFNESS)
    case.in_openmm.addForce(same)
    # A draft that pushes the centre of mass.
    field = openmm.CustomExternalForce("-900*x + 600*y - 400*z")
    field.addParticle(LIGAND[0], [])
    case.draft.addForce(field)
    return case


@functools.cache
def reference(barostat=False):
    case = free_case(barostat)
    runs = case.reference_runs // (3 if ON_DEVICE else 1)
    return reference_of(dataclasses.replace(case, reference_runs=runs))


def score(kind=LSDIntegrator, runs=4_000, barostat=False, **keywords):
    runs = runs // 3 if ON_DEVICE else runs  # where it takes minutes
    own = dataclasses.replace(free_case(barostat), runs=runs)
    return score_of(own, reference(barostat), kind, engine="context", **keywords)


@pytest.mark.parametrize("learning", [False, True])
def test_law(learning):
    statistics, z, message = score(learning=learning)
    assert statistics.acceptance_rate > 0.1 and statistics.rejected > 20
    assert abs(z) < Z, message


def test_reference_has_the_forces_of_the_target():
    assert_same_forces(free_case())


def test_law_of_a_draft_with_a_slow_force():
    case = slow_draft(free_case.__wrapped__(), (openmm.CustomBondForce, openmm.CustomExternalForce))
    own = dataclasses.replace(case, runs=1_300 if ON_DEVICE else 4_000)
    statistics, z, message = score_of(own, reference(), engine="context")
    assert statistics.acceptance_rate > 0.1 and statistics.rejected > 20
    assert abs(z) < Z, message


def test_law_with_a_barostat():
    statistics, z, message = score(barostat=True)
    assert statistics.acceptance_rate > 0.1 and statistics.shortened_windows > 100
    assert abs(z) < Z, message


class FrameForgotten(ContextEngine):
    """What removing the motion of the centre of mass does to the difference."""

    def _follow_frame(self, differences, removals):
        return super()._follow_frame(differences, np.zeros_like(removals))


class AcceptsAll(ContextEngine):
    def commit(self, state, window, target_forces, draws):
        draws = draws._replace(log_uniforms=np.full(len(draws.noise), -np.inf))
        return super().commit(state, window, target_forces, draws)


class ForcesOfAnotherSite(ContextEngine):
    def commit(self, state, window, target_forces, draws):
        return super().commit(state, window, np.roll(target_forces, 1, axis=0), draws)


class WronglyShared(ContextEngine):
    """The draft's force on an atom is taken for the target's."""

    def commit(self, state, window, target_forces, draws):
        target_forces = target_forces.copy()
        target_forces[:, 0] = window.draft_forces[: len(target_forces), 0]
        return super().commit(state, window, target_forces, draws)


@not_on_devices(reason="takes minutes")
@pytest.mark.parametrize(
    ("fault", "runs"),
    [
        (FrameForgotten, 6_000),
        (AcceptsAll, 500),
        (ForcesOfAnotherSite, 6_000),
        (WronglyShared, 500),
    ],
)
def test_planted_faults_are_caught(fault, runs):
    _, z, message = score(planted(_context_engine=fault, _correction="none"), runs, faulty=True)
    assert abs(z) > Z, message


# The same path as on the host


def simulation_of(engine, target, draft, positions, topology, **keywords):
    integrator = lsd(300.0, 5.0, 0.002, draft, **{"windowLength": 8, "engine": engine, **keywords})
    simulation = app.Simulation(topology, target, integrator, PLATFORM)
    simulation.context.setPositions(positions)
    simulation.context.setVelocitiesToTemperature(300.0, 3)
    return simulation


def state_of(simulation):
    state = simulation.context.getState(positions=True, velocities=True)
    positions = state.getPositions(asNumpy=True)._value
    return positions, state.getVelocities(asNumpy=True)._value


def quiet_rest(monkeypatch, particles):
    """The rest draws no noise, with either engine."""
    bind = DraftingProgram.bind

    def without_noise(program, context, own):
        access = bind(program, context, own)
        nothing = np.zeros((particles, 3))
        program.integrator.setPerDofVariableByName("rest", nothing)
        return access

    def nothing(noise, step, count):
        return [np.zeros((particles, 3)) for _ in range(count)]

    monkeypatch.setattr(DraftingProgram, "bind", without_noise)
    monkeypatch.setattr(NoiseOfRest, "__call__", nothing)


@pytest.mark.parametrize("draft", ["auto", "force field"])
def test_both_engines_take_the_same_path(monkeypatch, draft):
    topology, positions, cheap = box_of("dipeptide", None)
    target = copy.deepcopy(cheap)
    target.addForce(python_force([4, 8, 14]))
    subset = [4, 8, 14]
    quiet_rest(monkeypatch, len(positions))
    draft = cheap if draft == "force field" else draft
    both = [
        simulation_of(engine, target, draft, positions, topology) for engine in ("host", "context")
    ]
    for _ in range(6):
        for simulation in both:
            simulation.step(5)
        (positions, velocities), (others, their_velocities) = map(state_of, both)
        np.testing.assert_allclose(positions, others, atol=TOLERANCE)
        np.testing.assert_allclose(velocities, their_velocities, atol=1e3 * TOLERANCE)
    host, context = (each.integrator for each in both)
    assert isinstance(context.probe().sampler.engine, ContextEngine)
    assert list(context.subset) == subset
    assert host.statistics.rejected == context.statistics.rejected > 0


# Plain dynamics where there is no noise


@functools.cache
def dipeptide_in(water, molecules, tilt=0.0):
    """Topology, positions and force field of the dipeptide in rigid water, at ease."""
    model = "tip4pew" if water == "tip4pew" else "tip3p"
    field = app.ForceField("amber14-all.xml", f"amber14/{water}.xml")
    pdb = app.PDBFile(str(DIPEPTIDE))
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.addSolvent(field, model=model, numAdded=molecules)
    if tilt:
        a, b, c = modeller.topology.getPeriodicBoxVectors()
        modeller.topology.setPeriodicBoxVectors((a, b, c + tilt * (a + b)))
    system = create(modeller.topology, field, None)
    return modeller.topology, relaxed(system, modeller.positions), system


@pytest.mark.parametrize(
    ("water", "molecules", "tilt", "steps"),
    [
        ("tip3p", 40, 0.0, 40),
        ("tip3p", 40, 0.3, 40),
        ("tip4pew", 40, 0.0, 40),
        # A device sorts the atoms of large boxes every 250 steps.
        pytest.param("tip3p", 700, 0.0, 256, marks=only_on_devices),
    ],
)
def test_path_without_noise(water, molecules, tilt, steps, monkeypatch):
    if steps > 40:  # in which optimised kernels pay
        monkeypatch.delenv("POCL_EXTRA_BUILD_FLAGS", raising=False)
    topology, positions, cheap = dipeptide_in(water, molecules, tilt)
    target = copy.deepcopy(cheap)
    target.addForce(python_force([4, 8, 14]))
    simulations = []
    for plain in (False, True):
        integrator = (
            openmm.LangevinMiddleIntegrator(COLD, 1.0, 0.001)
            if plain
            else lsd(COLD, 1.0, 0.001, "auto", windowLength=6, engine="context")
        )
        integrator.setConstraintTolerance(1e-9)
        simulation = app.Simulation(topology, target, integrator, PLATFORM)
        simulation.context.setPositions(positions)
        simulation.context.setVelocitiesToTemperature(100.0, 3)
        simulation.context.applyVelocityConstraints(1e-9)
        simulations.append(simulation)
    # In single precision two ways to the same state are farther apart after some time.
    tolerance = TOLERANCE if PRECISION == "double" else 20 * TOLERANCE
    for _ in range(4):
        for simulation in simulations:
            simulation.step(steps // 4)
        found, expected = (state_of(each)[0] for each in simulations)
        np.testing.assert_allclose(found, expected, atol=tolerance)
    assert simulations[0].integrator.statistics.rounds > 5


# What users do in between


def with_springs(engine="context", **keywords):
    """A Simulation with springs between three atoms of a dipeptide in 40 waters."""
    topology, positions, cheap = box_of("dipeptide", None)
    target = copy.deepcopy(cheap)
    target.addForce(python_force([4, 8, 14]))
    return simulation_of(engine, target, "auto", positions, topology, **keywords)


@pytest.fixture
def make():
    return with_springs


def test_every_committed_state_can_be_had(make):
    """In any order: they are those that the next steps show."""
    simulation = make()
    looked = 0
    for _ in range(10):
        simulation.step(1)
        queue = list(simulation.integrator.probe().sampler._queue)
        expected = [(each.positions.copy(), each.velocities.copy()) for each in reversed(queue)]
        for positions, velocities in reversed(expected):
            simulation.step(1)
            shown = state_of(simulation)
            np.testing.assert_allclose(shown[0], positions, atol=TOLERANCE)
            np.testing.assert_allclose(shown[1], velocities, atol=TOLERANCE)
        looked += len(queue)
    assert looked > 10


@needs_bits
def test_a_checkpoint_continues_the_run_bit_for_bit(make):
    simulation = make()
    simulation.step(33)
    checkpoint = simulation.context.createCheckpoint()
    simulation.step(40)
    expected = state_of(simulation)
    for other in (simulation, make()):
        other.context.loadCheckpoint(checkpoint)
        other.step(40)
        np.testing.assert_array_equal(state_of(other), expected)


def test_a_checkpoint_of_the_other_engine(make):
    """Continues in law, from the state that it shows."""
    simulation, other = make("host"), make("context")
    simulation.step(33)
    other.context.loadCheckpoint(simulation.context.createCheckpoint())
    np.testing.assert_array_equal(state_of(other), state_of(simulation))
    other.step(40)
    assert np.isfinite(state_of(other)).all()
    assert other.context.getStepCount() == 73


def test_contexts_have_noise_of_their_own(make):
    """Also one after another in a run: longer windows, other parameters of forces."""
    simulation = make(windowLength="auto")
    simulation.step(1)
    rollout = simulation.integrator._binding.pair.sharing.rollout_context(0, 16)
    seeds = set()
    for length in (16, 17, 40, 90):
        if not rollout.has_room(length):
            rollout.make(length, 5)
        seeds.add(rollout._present.program.integrator.getRandomNumberSeed())
    rollout.refresh(rollout._system)
    rollout.make(8, 5)
    seeds.add(rollout._present.program.integrator.getRandomNumberSeed())
    assert len(seeds) >= 4


def test_changes_between_steps(make):
    """Temperature, step size, state, parameters of a shared force: as for the other engine."""
    simulation = make()
    context, integrator = simulation.context, simulation.integrator
    simulation.step(7)
    integrator.setTemperature(150.0)
    simulation.step(7)
    integrator.setStepSize(0.001)
    simulation.step(7)
    positions = state_of(simulation)[0]
    context.setPositions(positions + np.array([0.3, 0.0, 0.0]))
    simulation.step(1)
    assert abs((state_of(simulation)[0] - positions).mean(axis=0)[0] - 0.3) < 0.01
    stiffen_bonds(simulation, 1e5)
    simulation.step(20)
    assert np.isfinite(state_of(simulation)).all()
    assert isinstance(integrator.probe().sampler.engine, ContextEngine)


def test_windows_longer_than_the_first(make):
    simulation = make(windowLength=40)
    simulation.step(41)
    assert np.isfinite(state_of(simulation)).all()


class WildDraft(ContextEngine):
    """A draft that throws the subset about, every few windows."""

    def draft(self, state, corrections, draws, times=None):
        if state.step % 3 == 0:
            wild = corrections.forces.copy()
            wild[2:] += 3e5 * np.random.default_rng(state.step).standard_normal(wild[2:].shape)
            corrections = corrections._replace(forces=wild)
        return super().draft(state, corrections, draws, times)


def test_a_wild_draft_costs_speed_only():
    _, z, message = score(planted(_context_engine=WildDraft), 4_000)
    assert abs(z) < Z, message


def test_a_target_that_fails(make):
    """The Context shows the last committed state, and the run can go on from it."""
    topology, positions, cheap = box_of("dipeptide", None)
    target = copy.deepcopy(cheap)
    broken = []

    @batched
    def fails(q, box, parameters):
        if broken:
            raise RuntimeError("no convergence")
        return chain_forces(q)

    target.addForce(python_force([4, 8, 14], fails))
    simulation = simulation_of("context", target, "auto", positions, topology)
    simulation.step(12)
    before = state_of(simulation)
    broken.append(True)
    with pytest.raises(TargetError, match="no convergence"):
        simulation.step(30)
    shown, steps = state_of(simulation), simulation.context.getStepCount()
    assert np.isfinite(shown).all() and steps >= 12
    assert (steps > 12) == (np.abs(shown[0] - before[0]).max() > 0)
    broken.clear()
    simulation.step(20)
    assert np.isfinite(state_of(simulation)).all()
    assert simulation.context.getStepCount() == steps + 20


@contextmanager
def interrupted_after(seconds):
    """Ctrl-C, unless it is over by then."""

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


@needs_bits
def test_interrupts_leave_committed_states():
    """Without noise, so that plain dynamics says what they are."""
    topology, positions, cheap = box_of("dipeptide", None)
    target = copy.deepcopy(cheap)
    target.addForce(python_force([4, 8, 14]))
    simulations = []
    for integrator in (
        lsd(COLD, 1.0, 0.001, "auto", windowLength=6, engine="context"),
        openmm.LangevinMiddleIntegrator(COLD, 1.0, 0.001),
    ):
        simulation = app.Simulation(topology, target, integrator, PLATFORM)
        simulation.context.setPositions(positions)
        simulation.context.setVelocitiesToTemperature(50.0, 3)
        simulation.step(1)
        simulations.append(simulation)
    ours, plain = simulations
    rng, interrupted = np.random.default_rng(1), 0
    for _ in range(40):
        with interrupted_after(rng.uniform(1e-4, 4e-3)):
            ours.integrator.step(12)
        done = ours.context.getStepCount() - plain.context.getStepCount()
        interrupted += done < 12
        plain.integrator.step(done)
        np.testing.assert_allclose(state_of(ours)[0], state_of(plain)[0], atol=TOLERANCE)
    assert interrupted > 5


def stiffen_bonds(simulation, stiffness):
    for force in simulation.system.getForces():
        if isinstance(force, openmm.HarmonicBondForce):
            for bond in range(force.getNumBonds()):
                i, j, length, _ = force.getBondParameters(bond)
                force.setBondParameters(bond, i, j, length, stiffness)
            force.updateParametersInContext(simulation.context)


@needs_bits
def test_a_checkpoint_of_forces_that_have_been_others_since(make):
    simulation = make()
    stiffen_bonds(simulation, 1e5)
    simulation.step(33)
    checkpoint = simulation.context.createCheckpoint()
    simulation.step(20)
    expected = state_of(simulation)
    stiffen_bonds(simulation, 2e5)
    simulation.step(10)
    stiffen_bonds(simulation, 1e5)
    simulation.context.loadCheckpoint(checkpoint)
    simulation.step(20)
    np.testing.assert_allclose(state_of(simulation), expected, atol=TOLERANCE)


@needs_bits
def test_another_seed_is_other_noise_for_all(make):
    velocities = []
    for seed in (11, 12):
        simulation = make()
        simulation.step(20)
        simulation.integrator.setRandomNumberSeed(seed)
        simulation.step(20)
        velocities.append(state_of(simulation)[1])
    rest = np.arange(len(velocities[0])) > 21
    assert np.sqrt(np.mean((velocities[0] - velocities[1])[rest] ** 2)) > 0.1


def test_contexts_end_with_their_simulation(make):
    simulation = make()
    simulation.step(5)
    engine = weakref.ref(simulation.integrator.probe().sampler.engine)
    gc.disable()
    try:
        del simulation
        assert engine() is None
    finally:
        gc.enable()


# Where it is not possible


def constrain(system):
    system.addConstraint(4, 8, 0.15)


def hold(system):
    force = openmm.CustomExternalForce("x^2")
    force.addParticle(30, [])
    system.addForce(force)


def hold_inside(system):
    @batched
    def field(q, box, parameters):
        return 2.0 * (q**2).sum(axis=(1, 2)), -4.0 * q

    system.addForce(python_force([4, 8], field))


def fix(system):
    system.setParticleMass(25, 0.0)
    for index in reversed(range(system.getNumConstraints())):
        if 25 in system.getConstraintParameters(index)[:2]:
            system.removeConstraint(index)


@pytest.mark.parametrize(
    ("change", "scheme", "words"),
    [
        (constrain, "middle", "constraints on particles of the subset"),
        (hold, "middle", "what a CustomExternalForce acts on"),
        (hold_inside, "middle", "the slow forces depend on where their particles are"),
        (fix, "middle", "1 particles cannot be moved along"),
        (lambda system: None, "aboba", "must be 'middle'"),
    ],
)
def test_what_only_the_host_can_do(caplog, change, scheme, words):
    topology, positions, cheap = box_of("dipeptide", None)
    target = copy.deepcopy(cheap)
    if scheme == "aboba":
        while target.getNumConstraints():
            target.removeConstraint(0)
    target.addForce(python_force([4, 8, 14]))
    change(target)
    simulation = simulation_of("context", target, "auto", positions, topology, scheme=scheme)
    with pytest.raises(ValueError, match=words):
        simulation.step(1)
    with caplog.at_level(logging.INFO, "openmm_lsd"):
        simulation_of(
            "auto", target, "auto", positions, topology, scheme=scheme, windowLength="auto"
        ).step(1)
    assert any(words in record.message for record in caplog.records)


class BrokenProgram(DraftingProgram):
    def bind(self, context, subset):
        raise openmm.OpenMMException("no such kernel")


def test_auto_drafts_on_the_host_where_the_context_engine_does_not_work(make, monkeypatch, caplog):
    """As on a device with a fixed window, where nothing is timed."""
    monkeypatch.setattr(enginechoice, "HOSTS", set())
    working = make("auto")
    working.step(30)
    assert isinstance(working.integrator.probe().sampler.engine, ContextEngine)
    if PRECISION == "double" and PLATFORM.getName() == "Reference":
        asked = make("context")
        asked.step(30)
        np.testing.assert_array_equal(state_of(working), state_of(asked))
    monkeypatch.setattr(rolloutcontext, "DraftingProgram", BrokenProgram)
    for window in (8, "auto"):
        caplog.clear()
        broken = make("auto", windowLength=window)
        with caplog.at_level(logging.INFO, "openmm_lsd"):
            broken.step(30)
        assert isinstance(broken.integrator.probe().sampler.engine, NativeSubsetEngine)
        told = [each.levelname for each in caplog.records if "no such kernel" in each.message]
        assert told == (["INFO"] if window == "auto" else ["WARNING"])
    with pytest.raises(openmm.OpenMMException, match="no such kernel"):
        make("context").step(1)


@needs_fork
@pytest.mark.parametrize("seed", [None, 3])
def test_a_forked_child_continues(seed, tmp_path):
    """In a process that has not forked anything yet; on the platform on which plain OpenMM can."""
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import sys
sys.path.insert(0, "tests")
import multiprocessing
import numpy as np
import openmm
import test_context_engine
from particles import lsd

test_context_engine.PLATFORM = openmm.Platform.getPlatform("Reference")
simulation = test_context_engine.with_springs(randomNumberSeed={seed})
simulation.step(13)

def steps(queue):
    simulation.step(20)
    queue.put(test_context_engine.state_of(simulation))

fork = multiprocessing.get_context("fork")
results = []
for _ in range(2):
    queue = fork.Queue()
    child = fork.Process(target=steps, args=(queue,))
    child.start()
    results.append(queue.get(timeout=60))
    child.join(60)
    assert child.exitcode == 0, child.exitcode
before = test_context_engine.state_of(simulation)
simulation.step(20)
results.append(test_context_engine.state_of(simulation))
for positions, velocities in results:
    moved = np.abs(positions - before[0]).max()
    assert 1e-3 < moved < 0.2, moved
same = np.abs(np.subtract(results[0], results[1])).max()
assert (same < 1e-3) == {seed is not None}, same
"""
    )
    command = [sys.executable, script]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr


def test_wrong_names():
    with pytest.raises(ValueError, match="must be one of"):
        LSDIntegrator(300, 1, 0.001, "auto", engine="gpu")
    topology, positions, cheap = box_of("dipeptide", None)
    simulation = simulation_of("context", cheap, cheap, positions, topology)
    with pytest.raises(ValueError, match="share no forces"):
        simulation.step(1)


@pytest.mark.parametrize("window", [4, 16, 64])
def test_memory_for_no_more_than_two_states_per_step(window):
    """Of positions and velocities: two arrays each."""
    program = DraftingProgram(window, 31, removes_cm_motion=True)
    assert program.integrator.getNumPerDofVariables() <= 2 * (2 * window)
