"""Small Systems for tests that go through OpenMM, their integrators, and how to compare runs.

Two checks are used throughout, neither of them statistical. *Bit for bit*: whatever is done to a
Simulation, it then runs as one that was built afresh in the same state. *Without noise*: near zero
temperature every scheme is deterministic, whatever the draft, so LSDIntegrator must give the
trajectory of LangevinMiddleIntegrator.
"""

import functools
import itertools
import os

import numpy as np
import openmm
import pytest
import torch
from openmmtorch import TorchForce

from openmm_lsd import LSDIntegrator, batched
from openmm_lsd.integrator.program import NOISE_STEP

REFERENCE = openmm.Platform.getPlatform("Reference")

# Where Simulations run: by default on Reference; on a device, with the precision "single", "mixed"
# or "double", if the environment says so.
PLATFORM = openmm.Platform.getPlatform(os.environ.get("OPENMM_LSD_TEST_PLATFORM", "Reference"))
PRECISION = os.environ.get("OPENMM_LSD_TEST_PRECISION", "double")
ON_DEVICE = PLATFORM.getName() not in ("Reference", "CPU")
if ON_DEVICE:
    PLATFORM.setPropertyDefaultValue("Precision", PRECISION)
# How much further apart than on Reference two ways to the same state may be: a device adds up
# forces as integers, and momenta in single precision.
ROUNDING = {"double": 3e3, "mixed": 1e5, "single": 1e6}[PRECISION] if ON_DEVICE else 1.0

not_on_devices = functools.partial(pytest.mark.skipif, ON_DEVICE)
needs_bits = not_on_devices(reason="a device's forces with a cutoff depend on its history")
needs_frequency = not_on_devices(
    reason="a device removes the motion of the centre at every step, whatever the frequency"
)
needs_masses = not_on_devices(reason="a device's checkpoints bring back the old masses")
needs_double = pytest.mark.skipif(
    ON_DEVICE and PRECISION != "double", reason="positions are rounded to single precision"
)
needs_fork = not_on_devices(reason="a device cannot be used in a forked process")


def _is_pocl():
    vendors = os.environ.get("OCL_ICD_VENDORS", "/etc/OpenCL/vendors")
    names = os.listdir(vendors) if os.path.isdir(vendors) else [vendors]
    return PLATFORM.getName() == "OpenCL" and any("pocl" in name for name in names)


# Intel's OpenCL for CPUs (intel-opencl-rt of the package index) can.
needs_minimizer = pytest.mark.skipif(_is_pocl(), reason="pocl crashes in OpenMM's minimiser")
COLD = 1e-20  # K: the noise moves an atom by less than 1e-13 nm
SEED = 7
BOX = np.diag([2.0, 2.5, 3.0])


def external_force(energy, count):
    """``energy``, an expression in x, y and z, of each of ``count`` atoms."""
    force = openmm.CustomExternalForce(energy)
    for index in range(count):
        force.addParticle(index, [])
    return force


# Four bonded particles

MASSES = [12.0, 16.0, 1.0, 14.0]
POSITIONS = np.array([[0.0, 0.0, 0.0], [0.15, 0.0, 0.0], [0.07, 0.13, 0.0], [0.07, 0.05, 0.12]])
VELOCITIES = np.random.default_rng(1).normal(0.0, 0.4, (4, 3))
PAIRS = [(i, j) for j in range(4) for i in range(j)]
LENGTH = 0.15  # nm, of all bonds


def bond_energies(bonds: torch.Tensor) -> torch.Tensor:
    stretch = bonds.pow(2).sum(-1).sqrt() - 0.15
    return 1000.0 * stretch**2 - 3000.0 * stretch**3 + 6000.0 * stretch**4


class Bonds(torch.nn.Module):
    """Anharmonic bonds between all pairs; takes a batch."""

    def __init__(self):
        super().__init__()
        self.register_buffer("first", torch.tensor([i for i, _ in PAIRS]))
        self.register_buffer("second", torch.tensor([j for _, j in PAIRS]))

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        bonds = positions.index_select(-2, self.first) - positions.index_select(-2, self.second)
        return bond_energies(bonds).sum(-1)


class BondsInBox(torch.nn.Module):
    """Takes a batch, a box and a parameter, and depends on all three."""

    def __init__(self):
        super().__init__()
        self.bonds = Bonds()

    def forward(
        self, positions: torch.Tensor, box: torch.Tensor, scale: torch.Tensor
    ) -> torch.Tensor:
        field = torch.cos(6.283185307179586 * positions / torch.diagonal(box)).sum(dim=(-2, -1))
        return scale * self.bonds(positions) + 20.0 * field


@functools.cache
def scripted(module):
    return torch.jit.script(module().eval())


def torch_force(module, *, periodic=False, parameters=(), outputs_forces=False):
    if PLATFORM.getName() == "OpenCL":  # on which openmmtorch ends the process
        return python_force(scripted(module), periodic, parameters, outputs_forces)
    force = TorchForce(scripted(module))
    force.setUsesPeriodicBoundaryConditions(periodic)
    force.setOutputsForces(outputs_forces)
    for name, value in parameters:
        force.addGlobalParameter(name, value)
    return force


def python_force(module, periodic, parameters, outputs_forces):
    """What a TorchForce of the module would compute."""

    @batched
    def compute(positions, box, values):
        x = torch.tensor(positions, requires_grad=True)
        arguments = [torch.tensor(box)] if periodic else []
        arguments += [torch.tensor(values[name]) for name, _ in parameters]
        if outputs_forces:
            energies, forces = module(x, *arguments)
            return energies.detach().numpy(), forces.detach().numpy()
        energies = module(x, *arguments)
        (gradient,) = torch.autograd.grad(energies.sum(), x)
        return energies.detach().numpy(), -gradient.numpy()

    force = openmm.PythonForce(compute, dict(parameters))
    force.setUsesPeriodicBoundaryConditions(periodic)
    return force


