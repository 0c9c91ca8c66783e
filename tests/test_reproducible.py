"""Same seed, same trajectory: also where the fastest platform has threads."""

import numpy as np
import openmm
import pytest
from openmm import app

import openmm_lsd.drafts.draft
from openmm_lsd import LSDIntegrator
from openmm_lsd.contexts.platforms import loaded_platforms, reproducible_properties

PLATFORMS = ["CPU", "Reference"]


@pytest.fixture(scope="module")
def water():
    """Topology, positions; draft and target Systems of 64 waters with a cutoff."""
    pdb = app.PDBFile("systems/amoeba_water/amoeba_water.pdb")
    options = {
        "nonbondedMethod": app.CutoffPeriodic,
        "nonbondedCutoff": 0.5,
        "constraints": None,
        "rigidWater": False,
    }
    draft, target = (
        app.ForceField(name).createSystem(pdb.topology, **options)
        for name in ("tip3p.xml", "amber14/tip3pfb.xml")
    )
    return pdb.topology, pdb.positions, draft, target


@pytest.fixture
def only_cpu(monkeypatch):
    """The draft has no other platform to choose, and two threads if it may."""

    def platforms(cores, reproducible):
        return {"CPU": loaded_platforms(2, reproducible)["CPU"]}

    monkeypatch.setattr(openmm_lsd.drafts.draft, "platforms_to_try", platforms)


def run(water, platform, window=8):
    topology, positions, draft, target = water
    integrator = LSDIntegrator(
        300, 1, 0.0005, draft, windowLength=window, randomNumberSeed=3, topology=topology
    )
    simulation = app.Simulation(topology, target, integrator, openmm.Platform.getPlatform(platform))
    simulation.context.setPositions(positions)
    # Not setVelocitiesToTemperature, which takes half a step with the forces of the Context.
    velocities = np.random.default_rng(1).normal(0, 0.5, (topology.getNumAtoms(), 3))
    simulation.context.setVelocities(velocities)
    simulation.step(40)
    state = simulation.context.getState(positions=True)
    return state.getPositions(asNumpy=True)._value, integrator


@pytest.mark.parametrize("platform", PLATFORMS)
def test_same_seed_same_trajectory(water, only_cpu, platform):
    """Draft and target on the CPU platform; with more threads one run in two differed."""
    runs = [run(water, platform) for _ in range(3)]
    for positions, integrator in runs:
        assert np.array_equal(positions, runs[0][0])
        access = integrator._binding.pair.draft.context.access
        assert access.get_platform() == "CPU"
        properties = access.get_properties()
        assert (properties["Threads"], properties["DeterministicForces"]) == ("1", "true")
        for part in integrator._binding.pair.target.built.in_contexts:
            assert all(layout.threads in (0, 1) for layout in part._pools)


def test_speed_where_it_is_asked_for(water, only_cpu):
    """A tuned window depends on the clock anyway."""
    _, integrator = run(water, "Reference", window="auto")
    assert integrator._binding.pair.draft.context.access.get_properties()["Threads"] == "2"


def test_reproducible_properties():
    given = {"CPU": {"Threads": "4"}, "Reference": {}}
    assert reproducible_properties(given) == {
        "CPU": {"Threads": "1", "DeterministicForces": "true"},
        "Reference": {},
    }
    assert given["CPU"] == {"Threads": "4"}
