"""Virtual sites in target and draft: TIP4P-Ew water, sites of every kind, modules that see them.

Without noise the run is LangevinMiddleIntegrator's.
"""

import copy

import numpy as np
import openmm
import pytest
import torch
from openmm import Vec3, app, unit
from particles import (
    COLD,
    PLATFORM,
    REFERENCE,
    assert_close,
    external_force,
    lsd,
    system_of,
    torch_force,
)

from openmm_lsd.contexts.forcecontext import without_forces
from openmm_lsd.targets import ContextTarget, SystemTarget
from openmm_lsd.targets.virtualsites import VirtualSiteTarget

MASSES = [12.0, 16.0, 14.0, 1.0, 0.0, 0.0]
PLACES = np.array(
    [
        [0.0, 0.0, 0.0],
        [0.15, 0.0, 0.0],
        [0.05, 0.14, 0.0],
        [0.05, 0.05, 0.13],
        [0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0],
    ]
)
SITES = {
    "TwoParticleAverageSite": lambda: openmm.TwoParticleAverageSite(0, 1, 0.3, 0.7),
    "ThreeParticleAverageSite": lambda: openmm.ThreeParticleAverageSite(0, 1, 2, 0.5, 0.2, 0.3),
    "OutOfPlaneSite": lambda: openmm.OutOfPlaneSite(0, 1, 2, 0.3, 0.4, 5.0),
    "LocalCoordinatesSite": lambda: openmm.LocalCoordinatesSite(
        [0, 1, 2, 3],
        [0.4, 0.3, 0.2, 0.1],
        [-1.0, 1.0, 0.0, 0.0],
        [-1.0, 0.0, 0.5, 0.5],
        Vec3(0.04, 0.03, 0.05),
    ),
    "SymmetrySite": lambda: openmm.SymmetrySite(
        3, Vec3(0, 1, 0), Vec3(-1, 0, 0), Vec3(0, 0, 1), Vec3(0.3, 0.1, 0.0), False
    ),
}


class Repulsion(torch.nn.Module):
    """1 / r between all pairs, sites too, and bonds; takes a batch."""

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        i, j = torch.triu_indices(positions.size(-2), positions.size(-2), 1).unbind(0)
        d = (positions.index_select(-2, i) - positions.index_select(-2, j)).pow(2).sum(-1)
        return 3.0 * (d + 0.01).rsqrt().sum(-1) + 500.0 * d.sum(-1)


def charges():
    """The same in OpenMM's own forces."""
    force = openmm.CustomBondForce("3/sqrt(r^2+0.01) + 500*r^2")
    for j in range(len(MASSES)):
        for i in range(j):
            force.addBond(i, j, [])
    return force


def with_sites(system, kind):
    """The last two particles are virtual sites of this kind, one of them of the other's parents."""
    system.setVirtualSite(4, SITES[kind]())
    system.setVirtualSite(5, SITES["TwoParticleAverageSite"]())
    return system


def target(kind, how):
    force = charges() if how == "OpenMM" else torch_force(Repulsion)
    return with_sites(system_of(force, external_force("30*x^2", 6), masses=MASSES), kind)


def draft(kind):
    force = openmm.HarmonicBondForce()
    for j in range(4):
        for i in range(j):
            force.addBond(i, j, 0.02, 900.0)
    return with_sites(system_of(force, masses=MASSES), kind)


def test_every_kind_is_tried():
    assert set(SITES) == {name for name in dir(openmm) if name.endswith("Site")} - {"VirtualSite"}


@pytest.mark.parametrize("how", ["OpenMM", "TorchForce"])
@pytest.mark.parametrize("kind", SITES)
@pytest.mark.parametrize("scheme", ["draft", "auto"])
def test_moves_like_a_plain_run(simulate, state_of, kind, how, scheme):
    velocities = np.random.default_rng(4).normal(0, 0.3, PLACES.shape)
    velocities[4:] = 0
    states = []
    for plain in (True, False):
        if plain:
            integrator = openmm.LangevinMiddleIntegrator(0, 1, 0.001)
        else:
            integrator = lsd(COLD, draft=draft(kind) if scheme == "draft" else "auto")
        simulation = simulate(target(kind, how), integrator, PLACES, velocities)
        simulation.context.computeVirtualSites()
        for steps in (1, 7, 30):
            simulation.step(steps)
            states.append(state_of(simulation))
    for plain, ours in zip(states[:3], states[3:], strict=True):
        assert_close(ours, plain)
    moved = np.abs(states[2].positions - states[0].positions).max(axis=1)
    assert (moved[:5] > 1e-3).all()


