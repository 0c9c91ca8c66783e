"""What is different where forces are computed on a device, in single precision.

On the platform that the environment names (see particles.PLATFORM); where that is Reference, what
can be tested there.
"""

import copy

import numpy as np
import openmm
import pytest
from openmm import app
from particles import (
    COLD,
    ON_DEVICE,
    PLATFORM,
    POSITIONS,
    REFERENCE,
    VELOCITIES,
    Bonds,
    external_force,
    harmonic_bonds,
    lsd,
    needs_minimizer,
    system_of,
    torch_force,
)
from test_mixed_systems import box_of

from openmm_lsd import LSDIntegrator, TargetError
from openmm_lsd.commands.case import choose_platform
from openmm_lsd.contexts.checks import default_box
from openmm_lsd.contexts.forcecontext import ForceContext
from openmm_lsd.targets import ContextTarget
from openmm_lsd.targets.torchplugin import check_torch_forces

PRECISIONS = ["single", "mixed", "double"] if ON_DEVICE else [None]


def properties(precision):
    return {} if precision is None else {"Precision": precision}


# Failures


def cliff():
    """Forces that are not numbers beyond x = 0.3 nm."""
    return system_of(external_force("sqrt(0.3-x)", 4))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_force_that_is_not_a_number(precision):
    """A device hands out the last number of its integers instead."""
    platforms = {PLATFORM.getName(): properties(precision)}
    target = ContextTarget(cliff(), platforms=platforms, contexts=1)
    states = 0.1 * np.ones((2, 4, 3))
    states[1, 2, 0] = 0.31
    energies, forces = target.evaluate(states)
    assert np.isfinite(energies[0]) and np.isnan(energies[1])
    assert np.isfinite(forces[0]).all() and np.isnan(forces[1, 2, 0])
    context = ForceContext(cliff(), PLATFORM, properties(precision))
    assert np.isnan(context.forces(states)[1, 2, 0])


@pytest.mark.parametrize("window", [8, "auto"])
def test_a_run_ends_at_the_cliff(simulate, window):
    """It does not continue with an atom that is 4000 nm away."""
    integrator = lsd(draft=system_of(external_force("0*x", 4)), windowLength=window)
    simulation = simulate(cliff(), integrator, 0.1 * np.ones((4, 3)), np.zeros((4, 3)))
    simulation.step(2)
    if window == "auto":
        integrator._binding.tuner.window = 1
    simulation.context.setVelocities([[0, 0, 0]] * 3 + [[20.0, 0, 0]])
    with pytest.raises(TargetError, match=r"nan|not finite"):
        simulation.step(30)
    state = simulation.context.getState(positions=True)
    assert np.abs(state.getPositions(asNumpy=True)._value).max() < 0.5


# Far from the origin


def water(count):
    modeller = app.Modeller(app.Topology(), [] * openmm.unit.nanometer)
    modeller.addSolvent(app.ForceField("tip3p.xml"), model="tip3p", numAdded=count)
    system = app.ForceField("tip3p.xml").createSystem(
        modeller.topology,
        nonbondedMethod=app.CutoffPeriodic,
        nonbondedCutoff=0.6,
        constraints=None,
        rigidWater=False,
    )
    positions = np.array(modeller.positions.value_in_unit(openmm.unit.nanometer))
    return system, positions


@pytest.mark.parametrize("precision", PRECISIONS)
def test_forces_do_not_depend_on_the_image(precision):
    """At 100 nm a position in single precision is off by 4e-6 nm, and stiff bonds feel that."""
    system, positions = water(100)
    box = default_box(system)
    shifts = np.array([[0, 0, 0], [50, -20, 31], [1, 0, 0]]) @ box
    context = ForceContext(system, PLATFORM, properties(precision))
    forces = context.forces(positions + shifts[:, None])
    expected = ForceContext(system, REFERENCE).forces(positions[None])[0]
    scale = np.sqrt(np.mean(expected**2))
    for row in forces:
        assert np.abs(row - expected).max() < 2e-4 * scale


def test_molecules_stay_whole():
    """One molecule may be split over images in what a user gives; it is moved as a whole."""
    system, positions = water(100)
    box = np.diag(default_box(system))
    far = positions.copy()
    far[3:6] += 7 * box
    far[30:33] -= 3 * box
    context = ForceContext(system, PLATFORM)
    np.testing.assert_allclose(
        context.forces(far[None]), context.forces(positions[None]), rtol=0, atol=0.5
    )


