"""The exact law through LSDIntegrator in real Simulations: with a CMMotionRemover, a barostat that
was there from the beginning or came after a run without, a virtual site, and through OpenMM's
ReplicaExchangeSampler.

The ensemble test of test_law.py, with the same potential, time step and meaning of z; here the
reference is OpenMM's LangevinMiddleIntegrator. With the barostat the volume is one of the moments.
Each has a planted bug that must be caught.
"""

import copy
import functools

import numpy as np
import openmm
import pytest
from law import TEMPERATURE, Caught, worst, z_scores
from openmm import app, unit
from openmm_lsd._native import ContextAccess
from particles import PLATFORM, planted
from test_law import SOFT, STEP_SIZE, STEPS, TARGET

from openmm_lsd import LSDIntegrator
from openmm_lsd.drafts.nativeengine import NativeEngine
from openmm_lsd.integrator.barostat import BarostatMoves
from openmm_lsd.integrator.program import NOISE_STEP

RUNS, REFERENCE_RUNS = 2_500, 20_000
WINDOW = 4
Z = 5.5
BOX = np.diag([2.0, 2.2, 2.4])
PRESSURE = 60.0  # bar
ORIGIN = 0.3  # nm, of the springs: away from the point to which a barostat scales


def toda(stiffness, particles, shift=0.0):
    """law.TodaMolecule's springs to the origin. A System is periodic if one of its forces is."""
    spring = "k*L^2*(exp(min(({0}-shift)/L,50))-min(({0}-shift)/L,50)-1)"
    periodic = "0*periodicdistance(x,y,z,0,0,0)"
    force = openmm.CustomExternalForce("+".join(map(spring.format, "xyz")) + "+" + periodic)
    for name, value in (("k", stiffness), ("L", TARGET.length), ("shift", ORIGIN + shift)):
        force.addGlobalParameter(name, value)
    for index in particles:
        force.addParticle(index, [])
    return force


def bond():
    force = openmm.HarmonicBondForce()
    force.addBond(0, 1, 0.0, TARGET.coupling)
    return force


def forces_with_site(positions):
    """Those of the System with the virtual site, (B, 3, 3), which handed the site's force on."""
    forces = np.zeros_like(positions)
    forces -= TARGET.stiffness * TARGET.length * np.expm1((positions - ORIGIN) / TARGET.length)
    forces[:, :2] += np.multiply.outer([0.3, 0.7], forces[:, 2]).swapaxes(0, 1)
    pull = TARGET.coupling * (positions[:, 1] - positions[:, 0])
    forces[:, 0] += pull
    forces[:, 1] -= pull
    forces[:, 2] = 0.0
    return forces


def system(*forces, site=False):
    result = openmm.System()
    for mass in TARGET.masses:
        result.addParticle(mass)
    if site:
        result.addParticle(0.0)
        result.setVirtualSite(2, openmm.TwoParticleAverageSite(0, 1, 0.3, 0.7))
    result.setDefaultPeriodicBoxVectors(*BOX)
    for force in forces:
        result.addForce(force)
    return result


def target_system(case):
    own, inner = toda(TARGET.stiffness, range(2)), bond()
    if case == "CMMotionRemover":
        return system(own, inner, openmm.CMMotionRemover(2))
    if case == "alone":
        return system(own, inner)
    if case == "barostat":
        barostat = openmm.MonteCarloBarostat(PRESSURE, TEMPERATURE, 2)
        barostat.setRandomNumberSeed(5)
        return system(own, inner, barostat)
    return system(toda(TARGET.stiffness, range(3)), inner, site=True)


def draft_system(case):
    """Half as stiff, pulling elsewhere, without the bond."""
    return system(
        toda(SOFT.stiffness, range(2), shift=0.1 * SOFT.length), site=case == "virtual site"
    )


