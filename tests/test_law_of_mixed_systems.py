"""The exact law where draft and target share forces, through LSDIntegrator in real Simulations: two
atoms with a slow force of their own among rigid waters.

As test_law_of_constraints.py. The motion of the centre of mass is removed at every step; the
subset's discrepancy is strong. Each planted fault must be caught.
"""

import dataclasses
import functools
import itertools

import numpy as np
import openmm
import pytest
from ensembles import Case, Z, assert_same_forces, reference_of, score_of, system_of, trap
from law import TEMPERATURE
from particles import planted
from test_law_of_simulations import OnlyTheBox
from test_subset import ForcesOfAnotherSite, NoMotionOfTheRest

from openmm_lsd import LSDIntegrator, batched
from openmm_lsd.core.subset import SubsetEngine

LIGAND = [0, 4]  # with a rigid water between them
MASSES = [6.0, 3.0, 1.008, 1.008, 3.0]
WATER = [1, 2, 3]
STIFFNESS, SKEW, LENGTH = 10_000.0, 100_000.0, 0.16
BOX = np.array([2.4, 2.6, 2.8])
FIELD = np.array([700.0, -400.0, 300.0])  # on the first atom


@batched
def slow_forces(positions, box, parameters):
    """A skewed spring between two atoms, and a field that pulls the first."""
    apart = positions[:, 1] - positions[:, 0]
    length = np.linalg.norm(apart, axis=1)
    stretch = length - LENGTH
    energies = 0.5 * STIFFNESS * stretch**2 - SKEW * stretch**3 + 3 * SKEW * stretch**4
    pull = STIFFNESS * stretch - 3 * SKEW * stretch**2 + 12 * SKEW * stretch**3
    forces = np.empty_like(positions)
    forces[:, 0] = (pull / length)[:, None] * apart
    forces[:, 1] = -forces[:, 0]
    forces[:, 0] += FIELD
    return energies - positions[:, 0] @ FIELD, forces


def slow_forces_in_openmm():
    """The same, as OpenMM computes it."""
    spring = openmm.CustomBondForce(
        f"{0.5 * STIFFNESS}*s^2 - {SKEW}*s^3 + {3 * SKEW}*s^4; s = r-{LENGTH}"
    )
    spring.addBond(*LIGAND)
    x, y, z = FIELD
    field = openmm.CustomExternalForce(f"-({x}*x + {y}*y + {z}*z)")
    field.addParticle(LIGAND[0], [])
    return spring, field


def cheap_forces(periodic):
    """Of all particles: charges, a trap, and a stiff bond of the ligand."""
    force = openmm.NonbondedForce()
    for index in range(5):
        if index in LIGAND:
            force.addParticle(0.4 if index else -0.4, 0.3, 0.4)
        elif index == WATER[0]:
            force.addParticle(-0.834, 0.3151, 0.636)
        else:
            force.addParticle(0.417, 1.0, 0.0)
    force.createExceptionsFromBonds([tuple(LIGAND)], 0.0, 0.0)
    for i, j in itertools.combinations(WATER, 2):
        force.addException(i, j, 0.0, 1.0, 0.0)
    if periodic:
        force.setNonbondedMethod(openmm.NonbondedForce.CutoffPeriodic)
        force.setCutoffDistance(0.5)
    bond = openmm.HarmonicBondForce()
    bond.addBond(*LIGAND, LENGTH, 60_000.0)
    return [force, trap(5, 1_500.0), bond, openmm.CMMotionRemover(1)]


def build(barostat=False):
    bond, angle = 0.09572, np.deg2rad(104.52)
    side = 2 * bond * np.sin(angle / 2)
    constraints = [(1, 2, bond), (1, 3, bond), (2, 3, side)]
    positions = np.zeros((5, 3))
    positions[4, 0] = LENGTH
    positions[2:4] = bond * np.array([[np.sin(angle / 2), 0, 0], [-np.sin(angle / 2), 0, 0]])
    positions[2:4, 1] = bond * np.cos(angle / 2)
    positions[1:4] += [0.05, 0.32, 0.0]
    target, draft, in_openmm = (
        system_of(MASSES, constraints, *cheap_forces(barostat)) for _ in range(3)
    )
    slow = openmm.PythonForce(slow_forces)
    slow.setParticles(LIGAND)
    target.addForce(slow)
    for force in slow_forces_in_openmm():
        in_openmm.addForce(force)
    soft = openmm.CustomBondForce(f"{0.1 * STIFFNESS}*(r-{1.1 * LENGTH})^2")
    soft.addBond(*LIGAND)
    draft.addForce(soft)
    if not barostat:
        return Case(target, draft, positions, 0.004, 0.006, [0, 1, 2, 4], in_openmm=in_openmm)
    for system in (target, draft, in_openmm):
        system.setDefaultPeriodicBoxVectors(*np.diag(BOX))
    for system in (target, in_openmm):
        moves = openmm.MonteCarloBarostat(10.0, TEMPERATURE, 2)
        moves.setRandomNumberSeed(5)
        system.addForce(moves)
    return Case(target, draft, positions, 0.004, 0.006, [0, 1, 2, 4], box=BOX, in_openmm=in_openmm)


