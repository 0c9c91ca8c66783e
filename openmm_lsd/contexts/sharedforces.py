"""Which forces two Systems share, and on which particles the rest acts.

In a mixed System (a ligand by a network, the rest by a force field) draft and target differ on a
few atoms. Nobody has to say so: it is seen by comparing what the two Systems hold.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias
from xml.etree import ElementTree

import numpy as np
import openmm
from numpy.typing import NDArray

from .checks import changes_state

Indices: TypeAlias = NDArray[np.int64]
Term: TypeAlias = tuple[tuple[str, str], ...]  # attributes of a node of XML

# Where in its XML a force keeps the terms that it is the sum of.
TERMS_OF_SUMS = {
    "HarmonicBondForce": "Bonds",
    "HarmonicAngleForce": "Angles",
    "PeriodicTorsionForce": "Torsions",
    "RBTorsionForce": "Torsions",
    "CMAPTorsionForce": "Torsions",
    "CustomBondForce": "Bonds",
    "CustomAngleForce": "Angles",
    "CustomTorsionForce": "Torsions",
    "CustomCompoundBondForce": "Bonds",
    "CustomExternalForce": "Particles",
    "NonbondedForce": "Exceptions",  # what an exception changes is between its two particles
}
PARTICLE = re.compile(r"(p\d+|[ab]\d|index)$")  # names of attributes
NOT_COMPARED = ("name", "forceGroup", "recipForceGroup")


class SharedForces(NamedTuple):
    """What two Systems have in common.

    ``subset`` are the particles, in ascending order, on which the sums of their forces may differ;
    ``shared`` and ``different`` say in words what is the same in both and what is not.
    """

    subset: Indices
    shared: list[str]
    different: list[str]


class _Part(NamedTuple):
    """One Force: what it is besides its terms, these, and the particles that it acts on."""

    kind: str
    frame: str
    terms: Counter[Term]
    particles: frozenset[int] | None  # None: all, or nobody knows


def find_shared_forces(
    target: openmm.System, draft: openmm.System, force_groups: int = -1
) -> SharedForces:
    """Compare the forces of two Systems of the same particles, term by term where they are sums.

    Two Forces are the same if OpenMM writes the same XML of them, but for names and groups; so
    TorchForces and PythonForces are always different.

    Parameters
    ----------
    target, draft : openmm.System
    force_groups : int
        Bits, of the target's.
    """
    groups = force_groups % 2**32
    kept = [each for each in target.getForces() if groups >> each.getForceGroup() & 1]
    ours, theirs = _parts_of(kept), _parts_of(draft.getForces())
    subset: set[int] = set()
    shared: list[str] = []
    different: list[str] = []
    everywhere = False
    for frame in dict.fromkeys([*ours, *theirs]):
        own, others = ours.get(frame), theirs.get(frame)
        here = [part for part in (own, others) if part is not None]
        kind = here[0].kind
        common = own.terms & others.terms if own and others else Counter[Term]()
        left = [part.terms - common for part in here]
        reach = _reach(here, left, is_in_both=len(here) == 2)
        if reach is None:
            everywhere = True
            different.append(f"{kind}, which acts on all particles")
        elif reach:
            subset |= reach
            different.append(
                f"{kind}: {sum(map(_size, left)) or 1} terms, on {len(reach)} particles"
            )
        if len(here) == 2:
            shared.append(f"{kind}: {_size(common)} terms" if common else kind)
    count = target.getNumParticles()
    atoms = range(count) if everywhere else _with_parents(target, subset)
    return SharedForces(np.array(sorted(atoms), dtype=np.int64), shared, different)


def _size(terms: Counter[Term]) -> int:
    return sum(terms.values())


def _reach(
    parts: Sequence[_Part], left: Iterable[Counter[Term]], *, is_in_both: bool
) -> set[int] | None:
    """Particles on which what is left acts; None: all."""
    if is_in_both or all(
        part.kind in TERMS_OF_SUMS and part.kind != "NonbondedForce" for part in parts
    ):
        return {index for terms in left for term in terms for index in _particles_of(term)}
    result: set[int] = set()
    for part in parts:
        if part.particles is None:
            return None
        result |= part.particles
    return result


def _particles_of(term: Term) -> Iterator[int]:
    return (int(value) for name, value in term if PARTICLE.match(name))


def _parts_of(forces: Iterable[openmm.Force]) -> dict[str, _Part]:
    """By what they are besides their terms; those of several Forces that are alike count
    together."""
    result: dict[str, _Part] = {}
    for force in forces:
        if changes_state(force):
            continue
        part = _part_of(force)
        known = result.get(part.frame)
        if known is not None and part.kind in TERMS_OF_SUMS and part.kind != "NonbondedForce":
            part = part._replace(terms=known.terms + part.terms)
        elif known is not None:  # the same Force twice
            part = part._replace(frame=f"{part.frame} again")
        result[part.frame] = part
    return result


def _part_of(force: openmm.Force) -> _Part:
    kind = type(force).__name__
    particles = None
    if isinstance(force, openmm.PythonForce) and len(force.getParticles()):
        particles = frozenset(map(int, force.getParticles()))
    incomparable = _Part(kind, f"{kind} at {int(force.this)}", Counter(), particles)
    if kind in ("TorchForce", "PythonForce", "Force"):  # whose XML is a program, if there is any
        return incomparable
    try:
        root = ElementTree.fromstring(openmm.XmlSerializer.serialize(force))
    except openmm.OpenMMException:
        return incomparable
    section = root.find(TERMS_OF_SUMS.get(kind, "none"))
    terms: Counter[Term] = Counter()
    if section is not None:
        terms.update(tuple(sorted(node.attrib.items())) for node in section)
        root.remove(section)
    for name in NOT_COMPARED:
        root.attrib.pop(name, None)
    return _Part(kind, ElementTree.tostring(root, encoding="unicode"), terms, particles)


def _with_parents(system: openmm.System, particles: set[int]) -> set[int]:
    """And those on which the forces on virtual sites act."""
    result, waiting = set(particles), list(particles)
    while waiting:
        index = waiting.pop()
        if not system.isVirtualSite(index):
            continue
        site = system.getVirtualSite(index)
        for parent in (site.getParticle(k) for k in range(site.getNumParticles())):
            if parent not in result:
                result.add(parent)
                waiting.append(parent)
    return result
