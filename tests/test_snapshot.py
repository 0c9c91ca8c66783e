"""The target is what its Context holds, however System and Forces are edited.

Without noise LSDIntegrator must give the trajectory of LangevinMiddleIntegrator, to which the same
was done.
"""

import copy
import functools
import gc

import numpy as np
import openmm
import pytest
from openmm import app
from particles import (
    BOX,
    COLD,
    ON_DEVICE,
    PLATFORM,
    POSITIONS,
    ROUNDING,
    VELOCITIES,
    draft_system,
    external_force,
    harmonic_bonds,
    lsd,
    planted,
    restraint,
    system_of,
)

from openmm_lsd.integrator.barostat import BarostatMoves
from openmm_lsd.integrator.snapshot import SystemSnapshot

WINDOWS = [8, "auto"]


def plain_integrator():
    return openmm.LangevinMiddleIntegrator(0, 1, 0.001)


def cold(window=8, **keywords):
    return lsd(COLD, windowLength=window, **keywords)


def context_of(system, integrator):
    context = openmm.Context(system, integrator, PLATFORM)
    context.setPositions(POSITIONS)
    context.setVelocities(VELOCITIES)
    return context


def positions_of(context):
    return context.getState(positions=True).getPositions(asNumpy=True)._value


def wall(r0):
    """Pairs further apart than r0 are pulled together; others feel nothing."""
    force = openmm.CustomBondForce("step(r-r0)*0.5*k*(r-r0)^2")
    force.addPerBondParameter("k")
    force.addPerBondParameter("r0")
    force.addBond(0, 3, [50_000.0, r0])
    return force


def nonbonded():
    force = openmm.NonbondedForce()
    for index in range(4):
        force.addParticle(0.3 * (-1) ** index, 0.1, 0.2)
    force.setNonbondedMethod(openmm.NonbondedForce.CutoffPeriodic)
    force.setCutoffDistance(0.9)
    return force


def collective():
    inner = harmonic_bonds(500.0)
    force = openmm.CustomCVForce("2*energy")
    force.addCollectiveVariable("energy", inner)
    return force


def target(*forces):
    return system_of(harmonic_bonds(2500.0), openmm.CMMotionRemover(3), *forces)


# One System, several Contexts


@pytest.mark.parametrize("window", WINDOWS)
def test_one_system_with_two_contexts(window):
    """Umbrella windows that differ where no atom is yet: at these positions all forces agree."""

    def run(make):
        force = wall(0.15)
        system = target(force)
        contexts = []
        for r0 in (0.15, 0.9, 0.152):
            context = context_of(system, make())
            force.setBondParameters(0, 0, 3, [50_000.0, r0])
            force.updateParametersInContext(context)
            contexts.append(context)
        result = []
        for _ in range(3):
            for context in contexts:
                context.getIntegrator().step(20)
                result.append(positions_of(context))
        return np.array(result)

    expected = run(plain_integrator)
    np.testing.assert_allclose(run(lambda: cold(window)), expected, rtol=0, atol=1e-9 * ROUNDING)
    assert np.abs(expected[-3] - expected[-2]).max() > 1e-6  # the windows matter


# Edits that the Context does not hear of


def soften(context, system):
    force = system.getForce(0)
    for index in range(force.getNumBonds()):
        i, j, length, _ = force.getBondParameters(index)
        force.setBondParameters(index, i, j, length, 10.0)


def edit_cutoff(context, system):
    """What an update copies are the charges; the cutoff is that of the beginning."""
    force = system.getForce(2)
    force.setCutoffDistance(0.12)
    force.setReactionFieldDielectric(1.0)
    for index in range(4):
        force.setParticleParameters(index, 0.5, 0.1, 0.2)
    force.updateParametersInContext(context)


def edit_another_force(context, system):
    """One Force is updated, and the other was edited only."""
    soften(context, system)
    edit_weights(context, system)


