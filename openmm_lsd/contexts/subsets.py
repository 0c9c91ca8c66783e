"""A subset of the particles of a System as a System of its own."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from xml.etree import ElementTree

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app

from .constraints import constraints_of
from .forcecontext import copy_constraints, without_forces

Indices = NDArray[np.int64]

PARTICLE = re.compile(r"(p\d+|[ab]\d|index|particle\d*)$")  # names of attributes in OpenMM's XML


def close_subset(system: openmm.System, particles: Iterable[int]) -> Indices:
    """The smallest subset of a System's particles that has these and can stand alone: with the
    parents of its virtual sites, and no constraint across its border; in ascending order."""
    partners = defaultdict[int, set[int]](set)
    for i, j in constraints_of(system):
        partners[i].add(j)
        partners[j].add(i)
    result = set(map(int, particles))
    waiting = list(result)
    while waiting:
        index = waiting.pop()
        found = set(partners[index])
        if system.isVirtualSite(index):
            site = system.getVirtualSite(index)
            found |= {site.getParticle(k) for k in range(site.getNumParticles())}
        waiting.extend(found - result)
        result |= found
    return np.array(sorted(result), dtype=np.int64)


def rows_of(subset: Indices) -> dict[str, str]:
    """Where each particle is in the subset, as XML writes both."""
    return {str(particle): str(row) for row, particle in enumerate(subset.tolist())}


def relabel(node: ElementTree.Element, rows: Mapping[str, str]) -> None:
    """Let a node of a System's or a Force's XML speak of the particles by other indices."""
    for name, value in node.attrib.items():
        if PARTICLE.match(name):
            node.set(name, rows[value])


def reduce_system(
    system: openmm.System, subset: Indices, masses_besides: Iterable[float] = ()
) -> openmm.System:
    """Particles, virtual sites, constraints and box of a subset that can stand alone.

    Parameters
    ----------
    masses_besides : iterable of float
        In amu, of particles that are added at the end.
    """
    frame = without_forces(system)
    copy_constraints(system, frame)
    root = ElementTree.fromstring(openmm.XmlSerializer.serialize(frame))
    rows = rows_of(subset)
    particles, constraints = root.find("Particles"), root.find("Constraints")
    assert particles is not None and constraints is not None
    kept = [particles[index] for index in subset.tolist()]
    particles[:] = kept
    for particle in kept:
        for site in particle:
            relabel(site, rows)
    constraints[:] = [each for each in constraints if each.get("p1") in rows]
    for each in constraints:
        relabel(each, rows)
    result = openmm.XmlSerializer.deserialize(ElementTree.tostring(root, encoding="unicode"))
    for mass in masses_besides:
        result.addParticle(mass)
    return result


def reduce_force(force: openmm.Force, subset: Indices) -> openmm.Force:
    """A Force that is a sum of terms, of which all are inside a subset, for that subset alone."""
    root, rows = ElementTree.fromstring(openmm.XmlSerializer.serialize(force)), rows_of(subset)
    for section in root:
        for term in section:
            relabel(term, rows)
    return openmm.XmlSerializer.deserialize(ElementTree.tostring(root, encoding="unicode"))


def particles_of(node: ElementTree.Element) -> set[int]:
    """Of a term, in OpenMM's XML."""
    return {int(value) for name, value in node.attrib.items() if PARTICLE.match(name)}


def reduce_topology(topology: app.Topology, subset: Indices) -> app.Topology:
    """Elements and bonds of a subset."""
    result = app.Topology()
    residue = result.addResidue("X", result.addChain())
    atoms = list(topology.atoms())
    kept = {
        atoms[index]: result.addAtom(atoms[index].name, atoms[index].element, residue)
        for index in subset.tolist()
    }
    for first, second in topology.bonds():
        if first in kept and second in kept:
            result.addBond(kept[first], kept[second])
    return result
