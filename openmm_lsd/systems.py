"""Systems from files: a classical draft and, for the same particles, a slow target."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit

from .clock import Times
from .contexts import is_empty
from .targets import BatchedTarget, batched
from .targets.base import Array, Evaluation
from .targets.torchforce import import_openmmtorch


@dataclasses.dataclass(frozen=True)
class MolecularSystem:
    """What a Simulation with an LSDIntegrator is made of: ``topology``, ``positions`` (N, 3) as a
    Quantity, and the Systems ``draft`` and ``target`` of the same particles."""

    topology: app.Topology
    positions: unit.Quantity
    draft: openmm.System
    target: openmm.System


def load(directory: str | Path) -> MolecularSystem:
    """The system in a directory.

    It holds either one prmtop, one inpcrd and one TorchScript file (.pt), which is the target; or
    one PDB file of a periodic box and ``forcefields.json``, which names OpenMM's force field files
    for the draft and for the target, and their cutoff.

    Parameters
    ----------
    directory : path

    Raises
    ------
    FileNotFoundError
        If one of these is missing.
    ImportError
        If there is a TorchScript file and openmmtorch is not installed.
    """
    if (Path(directory) / "forcefields.json").exists():
        return _from_force_fields(Path(directory))
    files = {suffix: _only(directory, suffix) for suffix in ("prmtop", "inpcrd", "pt")}
    prmtop = app.AmberPrmtopFile(files["prmtop"])
    inpcrd = app.AmberInpcrdFile(files["inpcrd"])
    draft = prmtop.createSystem(nonbondedMethod=app.NoCutoff, constraints=None)
    target = with_torch_force(draft, files["pt"])
    return MolecularSystem(prmtop.topology, inpcrd.positions, draft, target)


def _only(directory: str | Path, suffix: str) -> str:
    found = sorted(Path(directory).glob(f"*.{suffix}"))
    if len(found) != 1:
        raise FileNotFoundError(
            f"{directory} holds {len(found)} *.{suffix} files; it must hold one"
        )
    return str(found[0])


def _from_force_fields(directory: Path) -> MolecularSystem:
    settings = json.loads((directory / "forcefields.json").read_text())
    pdb = app.PDBFile(_only(directory, "pdb"))
    common = {
        "nonbondedMethod": app.PME,
        "nonbondedCutoff": settings["cutoff, nm"],
        "constraints": None,
        "rigidWater": False,
    }
    draft, target = (
        app.ForceField(*settings[role]).createSystem(
            pdb.topology, **common, **settings.get(f"{role} options", {})
        )
        for role in ("draft", "target")
    )
    for system in (draft, target):
        for index in reversed(range(system.getNumForces())):
            if is_empty(system.getForce(index)):
                system.removeForce(index)
    return MolecularSystem(pdb.topology, pdb.positions, draft, target)


def with_torch_force(
    particles: openmm.System | app.Topology, module_file: str | Path
) -> openmm.System:
    """A System whose potential is a TorchScript file.

    Parameters
    ----------
    particles : openmm.System or openmm.app.Topology
        Gives masses and box.
    module_file : path
        TorchScript module: positions (N, 3) in nm -> energy in kJ/mol; if it also takes
        (B, N, 3) and gives (B,), a batch is one call.

    Raises
    ------
    ImportError
        If openmmtorch is not installed.
    FileNotFoundError
        If there is no such file.
    """
    openmmtorch = import_openmmtorch()
    if not Path(module_file).is_file():
        raise FileNotFoundError(f"there is no TorchScript file {module_file}")
    system = _particles_of(particles)
    system.addForce(openmmtorch.TorchForce(str(module_file)))
    system.addForce(openmm.CMMotionRemover())
    return system


def with_target(particles: openmm.System | app.Topology, target: BatchedTarget) -> openmm.System:
    """A System whose potential is a target of ``openmm_lsd.targets``, as a PythonForce.

    OpenMM can then do all that it does with any force (plain dynamics, minimisation, energies in
    reports), and LSDIntegrator evaluates windows in one call.

    Parameters
    ----------
    particles : openmm.System or openmm.app.Topology
        Gives masses and box.
    target : targets.BatchedTarget

    Raises
    ------
    ValueError
        If the target gives no energies.
    """
    if not target.gives_energies:
        raise ValueError(
            f"a {type(target).__name__} gives forces only; a force of OpenMM needs energies too"
        )

    def evaluate(
        positions: Array, box: Array | None, parameters: Mapping[str, float]
    ) -> Evaluation:
        return target.evaluate(positions, box)

    def evaluate_at(
        positions: Array,
        box: Array | None,
        parameters: Mapping[str, float],
        times: Array,
        step_counts: NDArray[np.int64],
    ) -> Evaluation:
        return target.evaluate_at(positions, box, Times(times, step_counts))

    system = _particles_of(particles)
    force = openmm.PythonForce(batched(evaluate_at if target.uses_times else evaluate))
    if isinstance(particles, openmm.System):
        periodic = particles.usesPeriodicBoundaryConditions()
    else:
        periodic = particles.getPeriodicBoxVectors() is not None
    force.setUsesPeriodicBoundaryConditions(periodic)
    system.addForce(force)
    system.addForce(openmm.CMMotionRemover())
    return system


def _particles_of(particles: openmm.System | app.Topology) -> openmm.System:
    """A System without forces."""
    system = openmm.System()
    if isinstance(particles, openmm.System):
        for index in range(particles.getNumParticles()):
            system.addParticle(particles.getParticleMass(index))
        box = particles.getDefaultPeriodicBoxVectors()
    else:
        for atom in particles.atoms():
            system.addParticle(atom.element.mass if atom.element is not None else 0.0)
        box = particles.getPeriodicBoxVectors()
    if box is not None:
        system.setDefaultPeriodicBoxVectors(*box)
    return system
