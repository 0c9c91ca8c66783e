"""The exact law, end to end through real targets: the test of test_law.py with its potential
written for OpenMM and for torch. A target that mixes up the rows of a batch must be caught.
"""

import numpy as np
import openmm
import pytest
import torch
from law import Caught, worst, z_scores
from test_law import TARGET, Z, ensemble, plain

from openmm_lsd.core.schemes import ABOBA, Middle
from openmm_lsd.targets import ContextTarget, ModuleTarget


def toda_system():
    """law.TodaMolecule as a System."""
    system = openmm.System()
    for mass in TARGET.masses:
        system.addParticle(mass)
    # The wall is cut as in law.py.
    spring = "k*L^2*(exp(min({0}/L,50))*(1+max({0}/L-50,0))-{0}/L-1)"
    own = openmm.CustomExternalForce("+".join(spring.format(axis) for axis in "xyz"))
    bond = openmm.CustomCompoundBondForce(
        2, "+".join(spring.format(f"({axis}2-{axis}1)") for axis in "xyz")
    )
    for force, stiffness in ((own, TARGET.stiffness), (bond, TARGET.coupling)):
        name = "k" if force is own else "kb"
        if force is bond:
            force.setEnergyFunction(force.getEnergyFunction().replace("k*", "kb*"))
        force.addGlobalParameter(name, stiffness)
        force.addGlobalParameter("L", TARGET.length)
        system.addForce(force)
    for index in range(2):
        own.addParticle(index, [])
    bond.addBond([0, 1], [])
    return system


class Toda(torch.nn.Module):
    def __init__(self):
        super().__init__()
        stiffness = [TARGET.stiffness, TARGET.stiffness, TARGET.coupling]
        self.scale = TARGET.length**2 * torch.tensor(stiffness, dtype=torch.float64)

    def forward(self, positions):
        bond = positions[:, 1:] - positions[:, :1]
        reduced = torch.cat([positions, bond], dim=1) / TARGET.length
        inside = reduced.clamp(max=50)
        wall = torch.exp(inside) * (1 + reduced - inside)
        return (wall - reduced - 1).sum(dim=2) @ self.scale


class MixedUp(ModuleTarget):
    """Gives the second half of a batch the forces of the first."""

    def evaluate(self, positions, box=None):
        energies, forces = super().evaluate(positions, box)
        half = len(positions) // 2
        forces[len(forces) - half :] = forces[:half]
        return energies, forces


TARGETS = {
    "contexts": lambda: ContextTarget(toda_system(), platforms={"Reference": {}}, contexts=2),
    "module": lambda: ModuleTarget(Toda()),
}


@pytest.fixture(scope="module")
def reference():
    return plain(TARGET)


def score(kind, target, reference, until=None):
    states, rate = ensemble(
        kind, target=lambda positions: target.evaluate(positions)[1], until=until
    )
    assert 0.15 < rate < 0.85
    return worst(z_scores(states, reference[kind]))


@pytest.mark.parametrize(("name", "kind"), [("contexts", Middle), ("module", ABOBA)])
def test_law_through_a_target(name, kind, reference):
    target = TARGETS[name]()
    positions = TARGET.starts(4, np.random.default_rng(1))[0]
    np.testing.assert_allclose(target.evaluate(positions)[1], TARGET.forces(positions), rtol=1e-9)
    moment, z = score(kind, target, reference)
    assert abs(z) < Z, f"{moment}: z = {z:.1f}"


def test_mixed_up_rows_are_caught(reference):
    moment, z = score(Middle, MixedUp(Toda()), reference, Caught(reference[Middle], Z))
    assert abs(z) > Z, f"{moment}: z = {z:.1f}"
