"""Bad arguments, Systems and states are named before the first step, and change nothing."""

import copy

import numpy as np
import openmm
import pytest
from openmm import app, unit
from particles import (
    THREE_MASSES,
    THREE_POSITIONS,
    THREE_VELOCITIES,
    lsd,
    springs,
    system_of,
    system_of_three,
)

import openmm_lsd.contexts.checks
from openmm_lsd import LSDIntegrator


def periodic_system_of(*forces):
    bond = openmm.HarmonicBondForce()
    bond.setUsesPeriodicBoundaryConditions(True)
    return system_of_three(bond, springs(), *forces)


def with_constraint(length=0.2, pair=(0, 1)):
    system = system_of_three(springs())
    system.addConstraint(*pair, length)
    return system


def with_drude_particles():
    force = openmm.DrudeForce()
    force.addParticle(1, 0, -1, -1, -1, -1.0, 0.001, 1.0, 1.0)
    return system_of_three(springs(), force)


# Arguments


BAD_NUMBERS = [0, -1.5, float("nan"), float("inf"), -float("inf")]
NUMBERS = {  # argument: place, setter, getter, unit, words
    "temperature": (0, "Temperature", unit.kelvin, "temperature"),
    "friction": (1, "Friction", unit.picosecond**-1, "friction"),
    "step size": (2, "StepSize", unit.picosecond, "stepSize"),
}


@pytest.mark.parametrize("value", BAD_NUMBERS)
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_must_be_positive_and_finite(name, value):
    place, suffix, in_unit, word = NUMBERS[name]
    integrator = lsd()
    before = getattr(integrator, f"get{suffix}")()
    for given in (value, value * in_unit):
        arguments = [300.0, 1.0, 0.001]
        arguments[place] = given
        with pytest.raises(ValueError, match=f"{word}.*must be positive"):
            LSDIntegrator(*arguments, system_of())
        with pytest.raises(ValueError, match=f"{word}.*must be positive"):
            getattr(integrator, f"set{suffix}")(given)
    assert getattr(integrator, f"get{suffix}")() == before


@pytest.mark.parametrize("value", [0, -3, 2.5, float("nan"), "16", None])
def test_window_must_be_a_positive_integer(value):
    with pytest.raises((ValueError, TypeError), match="windowLength") as caught:
        lsd(windowLength=value)
    assert str(value) in str(caught.value)


@pytest.mark.parametrize(
    "draft",
    [None, openmm.HarmonicBondForce(), "system.xml", 3, app.Topology()],
    ids=lambda draft: type(draft).__name__,
)
def test_draft_must_be_a_system(draft):
    with pytest.raises(TypeError, match=f"draft is a {type(draft).__name__}.*openmm.System"):
        LSDIntegrator(300, 1, 0.001, draft)


@pytest.mark.parametrize("scheme", ["baoab", "Middle", "", None, 1])
def test_scheme_must_be_known(scheme):
    with pytest.raises(ValueError, match=r"scheme is .*'aboba'.*'middle'") as caught:
        lsd(scheme=scheme)
    assert repr(scheme) in str(caught.value)


@pytest.mark.parametrize("target", [3, "model.pt", system_of()], ids=["3", "str", "System"])
def test_target_must_be_callable(target):
    with pytest.raises(TypeError, match=f"target is a {type(target).__name__}.*callable"):
        lsd(target=target)


def test_draft_platform_must_exist():
    with pytest.raises(openmm.OpenMMException, match="Nonesuch"):
        lsd(draftPlatform="Nonesuch")
    with pytest.raises(TypeError, match=r"draftPlatform is a int.*openmm\.Platform"):
        lsd(draftPlatform=3)


def test_unknown_arguments_are_not_swallowed():
    with pytest.raises(TypeError, match="windowlength"):
        lsd(windowlength=8)


# Systems


UNSUPPORTED = {
    "Drude particles": (with_drude_particles, "Drude", "openmm.DrudeLangevinIntegrator"),
    "AndersenThermostat": (
        lambda: system_of_three(springs(), openmm.AndersenThermostat(300.0, 1.0)),
        "AndersenThermostat",
        "remove it",
    ),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_in_the_draft(name):
    system, *words = UNSUPPORTED[name]
    with pytest.raises(ValueError) as caught:
        LSDIntegrator(300, 1, 0.001, system())
    for word in ("draft", *words):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "barostat",
    [
        openmm.MonteCarloBarostat(1, 300),
        openmm.MonteCarloAnisotropicBarostat(openmm.Vec3(1, 1, 1), 300),
        openmm.MonteCarloFlexibleBarostat(1, 300),
    ],
)
def test_barostat_in_the_draft(barostat):
    kind = type(barostat).__name__
    with pytest.raises(ValueError, match=f"the draft System has a {kind}.*to the target"):
        LSDIntegrator(300, 1, 0.001, periodic_system_of(copy.deepcopy(barostat)))


def test_virtual_site_in_one_system_only(build_three, refused):
    target = system_of_three(springs(), masses=[12.0, 16.0, 0.0])
    target.setVirtualSite(2, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5))
    refused(build_three(target), ValueError, "particle 2 is a virtual site in one", "the same")


def test_unknown_force(build, refused, monkeypatch):
    """TorchForce as if it were a plugin that nobody has heard of."""
    monkeypatch.setattr(openmm_lsd.contexts.checks, "KNOWN_PLUGINS", ())
    monkeypatch.setattr(openmm_lsd.contexts.checks, "_trusted", set())
    simulation = build()
    words = ("the target System has a TorchForce", "openmm_lsd.trust_force('TorchForce')")
    refused(simulation, ValueError, *words)
    openmm_lsd.trust_force("TorchForce")
    simulation.step(5)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_in_the_target(build_three, refused, name):
    system, *words = UNSUPPORTED[name]
    refused(build_three(system()), ValueError, "target", *words)


