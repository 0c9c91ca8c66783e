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
from law import TEMPERATURE, worst, z_scores
from openmm import app, unit
from openmm_lsd._native import ContextAccess
from particles import PLATFORM
from test_law import SOFT, STEP_SIZE, STEPS, TARGET

from openmm_lsd import LSDIntegrator
from openmm_lsd.core.sampler import SpeculativeSampler
from openmm_lsd.integrator.barostat import BarostatMoves
from openmm_lsd.integrator.program import NOISE_STEP
from openmm_lsd.targets.virtualsites import VirtualSiteTarget

RUNS, REFERENCE_RUNS = 2_500, 20_000
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

    def states(self, count, seed):
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
        return [np.array(row) for row in rows]


def lsd(case):
    return LSDIntegrator(
        TEMPERATURE,
        1 / STEP_SIZE,
        STEP_SIZE,
        draft_system(case),
        windowLength=4,
        randomNumberSeed=11,
        draftPlatform="Reference",
        target=forces_with_site if case == "virtual site" else None,
    )


@functools.cache
def reference(case):
    plain = openmm.LangevinMiddleIntegrator(TEMPERATURE, 1 / STEP_SIZE, STEP_SIZE)
    plain.setRandomNumberSeed(3)
    return Runs(case, plain).states(REFERENCE_RUNS, seed=21)


def score(case):
    integrator = lsd(case)
    states = Runs(case, integrator).states(RUNS, seed=22)
    statistics = integrator.statistics
    assert 0.1 < statistics.acceptance_rate < 0.95
    moment, z = worst(z_scores(states, reference(case.replace("NPT after NVT", "barostat"))))
    return statistics, z, f"{moment}: z = {z:.1f}"


@pytest.mark.parametrize("case", ["CMMotionRemover", "barostat", "NPT after NVT", "virtual site"])
def test_law_of_a_simulation(case):
    statistics, z, message = score(case)
    assert abs(z) < Z, message
    assert (statistics.shortened_windows > 0) == (case in ("barostat", "NPT after NVT"))


def test_a_barostat_that_is_not_looked_for_again_is_caught(monkeypatch):
    """What was learned when the Context was made first stays, as it did before."""
    take = LSDIntegrator._take_system

    def once(self, system, platform):
        if self._snapshot is None:
            take(self, system, platform)

    monkeypatch.setattr(LSDIntegrator, "_take_system", once)
    monkeypatch.setattr(BarostatMoves, "next_step", None)
    integrator = lsd("NPT after NVT")
    states = Runs("NPT after NVT", integrator).states(RUNS, seed=22)
    moment, z = worst(z_scores(states, reference("barostat")))
    assert abs(z) > Z, f"{moment}: z = {z:.1f}"


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


def test_motion_of_the_centre_that_stays_is_caught(monkeypatch):
    monkeypatch.setattr("openmm_lsd.integrator.samplerspec.cm_removal_frequency", lambda system: 0)
    _, z, message = score("CMMotionRemover")
    assert abs(z) > Z, message


def test_positions_that_a_barostat_does_not_move_are_caught(monkeypatch):
    apply = BarostatMoves.apply

    def only_the_box(self, state):
        apply(self, state)
        return state.positions, state.velocities

    monkeypatch.setattr(BarostatMoves, "apply", only_the_box)
    _, z, message = score("barostat")
    assert abs(z) > Z, message


def test_windows_that_go_on_beyond_a_move_are_caught(monkeypatch):
    monkeypatch.setattr(SpeculativeSampler, "_length", lambda self: self.window)
    _, z, message = score("barostat")
    assert abs(z) > Z, message


def test_virtual_sites_that_stay_behind_are_caught(monkeypatch):
    monkeypatch.setattr(
        VirtualSiteTarget,
        "evaluate_at",
        lambda self, x, box=None, times=None: self._target.evaluate_at(x, box, times),
    )
    monkeypatch.setattr(
        "openmm_lsd.integrator.targetcheck.validate_target", lambda *args, **keywords: None
    )
    _, z, message = score("virtual site")
    assert abs(z) > Z, message