def system_of(*forces, masses=MASSES):
    system = openmm.System()
    for mass in masses:
        system.addParticle(mass)
    for force in forces:
        system.addForce(force)
    system.setDefaultPeriodicBoxVectors(*BOX)
    return system


def harmonic_bonds(constant=2000.0, length=LENGTH):
    force = openmm.HarmonicBondForce()
    for i, j in PAIRS:
        force.addBond(i, j, length, constant)
    return force


def draft_system(masses=MASSES):
    return system_of(harmonic_bonds(), masses=masses)


def restraint(weight=1.0, strength=3.0):
    """weight * strength * |r - r0|^2 on each atom, with ``strength`` a parameter of the Context."""
    force = openmm.CustomExternalForce("strength*weight*((x-x0)^2+y^2+z^2)")
    force.addGlobalParameter("strength", strength)
    force.addPerParticleParameter("weight")
    force.addPerParticleParameter("x0")
    for index in range(4):
        force.addParticle(index, [weight, 0.05 * index])
    return force


def restraint_forces(positions):
    """Forces of ``restraint()``."""
    reference = np.outer(0.05 * np.arange(4), [1.0, 0.0, 0.0])
    return -6.0 * (positions - reference)


def target_system():
    """All that can be edited: a TorchForce with box and parameter, a restraint in group 1."""
    extra = restraint()
    extra.setForceGroup(1)
    return system_of(
        torch_force(BondsInBox, periodic=True, parameters=[("scale", 1.1)]),
        extra,
        openmm.CMMotionRemover(3),
    )


def lsd(
    temperature=300.0, friction=1.0, step_size=0.001, draft=None, kind=LSDIntegrator, **keywords
):
    """LSDIntegrator whose draft runs on Reference: the platform must not be a matter of luck."""
    return kind(
        temperature,
        friction,
        step_size,
        draft_system() if draft is None else draft,
        **{"randomNumberSeed": SEED, "draftPlatform": "Reference", "windowLength": 16, **keywords},
    )


def planted(**parts):
    """An LSDIntegrator of other parts: ``_engine``, ``_moves``, ``_take_snapshot``..."""
    return type("Planted", (LSDIntegrator,), parts)


# Three particles on springs

THREE_MASSES = [12.0, 16.0, 14.0]
THREE_POSITIONS = np.array([[0.0, 0.0, 0.0], [0.2, 0.0, 0.0], [0.0, 0.2, 0.1]])
THREE_VELOCITIES = np.random.default_rng(1).normal(0.0, 0.4, (3, 3))
STIFFNESS = 2000.0


def system_of_three(*forces, masses=THREE_MASSES):
    return system_of(*forces, masses=masses)


def springs(stiffness=STIFFNESS, anchors=THREE_POSITIONS):
    """A spring from each atom to its anchor."""
    force = openmm.CustomExternalForce("0.5*k*((x-x0)^2+(y-y0)^2+(z-z0)^2)")
    for name in ("k", "x0", "y0", "z0"):
        force.addPerParticleParameter(name)
    for index, anchor in enumerate(anchors):
        force.addParticle(index, [stiffness, *anchor])
    return force


def spring_forces(positions):
    return -STIFFNESS * (positions - THREE_POSITIONS)


def soft_draft():
    """Draft of the three particles whose springs are 30 % too soft."""
    return system_of_three(springs(0.7 * STIFFNESS))


# Runs


def copy_state(source, goal):
    """Everything that the next step of ``source`` depends on, but the window."""
    state = source.context.getState(positions=True, velocities=True, parameters=True)
    goal.context.setPeriodicBoxVectors(*state.getPeriodicBoxVectors())
    for name, value in state.getParameters().items():
        goal.context.setParameter(name, value)
    goal.context.setPositions(state.getPositions(asNumpy=True))
    goal.context.setVelocities(state.getVelocities(asNumpy=True))
    goal.context.setTime(state.getTime())
    goal.context.setStepCount(state.getStepCount())
    step = source.integrator.getGlobalVariableByName(NOISE_STEP)
    goal.integrator.setGlobalVariableByName(NOISE_STEP, step)


def assert_close(state, expected, tolerance=1e-9):
    """Within a tolerance (nm) that holds for double precision."""
    tolerance *= ROUNDING
    np.testing.assert_allclose(state.positions, expected.positions, rtol=0, atol=tolerance)
    np.testing.assert_allclose(state.velocities, expected.velocities, rtol=0, atol=1e3 * tolerance)
    assert state[2:] == expected[2:], (state[2:], expected[2:])


# In the place of the tuner of windows


class Always:
    """A tuner that has made up its mind, until it changes it."""

    def __init__(self, window):
        self.window = window
        self.seen = []

    def record(self, committed, seconds, rounds=1):
        self.seen.append((committed, rounds))


class Cycling:
    """Windows one after another, by the number of rounds."""

    def __init__(self):
        self._windows = itertools.cycle([3, 1, 5, 2])
        self.window = next(self._windows)

    def record(self, committed, seconds, rounds=1):
        assert committed >= 1 and seconds > 0
        self.window = next(self._windows)


def always(integrator, window):
    """The tuner of the integrator from now on."""
    tuner = Always(window)
    integrator._binding.take_tuner(tuner)
    return tuner
