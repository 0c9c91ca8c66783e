"""Simulations of a few particles on the Reference platform, for tests that go through OpenMM."""

import torch  # before openmm, which cannot load the TorchForce plugin without torch's libraries

# isort: split
import importlib
import os
import signal
from typing import NamedTuple

import numpy as np
import openmm
import pytest
from openmm import app, unit
from particles import (
    COLD,
    PLATFORM,
    POSITIONS,
    THREE_POSITIONS,
    THREE_VELOCITIES,
    VELOCITIES,
    lsd,
    soft_draft,
    springs,
    system_of_three,
    target_system,
)

# Which plan wins for modules this small is a matter of luck; one thread leaves fewer to try.
torch.set_num_threads(1)


# Ray of our own: that of another program, or of a test in another process, ends with it.
os.environ["RAY_ADDRESS"] = "local"

# A shell makes what it starts in the background deaf to Ctrl-C, which some tests are about.
signal.signal(signal.SIGINT, signal.default_int_handler)


class ContextState(NamedTuple):
    """What a Context shows: nm, nm/ps, ps."""

    positions: np.ndarray
    velocities: np.ndarray
    time: float
    step: int

    def equals(self, other: "ContextState") -> bool:
        """Whether the two are the same to the last bit."""
        return (
            np.array_equal(self.positions, other.positions, equal_nan=True)
            and np.array_equal(self.velocities, other.velocities, equal_nan=True)
            and self[2:] == other[2:]
        )


def pytest_collection_modifyitems(items):
    """The longest file first, so that nothing waits for it at the end."""
    items.sort(key=lambda item: item.path.name != "test_target_ray.py")


@pytest.fixture(scope="session", autouse=True)
def hasty_timings():
    """No timings are tested: commands need not wait for good ones."""
    timing, estimate = (
        importlib.import_module(f"openmm_lsd.commands.{name}") for name in ("timing", "estimate")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "TRIALS", 2)
        patch.setattr(estimate, "ENOUGH_SECONDS", 0.2)
        patch.setattr(estimate, "PLAIN_SECONDS", 0.05)
        yield


@pytest.fixture(scope="session")
def state_of():
    """Function: simulation -> ContextState."""

    def read(simulation):
        state = simulation.context.getState(positions=True, velocities=True)
        return ContextState(
            np.array(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)),
            np.array(
                state.getVelocities(asNumpy=True).value_in_unit(unit.nanometer / unit.picosecond)
            ),
            state.getTime().value_in_unit(unit.picosecond),
            state.getStepCount(),
        )

    return read


@pytest.fixture(scope="session")
def simulate():
    """Function: (system, integrator, positions, velocities) -> app.Simulation."""

    def make(system, integrator, positions=None, velocities=None):
        topology = app.Topology()
        residue = topology.addResidue("X", topology.addChain())
        for index in range(system.getNumParticles()):
            topology.addAtom(f"C{index}", app.element.carbon, residue)
        simulation = app.Simulation(topology, system, integrator, PLATFORM)
        if positions is not None:
            simulation.context.setPositions(positions)
        if velocities is not None:
            simulation.context.setVelocities(velocities)
        return simulation

    return make


@pytest.fixture
def build(simulate):
    """Function: a Simulation of ``target_system`` at 300 K."""

    def make(**settings):
        return simulate(target_system(), lsd(**settings), POSITIONS, VELOCITIES)

    return make


@pytest.fixture
def build_cold(simulate):
    """Function: a Simulation of a System without noise, by LSDIntegrator or by OpenMM's."""

    def make(system, *, plain, positions=POSITIONS, velocities=VELOCITIES, **keywords):
        integrator = (
            openmm.LangevinMiddleIntegrator(0, 1, 0.001) if plain else lsd(COLD, **keywords)
        )
        return simulate(system, integrator, positions, velocities)

    return make


@pytest.fixture
def build_three(simulate):
    """Function: a Simulation of three particles on springs; the draft's are 30 % too soft."""

    def make(system=None, positions=THREE_POSITIONS, velocities=THREE_VELOCITIES, **keywords):
        system = system_of_three(springs()) if system is None else system
        integrator = lsd(**{"draft": soft_draft(), "randomNumberSeed": 3, **keywords})
        return simulate(system, integrator, positions, velocities)

    return make


@pytest.fixture
def refused(state_of):
    """Function: step() raises an error that says ``words``, twice, and changes nothing."""

    def check(simulation, kind, *words):
        before = state_of(simulation)
        for _ in range(2):
            with pytest.raises(kind) as caught:
                simulation.step(5)
            for word in words:
                assert word in str(caught.value)
            assert state_of(simulation).equals(before)
        assert simulation.integrator.statistics.steps == before.step

    return check
