"""The native module against its NumPy reference and against OpenMM's own interface."""

import gc
import os
import platform
import subprocess
import sys

import numpy as np
import openmm
import pytest
from openmm import app, unit
from openmm_lsd._native import ContextAccess, speculative_integrator

from openmm_lsd.contexts.forcecontext import ForceContext, fastest_context, is_empty
from openmm_lsd.core.corrections import Corrections
from openmm_lsd.core.engine import NumpyEngine
from openmm_lsd.core.jacobian import LARGEST_DISPLACEMENT, LocalJacobian, Secant
from openmm_lsd.core.schemes import ABOBA, Middle
from openmm_lsd.core.window import Draws, State
from openmm_lsd.drafts.draft import Draft
from openmm_lsd.drafts.nativeengine import NativeEngine

REFERENCE = openmm.Platform.getPlatform("Reference")
STEM = "systems/alanine_dipeptide/alanine_dipeptide"


@pytest.fixture(scope="module")
def alanine():
    system = app.AmberPrmtopFile(f"{STEM}.prmtop").createSystem()
    positions = app.AmberInpcrdFile(f"{STEM}.inpcrd").getPositions(asNumpy=True)
    return system, positions.value_in_unit(unit.nanometer)


def masses_of(system):
    return np.array([system.getParticleMass(i)._value for i in range(system.getNumParticles())])


@pytest.mark.parametrize("kind", [Middle, ABOBA])
@pytest.mark.parametrize("zero_mass", [False, True])
@pytest.mark.parametrize("kind_of_corrections", ["per-step", "jacobian", "secant"])
def test_rollout_agrees_with_the_numpy_reference(kind, zero_mass, kind_of_corrections, alanine):
    system, positions = alanine
    draft = Draft(ForceContext(system, REFERENCE))
    masses = masses_of(system)[:, None]
    velocities = np.random.default_rng(1).standard_normal(positions.shape)
    if zero_mass:
        masses[3] = 0.0
        velocities[3] = 0.0
    scheme = kind(300.0, 1.0, 0.001)
    rng = np.random.default_rng(2)
    noise = rng.standard_normal((16, 22, 3))
    corrections = Corrections(500.0 * rng.standard_normal(noise.shape))
    if kind_of_corrections != "per-step":
        sites = positions + 0.01 * rng.standard_normal(noise.shape)
        neighbours = rng.integers(22, size=(22, 5)).astype(np.int32)
        neighbours[:, 0], neighbours[7, 3:] = np.arange(22), 7
        jacobian = LocalJacobian(neighbours, 1e4 * rng.standard_normal((22, 5, 3, 3)))
        corrections = Corrections(corrections.forces, sites, jacobian)
    if kind_of_corrections == "secant":
        secant = Secant(
            0.01 * rng.standard_normal(noise.shape), 500 * rng.standard_normal(noise.shape)
        )
        for array in secant:
            array[5] = 0.0
        corrections = corrections._replace(secant=secant)
    draws = Draws(noise, np.zeros(16), np.arange(16) % 3 == 0)
    state = State(positions, velocities, 0)
    native, reference = (
        engine(scheme, masses, draft).draft(state, corrections, draws)
        for engine in (NativeEngine, NumpyEngine)
    )
    assert len(native.sites) == 16
    for name in native._fields[:4]:
        ours, theirs = getattr(native, name), getattr(reference, name)
        assert np.abs(ours - theirs).max() < 1e-12 * np.abs(theirs).max(), name
    if kind_of_corrections != "per-step":
        moved = np.abs(native.sites - corrections.sites)
        assert (moved > LARGEST_DISPLACEMENT).any() and (moved < LARGEST_DISPLACEMENT).any()


def test_rollout_stops_where_the_draft_breaks_down(alanine):
    """Positions that overflow end the window in both versions at the same step."""
    system, positions = alanine
    draft = Draft(ForceContext(system, REFERENCE))
    masses = masses_of(system)[:, None]
    noise = np.zeros((8, 22, 3))
    noise[2, 0, 0] = np.inf
    draws = Draws(noise, np.zeros(8), np.zeros(8, dtype=bool))
    state = State(positions, np.zeros_like(positions), 0)
    corrections = Corrections(np.zeros_like(noise))
    for engine in (NativeEngine, NumpyEngine):
        made = engine(Middle(300.0, 1.0, 0.001), masses, draft)
        window = made.draft(state, corrections, draws)
        assert len(window.sites) == len(window.velocities) == len(window.draft_forces) == 3


