"""A torch module of your own as the target: the shipped network with a harmonic bias on phi.

    python docs/examples/torch_module.py --steps 5000

Writes biased.dcd and prints the mean of cos(phi - phi0) over its frames.
"""

import argparse
from pathlib import Path

import mdtraj
import numpy as np
import torch
from openmm import app, unit

from openmm_lsd import LSDIntegrator, systems
from openmm_lsd.targets import ModuleTarget

STEM = Path(__file__).resolve().parents[2] / "systems/alanine_dipeptide/alanine_dipeptide"
PHI, PHI0 = [4, 6, 8, 14], np.deg2rad(-80.0)


class Biased(torch.nn.Module):
    """Positions (B, N, 3) in nm -> energies (B,) in kJ/mol; forces come by autograd."""

    def __init__(self, network, k=100.0):
        super().__init__()
        self.network, self.k = network, k

    def forward(self, positions):
        a, b, c = positions[:, PHI].diff(dim=1).unbind(dim=1)
        n, m = torch.linalg.cross(a, b), torch.linalg.cross(b, c)
        length = torch.linalg.vector_norm(b, dim=1)
        phi = torch.atan2((torch.linalg.cross(n, m) * b).sum(1) / length, (n * m).sum(1))
        return self.network(positions) + self.k * (1 - torch.cos(phi - PHI0))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=5000)
    args = parser.parse_args()

    pdb = app.PDBFile(f"{STEM}.pdb")
    target = ModuleTarget(Biased(torch.jit.load(f"{STEM}.pt")), dtype=torch.float64)
    system = systems.with_target(pdb.topology, target)  # for minimisation and energies
    conditions = (300 * unit.kelvin, 1 / unit.picosecond, 1 * unit.femtosecond)
    integrator = LSDIntegrator(*conditions, "auto", topology=pdb.topology, target=target)
    simulation = app.Simulation(pdb.topology, system, integrator)
    simulation.context.setPositions(pdb.positions)
    simulation.minimizeEnergy()
    simulation.context.setVelocitiesToTemperature(300 * unit.kelvin)
    simulation.reporters.append(app.DCDReporter("biased.dcd", max(1, args.steps // 100)))
    simulation.step(args.steps)

    phi = mdtraj.compute_dihedrals(mdtraj.load("biased.dcd", top=f"{STEM}.pdb"), [PHI])
    print(f"mean of cos(phi - phi0): {np.cos(phi - PHI0).mean():.3f}\n{integrator.statistics}")


if __name__ == "__main__":
    main()