def edit_weights(context, system):
    force = system.getForce(3)
    for index in range(4):
        force.setParticleParameters(index, index, [50.0, 0.05 * index])
    force.updateParametersInContext(context)


def stiffen(force):
    for index in range(force.getNumBonds()):
        i, j, length, _ = force.getBondParameters(index)
        force.setBondParameters(index, i, j, length, 3000.0)


def edit_inner(context, system):
    stiffen(system.getForce(4).getCollectiveVariable(0))
    system.getForce(4).updateParametersInContext(context)  # of tables, of which there are none


def update_inner(context, system):
    inner = system.getForce(4).getInnerContext(context)
    force = inner.getSystem().getForce(0)
    stiffen(force)
    force.updateParametersInContext(inner)


def edit_masses(context, system):
    for index in range(4):
        system.setParticleMass(index, 3.0)


def edit_frame(context, system):
    system.addConstraint(0, 1, 0.15)
    system.addForce(external_force("500*x^2", 4))
    system.getForce(1).setFrequency(1)


EDITS = {
    "a force": soften,
    "masses": edit_masses,
    "constraints, forces, CMMotionRemover": edit_frame,
    "cutoff, with an update of charges": edit_cutoff,
    "a force, with an update of another": edit_another_force,
    "an update": edit_weights,
    "a force within a CustomCVForce": edit_inner,
    "an update of a force within a CustomCVForce": update_inner,
}
ACTS = {
    "cutoff, with an update of charges",
    "a force, with an update of another",
    "an update",
    "an update of a force within a CustomCVForce",
}


def edited(integrator, edit, when):
    system = target(nonbonded(), restraint(), collective())
    context = context_of(system, integrator)
    if when == "before the first step":
        edit(context, system)
    integrator.step(13)
    if when == "after some steps":
        edit(context, system)
    integrator.step(20)
    return positions_of(context)


@pytest.mark.parametrize("when", ["before the first step", "after some steps"])
@pytest.mark.parametrize("name", EDITS)
def test_edits_act_as_in_plain_dynamics(name, when):
    expected = edited(plain_integrator(), EDITS[name], when)
    unchanged = edited(plain_integrator(), lambda context, system: None, when)
    assert (np.abs(expected - unchanged).max() > 1e-5) == (name in ACTS)
    np.testing.assert_allclose(
        edited(cold(), EDITS[name], when), expected, rtol=0, atol=1e-9 * ROUNDING
    )


def test_edits_that_leak_are_seen():
    """The fault that was: the target was built from the System as it is by then."""
    with pytest.raises(ValueError, match="forces of the target and of the Context"):
        edited(cold(kind=planted(_take_snapshot=LiveSystem)), soften, "before the first step")


class LiveSystem:
    """Stands where a snapshot should."""

    version = 0
    groups = None

    def __init__(self, system):
        self._system = system

    def __getattr__(self, name):
        return getattr(self._system, name)

    def take_unannounced(self, updates):
        pass


# Updates in hidden places


def run_hidden(make, system, update):
    """Positions after an update between steps, and after one before the first step."""
    result = []
    for before in (True, False):
        context = context_of(copy.deepcopy(system), make())
        for is_now in (before, not before):
            if is_now:
                update(context)
            context.getIntegrator().step(13)
        result.append(positions_of(context))
    return np.array(result)


def assert_as_plain(system, update):
    expected = run_hidden(plain_integrator, system, update)
    np.testing.assert_allclose(
        run_hidden(cold, system, update), expected, rtol=0, atol=1e-9 * ROUNDING
    )
    assert np.abs(expected - run_hidden(plain_integrator, system, lambda _: None)).max() > 1e-5