class Runs:
    """Many short runs of one Context, each from another start."""

    def __init__(self, case, integrator):
        system = target_system("barostat" if case == "NPT after NVT" else case)
        if case == "NPT after NVT":
            barostat = copy.deepcopy(system.getForce(2))
            system.removeForce(2)
        self.context = openmm.Context(system, integrator, PLATFORM)
        self.integrator = integrator
        if case == "NPT after NVT":
            self.context.setPositions(np.full((2, 3), ORIGIN))
            integrator.step(7)
            system.addForce(barostat)
            self.context.reinitialize(preserveState=True)
            case = "barostat"
        self.access = ContextAccess(int(integrator.this))
        self.memory = self.access.get_barostat_memory()
        self.memory[3:] = 0.2 * np.prod(np.diag(BOX))  # the length of the moves
        self.case = case

    def states(self, count, seed, until=None):
        """Positions and velocities (count, 2, 2 or 3, 3) after each of STEPS."""
        positions, velocities = TARGET.starts(count, np.random.default_rng(seed))
        rows = [[] for _ in STEPS]
        for start in zip(positions, velocities, strict=True):
            x, v = (np.concatenate([part, np.zeros((1, 3))]) for part in start)
            if self.case != "virtual site":
                x, v = x[:2], v[:2]
            self.context.setPeriodicBoxVectors(*BOX)
            self.context.setPositions(x + ORIGIN)
            self.context.computeVirtualSites()
            self.context.setVelocities(v)
            self.context.setStepCount(0)
            # A barostat learns its step length, and would from one run to the next.
            self.access.set_barostat_memory(self.memory)
            done = 0
            for row, step in zip(rows, STEPS, strict=True):
                self.integrator.step(step - done)
                done = step
                now, velocity, _, _ = self.access.get_state()
                now = now - ORIGIN
                if self.case == "barostat":  # the box as a third particle
                    box = np.diag(self.access.get_box())
                    now, velocity = np.vstack([now, box]), np.vstack([velocity, box**2])
                row.append(np.stack([now, velocity])[:, : 3 if self.case == "barostat" else 2])
            if until is not None and until(rows, count):
                break
        return [np.array(row) for row in rows]


def lsd(case, kind=LSDIntegrator):
    return kind(
        TEMPERATURE,
        1 / STEP_SIZE,
        STEP_SIZE,
        draft_system(case),
        windowLength=WINDOW,
        randomNumberSeed=11,
        draftPlatform="Reference",
        target=forces_with_site if case == "virtual site" else None,
    )


@functools.cache
def reference(case):
    plain = openmm.LangevinMiddleIntegrator(TEMPERATURE, 1 / STEP_SIZE, STEP_SIZE)
    plain.setRandomNumberSeed(3)
    return Runs(case, plain).states(REFERENCE_RUNS, seed=21)


def score(case, kind=LSDIntegrator, faulty=False):
    integrator = lsd(case, kind)
    wanted = reference(case.replace("NPT after NVT", "barostat"))
    until = Caught(wanted, Z) if faulty else None
    states = Runs(case, integrator).states(RUNS, seed=22, until=until)
    statistics = integrator.statistics
    assert 0.1 < statistics.acceptance_rate < 0.95
    moment, z = worst(z_scores(states, wanted))
    return statistics, z, f"{moment}: z = {z:.1f}"


@pytest.mark.parametrize("case", ["CMMotionRemover", "barostat", "NPT after NVT", "virtual site"])
def test_law_of_a_simulation(case):
    statistics, z, message = score(case)
    assert abs(z) < Z, message
    assert (statistics.shortened_windows > 0) == (case in ("barostat", "NPT after NVT"))


class NoMoves(BarostatMoves):
    """The fault that was: barostats were looked for when the Context was made first."""

    next_step = None


class OnlyTheBox(BarostatMoves):
    """The particles stay where they were."""

    def apply(self, state):
        super().apply(state)
        return state.positions, state.velocities


