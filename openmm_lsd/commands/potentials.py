"""The target and the draft that the command line names, as Systems."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import openmm
from openmm import app, unit

from ..contexts import is_empty
from ..systems import with_target, with_torch_force
from ..targets import ASETarget, TorchSimTarget, as_target

FORMS = (
    "model.pt (TorchScript), amoeba2018.xml (OpenMM force field), system.xml (serialized System), "
    "ase:MODULE:CALL, torchsim:MODULE:CALL, python:MODULE:CALL or openmmml:NAME"
)


def read_structure(topology: Path, coordinates: Path | None) -> tuple[app.Topology, unit.Quantity]:
    """Topology and positions from files: a prmtop with an inpcrd or a PDB, or a PDB alone.

    Raises
    ------
    ValueError, FileNotFoundError
        If there is no such file, or it cannot be read, or the numbers of atoms differ.
    """
    for file in (topology, coordinates):
        if file is not None and not file.is_file():
            raise FileNotFoundError(f"there is no file {file}")
    box = None
    if topology.suffix in (".prmtop", ".parm7"):
        if coordinates is None:
            raise ValueError(f"{topology} holds no positions; give --coordinates too")
        result = _read(app.AmberPrmtopFile, topology).topology
    else:
        if topology.suffix != ".pdb":
            raise ValueError(f"{topology}: the topology must be a .prmtop, .parm7 or .pdb file")
        result = _read(app.PDBFile, topology).topology
    file = coordinates or topology
    if file.suffix == ".pdb":
        positions = _read(app.PDBFile, file).positions
    else:
        inpcrd = _read(app.AmberInpcrdFile, file)
        positions, box = inpcrd.positions, inpcrd.boxVectors
    if len(positions) != result.getNumAtoms():
        raise ValueError(
            f"{topology} has {result.getNumAtoms()} atoms and {file} has {len(positions)}"
        )
    if box is not None:
        result.setPeriodicBoxVectors(box)
    return result, positions


def _read(kind: Callable[[str], Any], file: Path) -> Any:
    try:
        return kind(str(file))
    except Exception as error:  # whatever a parser may raise
        raise ValueError(f"{file} cannot be read ({type(error).__name__}: {error})") from error


def target_system(
    spec: str,
    topology: app.Topology,
    options: Mapping[str, Any],
    particles: openmm.System | app.Topology,
) -> openmm.System:
    """The System of the slow potential.

    Parameters
    ----------
    spec : str
        One of ``FORMS``. MODULE is a module or a .py file, CALL a function with literal keyword
        arguments: ``ase:tblite.ase:TBLite(method="GFN2-xTB")``. 'ase' takes a calculator,
        'torchsim' a model, 'python' what ``targets.as_target`` takes.
    topology : openmm.app.Topology
    options : mapping
        Of ``ForceField.createSystem``.
    particles : openmm.System or openmm.app.Topology
        Gives the masses where the potential does not.

    Raises
    ------
    ValueError, FileNotFoundError, ImportError
        If there is no such thing; whatever the call itself raises, as ValueError.
    """
    kind, separator, rest = spec.partition(":")
    if not separator or Path(spec).exists():
        if spec.endswith(".xml"):
            return from_xml(spec, topology, options)
        if spec.endswith((".pt", ".pth")):
            return with_torch_force(particles, spec)
        raise ValueError(f"target {spec!r} is of no known form; use {FORMS}")
    if kind == "openmmml":
        return _openmmml(rest, topology)
    numbers = [
        0 if atom.element is None else atom.element.atomic_number for atom in topology.atoms()
    ]
    if kind == "ase":
        target: Any = ASETarget(called(rest), numbers)
    elif kind == "torchsim":
        target = TorchSimTarget(called(rest), numbers)
    elif kind == "python":
        target = as_target(called(rest))
    else:
        raise ValueError(f"target {spec!r} is of no known form; use {FORMS}")
    return with_target(particles, target)


def draft_system(
    names: list[str], topology: app.Topology, options: Mapping[str, Any]
) -> openmm.System | str:
    """The draft: 'auto', an Amber prmtop, a serialized System, or OpenMM force field files."""
    if names == ["auto"]:
        return "auto"
    if len(names) == 1 and names[0].endswith((".prmtop", ".parm7")):
        if not Path(names[0]).is_file():
            raise FileNotFoundError(f"there is no file {names[0]}")
        prmtop = _read(app.AmberPrmtopFile, Path(names[0]))
        return prmtop.createSystem(rigidWater=False, **options)
    if len(names) == 1 and names[0].endswith(".xml"):
        return from_xml(names[0], topology, options)
    return _from_force_field(names, topology, options)


def from_xml(name: str, topology: app.Topology, options: Mapping[str, Any]) -> openmm.System:
    """A serialized System, or one made from a force field file (OpenMM's or one's own)."""
    if Path(name).is_file():
        try:
            root = ElementTree.parse(name).getroot().tag
        except ElementTree.ParseError as error:
            raise ValueError(f"{name} is not XML: {error}") from None
        if root == "System":
            return openmm.XmlSerializer.deserialize(Path(name).read_text())
    return _from_force_field([name], topology, options)


def _from_force_field(
    names: list[str], topology: app.Topology, options: Mapping[str, Any]
) -> openmm.System:
    system = app.ForceField(*names).createSystem(topology, rigidWater=False, **options)
    for index in reversed(range(system.getNumForces())):
        if is_empty(system.getForce(index)):
            system.removeForce(index)
    return system


def nonbonded_options(topology: app.Topology, cutoff: float) -> dict[str, Any]:
    """Of ``createSystem``: PME with this cutoff (nm) in a box, else no cutoff; no constraints."""
    options: dict[str, Any] = {"constraints": None, "nonbondedMethod": app.NoCutoff}
    if topology.getPeriodicBoxVectors() is not None:
        options |= {"nonbondedMethod": app.PME, "nonbondedCutoff": cutoff * unit.nanometer}
    return options


def _openmmml(name: str, topology: app.Topology) -> openmm.System:
    try:
        from openmmml import MLPotential
    except ImportError as error:
        raise ImportError(
            f"a target of OpenMM-ML needs openmmml, which cannot be imported here ({error}); "
            "install it with: pip install openmmml"
        ) from error
    return MLPotential(name).createSystem(topology)


def called(expression: str) -> Any:
    """What MODULE:CALL gives.

    Raises
    ------
    ValueError
        If it cannot be read, or the call fails.
    """
    where, separator, call = expression.partition(":")
    try:
        tree = ast.parse(call, mode="eval").body if separator and where else None
    except SyntaxError:
        tree = None
    name, arguments = (tree.func, tree) if isinstance(tree, ast.Call) else (tree, None)
    if not isinstance(name, ast.Name):
        raise ValueError(
            f"{expression!r} cannot be read; write MODULE:FUNCTION(name=value, ...), where MODULE "
            "is a module or a .py file"
        )
    try:
        positional = [ast.literal_eval(each) for each in arguments.args] if arguments else []
        keywords = (
            {str(each.arg): ast.literal_eval(each.value) for each in arguments.keywords}
            if arguments
            else {}
        )
    except ValueError:
        raise ValueError(
            f"the arguments in {expression!r} must be literal numbers, strings, lists or dicts"
        ) from None
    function = getattr(_module(where), name.id, None)
    if not callable(function):
        raise ValueError(f"{where} has no function or class {name.id}")
    try:
        return function(*positional, **keywords)
    except Exception as error:
        raise ValueError(f"{call} failed: {type(error).__name__}: {error}") from error


def _module(where: str) -> ModuleType:
    if not where.endswith(".py"):
        return importlib.import_module(where)
    if not Path(where).is_file():
        raise FileNotFoundError(f"there is no file {where}")
    spec = importlib.util.spec_from_file_location(Path(where).stem, where)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
