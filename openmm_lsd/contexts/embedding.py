"""Mechanical embedding: a System less what acts inside a group of its atoms."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from xml.etree import ElementTree

import numpy as np
import openmm

from .checks import class_changes_state
from .sharedforces import NONBONDED, TERMS_OF_SUMS
from .subsets import particles_of

# Of what a user adds to a force field.
HARMLESS = ("CustomCVForce", "CustomCentroidBondForce", "CustomVolumeForce", "RMSDForce")


def without_inner_forces(system: openmm.System, atoms: Iterable[int]) -> openmm.System:
    """A copy of a System in which nothing acts between these atoms.

    Bonded terms that have no other atoms are left out, and so are constraints between two of them;
    nonbonded interactions between two of them are excluded. For a potential of the atoms that is
    to take the place of all that, as ``MLPotential.createMixedSystem`` of OpenMM-ML does it.

    Raises
    ------
    ValueError
        If an atom is not there, or a Force is of a kind of which this is not known.
    """
    chosen = set(checked_atoms(atoms, system))
    for force in system.getForces():
        if type(force).__name__ in ("PythonForce", "TorchForce", "Force"):
            raise ValueError(
                f"the System has a {force.getName()} already, which cannot be copied; leave out "
                "what acts inside all groups of atoms at once (without_inner_forces of their "
                "union, or one after another), and add the slow forces then"
            )
    root = ElementTree.fromstring(openmm.XmlSerializer.serialize(system))
    constraints, forces = root.find("Constraints"), root.find("Forces")
    assert constraints is not None and forces is not None
    _keep_outer(constraints, chosen)
    for node in forces:
        kind = node.get("type", "")
        section = node.find(TERMS_OF_SUMS.get(kind, "none"))
        if section is None:
            _check_harmless(kind)
        elif kind not in NONBONDED:
            if kind != "CustomExternalForce":
                _keep_outer(section, chosen)
        else:
            _exclude_pairs(node, section, chosen)
    return openmm.XmlSerializer.deserialize(ElementTree.tostring(root, encoding="unicode"))


def _check_harmless(kind: str) -> None:
    harmless = class_changes_state(kind) or kind in HARMLESS
    if not harmless:
        raise ValueError(
            f"the System has a {kind}; it is not known how to leave out what it does inside a "
            "group of atoms"
        )


def _keep_outer(section: ElementTree.Element, chosen: set[int]) -> None:
    section[:] = [term for term in section if not particles_of(term) <= chosen]


def _exclude_pairs(
    force: ElementTree.Element, section: ElementTree.Element, chosen: set[int]
) -> None:
    """Those that are there already keep their places: other parts of the Force count by these."""
    nothing = {"q": "0", "sig": "1", "eps": "0"} if force.get("type") == "NonbondedForce" else {}
    missing = set(map(frozenset, itertools.combinations(chosen, 2)))
    inner = set()
    for index, term in enumerate(section):
        pair = frozenset(particles_of(term))
        if pair in missing:
            missing.remove(pair)
            inner.add(str(index))
            term.attrib.update(nothing)
    for first, second in sorted(tuple(sorted(pair)) for pair in missing):
        tag = "Exception" if nothing else "Exclusion"
        ElementTree.SubElement(section, tag, {"p1": str(first), "p2": str(second), **nothing})
    offsets = force.find("ExceptionOffsets")
    if offsets is not None:
        offsets[:] = [each for each in offsets if each.get("exception") not in inner]


def checked_atoms(atoms: Iterable[int], system: openmm.System) -> list[int]:
    """Different indices of particles of a System, as they were given; ValueError if they are not.

    A mask is not a list of indices, though NumPy takes both.
    """
    result = list(atoms)
    count = system.getNumParticles()
    if any(isinstance(atom, bool | np.bool_) or int(atom) != atom for atom in result):
        raise ValueError(
            "atoms must be indices, such as [0, 1, 2]; of a mask, numpy.flatnonzero(mask)"
        )
    result = [int(atom) for atom in result]
    if not result or min(result) < 0 or max(result) >= count:
        raise ValueError(f"atoms must be some of the indices 0 to {count - 1}: {result[:20]}")
    if len(set(result)) < len(result):
        twice = next(atom for atom in result if result.count(atom) > 1)
        raise ValueError(f"atoms must be different indices; {twice} is there twice")
    return result
