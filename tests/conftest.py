"""Simulations of a few particles on the Reference platform, for tests that go through OpenMM."""

import torch  # before openmm, which cannot load the TorchForce plugin without torch's libraries

# isort: split
from typing import NamedTuple

import numpy as np
import openmm
import pytest
from openmm import app, unit

# Which plan wins for modules this small is a matter of luck; one thread leaves fewer to try.
torch.set_num_threads(1)

REFERENCE = openmm.Platform.getPlatform("Reference")


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
        simulation = app.Simulation(topology, system, integrator, REFERENCE)
        if positions is not None:
            simulation.context.setPositions(positions)
        if velocities is not None:
            simulation.context.setVelocities(velocities)
        return simulation

    return make
