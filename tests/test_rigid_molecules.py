"""Constraints in all that people combine them with, through real Simulations.

Without noise LSDIntegrator must give the trajectory of LangevinMiddleIntegrator, whatever the draft
and whatever is done in between; and a run that is taken up again is the same bit for bit.
test_law_of_constraints.py is about the noise.
"""

import functools
import io
from pathlib import Path

import numpy as np
import openmm
import pytest
from openmm import app, unit
from particles import (
    COLD,
    ON_DEVICE,
    PLATFORM,
    REFERENCE,
    SEED,
    Cycling,
    lsd,
    needs_bits,
    needs_minimizer,
)

from openmm_lsd import LSDIntegrator
from openmm_lsd.contexts.checks import masses_of
from openmm_lsd.contexts.constraints import constraints_of, has_uneven_triangles

DIPEPTIDE = Path(__file__).parents[1] / "systems" / "alanine_dipeptide" / "alanine_dipeptide.pdb"
WATERS = {"TIP3P": "tip3p", "TIP4P-Ew": "tip4pew", "OPC": "opc"}
TOLERANCE = 1e-4 if ON_DEVICE else 1e-7  # of positions in nm


@functools.cache
def molecules(kind):
    """Topology, positions at ease, and the force field."""
    water = WATERS.get(kind, "tip3p")
    field = app.ForceField("amber14-all.xml", f"amber14/{water}.xml")
    if kind in WATERS:
        modeller = app.Modeller(app.Topology(), [] * unit.nanometer)
    else:
        pdb = app.PDBFile(str(DIPEPTIDE))
        modeller = app.Modeller(pdb.topology, pdb.positions)
    model = "tip4pew" if kind in ("TIP4P-Ew", "OPC") else "tip3p"
    modeller.addSolvent(field, model=model, numAdded=40)
    system = create(modeller.topology, field)
    return modeller.topology, relaxed(system, modeller.positions), field


def relaxed(system, positions):
    """Positions at ease, the same in every run on one machine."""
    integrator = openmm.LangevinMiddleIntegrator(100.0, 50.0, 0.001)
    integrator.setRandomNumberSeed(SEED)
    platform = openmm.Platform.getPlatform("CPU")
    context = openmm.Context(system, integrator, platform, {"Threads": "1"})
    context.setPositions(positions)
    openmm.LocalEnergyMinimizer.minimize(context, 1.0, 200)
    integrator.step(200)
    return context.getState(positions=True).getPositions(asNumpy=True)._value


def create(topology, field, constraints=app.HBonds, hydrogen_mass=None):
    """With forces that go to zero at the cutoff.

    Where they jump, two paths that differ by rounding part as soon as a pair crosses it.
    """
    system = field.createSystem(
        topology,
        nonbondedMethod=app.CutoffPeriodic,
        nonbondedCutoff=0.5 * unit.nanometer,
        switchDistance=0.4 * unit.nanometer,
        constraints=constraints,
        rigidWater=True,
        hydrogenMass=hydrogen_mass,
    )
    for force in system.getForces():
        if isinstance(force, openmm.NonbondedForce):
            force.setReactionFieldDielectric(1e9)
    return system


def test_forces_do_not_jump_at_the_cutoff():
    topology, positions, field = molecules("TIP3P")
    context = openmm.Context(create(topology, field), openmm.VerletIntegrator(0.001), REFERENCE)
    forces = []
    for distance in (0.5 - 1e-9, 0.5 + 1e-9):
        moved = positions.copy()
        moved[3:6] += moved[0] - moved[3] + [distance, 0, 0]  # oxygen from oxygen
        context.setPositions(moved)
        state = context.getState(forces=True)
        forces.append(state.getForces(asNumpy=True)._value[0])
    np.testing.assert_allclose(*forces, rtol=0, atol=1e-3)


# name: molecules, step size in ps, constraints, mass of hydrogen, what is done to both Systems
CASES = {
    "TIP3P": ("TIP3P", 0.002, None, None, None),
    "TIP4P-Ew": ("TIP4P-Ew", 0.002, None, None, None),
    "OPC": ("OPC", 0.002, None, None, None),
    "HBonds": ("dipeptide", 0.002, app.HBonds, None, None),
    "AllBonds": ("dipeptide", 0.002, app.AllBonds, None, None),
    "HAngles": ("dipeptide", 0.002, app.HAngles, None, None),
    "4 fs": ("dipeptide", 0.004, app.HBonds, 1.5, None),
    "fixed atoms": ("dipeptide", 0.002, None, None, "fix"),
    "frozen molecules": ("dipeptide", 0.002, app.HBonds, None, "freeze"),
    "triclinic": ("TIP3P", 0.002, None, None, "tilt"),
}


