"""Systems from files and from ``ase.Atoms``: for the same particles a draft and a slow target."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from xml.etree import ElementTree

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit

from .contexts.checks import masses_of, virtual_sites
from .contexts.embedding import without_inner_forces
from .contexts.forcecontext import copy_constraints, is_empty, without_forces
from .contexts.periodicity import box_in_words, box_of, topology_box
from .core.clock import Times
from .selections import select_atoms
from .structures import (
    Structure,
    element_masses,
    read_structure,
    structure_of_atoms,
)
from .targets import ASETarget, BatchedTarget, as_target
from .targets.base import Array, Evaluation
from .targets.ofsubset import arguments_of_module, module_of_atoms
from .targets.pythonforce import Batched
from .targets.torchplugin import import_openmmtorch

if TYPE_CHECKING:
    import ase

logger = logging.getLogger(__name__)

Particles: TypeAlias = openmm.System | app.Topology | Structure


@dataclasses.dataclass(frozen=True)
class MolecularSystem:
    """What a Simulation with an LSDIntegrator is made of.

    Parameters
    ----------
    topology : openmm.app.Topology
        With a box if the target is periodic.
    positions : Quantity, (N, 3)
    draft : openmm.System or 'auto'
    target : openmm.System
        Of the same particles, with the same box.
    velocities : Quantity, (N, 3), optional
    """

    topology: app.Topology
    positions: unit.Quantity
    draft: openmm.System | str
    target: openmm.System
    velocities: unit.Quantity | None = None


def load(directory: str | Path, **options: Any) -> MolecularSystem:
    """The system in a directory.

    It holds either one prmtop, one inpcrd (whose box and velocities count, if it has some) and one
    TorchScript file (.pt), which is the target; or
    these two Amber files of a periodic box and ``mixed.json``, which names a TorchScript file and
    the atoms of which alone it is the potential (a selection in MDTraj's language); or
    one PDB file of a periodic box and ``forcefields.json``, which names force field files, OpenMM's
    or in the directory, for the draft and for the target, and options of ``createSystem``.

    Parameters
    ----------
    directory : path
    options
        ``constraints``, ``rigidWater`` and ``hydrogenMass`` as OpenMM's ``createSystem``. Default:
        what the directory says, and if it says nothing everything is flexible except the water
        around the atoms of a network. There are no constraints between these atoms.

    Raises
    ------
    FileNotFoundError
        If one of these is missing.
    ImportError
        If there is a TorchScript file and openmmtorch is not installed.
    """
    if (Path(directory) / "forcefields.json").exists():
        return _from_force_fields(Path(directory), options)
    if (Path(directory) / "mixed.json").exists():
        return _mixed(Path(directory), options)
    files = {suffix: _only(directory, suffix) for suffix in ("prmtop", "inpcrd", "pt")}
    structure = read_structure(files["prmtop"], files["inpcrd"])
    box = structure.topology.getPeriodicBoxVectors()
    prmtop = app.AmberPrmtopFile(files["prmtop"], periodicBoxVectors=box)
    options = {"constraints": None, "rigidWater": False, **_of_prmtop(options)}
    method = app.NoCutoff if box is None else app.PME
    draft = prmtop.createSystem(nonbondedMethod=method, **options)
    target = with_torch_force(draft, files["pt"])
    if not target.usesPeriodicBoundaryConditions():  # the module takes no box
        structure.topology.setPeriodicBoxVectors(None)
        draft = prmtop.createSystem(nonbondedMethod=app.NoCutoff, **options)
    return MolecularSystem(
        structure.topology, structure.positions, draft, target, structure.velocities
    )


def _of_prmtop(options: Mapping[str, Any]) -> dict[str, Any]:
    """Of ``createSystem``: a force field takes a number for the mass of hydrogen, too."""
    mass = options.get("hydrogenMass")
    if mass is None or unit.is_quantity(mass):
        return dict(options)
    return {**options, "hydrogenMass": mass * unit.dalton}


def _mixed(directory: Path, options: Mapping[str, Any]) -> MolecularSystem:
    settings = json.loads((directory / "mixed.json").read_text())
    structure = read_structure(_only(directory, "prmtop"), _only(directory, "inpcrd"))
    topology = structure.topology
    box = topology.getPeriodicBoxVectors()
    prmtop = app.AmberPrmtopFile(_only(directory, "prmtop"), periodicBoxVectors=box)
    draft = prmtop.createSystem(
        nonbondedMethod=app.PME,
        nonbondedCutoff=settings["cutoff, nm"] * unit.nanometer,
        **{"constraints": None, "rigidWater": True, **_of_prmtop(options)},
    )
    atoms = select_atoms(topology, settings["network atoms"])
    target = with_torch_force(draft, directory / settings["network"], atoms=atoms)
    copy_constraints(target, draft)
    return MolecularSystem(topology, structure.positions, draft, target, structure.velocities)


def _only(directory: str | Path, suffix: str) -> str:
    found = sorted(Path(directory).glob(f"*.{suffix}"))
    if len(found) != 1:
        raise FileNotFoundError(
            f"{directory} holds {len(found)} *.{suffix} files; it must hold one"
        )
    return str(found[0])


def _from_force_fields(directory: Path, options: Mapping[str, Any]) -> MolecularSystem:
    settings = json.loads((directory / "forcefields.json").read_text())
    pdb = app.PDBFile(_only(directory, "pdb"))
    common = {
        "nonbondedMethod": app.PME,
        "nonbondedCutoff": settings["cutoff, nm"],
        "constraints": getattr(app, settings.get("constraints", ""), None),
        "rigidWater": settings.get("rigid water", False),
        **options,
    }
    draft, target = (
        app.ForceField(*_files_of(directory, settings[role])).createSystem(
            pdb.topology, **common, **settings.get(f"{role} options", {})
        )
        for role in ("draft", "target")
    )
    for system in (draft, target):
        for index in reversed(range(system.getNumForces())):
            if is_empty(system.getForce(index)):
                system.removeForce(index)
    return MolecularSystem(pdb.topology, pdb.positions, draft, target)


def _files_of(directory: Path, names: Sequence[str]) -> list[str]:
    """Force field files in the directory by their paths, OpenMM's own by their names."""
    return [str(directory / name) if (directory / name).exists() else name for name in names]


def with_torch_force(
    particles: Particles, module_file: str | Path, *, atoms: Sequence[int] | None = None
) -> openmm.System:
    """A System whose potential is a TorchScript file; with a CMMotionRemover if no atom is fixed.

    With ``atoms`` it is the potential of these only, and all else is as in the System that is given
    (mechanical embedding; see ``with_target``).

    Parameters
    ----------
    particles : openmm.System, openmm.app.Topology or Structure
        Gives masses, constraints and box; a System is periodic if its forces are, or if it has
        no forces and was given a box.
    module_file : path
        TorchScript module: positions (N, 3) in nm -> energy in kJ/mol; if it also takes
        (B, N, 3) and gives (B,), a batch is one call. If it takes a second argument, that is the
        box (3, 3) in nm, and it is used where there is one.
    atoms : sequence of int, optional
        Indices, in the order in which the module takes them; N is their number then.

    Raises
    ------
    ImportError
        If openmmtorch is not installed.
    FileNotFoundError
        If there is no such file.
    ValueError
        If the element of an atom is unknown, the module needs a box and there is none, or as
        ``with_target``.
    """
    openmmtorch = import_openmmtorch()
    if not Path(module_file).is_file():
        raise FileNotFoundError(f"there is no TorchScript file {module_file}")
    atoms = None if atoms is None else list(atoms)
    system, box = _particles_of(particles, atoms)
    takes_box, needs_box = arguments_of_module(str(module_file))
    if needs_box and box is None:
        raise ValueError(
            f"{module_file} takes a box after the positions, and there is none; give the Topology "
            "or the System a periodic box"
        )
    if box is not None and not takes_box and atoms is None:
        _warn_of_box(box, str(module_file))
    if atoms is None:
        force = openmmtorch.TorchForce(str(module_file))
    else:
        force = openmmtorch.TorchForce(module_of_atoms(str(module_file), atoms, takes_box))
    force.setUsesPeriodicBoundaryConditions(box is not None and takes_box)
    system.addForce(force)
    if atoms is None:
        _remove_cm_motion(system)
    return system


def _warn_of_box(box: Array, name: str) -> None:
    logger.warning(
        "there is a periodic box of %s, and %s takes none: it is run as an isolated molecule",
        box_in_words(box),
        name,
    )


def read_system(file: str | Path) -> openmm.System:
    """A System that ``openmm.XmlSerializer`` wrote, also one with TorchForces in it.

    openmmtorch 1.5 writes a TorchForce with its module, and ends the process when it reads it.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, or it is not that of a System.
    ImportError
        If there is a TorchForce in it, and openmmtorch is not installed.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"there is no file {file}")
    try:
        root = ElementTree.parse(file).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{file} is not XML: {error}") from None
    if root.tag != "System":
        raise ValueError(f"{file} is the XML of a {root.tag}, not of an OpenMM System")
    forces = root.find("Forces")
    torch_forces = [] if forces is None else forces.findall("Force[@type='TorchForce']")
    for node in torch_forces:
        assert forces is not None
        forces.remove(node)
    try:
        system = openmm.XmlSerializer.deserialize(ElementTree.tostring(root, encoding="unicode"))
    except Exception as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    for node in torch_forces:
        system.addForce(_torch_force_of(node))
    return system


def _torch_force_of(node: ElementTree.Element) -> Any:
    """The TorchForce that openmmtorch has written as this node."""
    openmmtorch = import_openmmtorch()
    import torch

    module = torch.jit.load(io.BytesIO(bytes.fromhex(node.attrib["encodedFileContents"])))
    force = openmmtorch.TorchForce(module)
    force.setForceGroup(int(node.get("forceGroup", "0")))
    force.setName(node.get("name", "TorchForce"))
    force.setOutputsForces(node.get("outputsForces", "0") == "1")
    force.setUsesPeriodicBoundaryConditions(node.get("usesPeriodic", "0") == "1")
    for parameter in node.iterfind("GlobalParameters/Parameter"):
        force.addGlobalParameter(parameter.attrib["name"], float(parameter.attrib["default"]))
    for parameter in node.iterfind("ParameterDerivatives/Parameter"):
        force.addEnergyParameterDerivative(parameter.attrib["name"])
    for each in node.iterfind("Properties/Property"):
        force.setProperty(each.attrib["name"], each.attrib["value"])
    return force


def from_ase(atoms: ase.Atoms, target: Any = None) -> MolecularSystem:
    """Topology, box, positions, velocities and System of ``ase.Atoms``; the draft is 'auto'.

    ::

        molecule = systems.from_ase(atoms, calculator)
        integrator = LSDIntegrator(300, 1, 0.002, molecule.draft, topology=molecule.topology)
        simulation = app.Simulation(molecule.topology, molecule.target, integrator)
        simulation.context.setPositions(molecule.positions)

    Periodic if the Atoms are, in all three directions. OpenMM wants the first vector of a box along
    x and the second in the xy plane, and all three reduced: a structure whose cell is different
    is rotated as a whole. Masses are those of the Atoms; atoms under FixAtoms have mass zero and do
    not move.

    Parameters
    ----------
    atoms : ase.Atoms
    target : ASE calculator, or what ``targets.as_target`` takes and gives energies, optional
        Default: the calculator of the Atoms.

    Raises
    ------
    ImportError
        If ASE is not installed.
    TypeError, ValueError
        If the Atoms have no calculator; are periodic in one or two directions only; have
        constraints other than FixAtoms; or a target is not as above.
    """
    given = getattr(atoms, "calc", None) if target is None else target
    if given is None:
        raise ValueError("the Atoms have no calculator; set atoms.calc, or give a target")
    if callable(getattr(given, "get_property", None)):
        given = ASETarget(given, atoms)
    structure = structure_of_atoms(atoms)
    system = with_target(structure, as_target(given))
    return MolecularSystem(
        structure.topology, structure.positions, "auto", system, structure.velocities
    )


def with_target(
    particles: Particles,
    target: BatchedTarget,
    *,
    atoms: Sequence[int] | None = None,
    needs_energies: bool = True,
) -> openmm.System:
    """A System whose potential is a target of ``openmm_lsd.targets``, as a PythonForce.

    OpenMM can then do all that it does with any force (plain dynamics, minimisation, energies in
    reports), and LSDIntegrator evaluates windows in one call. The System gets a CMMotionRemover,
    unless some atoms are fixed (of zero mass).

    With ``atoms`` the target is the potential of these only, and ``particles`` must be a System
    with forces: what acts between two of the atoms is left out of it (bonds, angles, torsions and
    constraints; nonbonded pairs are excluded), and all else stays. That is mechanical embedding,
    as OpenMM-ML's ``createMixedSystem`` does it.

    Parameters
    ----------
    particles : openmm.System, openmm.app.Topology or Structure
        Gives masses, virtual sites, constraints and box; a System is periodic if its forces
        are, or if it has no forces and was given a box.
    target : targets.BatchedTarget
    atoms : sequence of int, optional
        Indices, in the order in which the target takes the atoms.
    needs_energies : bool
        A draft System does not: those of a target that gives none are zero.

    Raises
    ------
    TypeError, ValueError
        If the target gives no energies; the element of an atom is unknown; or of ``atoms`` one is
        not there, or the System has a Force of which a part cannot be left out.
    """
    if needs_energies and not target.gives_energies:
        raise ValueError(
            f"a {type(target).__name__} gives forces only; a force of OpenMM needs energies too"
        )

    def evaluate(
        positions: Array, box: Array | None, parameters: Mapping[str, float]
    ) -> Evaluation:
        return completed(*target.evaluate(positions, box))

    def evaluate_at(
        positions: Array,
        box: Array | None,
        parameters: Mapping[str, float],
        times: Array,
        step_counts: NDArray[np.int64],
    ) -> Evaluation:
        return completed(*target.evaluate_at(positions, box, Times(times, step_counts)))

    def completed(energies: Array, forces: Array) -> Evaluation:
        return (energies if target.gives_energies else np.zeros(len(forces))), forces

    atoms = None if atoms is None else list(atoms)
    system, box = _particles_of(particles, atoms)
    function = evaluate_at if target.uses_times else evaluate
    force = openmm.PythonForce(Batched(function, target))
    if atoms is not None:
        force.setParticles(list(map(int, atoms)))
    elif box is not None and not target.takes_box:
        _warn_of_box(box, f"the target, a {type(target).__name__},")
    force.setUsesPeriodicBoundaryConditions(box is not None and target.takes_box)
    system.addForce(force)
    if atoms is None:
        _remove_cm_motion(system)
    return system


def _particles_of(
    particles: Particles, atoms: Sequence[int] | None = None
) -> tuple[openmm.System, Array | None]:
    """A System without forces, or without those inside a group of atoms; and its box (3, 3) in nm
    if it is periodic."""
    if atoms is not None:
        if not isinstance(particles, openmm.System):
            raise TypeError(
                f"atoms={atoms!r}: all else must be described by the forces of an openmm.System, "
                f"not by a {type(particles).__name__}"
            )
        return without_inner_forces(particles, atoms), box_of(particles)
    if isinstance(particles, openmm.System):
        result = without_forces(particles)
        copy_constraints(particles, result)
        return result, box_of(particles)
    system = openmm.System()
    if isinstance(particles, Structure):
        masses, box = particles.particle_masses(), topology_box(particles.topology)
    else:
        masses, box = element_masses(particles), topology_box(particles)
    for mass in masses:
        system.addParticle(mass)
    if box is not None:
        system.setDefaultPeriodicBoxVectors(*box)
    return system, box


def _remove_cm_motion(system: openmm.System) -> None:
    """Unless some atoms are fixed: the others then move as a whole, at the temperature."""
    virtual = virtual_sites(system)
    masses = masses_of(system)
    if not any(mass == 0 and index not in virtual for index, mass in enumerate(masses)):
        system.addForce(openmm.CMMotionRemover())