@pytest.mark.parametrize(
    ("target", "draft", "words"),
    [
        ((), None, ("1 in all", "0 and 1", "0.2 nm in the target", "none in the draft")),
        (None, (), ("1 in all", "0 and 1", "none in the target", "0.2 nm in the draft")),
        ((), (0.2, (2, 0)), ("2 in all", "0 and 1", "none in the draft", "same constraints")),
        ((), (0.24,), ("1 in all", "0 and 1", "0.24 nm in the draft", "rigidWater")),
    ],
)
def test_constraints_that_differ(build_three, refused, target, draft, words):
    target, draft = (
        system_of_three(springs()) if each is None else with_constraint(*each)
        for each in (target, draft)
    )
    refused(build_three(target, draft=draft), ValueError, *words)


def test_constraints_of_another_force_field(build_three):
    """Steps keep the target's."""
    simulation = build_three(with_constraint(), draft=with_constraint(0.205, (1, 0)))
    simulation.step(20)
    positions = simulation.context.getState(positions=True).getPositions(asNumpy=True)._value
    assert np.linalg.norm(positions[0] - positions[1]) == pytest.approx(0.2, rel=1e-5)


def test_a_scheme_without_constraints(build_three, refused):
    words = ("1 constraints", "scheme='aboba'", "use scheme='middle'")
    both = {"draft": with_constraint(), "scheme": "aboba"}
    refused(build_three(with_constraint(), **both), ValueError, *words)


def test_constraints_that_cannot_be_met(build_three, state_of):
    """A force that tears a rigid bond away: plain dynamics goes on with what is no number."""
    tearing = openmm.CustomExternalForce("-1e9*tear*y")
    tearing.addGlobalParameter("tear", 0.0)
    tearing.addParticle(0)
    target = with_constraint()
    target.addForce(tearing)
    simulation = build_three(target, draft=with_constraint())
    simulation.step(3)
    simulation.context.setParameter("tear", 1.0)
    before = state_of(simulation)
    with pytest.raises(
        openmm_lsd.TargetError, match="before step 3: the constraints cannot be met"
    ):
        simulation.step(2)
    assert state_of(simulation).step == before.step == 3


def add_thermostat(system):
    system.addForce(openmm.AndersenThermostat(300, 1))


def add_constraint(system):
    system.addConstraint(0, 1, 0.2)


def change_mass(system):
    system.setParticleMass(1, 15.0)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (add_thermostat, "AndersenThermostat"),
        (add_constraint, "constraint"),
        (change_mass, "masses"),
    ],
)
def test_system_that_becomes_unfit_between_steps(build_three, state_of, change, word):
    simulation = build_three(periodic_system_of())
    simulation.step(3)
    change(simulation.system)
    simulation.context.reinitialize(preserveState=True)
    before = state_of(simulation)
    assert before.step == 3
    for _ in range(2):
        with pytest.raises(ValueError, match=word):
            simulation.step(5)
        assert state_of(simulation).equals(before)


def test_particle_counts_differ(build_three, refused):
    target = system_of(masses=[*THREE_MASSES, 1.0])
    positions = np.vstack([THREE_POSITIONS, [[0.3, 0.3, 0.3]]])
    words = ("4 particles", "draft System 3", "same Topology")
    simulation = build_three(target, positions=positions, velocities=positions)
    refused(simulation, ValueError, *words)


def test_masses_differ(build_three, refused):
    target = system_of_three(springs(), masses=[12.0, 15.0, 13.0])
    simulation = build_three(target)
    words = ("2 particles", "particle 1", "15.0 amu in the target", "16.0 amu in the draft")
    refused(simulation, ValueError, *words)


def test_cm_motion_removers_of_two_frequencies(build_three, refused):
    target = system_of_three(springs(), openmm.CMMotionRemover(1), openmm.CMMotionRemover(3))
    simulation = build_three(target)
    refused(simulation, ValueError, "CMMotionRemover", "[1, 3]", "keep one")


# States


def test_unbound():
    with pytest.raises(openmm.OpenMMException, match="not bound to a context"):
        lsd().step(1)


def test_positions_never_set(build_three):
    simulation = build_three(positions=None, velocities=None)
    with pytest.raises((openmm.OpenMMException, ValueError), match="ositions"):
        simulation.step(1)
    assert simulation.currentStep == 0
    simulation.context.setPositions(THREE_POSITIONS)
    simulation.step(1)
    assert simulation.currentStep == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["positions", "velocities"])
def test_state_that_is_not_finite(build_three, refused, name, value):
    state = {"positions": THREE_POSITIONS.copy(), "velocities": THREE_VELOCITIES.copy()}
    state[name][1, 2] = value
    simulation = build_three(**state)
    refused(simulation, ValueError, name, "not finite", "atom 1", "set ")
    simulation.context.setPositions(THREE_POSITIONS)
    simulation.context.setVelocities(THREE_VELOCITIES)
    simulation.step(5)
    assert simulation.currentStep == 5


def test_positions_that_become_not_finite_between_steps(build_three, state_of):
    simulation = build_three()
    simulation.step(5)
    positions = THREE_POSITIONS.copy()
    positions[2, 0] = np.nan
    simulation.context.setPositions(positions)
    before = state_of(simulation)
    with pytest.raises(ValueError, match=r"not finite.*atom 2"):
        simulation.step(5)
    assert state_of(simulation).equals(before)
