"""The exact law with constraints, through LSDIntegrator in real Simulations: rigid waters (SETTLE),
propane with all bonds rigid (CCMA, coupled), alanine dipeptide with rigid bonds to hydrogen in a
small box of rigid water.

Means, products and cubes of positions and velocities of some atoms at two times, of independent
short runs, against OpenMM's LangevinMiddleIntegrator; bad drafts, with learning and without. Each
planted fault must be caught.
"""

import functools
from pathlib import Path

import numpy as np
import openmm
import pytest
from ensembles import Case, Z, reference_of, score_of, system_of, trap
from law import TEMPERATURE
from openmm import app, unit
from particles import planted

from openmm_lsd import LSDIntegrator
from openmm_lsd.core.engine import NumpyEngine
from openmm_lsd.core.schemes import Middle, reciprocal

DIPEPTIDE = Path(__file__).parents[1] / "systems" / "alanine_dipeptide" / "alanine_dipeptide.pdb"


def waters():
    """Three, in a trap; the draft's are less polar, and trapped elsewhere."""
    bond, angle, count = 0.09572, np.deg2rad(104.52), 3
    water = bond * np.array(
        [
            [0, 0, 0],
            [np.sin(angle / 2), np.cos(angle / 2), 0],
            [-np.sin(angle / 2), np.cos(angle / 2), 0],
        ]
    )
    centres = np.array([[0, 0, 0], [0.3, 0.05, 0], [0.1, 0.28, 0.1]])
    constraints = []
    for first in range(0, 3 * count, 3):
        constraints += [(first, first + 1, bond), (first, first + 2, bond)]
        constraints.append((first + 1, first + 2, 2 * bond * np.sin(angle / 2)))

    def build(scale, stiffness, centre):
        force = openmm.NonbondedForce()
        for _ in range(count):
            force.addParticle(-0.834 * scale, 0.3151, 0.636)
            force.addParticle(0.417 * scale, 1.0, 0.0)
            force.addParticle(0.417 * scale, 1.0, 0.0)
        force.createExceptionsFromBonds([c[:2] for c in constraints], 0.0, 0.0)
        return system_of(
            [15.999, 1.008, 1.008] * count, constraints, force, trap(3 * count, stiffness, centre)
        )

    positions = (centres[:, None] + water).reshape(-1, 3)
    return Case(
        build(1.0, 1500.0, 0.1), build(0.6, 700.0, 0.15), positions, 0.004, 0.01, [0, 1, 3, 8]
    )


def propane():
    """Its bonds are rigid, and all of them hang together; the draft's angles are other ones, and it
    pulls along the bonds, of which nothing comes."""
    carbons = [[0, 0, 0], [0.1526, 0, 0], [0.2035, 0.1439, 0]]
    hydrogens = {0: [3, 4, 5], 1: [6, 7], 2: [8, 9, 10]}
    bonds = [(0, 1), (1, 2), *((c, h) for c, own in hydrogens.items() for h in own)]
    lengths = [0.1526, 0.1526, *[0.109] * 8]
    out = np.array(
        [
            *([-0.04, 0.1, 0.02], [-0.04, -0.07, 0.08], [-0.04, -0.03, -0.1]),
            *([0.04, -0.06, 0.08], [0.04, -0.06, -0.08]),
            *([0.1, 0.03, 0.03], [-0.05, 0.07, 0.07], [-0.02, 0.06, -0.09]),
        ]
    )
    positions = np.array(carbons + [carbons[c] for c, own in hydrogens.items() for _ in own], float)
    positions[3:] += out / np.linalg.norm(out, axis=1)[:, None] * 0.109
    constraints = [(*bond, length) for bond, length in zip(bonds, lengths, strict=True)]
    partners = {c: [i if j == c else j for i, j in bonds if c in (i, j)] for c in range(3)}

    def build(stiffness, ideal, trap_stiffness, pull):
        along = openmm.CustomBondForce(f"{pull}*r")
        for bond in bonds:
            along.addBond(*bond)
        angles = openmm.HarmonicAngleForce()
        for c, own in partners.items():
            for first in range(4):
                for second in range(first):
                    angles.addAngle(own[first], c, own[second], ideal, stiffness)
        return system_of(
            [12.011] * 3 + [1.008] * 8, constraints, angles, along, trap(11, trap_stiffness)
        )

    return Case(
        *(build(120.0, 1.91, 600.0, 0.0), build(60.0, 1.8, 300.0, 140.0)),
        *(positions, 0.006, 0.005, [0, 1, 3, 10], 6_000),
    )