def test_rollout_rejects_arrays_of_the_wrong_size(alanine):
    system, positions = alanine
    draft = Draft(ForceContext(system, REFERENCE))
    engine = NativeEngine(Middle(300.0, 1.0, 0.001), masses_of(system), draft)
    still, rows = np.zeros_like(positions), np.zeros((4, 22, 3))
    draws = Draws(rows, np.zeros(4), np.zeros(4, dtype=bool))
    state = State(positions, still, 0)
    with pytest.raises(ValueError, match="got arrays for 21 particles; the System has 22"):
        engine.draft(State(positions[:-1], still, 0), Corrections(rows), draws)
    neighbours, blocks = np.zeros((22, 2), dtype=np.int32), np.zeros((22, 2, 3, 3))
    for sites, jacobian in (
        (rows[1:], LocalJacobian(neighbours, blocks)),
        (rows, LocalJacobian(neighbours[1:], blocks)),
        (rows, LocalJacobian(neighbours, blocks[:, 1:])),
    ):
        corrections = Corrections(rows, sites, jacobian)
        with pytest.raises(ValueError, match="do not fit together"):
            engine.draft(state, corrections, draws)
    jacobian = LocalJacobian(neighbours, blocks)
    for secant in (Secant(rows[1:], rows), Secant(rows, rows[:, 1:])):
        corrections = Corrections(rows, rows, jacobian, secant)
        with pytest.raises(ValueError, match="do not fit together"):
            engine.draft(state, corrections, draws)
    for wrong in (-1, 22):
        neighbours[3, 1] = wrong
        corrections = Corrections(rows, rows, LocalJacobian(neighbours, blocks))
        with pytest.raises(ValueError, match="an atom that is not there"):
            engine.draft(state, corrections, draws)


def test_forces_of_a_batch_are_those_of_openmm(alanine):
    system, positions = alanine
    batch = positions + 0.002 * np.random.default_rng(1).standard_normal((5, *positions.shape))
    forces = ForceContext(system, REFERENCE).forces(batch)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), REFERENCE)
    for row, state_positions in zip(forces, batch, strict=True):
        context.setPositions(state_positions)
        expected = context.getState(forces=True).getForces(asNumpy=True)._value
        assert np.array_equal(row, expected)


def custom_context(alanine):
    system, positions = alanine
    xml = f'<Integrator type="{speculative_integrator}" stepSize="0.001"/>'
    integrator = openmm.XmlSerializer.deserialize(xml)
    integrator.addGlobalVariable("number", 0.0)
    context = openmm.Context(system, integrator, REFERENCE)
    context.setPositions(positions)
    context.setVelocitiesToTemperature(300, 1)
    return context, integrator, ContextAccess(int(integrator.this))


def test_state_goes_in_and_comes_out(alanine):
    context, _, access = custom_context(alanine)
    state = context.getState(positions=True, velocities=True)
    positions, velocities, time, step_count = access.get_state()
    assert np.array_equal(positions, state.getPositions(asNumpy=True)._value)
    assert np.array_equal(velocities, state.getVelocities(asNumpy=True)._value)
    assert (time, step_count) == (0.0, 0)
    access.set_state(positions + 0.1, velocities - 0.5, 1.25, 77)
    state = context.getState(positions=True, velocities=True)
    assert np.array_equal(state.getPositions(asNumpy=True)._value, positions + 0.1)
    assert np.array_equal(state.getVelocities(asNumpy=True)._value, velocities - 0.5)
    assert state.getTime()._value == 1.25 and context.getStepCount() == 77


def test_changes_of_the_context_are_noticed(alanine):
    context, integrator, access = custom_context(alanine)
    assert access.maybe_dirty and access.state_changed
    state = context.getState(positions=True)
    moved = alanine[1] + 0.005 * np.random.default_rng(1).standard_normal((22, 3))
    bonds = next(f for f in alanine[0].getForces() if isinstance(f, openmm.HarmonicBondForce))
    # What is done, and whether it changes what mark_clean() remembers.
    deeds = [
        (lambda: context.setPositions(state.getPositions()), False),
        (lambda: context.setPositions(moved), True),
        (lambda: context.setVelocitiesToTemperature(300), True),
        (lambda: context.setPeriodicBoxVectors([3, 0, 0], [0, 3, 0], [0, 0, 3]), True),
        (lambda: openmm.LocalEnergyMinimizer.minimize(context, maxIterations=1), True),
        (lambda: bonds.updateParametersInContext(context), False),
        (lambda: context.reinitialize(preserveState=True), False),
    ]
    for deed, changes in deeds:
        access.mark_clean()
        assert not access.maybe_dirty and not access.state_changed
        deed()
        assert access.maybe_dirty
        assert access.state_changed == changes
        assert access.changed_parameters == []
    access.mark_clean()
    context.getState(positions=True, forces=True, velocities=True, energy=True)
    integrator.setGlobalVariableByName("number", 3.0)
    assert not access.maybe_dirty


def test_deleted_context_is_an_openmm_exception(alanine):
    context, _integrator, access = custom_context(alanine)
    del context
    gc.collect()
    with pytest.raises(openmm.OpenMMException, match="not bound to a context"):
        access.get_state()