def test_a_run_far_from_the_origin(simulate):
    """The draft is the target: whatever is rejected is rounding."""
    system, positions = water(80)
    integrator = LSDIntegrator(
        300, 1, 0.0005, water(80)[0], windowLength=8, randomNumberSeed=1, draftPlatform="Reference"
    )
    edge = default_box(system)[0, 0]
    simulation = simulate(system, integrator, positions + 30 * edge)
    simulation.context.setVelocitiesToTemperature(300, 1)
    simulation.step(40)
    state = simulation.context.getState(positions=True).getPositions(asNumpy=True)._value
    assert state.min() > 25 * edge  # as plain dynamics, which shows atoms where they were put
    assert integrator.statistics.mean_noise_shift < 0.05


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_small_move_counts(precision):
    """From step to step the state is remembered as it was set; a device has rounded it."""
    context, plain = (
        openmm.Context(
            system_of(harmonic_bonds(2500.0)), integrator, PLATFORM, properties(precision)
        )
        for integrator in (lsd(COLD), openmm.LangevinMiddleIntegrator(0, 1, 0.001))
    )
    context.setPositions(POSITIONS)
    context.setVelocities(VELOCITIES)
    context.getIntegrator().step(5)
    moved = context.getState(positions=True).getPositions(asNumpy=True)._value.copy()
    moved[1, 0] += 3e-7  # nm
    velocities = context.getState(velocities=True).getVelocities()
    for each in (context, plain):
        each.setPositions(moved)
        each.setVelocities(velocities)
        each.getIntegrator().step(1)
    after, expected = (
        each.getState(positions=True).getPositions(asNumpy=True)._value for each in (context, plain)
    )
    assert np.abs(after - expected)[1, 0] < 1e-7


# Atoms that move behind the integrator's back


@needs_minimizer
def test_minimisation_between_steps(simulate):
    integrator = lsd(COLD)
    simulation = simulate(system_of(harmonic_bonds(2500.0)), integrator, POSITIONS, VELOCITIES)
    simulation.step(20)
    simulation.minimizeEnergy(maxIterations=20)
    before = simulation.context.getState(positions=True, energy=True)
    simulation.context.setVelocities(np.zeros((4, 3)))
    simulation.step(1)
    after = simulation.context.getState(positions=True)
    moved = after.getPositions(asNumpy=True)._value - before.getPositions(asNumpy=True)._value
    assert np.abs(moved).max() < 1e-4


# What a device does otherwise


def test_motion_of_the_centre(simulate):
    """Removed as often as plain OpenMM does it on this platform, whatever the remover says."""
    momenta = []
    for integrator in (openmm.LangevinMiddleIntegrator(0, 1, 0.001), lsd(COLD)):
        system = system_of(external_force("200*x", 4), openmm.CMMotionRemover(3))
        simulation = simulate(system, integrator, POSITIONS, np.zeros((4, 3)))
        rows = []
        for _ in range(7):
            simulation.step(1)
            velocities = simulation.context.getState(velocities=True).getVelocities(asNumpy=True)
            rows.append(np.array([12.0, 16.0, 1.0, 14.0]) @ velocities._value)
        momenta.append(rows)
    np.testing.assert_allclose(momenta[0], momenta[1], rtol=0, atol=1e-4)


@pytest.mark.skipif(PLATFORM.getName() == "OpenCL", reason="there it is a PythonForce")
def test_torch_force_on_opencl():
    """The pair ends the process; it is refused when the Context is made."""
    with pytest.raises(ValueError, match="TorchForce on OpenMM's OpenCL platform"):
        check_torch_forces(system_of(torch_force(Bonds)), "OpenCL")
    check_torch_forces(system_of(torch_force(Bonds)), "CPU")
    check_torch_forces(system_of(harmonic_bonds()), "OpenCL")


@pytest.mark.skipif(PLATFORM.getName() == "OpenCL", reason="there it is a PythonForce")
def test_commands_do_not_choose_opencl_for_a_torch_force(monkeypatch):
    """Where OpenMM would; plain runs of theirs have no integrator that could refuse it."""
    system = system_of(torch_force(Bonds))
    assert choose_platform(system, "CPU")[0].getName() == "CPU"
    assert choose_platform(system_of(harmonic_bonds()), None) == ()
    with pytest.raises(ValueError, match="ends the process"):
        choose_platform(system, "OpenCL")
    monkeypatch.setattr(
        openmm.Platform, "getName", lambda self: "OpenCL" if self.getSpeed() > 5 else "CPU"
    )
    chosen = choose_platform(system, None)
    assert all(platform.getSpeed() <= 5 for platform in chosen)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rigid_water_stays_whole_where_its_constraints_are_not(precision):
    """The shared forces of a mixed System: exceptions alone say what belongs together.

    Molecules lie across the border of the box; an excluded pair that is torn apart has a wrong
    force, for OpenMM takes it off without images.
    """
    _, positions, cheap = box_of("dipeptide", None)
    cheap = copy.deepcopy(cheap)
    while cheap.getNumConstraints():
        cheap.removeConstraint(0)
    for force in cheap.getForces():
        if isinstance(force, openmm.NonbondedForce):
            force.setNonbondedMethod(openmm.NonbondedForce.PME)
    positions = np.array(positions) + 0.37
    expected = ForceContext(cheap, openmm.Platform.getPlatform("Reference")).forces(positions[None])
    found = ForceContext(cheap, PLATFORM, properties(precision)).forces(positions[None])
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2.0)