def in_cv(force):
    result = openmm.CustomCVForce("1.5*inner")
    result.addCollectiveVariable("inner", force)
    return result


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_updates_of_forces_deep_inside(depth):
    """Of a class that is nowhere else in the System."""
    inner = openmm.CustomBondForce("k*(r-0.15)^2")
    inner.addPerBondParameter("k")
    inner.addBond(0, 3, [500.0])
    for _ in range(depth):
        inner = in_cv(inner)

    def update(context):
        force, place = context.getSystem().getForce(1), context
        for _ in range(depth):
            place = force.getInnerContext(place)
            force = place.getSystem().getForce(0)
        force.setBondParameters(0, 0, 3, [4000.0])
        force.updateParametersInContext(place)

    assert_as_plain(system_of(harmonic_bonds(2500.0), inner), update)


@pytest.mark.parametrize("how", ["looked up early", "decorated"])
def test_updates_by_other_names(monkeypatch, how):
    """OpenMM tells that something was updated; then all that differs is taken over."""
    kind = openmm.CustomExternalForce
    known = kind.updateParametersInContext

    @functools.wraps(known)
    def decorated(self, context):
        known(self, context)

    if how == "decorated":
        monkeypatch.setattr(kind, "updateParametersInContext", decorated)
    call = getattr(known, "__wrapped__", known) if how == "looked up early" else decorated

    def update(context):
        force = context.getSystem().getForce(1)
        for index in range(4):
            force.setParticleParameters(index, index, [80.0, 0.05 * index])
        call(force, context)

    assert_as_plain(system_of(harmonic_bonds(2500.0), restraint()), update)


def pairs(*charges):
    force = openmm.CustomNonbondedForce("50*q1*q2/r")
    force.addPerParticleParameter("q")
    for charge in charges:
        force.addParticle([charge])
    return force


def exclude(force):
    force.addExclusion(0, 1)
    force.setParticleParameters(2, [2.0])


def restrict(force):
    force.addInteractionGroup([0], [1])
    force.setParticleParameters(2, [2.0])


def except_pair(force):
    force.addException(0, 1, 0, 1, 0)
    force.setParticleParameters(2, 1.5, 0.1, 0.2)


def with_exception():
    force = nonbonded()
    force.addException(0, 1, 0, 1, 0)
    return force


def move_exception(force):
    force.setExceptionParameters(0, 0, 2, 0, 1, 0)
    force.setParticleParameters(2, 1.5, 0.1, 0.2)


@pytest.mark.parametrize(
    ("make", "edit"),
    [
        (lambda: pairs(1, 1, 1, 1), exclude),
        (lambda: pairs(1, 1, 1, 1), restrict),
        (nonbonded, except_pair),
        (with_exception, move_exception),
    ],
)
def test_updates_copy_no_more_than_openmm_says(make, edit):
    def update(context):
        force = context.getSystem().getForce(1)
        edit(force)
        force.updateParametersInContext(context)

    assert_as_plain(system_of(harmonic_bonds(2500.0), make()), update)


def test_an_update_that_fails_is_looked_at():
    """It may have changed the Context halfway; then the forces are compared again."""
    context = context_of(target(restraint()), cold())
    context.getIntegrator().step(5)
    force = context.getSystem().getForce(2)
    force.addParticle(0, [1.0, 0.0])
    with pytest.raises(openmm.OpenMMException, match="number of particles"):
        force.updateParametersInContext(context)
    context.getIntegrator().step(5)
    assert context.getStepCount() == 10


def test_group_of_a_python_force():
    """That of the time when the Context was made, as OpenMM's kernels have it."""

    def pull(state):
        positions = state.getPositions(asNumpy=True)._value
        return 150 * float((positions**2).sum()), -300 * positions

    def run(integrator):
        system = system_of(harmonic_bonds(2500.0), openmm.PythonForce(pull))
        context = context_of(system, integrator)
        integrator.step(5)
        system.getForce(1).setForceGroup(3)
        for groups in ({0}, {3}, {0, 3}):
            integrator.setIntegrationForceGroups(groups)
            integrator.step(7)
        return positions_of(context)

    expected = run(plain_integrator())
    np.testing.assert_allclose(run(cold()), expected, rtol=0, atol=1e-9 * ROUNDING)


# Reinitialised


