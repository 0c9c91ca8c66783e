"""The engine that drafts in a Context: its law, its steps, and what it leaves to the other.

The law as in test_law_of_mixed_systems.py, of five particles that nothing holds in place, so that
removing the motion of their centre of mass matters. Each planted fault must be caught. Where the
rest has no noise both engines must take the same path for the same noise of the subset.
"""

import copy
import dataclasses
import functools

import numpy as np
import openmm
import pytest
from ensembles import Z, reference_of, score_of
from openmm import app
from particles import ON_DEVICE, PLATFORM, lsd, planted
from test_law_of_mixed_systems import LIGAND, WATER, build
from test_mixed_systems import box_of, python_force

from openmm_lsd import LSDIntegrator, batched
from openmm_lsd.core.noise import StepNoise
from openmm_lsd.drafts.contextengine import ContextEngine
from openmm_lsd.drafts.draftingprogram import DraftingProgram

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
    for system in (case.target, case.draft):
        without(system, openmm.CustomExternalForce, openmm.PythonForce)
        springs = openmm.HarmonicBondForce()
        for atom in LIGAND:
            springs.addBond(atom, WATER[0], 0.33, 1_500.0)
        system.addForce(springs)
    slow = openmm.PythonForce(free_spring)
    slow.setParticles(LIGAND)
    case.target.addForce(slow)
    # A draft that pushes the centre of mass.
    field = openmm.CustomExternalForce("-900*x + 600*y - 400*z")
    field.addParticle(LIGAND[0], [])
    case.draft.addForce(field)
    return case


@functools.cache
def reference(barostat=False):
    return reference_of(free_case(barostat))


def score(kind=LSDIntegrator, runs=4_000, barostat=False, **keywords):
    own = dataclasses.replace(free_case(barostat), runs=runs)
    return score_of(own, reference(barostat), kind, engine="context", **keywords)


@pytest.mark.parametrize("learning", [False, True])
def test_law(learning):
    statistics, z, message = score(learning=learning)
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


@pytest.mark.parametrize("fault", [FrameForgotten, AcceptsAll, ForcesOfAnotherSite, WronglyShared])
def test_planted_faults_are_caught(fault):
    _, z, message = score(planted(_context_engine=fault, _correction="none"), 9_000)
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


def quiet_rest(monkeypatch, subset, particles):
    """The rest draws no noise, and the subset the same with both engines."""
    bind, draw = DraftingProgram.bind, StepNoise.__call__

    def without_noise(program, context, own):
        access = bind(program, context, own)
        nothing = np.zeros((particles, 3))
        program.integrator.setPerDofVariableByName("rest", nothing)
        return access

    def drawn(noise, step, count):
        own, log_uniforms = draw(StepNoise(noise._seed, len(subset)), step, count)
        if noise._shape[1] == len(subset):
            return own, log_uniforms
        result = np.zeros((count, particles, 3))
        result[:, subset] = own
        return result, log_uniforms

    monkeypatch.setattr(DraftingProgram, "bind", without_noise)
    monkeypatch.setattr(StepNoise, "__call__", drawn)


@pytest.mark.parametrize("draft", ["auto", "force field"])
def test_both_engines_take_the_same_path(monkeypatch, draft):
    topology, positions, cheap = box_of("dipeptide", None)
    target = copy.deepcopy(cheap)
    target.addForce(python_force([4, 8, 14]))
    subset = [4, 8, 14]
    quiet_rest(monkeypatch, subset, len(positions))
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