def dipeptide():
    """The target's own terms of the solute are stiffer than those of the draft, which learns."""
    pdb = app.PDBFile(str(DIPEPTIDE))
    modeller = app.Modeller(pdb.topology, pdb.positions)
    field = app.ForceField("amber14-all.xml", "amber14/tip3p.xml")
    modeller.addSolvent(field, numAdded=40, neutralize=False)
    target, draft = (
        field.createSystem(
            modeller.topology,
            nonbondedMethod=app.CutoffPeriodic,
            nonbondedCutoff=0.5 * unit.nanometer,
            constraints=app.HBonds,
        )
        for _ in range(2)
    )
    for force in target.getForces():
        if isinstance(force, openmm.HarmonicAngleForce):
            for index in range(force.getNumAngles()):
                *atoms, angle, k = force.getAngleParameters(index)
                force.setAngleParameters(index, *atoms, 1.1 * angle, 2.0 * k)
        if isinstance(force, openmm.NonbondedForce):
            for index in range(22):
                charge, *rest = force.getParticleParameters(index)
                force.setParticleParameters(index, 1.3 * charge, *rest)
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, 10.0, 0.002)
    context = openmm.Context(target, integrator, openmm.Platform.getPlatform("CPU"))
    context.setPositions(modeller.positions)
    openmm.LocalEnergyMinimizer.minimize(context, 10, 100)
    positions = context.getState(positions=True).getPositions(asNumpy=True)._value
    return Case(
        *(target, draft, positions, 0.004, 0.003, [4, 8, 9, 10, 23]),
        runs=500,
        reference_runs=2_500,
        learning=True,
    )


CASES = {"waters": waters, "propane": propane, "dipeptide": dipeptide}
build = functools.cache(lambda name: CASES[name]())


@functools.cache
def reference(name):
    return reference_of(build(name))


def score(name, kind=LSDIntegrator, **keywords):
    return score_of(build(name), reference(name), kind, **keywords)


@pytest.mark.parametrize("name", CASES)
def test_law(name):
    statistics, z, message = score(name)
    assert 0.1 < statistics.acceptance_rate < 0.95
    assert abs(z) < Z, message


def test_law_of_a_draft_that_learns():
    statistics, z, message = score("propane", learning=True)
    assert 0.1 < statistics.acceptance_rate < 0.95
    assert abs(z) < Z, message


class VelocitiesNotProjected(Middle):
    def step(self, positions, velocities, acceleration, kick):
        half = velocities + self.step_size * acceleration
        new = self.decay * half + kick
        free = positions + 0.5 * self.step_size * (half + new)
        constrained = self.projection.positions(positions, free)
        return constrained, new + (constrained - free) / self.step_size


class VelocitiesNotCorrected(Middle):
    def step(self, positions, velocities, acceleration, kick):
        half = velocities + self.step_size * acceleration
        half = self.projection.velocities(positions, half)
        new = self.decay * half + kick
        free = positions + 0.5 * self.step_size * (half + new)
        return self.projection.positions(positions, free), new


class ProjectedElsewhere(Middle):
    """The new velocity keeps the constraints at the positions before the step."""

    def step(self, positions, velocities, acceleration, kick):
        new_positions, new_velocities = super().step(positions, velocities, acceleration, kick)
        return new_positions, self.projection.velocities(positions, new_velocities)


def engine_of(scheme):
    """NumpyEngine of a faulty scheme."""

    class Faulty(NumpyEngine):
        def __init__(self, right, masses, draft):
            numbers = right.temperature, right.friction, right.step_size, right.projection
            super().__init__(scheme(*numbers), masses, draft)

    return Faulty


class UnprojectedShift(NumpyEngine):
    """The noise shift is taken before the projection, and the step's way onto the constraints is
    the draft's."""

    def commit(self, state, window, target_forces, draws):
        scheme, path, shifts, accepted = self.scheme, [], [], True
        a, h, project = scheme.decay, scheme.step_size, scheme.projection
        x, v, _ = state
        for k, force in enumerate(target_forces):
            drafted = window.draft_forces[k] + window.corrections[k]
            noise = draws.noise[k]
            if k + 1 < len(draws.noise):
                shift = v - window.velocities[k] + h * (force - drafted) * self._inverse_masses
                shift *= (1.0 + a) * reciprocal(self.noise_scale)
                shifts.append(float(np.linalg.norm(shift)))
                noise, accepted = self.transport(noise, shift, draws.log_uniforms[k])
            half = project.velocities(x, v + h * force * self._inverse_masses)
            new = a * half + self.noise_scale * noise
            free = x + 0.5 * h * (half + new)
            if accepted and k + 1 < len(window.sites):
                site = window.sites[k + 1]
                half = project.velocities(
                    x, window.velocities[k] + h * drafted * self._inverse_masses
                )
                free = x + 0.5 * h * ((1.0 + a) * half + self.noise_scale * draws.noise[k])
            else:
                site = project.positions(x, free)
            x, v = site, new + (site - free) / h
            path.append((x, v))
            if not accepted:
                break
        return self._committed(path, shifts, accepted)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("waters", engine_of(VelocitiesNotProjected)),
        ("waters", engine_of(VelocitiesNotCorrected)),
        ("waters", engine_of(ProjectedElsewhere)),
        ("propane", UnprojectedShift),
        ("dipeptide", engine_of(VelocitiesNotProjected)),
    ],
    ids=[
        *("waters, not projected", "waters, not corrected", "waters, projected elsewhere"),
        *("propane, shift not projected", "dipeptide, not projected"),
    ],
)
def test_planted_faults_are_caught(name, fault):
    _, z, message = score(name, planted(_engine=fault), faulty=True)
    assert abs(z) > Z, message