def barostat(frequency=4):
    result = openmm.MonteCarloBarostat(3000.0, 300.0, frequency)
    result.setRandomNumberSeed(5)
    return result


def gas(*forces):
    """Particles of a soft periodic fluid, which a pressure of 3000 bar moves together."""
    system = openmm.System()
    pairs = openmm.CustomNonbondedForce("5*(0.3/r)^6")
    pairs.setNonbondedMethod(openmm.CustomNonbondedForce.CutoffPeriodic)
    pairs.setCutoffDistance(0.7)
    for _ in range(27):
        system.addParticle(12.0)
        pairs.addParticle([])
    system.setDefaultPeriodicBoxVectors(*np.diag([2.0, 2.0, 2.0]))
    for force in (pairs, *forces):
        system.addForce(force)
    return system


def volumes(integrator, how):
    system = gas(*([barostat(0)] if how == "its frequency changes" else []))
    context = openmm.Context(system, integrator, PLATFORM)
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    context.setPositions((grid + 0.4) * 2 / 3)
    context.setVelocitiesToTemperature(300, 1)
    integrator.step(20)
    before = context.getState().getPeriodicBoxVolume()._value
    if how == "its frequency changes":
        system.getForce(1).setFrequency(4)
    else:
        system.addForce(barostat())
    context.reinitialize(preserveState=True)
    integrator.step(400)
    return before, context.getState().getPeriodicBoxVolume()._value, context


@pytest.mark.parametrize("how", ["a barostat is added", "its frequency changes"])
@pytest.mark.parametrize("window", WINDOWS)
def test_npt_after_nvt(window, how):
    """In 100 moves at 3000 bar a dilute gas loses a good part of its volume."""
    before, after, _ = volumes(openmm.LangevinMiddleIntegrator(300, 1, 0.001), how)
    assert before == pytest.approx(8) and after < 7
    integrator = lsd(draft=gas(), windowLength=window)
    before, after, context = volumes(integrator, how)
    assert before == pytest.approx(8) and after < 7
    box = context.getState().getPeriodicBoxVectors(asNumpy=True)._value
    np.testing.assert_array_equal(integrator._binding.pair.box, box)


class NoMoves(BarostatMoves):
    """The fault that was: barostats were looked for when the Context was made first."""

    next_step = None


def test_a_barostat_that_is_not_looked_for_again_is_caught():
    _, after, _ = volumes(lsd(draft=gas(), kind=planted(_moves=NoMoves)), "a barostat is added")
    assert after == pytest.approx(8)


@pytest.mark.parametrize("first", [7, 8, 20])
def test_masses_after_reinitialisation(first):
    """Not one step more with the masses of before."""

    def run(make):
        system, draft = target(), draft_system()
        context = context_of(system, make(draft))
        context.getIntegrator().step(first)
        for each in (system, draft):
            each.setParticleMass(2, 40.0)
        if ON_DEVICE and not isinstance(context.getIntegrator(), openmm.LangevinMiddleIntegrator):
            with pytest.raises(openmm.OpenMMException, match="its particles have other masses"):
                context.reinitialize(preserveState=True)
            pytest.skip("OpenMM brings back the old masses there")
        context.reinitialize(preserveState=True)
        result = []
        for steps in (1, 1, 6, 12):
            context.getIntegrator().step(steps)
            result.append(positions_of(context))
        return np.array(result)

    expected = run(lambda draft: plain_integrator())
    np.testing.assert_allclose(
        run(lambda draft: cold(draft=draft)), expected, rtol=0, atol=1e-9 * ROUNDING
    )


def test_periodicity_after_reinitialisation():
    """Bonds that find the nearest image from now on."""

    def run(make):
        system = target(harmonic_bonds(800.0, 0.9))
        context = context_of(system, make())
        context.getIntegrator().step(9)
        system.getForce(2).setUsesPeriodicBoundaryConditions(True)
        system.setDefaultPeriodicBoxVectors(*np.diag([0.6, 0.7, 0.8]))
        context.reinitialize()
        context.setPositions(POSITIONS)
        context.setVelocities(VELOCITIES)
        context.getIntegrator().step(20)
        return positions_of(context)

    np.testing.assert_allclose(run(cold), run(plain_integrator), rtol=0, atol=1e-9 * ROUNDING)