def test_fastest_platform_for_a_small_system_is_found_by_timing(alanine):
    system, positions = alanine
    chosen = fastest_context(system, positions)
    only = fastest_context(system, positions, {"CPU": {}})
    assert only.platform == "CPU"
    assert np.abs(chosen.forces(positions[None]) - only.forces(positions[None])).max() < 1.0


def test_no_platform_is_an_error_that_gives_the_reasons(alanine):
    system, positions = alanine
    with pytest.raises(openmm.OpenMMException, match="Nonesuch"):
        fastest_context(system, positions, {"Nonesuch": {}})


def test_empty_forces_are_told_from_others():
    bonds = openmm.HarmonicBondForce()
    compound = openmm.CustomCompoundBondForce(3, "angle(p1,p2,p3)")
    assert is_empty(bonds) and is_empty(compound) and is_empty(openmm.PeriodicTorsionForce())
    bonds.addBond(0, 1, 0.1, 100.0)
    compound.addBond([0, 1, 2], [])
    others = [openmm.NonbondedForce(), openmm.CMMotionRemover(), openmm.CustomExternalForce("x")]
    assert not any(is_empty(force) for force in [bonds, compound, *others])


def random_window(kind, seed, verified=6, size=0.3):
    """Arguments of the engines and of ``commit``: five particles, the second without mass; a draft
    off by ``size``."""
    rng = np.random.default_rng(seed)
    length, masses = 6, np.array([12.0, 0.0, 1.0, 14.0, 16.0])[:, None]
    scheme = kind(300.0, 5.0, 0.001)
    draws = Draws(
        rng.standard_normal((length, 5, 3)), np.log(rng.random(length)), rng.random(length) < 0.4
    )
    target_forces = 1e3 * rng.standard_normal((length, 5, 3))
    drafted = iter(target_forces.copy())
    engine = NumpyEngine(scheme, masses, lambda site: next(drafted))
    off = size * masses * engine.noise_scale / scheme.step_size
    state = State(*(rng.standard_normal((2, 5, 3)) * (masses > 0)), 0)
    corrections = Corrections(off * rng.standard_normal((length, 5, 3)))
    window = engine.draft(state, corrections, draws)
    return (scheme, masses, None), (state, window, target_forces[:verified], draws)


@pytest.mark.parametrize("kind", [Middle, ABOBA])
@pytest.mark.parametrize("verified", [6, 3, 1])
@pytest.mark.parametrize("size", [0.0, 0.02, 0.3, 1e200])
def test_commit_agrees_with_the_numpy_reference(kind, verified, size):
    committed, accepted_last = set(), set()
    for seed in range(40):
        arguments, window = random_window(kind, seed, verified, size)
        *path, shifts, accepted = NativeEngine(*arguments).commit(*window)
        *expected_path, expected_shifts, expected = NumpyEngine(*arguments).commit(*window)
        assert accepted is expected
        for mine, theirs in zip([*path, shifts], [*expected_path, expected_shifts], strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-12)
        committed.add(len(shifts))
        accepted_last.add(accepted)
    if size == 0.02:
        assert {1, min(verified, 5)} <= committed
        assert accepted_last == {True, False}


@pytest.mark.parametrize("wrong", ["positions", "velocities", "drafted", "forces", *Draws._fields])
def test_commit_refuses_arrays_that_do_not_fit(wrong):
    arguments, (state, window, forces, draws) = random_window(Middle, 1)
    if wrong in State._fields:
        state = state._replace(**{wrong: getattr(state, wrong)[:-1]})
    elif wrong == "drafted":  # may be longer, but not shorter
        window = window._replace(velocities=window.velocities[:-1])
    elif wrong == "forces":
        forces = np.ascontiguousarray(forces[:, :-1])
    else:
        draws = draws._replace(**{wrong: getattr(draws, wrong)[:-1]})
    with pytest.raises(ValueError, match=r"particles|length"):
        NativeEngine(*arguments).commit(state, window, forces, draws)


BATCHES = """
import resource
import numpy as np
from openmm_lsd._native import keep_freed_memory
kept = {keep} and keep_freed_memory()
faults = []
for _ in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for array in [np.empty(1 << 17) for _ in range(8)]:  # a mebibyte each
        array.fill(1.0)
    del array
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(int(kept), sum(faults[-10:]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the malloc of another C library")
def test_freed_memory_is_kept_for_the_next_batch():
    """Else every array's pages come fresh from the system; unless the user has tuned malloc."""

    def kept_and_faults(keep, **environment):
        untuned = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
        environment = {**untuned, **environment}
        command = [sys.executable, "-c", BATCHES.format(keep=keep)]
        output = subprocess.run(
            command, capture_output=True, text=True, env=environment, check=True
        )
        return [int(each) for each in output.stdout.split()]

    kept, faults = kept_and_faults(True)
    assert kept
    assert faults < 100
    assert kept_and_faults(False)[1] > 10_000
    kept, faults = kept_and_faults(True, MALLOC_TRIM_THRESHOLD_="131072")
    assert not kept
    assert faults > 10_000
