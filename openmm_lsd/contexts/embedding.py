"""Mechanical embedding: a System less what acts inside a group of its atoms."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from xml.etree import ElementTree

import openmm

from .sharedforces import NONBONDED, TERMS_OF_SUMS
from .subsets import particles_of


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
    chosen = {int(atom) for atom in atoms}
    count = system.getNumParticles()
    if not chosen or min(chosen) < 0 or max(chosen) >= count:
        raise ValueError(f"atoms must be some of the indices 0 to {count - 1}: {sorted(chosen)}")
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
            _exclude_pairs(kind, section, chosen)
    return openmm.XmlSerializer.deserialize(ElementTree.tostring(root, encoding="unicode"))


def _check_harmless(kind: str) -> None:
    harmless = changes_state_by_name(kind) or kind in ("CustomCVForce", "CustomCentroidBondForce")
    if not harmless:
        raise ValueError(
            f"the System has a {kind}; it is not known how to leave out what it does inside a "
            "group of atoms"
        )


def changes_state_by_name(kind: str) -> bool:
    """As ``checks.changes_state``, of the name of a class."""
    return "Barostat" in kind or kind in ("CMMotionRemover", "AndersenThermostat")


def _keep_outer(section: ElementTree.Element, chosen: set[int]) -> None:
    section[:] = [term for term in section if not particles_of(term) <= chosen]


def _exclude_pairs(kind: str, section: ElementTree.Element, chosen: set[int]) -> None:
    _keep_outer(section, chosen)
    for i, j in itertools.combinations(sorted(chosen), 2):
        pair = {"p1": str(i), "p2": str(j)}
        if kind == "NonbondedForce":
            ElementTree.SubElement(section, "Exception", pair, q="0", sig="1", eps="0")
        else:
            ElementTree.SubElement(section, "Exclusion", pair)