class MovesBetweenWindows(BarostatMoves):
    """Windows go on beyond a move, which is made when the window is over."""

    @property
    def next_step(self):
        step = super().next_step
        return None if step is None else step + WINDOW - 1


class CentreStays(NativeEngine):
    """The motion of the centre of mass is never removed."""

    def draft(self, state, corrections, draws, times):
        return super().draft(state, corrections, self._without(draws), times)

    def commit(self, state, window, target_forces, draws):
        return super().commit(state, window, target_forces, self._without(draws))

    def _without(self, draws):
        return draws._replace(cm_removals=np.zeros_like(draws.cm_removals))


class SiteStaysBehind(NativeEngine):
    """The target's forces are those with the virtual site where it was before the window."""

    def commit(self, state, window, target_forces, draws):
        sites = window.sites[: len(target_forces)].copy()
        sites[:, 2] = sites[0, 2]
        return super().commit(state, window, forces_with_site(sites), draws)


@pytest.mark.parametrize(
    ("case", "part", "fault"),
    [
        ("NPT after NVT", "_moves", NoMoves),
        ("barostat", "_moves", OnlyTheBox),
        ("barostat", "_moves", MovesBetweenWindows),
        ("CMMotionRemover", "_engine", CentreStays),
        ("virtual site", "_engine", SiteStaysBehind),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_planted_faults_are_caught(case, part, fault):
    _, z, message = score(case, planted(**{part: fault}), faulty=True)
    assert abs(z) > Z, message


# Replicas that a sampler moves in and out of one Context

REPLICAS = 10


class Replicas(app.ReplicaExchangeSampler):
    """Short runs, REPLICAS at a time, whose turns alternate."""

    def paths(self, count, seed):
        """As Runs.states; ``count`` is a multiple of REPLICAS."""
        starts = zip(*TARGET.starts(count, np.random.default_rng(seed)), strict=True)
        context, rows = self.simulation.context, [[] for _ in STEPS]
        for _ in range(0, count, REPLICAS):
            for index in range(REPLICAS):
                positions, velocities = next(starts)
                context.setPositions(positions + ORIGIN)
                context.setVelocities(velocities)
                self.replicaConformation[index] = context.getState(
                    positions=True, velocities=True, parameters=True, integratorParameters=True
                )
            for row, steps in zip(rows, np.diff([0, *STEPS]).tolist(), strict=True):
                for index in range(REPLICAS):
                    self.simulateReplica(index, steps)
                    state = self.replicaConformation[index]
                    now = state.getPositions(asNumpy=True)._value - ORIGIN
                    row.append(np.stack([now, state.getVelocities(asNumpy=True)._value]))
        return [np.array(row) for row in rows]


class ReplicasWithNoise(Replicas):
    """The fault that was: the random numbers of a visit are those of the visit before."""

    def simulateReplica(self, index, steps=None):  # noqa: N802 (OpenMM's name)
        self.simulation.integrator.setGlobalVariableByName(NOISE_STEP, 0)
        super().simulateReplica(index, steps)


def score_of_replicas(kind):
    topology = app.Topology()
    residue = topology.addResidue("X", topology.addChain())
    for _ in range(2):
        topology.addAtom("C", app.element.carbon, residue)
    simulation = app.Simulation(topology, target_system("alone"), lsd("alone"), PLATFORM)
    simulation.context.setPositions(np.full((2, 3), ORIGIN))
    sampler = kind([{"temperature": TEMPERATURE * unit.kelvin}] * REPLICAS, simulation, 1)
    states = sampler.paths(RUNS, seed=23)
    moment, z = worst(z_scores(states, reference("alone")))
    return z, f"{moment}: z = {z:.1f}"


def test_law_of_replicas():
    z, message = score_of_replicas(Replicas)
    assert abs(z) < Z, message


def test_noise_that_comes_back_is_caught():
    z, message = score_of_replicas(ReplicasWithNoise)
    assert abs(z) > Z, message