def systems_of(name):
    """Target, draft, topology and positions; the draft is less polar, its angles are softer."""
    kind, _, constraints, hydrogen_mass, change = CASES[name]
    topology, positions, field = molecules(kind)
    target, draft = (create(topology, field, constraints, hydrogen_mass) for _ in range(2))
    for system in (target, draft):
        if change == "fix":
            for index in (4, 8):  # heavy atoms
                system.setParticleMass(index, 0.0)
        if change == "freeze":  # an acetyl group, and the first water: bonds and all
            for index in (*range(6), *range(22, 25)):
                system.setParticleMass(index, 0.0)
        if change == "tilt":
            a, b, c = system.getDefaultPeriodicBoxVectors()
            system.setDefaultPeriodicBoxVectors(
                a, openmm.Vec3(0.2, b[1]._value, 0), openmm.Vec3(-0.1, 0.2, c[2] / unit.nanometer)
            )
    for force in draft.getForces():
        if isinstance(force, openmm.NonbondedForce):
            for index in range(force.getNumParticles()):
                charge, *rest = force.getParticleParameters(index)
                force.setParticleParameters(index, 0.9 * charge, *rest)
        if isinstance(force, openmm.HarmonicAngleForce):
            for index in range(force.getNumAngles()):
                *atoms, angle, stiffness = force.getAngleParameters(index)
                force.setAngleParameters(index, *atoms, angle, 0.8 * stiffness)
    return target, draft, topology, positions


def simulation_of(name, plain=False, temperature=COLD, more=(), **keywords):
    target, draft, topology, positions = systems_of(name)
    for force in more:
        target.addForce(force())
    step_size = CASES[name][1]
    if plain:
        integrator = openmm.LangevinMiddleIntegrator(temperature, 1e-6, step_size)
    else:
        draft = keywords.pop("draft", draft)
        integrator = lsd(temperature, 1e-6, step_size, draft, topology=topology, **keywords)
    integrator.setConstraintTolerance(1e-8)
    simulation = app.Simulation(topology, target, integrator, PLATFORM)
    simulation.context.setPositions(positions)
    simulation.context.setVelocitiesToTemperature(300.0, 5)
    return simulation


def state_of(simulation):
    state = simulation.context.getState(positions=True, velocities=True)
    return (
        state.getPositions(asNumpy=True)._value,
        state.getVelocities(asNumpy=True)._value,
        simulation.context.getState().getPeriodicBoxVectors(asNumpy=True)._value,
    )


def assert_same(ours, plain):
    (x, v, _), (there, speeds, _) = state_of(ours), state_of(plain)
    np.testing.assert_allclose(x, there, atol=TOLERANCE)
    # A device gives particles without mass the velocity of the others' centre.
    mobile = masses_of(ours.system) > 0
    np.testing.assert_allclose(v[mobile], speeds[mobile], atol=1e3 * TOLERANCE)


def worst_error(simulation):
    """The largest relative error of a constraint of what moves."""
    x, system = state_of(simulation)[0], simulation.system
    masses, errors = masses_of(system), []
    for index in range(system.getNumConstraints()):
        i, j, length = system.getConstraintParameters(index)
        if masses[i] + masses[j] > 0:
            errors.append(abs(np.linalg.norm(x[i] - x[j]) / length._value - 1.0))
    return max(errors)


@pytest.mark.parametrize("name", CASES)
def test_steps_are_those_of_plain_dynamics(name):
    ours, plain = simulation_of(name), simulation_of(name, plain=True)
    for steps in (1, 2, 9, 13):
        ours.step(steps)
        plain.step(steps)
        assert_same(ours, plain)
        assert worst_error(ours) < (2e-6 if ON_DEVICE else 1e-7)


def test_what_is_frozen_may_be_off_its_constraints():
    """As the hydrogens of a structure from a file: nothing can move them."""
    ours, plain = (simulation_of("frozen molecules", plain=plain) for plain in (False, True))
    for simulation in (ours, plain):
        x, v, _ = state_of(simulation)
        x[[1, 23]] += 0.004
        simulation.context.setPositions(x)
        simulation.context.applyConstraints(1e-8)
        simulation.context.setVelocities(v)
        simulation.step(15)
    assert_same(ours, plain)


@pytest.mark.parametrize("learning", [False, True])
def test_drafts_that_learn(learning):
    keywords = {"learning": True} if learning else {"draft": "auto"}
    ours, plain = simulation_of("HBonds", **keywords), simulation_of("HBonds", plain=True)
    for simulation in (ours, plain):
        simulation.step(30)
    assert_same(ours, plain)


def test_windows_that_tune_themselves():
    """Plain steps of the Context are among them."""
    ours = simulation_of("HBonds", windowLength="auto")
    plain = simulation_of("HBonds", plain=True)
    ours.step(1)
    ours.integrator._binding.take_tuner(Cycling())
    ours.step(39)
    plain.step(40)
    assert_same(ours, plain)


@pytest.mark.parametrize("changed", ["hydrogen", "oxygen"])
def test_waters_of_other_masses(changed):
    """OpenMM's SETTLE goes wrong for HDO; so no plain steps are done."""
    target, draft, topology, positions = systems_of("TIP3P")
    for system in (target, draft):
        assert not has_uneven_triangles(system)
        system.setParticleMass(int(changed == "hydrogen"), 2.0)
        assert has_uneven_triangles(system) == (changed == "hydrogen")
    integrator = lsd(300.0, 1.0, 0.002, draft, windowLength="auto")
    simulation = app.Simulation(topology, target, integrator, PLATFORM)
    simulation.context.setPositions(positions)
    simulation.context.setVelocitiesToTemperature(300.0, 5)
    simulation.step(1)
    integrator._binding.take_tuner(Cycling())
    simulation.step(60)
    assert worst_error(simulation) < 2e-5


