"""Systems from files: a classical draft and, for the same particles, a target with a TorchForce."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import openmm
from openmm import app, unit

from .targets.torchforce import import_openmmtorch


@dataclasses.dataclass(frozen=True)
class MolecularSystem:
    """What a Simulation with an LSDIntegrator is made of."""

    topology: app.Topology
    positions: unit.Quantity
    draft: openmm.System
    target: openmm.System


def load(directory: str | Path) -> MolecularSystem:
    """The system in a directory that holds one prmtop, one inpcrd and one TorchScript file (.pt).

    Raises
    ------
    FileNotFoundError
        If one of the three is missing.
    """
    files = {}
    for suffix in ("prmtop", "inpcrd", "pt"):
        found = sorted(Path(directory).glob(f"*.{suffix}"))
        if len(found) != 1:
            raise FileNotFoundError(
                f"{directory} holds {len(found)} *.{suffix} files; it must hold one"
            )
        files[suffix] = str(found[0])
    prmtop = app.AmberPrmtopFile(files["prmtop"])
    inpcrd = app.AmberInpcrdFile(files["inpcrd"])
    draft = prmtop.createSystem(nonbondedMethod=app.NoCutoff, constraints=None)
    target = with_torch_force(draft, files["pt"])
    return MolecularSystem(prmtop.topology, inpcrd.positions, draft, target)


def with_torch_force(draft: openmm.System, module_file: str | Path) -> openmm.System:
    """A System with the particles and the box of ``draft`` whose potential is a TorchScript file.

    Parameters
    ----------
    module_file : path
        TorchScript module: positions (N, 3) in nm -> energy in kJ/mol; if it also takes
        (B, N, 3) and gives (B,), a batch is one call.
    """
    openmmtorch = import_openmmtorch()
    if not Path(module_file).is_file():
        raise FileNotFoundError(f"there is no TorchScript file {module_file}")
    system = openmm.System()
    for index in range(draft.getNumParticles()):
        system.addParticle(draft.getParticleMass(index))
    system.setDefaultPeriodicBoxVectors(*draft.getDefaultPeriodicBoxVectors())
    system.addForce(openmmtorch.TorchForce(str(module_file)))
    system.addForce(openmm.CMMotionRemover())
    return system