def test_forces_on_sites_are_handed_on():
    """SystemTarget gives what a Context gives; without that it would not."""
    states = PLACES + 0.01 * np.random.default_rng(1).standard_normal((3, 6, 3))
    for kind in SITES:
        system = target(kind, "TorchForce")
        both = [
            VirtualSiteTarget(each, system).evaluate(states)
            for each in (
                SystemTarget(system, PLACES),
                ContextTarget(target(kind, "OpenMM"), platforms={"Reference": {}}),
            )
        ]
        np.testing.assert_allclose(both[0][0], both[1][0], rtol=1e-9)
        np.testing.assert_allclose(both[0][1][:, :4], both[1][1][:, :4], atol=1e-7)
        raw = SystemTarget(system, PLACES)
        raw._to_parents = lambda positions, forces, box: forces
        wrong = VirtualSiteTarget(raw, system).evaluate(states)[1]
        assert np.abs(wrong - both[1][1])[:, :4].max() > 1.0


def test_sites_are_copied_without_forces():
    for kind in SITES:
        system = target(kind, "OpenMM")
        bare = without_forces(system)
        assert bare.getNumForces() == 0 and bare.getNumParticles() == 6
        places = []
        for each in (system, bare):
            context = openmm.Context(each, openmm.VerletIntegrator(0.001), PLATFORM)
            context.setPositions(PLACES)
            context.computeVirtualSites()
            places.append(context.getState(positions=True).getPositions(asNumpy=True)._value)
        assert np.array_equal(*places)


@pytest.fixture(scope="module")
def tip4p():
    """Topology, positions, and a System of 60 flexible TIP4P-Ew molecules in a periodic box."""
    forcefield = app.ForceField("tip4pew.xml")
    modeller = app.Modeller(app.Topology(), [] * unit.nanometer)
    modeller.addSolvent(forcefield, model="tip4pew", numAdded=60)
    system = forcefield.createSystem(
        modeller.topology,
        constraints=None,
        rigidWater=False,
        nonbondedMethod=app.PME,
        nonbondedCutoff=0.55,
        switchDistance=0.35,
        ewaldErrorTolerance=1e-5,
    )
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), REFERENCE)
    context.setPositions(modeller.positions)
    context.computeVirtualSites()
    openmm.LocalEnergyMinimizer.minimize(context, maxIterations=30)
    return modeller.topology, context.getState(positions=True).getPositions(), system


def with_softer_bonds(system, factor=0.9):
    result = copy.deepcopy(system)
    for force in result.getForces():
        if isinstance(force, openmm.HarmonicBondForce):
            for index in range(force.getNumBonds()):
                i, j, length, constant = force.getBondParameters(index)
                force.setBondParameters(index, i, j, length, factor * constant)
    return result


@pytest.mark.parametrize("kind", ["force field", "auto"])
def test_water_with_four_sites(tip4p, state_of, kind):
    topology, positions, system = tip4p
    states = []
    for plain in (True, False):
        integrator = (
            openmm.LangevinMiddleIntegrator(0, 1, 0.0005)
            if plain
            else lsd(
                COLD,
                step_size=0.0005,
                draft="auto" if kind == "auto" else with_softer_bonds(system),
                topology=topology if kind == "auto" else None,
                windowLength=6,
            )
        )
        simulation = app.Simulation(topology, copy.deepcopy(system), integrator, PLATFORM)
        simulation.context.setPositions(positions)
        simulation.step(12)
        states.append(state_of(simulation))
    assert_close(states[1], states[0], 1e-7)
    assert simulation.integrator.statistics.steps >= 12
