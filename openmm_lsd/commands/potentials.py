"""The target and the draft that the command line names, as Systems."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import openmm
from openmm import app, unit

from ..contexts.checks import (
    check_pair,
    check_system,
    default_box,
    different_masses,
    has_forces,
    masses_of,
    virtual_sites,
)
from ..contexts.forcecontext import copy_constraints, is_empty, without_forces
from ..contexts.periodicity import box_in_words, is_same_box, topology_box
from ..structures import Structure
from ..systems import read_system, with_target, with_torch_force
from ..targets import BatchedTarget
from .forms import FORMS, in_words, warn_of_charges
from .mlatoms import MLAtoms, embed_target
from .rigidity import Rigidity, repartition_masses

if TYPE_CHECKING:
    import ase

logger = logging.getLogger(__name__)

PRMTOP = (".prmtop", ".parm7")
MODULE = (".pt", ".pth")  # TorchScript
USUAL, AUTO = Rigidity(), ("auto",)


def target_system(
    spec: str,
    structure: Structure,
    cutoff: float,
    rigidity: Rigidity = USUAL,
    draft: Sequence[str] = AUTO,
    ml_atoms: MLAtoms | None = None,
) -> openmm.System:
    """The System of the expensive potential, with the masses and the box of the structure.

    A serialized System brings masses and a box of its own, a force field file masses; they count
    where the structure says none. The structure's Topology has the box of the run afterwards, and
    none if the potential takes none.

    Parameters
    ----------
    spec : str
        See ``forms``. MODULE is a module or a .py file, CALL a function with literal keyword
        arguments: ``ase:tblite.ase:TBLite(method="GFN2-xTB")``. 'ase' takes a calculator,
        'torchsim' a model, 'python' what ``targets.as_target`` takes.
    structure : Structure
    cutoff : float
        nm, of the nonbonded forces of force fields in a box.
    rigidity : Rigidity
        Where nothing is said, water is rigid in force fields, and all else flexible. A serialized
        System has its own constraints.
    draft : sequence of str
        See ``named_draft``. A force field says how long the constraints of a target are that is
        none.
    ml_atoms : MLAtoms, optional
        Of which alone the potential is; all else is by a force field.

    Raises
    ------
    ValueError, FileNotFoundError, ImportError
        If there is no such thing, or it contradicts the structure; whatever the call itself raises,
        as ValueError.
    """
    topology = structure.topology
    if ml_atoms is None:
        system = _target_system(spec, structure, cutoff, rigidity, draft)
    else:
        options = {**nonbonded_options(topology, cutoff), **rigidity.of_force_field()}
        around = _classical_system(ml_atoms.environment, topology, options)
        at = structure.positions
        system = embed_target(
            spec, around, topology, ml_atoms.selection, positions=at, species=structure.species
        )
    if system.getNumParticles() != structure.atoms:
        raise ValueError(
            f"{spec} has {system.getNumParticles()} particles, and the structure, from "
            f"{_source(structure, 'positions')}, has {structure.atoms} atoms"
        )
    check_system(system, "target")
    if structure.masses is not None:
        for index in set(range(structure.atoms)) - virtual_sites(system):
            system.setParticleMass(index, structure.masses[index])
    if rigidity.hydrogen_mass is not None:
        repartition_masses(system, topology, rigidity.hydrogen_mass)
    box = topology.getPeriodicBoxVectors()
    if not system.usesPeriodicBoundaryConditions():
        topology.setPeriodicBoxVectors(None)
    elif box is None:
        topology.setPeriodicBoxVectors(system.getDefaultPeriodicBoxVectors())
        structure.sources["box"] = spec
    else:
        system.setDefaultPeriodicBoxVectors(*box)
    return system


def _target_system(
    spec: str, structure: Structure, cutoff: float, rigidity: Rigidity, draft: Sequence[str]
) -> openmm.System:
    if spec.endswith(".xml") and (":" not in spec or Path(spec).exists()):
        if is_serialized(spec):
            if rigidity.given:
                raise ValueError(
                    f"{rigidity.given[0]}: the System in {spec} says by itself what is rigid"
                )
            return _serialized_target(spec, structure)
        options = {**nonbonded_options(structure.topology, cutoff), **rigidity.of_force_field()}
        system = _from_force_field([spec], structure.topology, options)
        if structure.masses is None:
            structure.sources["masses"] = spec
        return system
    system = _network_system(spec, structure)
    if rigidity.adds_constraints:
        copy_constraints(_rigid_system(structure, cutoff, rigidity, draft), system)
    return system


def _network_system(spec: str, structure: Structure) -> openmm.System:
    kind, separator, rest = spec.partition(":")
    if (not separator or Path(spec).exists()) and spec.endswith(MODULE):
        warn_of_charges(structure.species, spec)
        return with_torch_force(structure, spec)
    if not separator or Path(spec).exists() or kind not in FORMS:
        raise ValueError(f"target {spec!r} is of no known form; use {in_words()}")
    made = FORMS[kind].build(rest, structure.topology, structure.species)
    return made if isinstance(made, openmm.System) else with_target(structure, made)


def _rigid_system(
    structure: Structure, cutoff: float, rigidity: Rigidity, draft: Sequence[str]
) -> openmm.System:
    """Of the draft's force field, with the constraints."""
    is_serialized_draft = draft[0].endswith(".xml") and is_serialized(draft[0])
    if list(draft) == ["auto"] or is_serialized_draft or is_potential(draft):
        raise ValueError(
            f"{rigidity.given[0]}: the target does not say how long constraints are; give a force "
            "field as --draft"
        )
    options = {**nonbonded_options(structure.topology, cutoff), **rigidity.of_network()}
    return _classical_system(draft, structure.topology, options)