case = functools.cache(build)


@functools.cache
def reference(barostat=False):
    return reference_of(case(barostat))


def score(kind=LSDIntegrator, runs=4_000, barostat=False, **keywords):
    own = dataclasses.replace(case(barostat), runs=runs)
    return score_of(own, reference(barostat), kind, **keywords)


@pytest.mark.parametrize("learning", [False, True])
def test_law(learning):
    statistics, z, message = score(learning=learning)
    assert statistics.acceptance_rate > 0.1 and statistics.rejected > 20
    assert abs(z) < Z, message


def test_reference_has_the_forces_of_the_target():
    assert_same_forces(case())


def test_law_with_a_barostat():
    statistics, z, message = score(barostat=True)
    assert statistics.acceptance_rate > 0.1 and statistics.shortened_windows > 100
    assert abs(z) < Z, message


def test_box_without_the_molecules_is_caught():
    _, z, message = score(planted(_moves=OnlyTheBox), 500, barostat=True, faulty=True)
    assert abs(z) > Z, message


def test_law_of_draft_auto():
    own = dataclasses.replace(case(), draft="auto", learning=True, runs=4_000)
    statistics, z, message = score_of(own, reference())
    assert statistics.acceptance_rate > 0.1 and statistics.rejected > 20
    assert abs(z) < Z, message


def half_as_stiff(positions, box=None, parameters=None):
    """A draft of the slow forces; every now and then it fails."""
    if 1e5 * positions[0, 0, 0] % 1.0 < 0.05 and len(positions) == 1:
        raise ArithmeticError("no convergence")
    energies, forces = slow_forces.function(positions, box, parameters)
    return 0.5 * energies, 0.5 * forces


def slow_draft(case, soft=openmm.CustomBondForce):
    """The case with a PythonForce in the place of what the draft has on the two atoms."""
    for index in reversed(range(case.draft.getNumForces())):
        if isinstance(case.draft.getForce(index), soft):
            case.draft.removeForce(index)
    force = openmm.PythonForce(batched(half_as_stiff))
    force.setParticles(LIGAND)
    case.draft.addForce(force)
    return case


@pytest.mark.parametrize("learning", [False, True])
def test_law_of_a_draft_with_a_slow_force(learning):
    """It stands in for that of the target; all else is shared."""
    own = dataclasses.replace(slow_draft(build()), learning=learning, runs=4_000)
    statistics, z, message = score_of(own, reference())
    assert statistics.acceptance_rate > 0.1 and statistics.rejected > 20
    assert abs(z) < Z, message


class NoiseDrawnAgain(SubsetEngine):
    """After a rejection the rest gets new noise, though the old has decided on it."""

    def commit(self, state, window, target_forces, draws):
        committed = super().commit(state, window, target_forces, draws)
        if not committed.accepted:
            k, whole = committed.num_steps, committed.whole
            rest, rng = np.array(WATER), np.random.default_rng(state.step + 10**6)
            old = self._noise_of_all(state.step, draws)[k - 1]
            kick = self.noise_scale * (rng.standard_normal(old.shape) - old)
            kick[LIGAND] = 0.0
            at = committed.read(k - 1)[0] if k > 1 else state.positions
            kick = self.scheme.projection.velocities(at, kick)[rest]
            whole.velocities[k, rest] += kick
            before = committed.read(k)[0]
            moved = before.copy()
            moved[rest] += 0.5 * self.scheme.step_size * kick
            moved = self.scheme.projection.positions(at, moved)
            whole.positions[k, rest] += (moved - before)[rest]
        return committed


class WronglyShared(SubsetEngine):
    """The draft's force on an atom is taken for the target's."""

    def commit(self, state, window, target_forces, draws):
        target_forces = target_forces.copy()
        target_forces[:, 0] = window.draft_forces[: len(target_forces), 0]
        return super().commit(state, window, target_forces, draws)


@pytest.mark.parametrize(
    ("fault", "runs"),
    [
        (NoMotionOfTheRest, 800),
        (NoiseDrawnAgain, 9_000),
        (ForcesOfAnotherSite, 6_000),
        (WronglyShared, 500),
    ],
)
def test_planted_faults_are_caught(fault, runs):
    _, z, message = score(planted(_subset_engine=fault, _correction="none"), runs, faulty=True)
    assert abs(z) > Z, message