# The System of the Context


def test_objects_that_are_frozen():
    """What gc.freeze() hides from the collector is there all the same."""
    context = context_of(target(), cold())
    gc.freeze()
    try:
        context.getIntegrator().step(5)
    finally:
        gc.unfreeze()
    assert context.getStepCount() == 5


def test_the_system_may_be_forgotten():
    """A Simulation keeps it, as ever; nobody else need to."""
    topology = app.Topology()
    residue = topology.addResidue("X", topology.addChain())
    for _ in range(4):
        topology.addAtom("C", app.element.carbon, residue)
    simulation = app.Simulation(topology, target(), cold(), PLATFORM)
    gc.collect()
    simulation.context.setPositions(POSITIONS)
    simulation.step(5)
    assert simulation.currentStep == 5


def test_a_snapshot_is_the_system():
    system = target(nonbonded(), restraint())
    system.addConstraint(0, 1, 0.15)
    snapshot = SystemSnapshot(system)
    assert snapshot.getNumForces() == len(snapshot.getForces()) == 4
    assert snapshot.usesPeriodicBoundaryConditions()
    assert snapshot.getNumConstraints() == 1
    for mine, original in zip(snapshot.getForces(), system.getForces(), strict=True):
        serialize = openmm.XmlSerializer.serialize
        assert serialize(mine) == serialize(original)
    assert snapshot.digest == SystemSnapshot(system).digest
    before = snapshot.digest
    system.setParticleMass(0, 5.0)
    assert snapshot.digest == before != SystemSnapshot(system).digest
    np.testing.assert_allclose(snapshot.getDefaultPeriodicBoxVectors()[0]._value, BOX[0])


# What cannot be added

ADDITIONS = {
    "addGlobalVariable": ("b2", 0.0),
    "addPerDofVariable": ("y", 0.0),
    "addTabulatedFunction": ("f", openmm.Continuous1DFunction([0, 1, 0], 0, 1)),
    "addComputeGlobal": ("a", "0"),
    "addComputePerDof": ("v", "0"),
    "addComputeSum": ("a", "m*v*v"),
    "addConstrainPositions": (),
    "addConstrainVelocities": (),
    "addUpdateContextState": (),
    "beginIfBlock": ("a > 0",),
    "beginWhileBlock": ("a > 0",),
    "endBlock": (),
    "setKineticEnergyExpression": ("0",),
}


@pytest.mark.parametrize("name", ADDITIONS)
def test_what_would_be_ignored_is_refused(name):
    integrator = cold()
    with pytest.raises(ValueError, match=rf"{name}\(\) would have no effect"):
        getattr(integrator, name)(*ADDITIONS[name])
    context = context_of(target(), integrator)
    integrator.step(3)
    assert context.getStepCount() == 3


@pytest.mark.parametrize("scheme", ["middle", "aboba"])
def test_names_of_parameters_are_the_users(scheme):
    """The program's own variables have names that nobody else would choose."""
    force = external_force("(a+b+kT+temperature+friction+noiseStep+x1)*x^2", 4)
    for name in ("a", "b", "kT", "temperature", "friction", "noiseStep", "x1"):
        force.addGlobalParameter(name, 1.0)
    context = context_of(target(force), cold(scheme=scheme))
    context.getIntegrator().step(5)
    assert context.getStepCount() == 5


def test_everything_that_can_be_added_is_refused():
    adders = {
        name
        for name in dir(openmm.CustomIntegrator)
        if name.startswith(("add", "begin", "end")) or name == "setKineticEnergyExpression"
    }
    assert adders == set(ADDITIONS)
