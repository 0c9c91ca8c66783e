"""Many short runs of real Simulations, LSDIntegrator's and OpenMM's, for tests of the law.

Means, products and cubes of positions and velocities of some atoms at two times are compared.
"""

import dataclasses

import numpy as np
import openmm
from law import TEMPERATURE, Caught, worst, z_scores
from openmm import app
from openmm_lsd._native import ContextAccess
from particles import PLATFORM, lsd

from openmm_lsd import LSDIntegrator

STEPS, WINDOW, Z = (2, 5), 4, 5.5


@dataclasses.dataclass
class Case:
    """Target and draft, where runs start, and how they go."""

    target: openmm.System
    draft: openmm.System
    positions: np.ndarray
    step_size: float
    spread: float  # nm, of where runs start
    atoms: list[int]  # that are looked at
    runs: int = 2_500
    reference_runs: int = 20_000
    learning: bool = False
    box: np.ndarray | None = None  # (3,) nm, if the target has a barostat: its edges are looked at
    in_openmm: openmm.System | None = None  # the target without Python: faster for the reference

    def starts(self, context, count, seed):
        """Positions and velocities that keep the constraints, one after another."""
        rng = np.random.default_rng(seed)
        masses = [self.target.getParticleMass(i)._value for i in range(len(self.positions))]
        speeds = np.sqrt(0.0083144626 * TEMPERATURE / np.array(masses))[:, None]
        for _ in range(count):
            if self.box is not None:
                context.setPeriodicBoxVectors(*np.diag(self.box))
                context.setStepCount(0)
            context.setPositions(
                self.positions + self.spread * rng.standard_normal((len(speeds), 3))
            )
            context.applyConstraints(1e-8)
            context.setVelocities(speeds * rng.standard_normal((len(speeds), 3)))
            context.applyVelocityConstraints(1e-8)
            yield

    def states(self, integrator, count, seed, until=None):
        """(count, 2, atoms, 3) after each of STEPS; ``until``: see ``law.Caught``."""
        integrator.setConstraintTolerance(1e-6)
        topology = app.Topology()
        residue = topology.addResidue("X", topology.addChain())
        for _ in range(self.target.getNumParticles()):
            topology.addAtom("X", None, residue)
        simulation = app.Simulation(topology, self.target, integrator, PLATFORM)
        context = simulation.context
        access = ContextAccess(int(integrator.this))
        memory = access.get_barostat_memory()
        if self.box is not None:
            memory[3:] = 0.2 * np.prod(self.box)  # the length of the moves
        rows = [[] for _ in STEPS]
        for _ in self.starts(context, count, seed):
            # A barostat learns its step length, and would from one run to the next.
            access.set_barostat_memory(memory)
            done = 0
            for row, step in zip(rows, STEPS, strict=True):
                simulation.step(step - done)
                done = step
                state = context.getState(positions=True, velocities=True)
                both = state.getPositions(asNumpy=True)._value, state.getVelocities(asNumpy=True)
                both = np.stack([both[0], both[1]._value])[:, self.atoms]
                if self.box is not None:  # as one more particle
                    edges = np.diag(state.getPeriodicBoxVectors(asNumpy=True)._value)
                    both = np.concatenate([both, [[edges], [edges**2]]], axis=1)
                row.append(both)
            if until is not None and until(rows, count):
                break
        return [np.array(row) for row in rows]


def trap(particles, stiffness, centre=0.0):
    force = openmm.CustomExternalForce(
        f"{stiffness}*((x-{centre})^2+1.2*y^2+0.8*z^2+3*(x-{centre})*y*z)"
    )
    for index in range(particles):
        force.addParticle(index, [])
    return force


def system_of(masses, constraints, *forces):
    system = openmm.System()
    for mass in masses:
        system.addParticle(mass)
    for constraint in constraints:
        system.addConstraint(*constraint)
    for force in forces:
        system.addForce(force)
    return system


def reference_of(case):
    plain = openmm.LangevinMiddleIntegrator(TEMPERATURE, 1 / case.step_size, case.step_size)
    plain.setRandomNumberSeed(3)
    if case.in_openmm is not None:
        case = dataclasses.replace(case, target=case.in_openmm)
    return case.states(plain, case.reference_runs, seed=21)


def assert_same_forces(case):
    """Of the target and of its copy in OpenMM's own forces."""
    forces = []
    for system in (case.target, case.in_openmm):
        context = openmm.Context(system, openmm.VerletIntegrator(0.001), PLATFORM)
        next(case.starts(context, 1, seed=1))
        forces.append(context.getState(forces=True).getForces(asNumpy=True)._value)
    np.testing.assert_allclose(*forces, rtol=1e-4, atol=0.1)


def score_of(case, reference, kind=LSDIntegrator, faulty=False, **keywords):
    """Statistics, the worst z, and what it is of; one that is faulty runs until it is caught."""
    integrator = lsd(
        TEMPERATURE,
        1 / case.step_size,
        case.step_size,
        case.draft,
        kind,
        **{"windowLength": WINDOW, "learning": case.learning, **keywords},
    )
    until = Caught(reference, Z) if faulty else None
    states = case.states(integrator, case.runs, seed=22, until=until)
    moment, z = worst(z_scores(states, reference))
    return integrator.statistics, z, f"{moment}: z = {z:.1f}"