def _serialized_target(name: str, structure: Structure) -> openmm.System:
    """A System from its XML, if it does not contradict the structure."""
    system = read_system(name)
    box = topology_box(structure.topology)
    if not has_forces(system):
        raise ValueError(f"the System in {name} has no forces")
    if box is not None and not system.usesPeriodicBoundaryConditions():
        raise ValueError(
            f"{_source(structure, 'box')} has a periodic box of {box_in_words(box)}, and the "
            f"System in {name} is not periodic; give --no-box to run it as an isolated molecule, "
            "or serialize a periodic System"
        )
    if box is not None and not is_same_box(box, default_box(system)):
        logger.warning(  # as after a run at constant pressure, so no error
            "%s has a periodic box of %s, and the System in %s one of %s; that of %s is used",
            _source(structure, "box"),
            box_in_words(box),
            name,
            box_in_words(default_box(system)),
            _source(structure, "box"),
        )
    if structure.masses is None:
        structure.sources["masses"] = name
        return system
    own = masses_of(system)
    if len(own) == structure.atoms and (different := different_masses(own, structure.masses)):
        first = different[0]
        raise ValueError(
            f"the masses of {len(different)} atoms differ between "
            f"{_source(structure, 'masses')} and the System in {name}, first that of atom {first}: "
            f"{structure.masses[first]:.6g} and {own[first]:.6g} amu; give both the same "
            "(hydrogenMass, fixed atoms of zero mass)"
        )
    return system


def _source(structure: Structure, what: str) -> str:
    return structure.sources.get(what, "the structure")


def named_draft(
    names: Sequence[str],
    topology: app.Topology,
    cutoff: float,
    target: openmm.System,
    rigidity: Rigidity = USUAL,
    ml_atoms: MLAtoms | None = None,
    species: ase.Atoms | None = None,
) -> openmm.System | BatchedTarget | str:
    """The draft: 'auto', an Amber prmtop, a serialized System, OpenMM force field files; or a
    potential, as ``target_system`` takes it.

    In the box of the Topology, if it has one; the masses in force field files do not count. A
    potential is that of the atoms of which the target is: with ``ml_atoms`` of these. ``species``
    says their charges and magnetic moments (``structures.Structure``).

    Raises
    ------
    ValueError, FileNotFoundError, ImportError
        If it cannot be made, or is not of the particles and masses of the target.
    """
    names = list(names)
    if names == ["auto"]:
        return "auto"
    draft: openmm.System | BatchedTarget
    if not is_potential(names):
        draft = _draft_system(names, topology, cutoff, target)
    elif ml_atoms is None:
        draft = _potential_draft(names[0], topology, target, species)
    else:
        options = {**nonbonded_options(topology, cutoff), **rigidity.of_force_field()}
        around = _classical_system(ml_atoms.environment, topology, options)
        draft = embed_target(
            names[0],
            around,
            topology,
            ml_atoms.selection,
            needs_energies=False,
            species=species,
        )
        _take_particles(draft, target)
    if isinstance(draft, openmm.System):
        check_system(draft, "draft")
        check_pair(target, draft)
    return draft