def test_xml_gives_the_same_steps():
    """Of plain dynamics, and of an LSDIntegrator again."""
    first, plain = simulation_of("HBonds"), simulation_of("HBonds", plain=True)
    xml = openmm.XmlSerializer.serialize(first.integrator)
    program = openmm.XmlSerializer.deserialize(xml)
    again = LSDIntegrator.fromXml(xml, systems_of("HBonds")[1])
    positions, velocities, _ = state_of(plain)
    plain.step(20)
    for integrator in (program, again):
        assert integrator.getConstraintTolerance() == 1e-8
        simulation = app.Simulation(plain.topology, plain.system, integrator, PLATFORM)
        simulation.context.setPositions(positions)
        simulation.context.setVelocities(velocities)
        simulation.step(20)
        assert_same(simulation, plain)


def apply_constraints(simulation):
    x = state_of(simulation)[0]
    noise = 0.01 * np.random.default_rng(3).standard_normal(x.shape)
    simulation.context.setPositions(x + noise)
    simulation.context.applyConstraints(1e-9)


def set_positions_off_the_constraints(simulation):
    x = state_of(simulation)[0]
    noise = 1e-4 * np.random.default_rng(3).standard_normal(x.shape)
    simulation.context.setPositions(x + noise)


def set_velocities_off_the_constraints(simulation):
    x = state_of(simulation)[0]
    simulation.context.setVelocities(np.random.default_rng(3).standard_normal(x.shape))


def draw_velocities(simulation):
    simulation.context.setVelocitiesToTemperature(350.0, 8)


def change_tolerance(simulation):
    simulation.integrator.setConstraintTolerance(1e-9)


@pytest.mark.parametrize(
    "change",
    [
        apply_constraints,
        set_positions_off_the_constraints,
        set_velocities_off_the_constraints,
        draw_velocities,
        change_tolerance,
    ],
)
def test_what_users_do_between_steps(change):
    ours, plain = simulation_of("HBonds"), simulation_of("HBonds", plain=True)
    for simulation in (ours, plain):
        simulation.step(7)
        change(simulation)
        simulation.step(11)
    assert_same(ours, plain)


@needs_minimizer
def test_minimisation_between_steps():
    simulation = simulation_of("HBonds", temperature=300.0)
    simulation.step(5)
    before = simulation.context.getState(energy=True).getPotentialEnergy()
    simulation.minimizeEnergy(maxIterations=20)
    after = simulation.context.getState(energy=True).getPotentialEnergy()
    assert after < before
    simulation.step(5)
    assert worst_error(simulation) < 1e-6


def test_discrepancies_are_what_constraints_leave():
    """Those that estimate and theory are made of."""
    simulation = simulation_of("HBonds", temperature=300.0)
    simulation.step(5)
    found = simulation.integrator.probe().discrepancies(state_of(simulation)[0][None])[0]
    x, system = state_of(simulation)[0], simulation.system
    speeds = found / masses_of(system)[:, None]
    for i, j in constraints_of(system):
        assert abs((speeds[i] - speeds[j]) @ (x[i] - x[j])) < 1e-3
    assert np.abs(found).max() > 10.0


def test_a_loose_tolerance_is_that_of_the_integrator():
    errors = []
    for tolerance in (1e-3, 1e-9):
        simulation = simulation_of("HAngles", temperature=300.0)
        simulation.integrator.setConstraintTolerance(tolerance)
        simulation.step(20)
        errors.append(worst_error(simulation))
    assert errors[0] > 10 * errors[1]
    assert errors[0] < 1e-3


def barostat():
    force = openmm.MonteCarloBarostat(1.0, 300.0, 5)
    force.setRandomNumberSeed(3)
    return force


@needs_bits
@pytest.mark.parametrize("more", [(), (barostat,)], ids=["NVT", "NPT"])
def test_checkpoints_continue_bit_for_bit(more):
    def make():
        return simulation_of("HBonds", temperature=300.0, more=more, learning=True)

    whole = make()  # OpenMM's generator is that of the Context that was made last
    for _ in range(2):
        whole.step(23)
    first, buffer = make(), io.BytesIO()
    first.step(23)
    first.saveCheckpoint(buffer)
    second = make()
    second.loadCheckpoint(io.BytesIO(buffer.getvalue()))
    second.step(23)
    for a, b in zip(state_of(whole), state_of(second), strict=True):
        np.testing.assert_array_equal(a, b)


def test_molecules_keep_their_shape_under_a_barostat():
    simulation = simulation_of("TIP4P-Ew", temperature=300.0, more=(barostat,))
    boxes = set()
    for _ in range(12):
        simulation.step(10)
        boxes.add(state_of(simulation)[2].tobytes())
        assert worst_error(simulation) < (2e-6 if ON_DEVICE else 1e-7)
    assert len(boxes) > 3