def is_potential(names: Sequence[str]) -> bool:
    """Whether the names of a draft are that of a potential, and not of a force field."""
    kind, separator, _ = names[0].partition(":")
    return len(names) == 1 and (names[0].endswith(MODULE) or (bool(separator) and kind in FORMS))


def _potential_draft(
    spec: str, topology: app.Topology, target: openmm.System, species: ase.Atoms | None
) -> openmm.System | BatchedTarget:
    if spec.endswith(MODULE):
        warn_of_charges(species, spec)
        particles = without_forces(target)
        copy_constraints(target, particles)
        return with_torch_force(particles, spec)
    kind, _, rest = spec.partition(":")
    made = FORMS[kind].build(rest, topology, species)
    if isinstance(made, openmm.System):
        _take_particles(made, target)
    return made


def _take_particles(system: openmm.System, target: openmm.System) -> None:
    """Masses and constraints of the target, if there are as many particles."""
    if system.getNumParticles() != target.getNumParticles():
        return  # check_pair says what is wrong
    copy_constraints(target, system)
    for index in range(system.getNumParticles()):
        if not system.isVirtualSite(index) and not target.isVirtualSite(index):
            system.setParticleMass(index, target.getParticleMass(index))


def _draft_system(
    names: Sequence[str], topology: app.Topology, cutoff: float, target: openmm.System
) -> openmm.System:
    if len(names) == 1 and names[0].endswith(".xml") and is_serialized(names[0]):
        return read_system(names[0])
    options = {**nonbonded_options(topology, cutoff), "constraints": None, "rigidWater": False}
    system = _classical_system(names, topology, options)
    if system.getNumParticles() != target.getNumParticles():
        return system  # check_pair says what is wrong
    if not names[0].endswith(PRMTOP) or _has_repartitioned_masses(target, system):
        _take_particles(system, target)
    else:
        copy_constraints(target, system)
    return system


def _has_repartitioned_masses(system: openmm.System, other: openmm.System) -> bool:
    """Whether masses differ from the other's, and their sum does not."""
    masses, others = masses_of(system), masses_of(other)
    if not different_masses(masses, others):
        return False
    return ((masses == 0) == (others == 0)).all() and not different_masses(
        masses.sum(keepdims=True), others.sum(keepdims=True)
    )


def _classical_system(
    names: Sequence[str], topology: app.Topology, options: Mapping[str, Any]
) -> openmm.System:
    if len(names) == 1 and names[0].endswith(PRMTOP):
        if not Path(names[0]).is_file():
            raise FileNotFoundError(f"there is no file {names[0]}")
        try:
            box = topology.getPeriodicBoxVectors()
            prmtop = app.AmberPrmtopFile(names[0], periodicBoxVectors=box)
        except Exception as error:  # whatever a parser may raise
            raise ValueError(
                f"{names[0]} cannot be read ({type(error).__name__}: {error})"
            ) from error
        return prmtop.createSystem(**options)
    return _from_force_field(names, topology, options)


def is_serialized(name: str) -> bool:
    """Whether this is the file of a System, and not of a force field, OpenMM's or one's own."""
    if not Path(name).is_file():
        return False
    try:
        for _, element in ElementTree.iterparse(name, events=("start",)):
            return element.tag != "ForceField"
    except ElementTree.ParseError as error:
        raise ValueError(f"{name} is not XML: {error}") from None
    return False


def _from_force_field(
    names: Sequence[str], topology: app.Topology, options: Mapping[str, Any]
) -> openmm.System:
    system = app.ForceField(*names).createSystem(topology, **options)
    for index in reversed(range(system.getNumForces())):
        if is_empty(system.getForce(index)):
            system.removeForce(index)
    return system


def nonbonded_options(topology: app.Topology, cutoff: float) -> dict[str, Any]:
    """Of ``createSystem``: PME with this cutoff (nm) in a box, else no cutoff."""
    options: dict[str, Any] = {"nonbondedMethod": app.NoCutoff}
    if topology.getPeriodicBoxVectors() is not None:
        options |= {"nonbondedMethod": app.PME, "nonbondedCutoff": cutoff * unit.nanometer}
    return options


def cutoff_of(system: openmm.System | BatchedTarget | str, default: float) -> float:
    """Of the nonbonded forces of a periodic System, in nm."""
    forces = system.getForces() if isinstance(system, openmm.System) else []
    for force in forces:
        if isinstance(force, openmm.NonbondedForce) and force.usesPeriodicBoundaryConditions():
            return force.getCutoffDistance().value_in_unit(unit.nanometer)
    return default
