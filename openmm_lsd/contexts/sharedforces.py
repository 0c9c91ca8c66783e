"""What the target of a System shares with its draft, and what the rest acts on.

In a mixed System (a ligand by a network, the rest by a force field) draft and target differ on a
few atoms. Nobody has to say so. The draft is the target's own cheap forces, whatever these are, and
a stand-in for its slow ones: what the draft's System has besides, or a valence force field.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, TypeAlias
from xml.etree import ElementTree

import numpy as np
import openmm
from numpy.typing import NDArray

from .checks import changes_state
from .forcecontext import is_empty, without_forces
from .subsets import (
    PARTICLE,
    close_subset,
    particles_of,
    reduce_system,
    relabel,
    rows_of,
)

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
    "CustomNonbondedForce": "Exclusions",
}
NONBONDED = ("NonbondedForce", "CustomNonbondedForce")
NOT_COMPARED = ("name", "forceGroup", "recipForceGroup", "exceptionsUsePeriodic")
COULOMB = 138.93545764438198  # kJ nm/mol/e^2: 1 / (4 pi epsilon_0)


class SharedForces(NamedTuple):
    """How the forces of a System are divided.

    ``subset`` are the particles, in ascending order, on which draft and target may differ.
    ``shared`` are indices of the System's Forces that are evaluated once per site for both, and
    ``slow`` of those that are evaluated for the target only. ``stand_in`` is a System of the
    subset, of what the draft has in their place; None if it had no System. ``lines`` say in words
    what is shared, what is not, and why.
    """

    subset: Indices
    shared: list[int]
    slow: list[int]
    stand_in: openmm.System | None
    lines: list[str]


class NothingSharedError(ValueError):
    """Draft and target cannot be told apart on a subset; says why."""


def find_shared_forces(
    target: openmm.System,
    slow: Mapping[int, Indices | None],
    draft: openmm.System | None = None,
    groups: Sequence[int] | None = None,
    force_groups: int = -1,
    slow_of_draft: Mapping[int, Indices | None] = MappingProxyType({}),
) -> SharedForces:
    """Divide the forces of a System between what is evaluated once per site and the rest.

    Forces are compared term by term where they are sums. Where both have a term for the same
    particles the target's counts: the draft may be anything, and so it is better.

    Parameters
    ----------
    target : openmm.System
    slow : mapping
        By the indices of its slow forces, on which particles each acts; None: all.
    draft : openmm.System, optional
    groups : sequence of int, optional
        Bits of the groups of the target's forces; by default, those that they say.
    force_groups : int
        Bits, of those that count.
    slow_of_draft : mapping
        As ``slow``, of the draft's forces. They stand in for the target's slow ones, and are in no
        ``stand_in``.

    Raises
    ------
    NothingSharedError
        If there is nothing slow, or nothing cheap, or the draft has forces of another kind, or has
        cheap ones of its own as well as slow ones.
    """
    forces = target.getForces()
    counting = [
        index
        for index, force in enumerate(forces)
        if not (changes_state(force) or is_empty(force))
        and (groups[index] if groups else 1 << force.getForceGroup()) & force_groups % 2**32
    ]
    cheap = [index for index in counting if index not in slow]
    dear = [index for index in counting if index in slow]
    if not dear:
        raise NothingSharedError("none of the System's forces is slow")
    if not cheap:
        raise NothingSharedError("all of the System's forces are slow")
    stand_in, reach = [], set[int]()
    if draft is not None:
        others = [
            force for index, force in enumerate(draft.getForces()) if index not in slow_of_draft
        ]
        stand_in = _beyond([forces[index] for index in cheap], others)
        if stand_in and slow_of_draft:
            words = ", ".join(each.words for each in stand_in)
            raise NothingSharedError(f"besides slow forces the draft System has {words} of its own")
        reach = {index for each in stand_in for index in each.particles}
    everything = np.arange(target.getNumParticles())
    for own in (*(slow[index] for index in dear), *slow_of_draft.values()):
        reach.update((everything if own is None else own).tolist())
    subset = close_subset(target, reach)
    lines = [
        f"draft and target share {', '.join(_names(forces, cheap))}",
        f"evaluated for the target only: {', '.join(_names(forces, dear))}",
        f"draft and target differ on {len(subset)} of {len(everything)} particles",
    ]
    if draft is not None and slow_of_draft:
        names = _names(draft.getForces(), list(slow_of_draft))
        lines.append(f"evaluated for the draft only: {', '.join(names)}")
    if stand_in:
        lines.append(f"of the draft only: {', '.join(each.words for each in stand_in)}")
    system = None if draft is None else _stand_in_system(target, subset, stand_in)
    return SharedForces(subset, cheap, dear, system, lines)


def shared_system(target: openmm.System, indices: Sequence[int]) -> openmm.System:
    """The particles of a System with copies of some of its forces."""
    result, forces = without_forces(target), target.getForces()
    for index in indices:
        result.addForce(openmm.XmlSerializer.deserialize(_xml_of(forces[index])))
    return result


def _xml_of(force: openmm.Force) -> str:
    return openmm.XmlSerializer.serialize(force)


def _names(forces: Sequence[openmm.Force], indices: Iterable[int]) -> list[str]:
    counts = Counter(forces[index].getName() for index in indices)
    return [f"{count} {name}" if count > 1 else name for name, count in counts.items()]


class _Extra(NamedTuple):
    """What a draft's Force has that the target's have not: terms of a sum, on some particles."""

    words: str
    particles: set[int]
    make: Callable[[Mapping[str, str]], openmm.Force]  # by where the particles are in the subset


class _Part(NamedTuple):
    """Forces that are alike but for their terms."""

    kind: str
    root: ElementTree.Element  # without the terms
    terms: Counter[Term]


def _beyond(target: Sequence[openmm.Force], draft: Sequence[openmm.Force]) -> list[_Extra]:
    """What the draft's forces have beyond the target's cheap ones."""
    ours = _parts_of(target)
    theirs = _parts_of(force for force in draft if not is_empty(force))
    result = []
    for frame, part in theirs.items():
        own = ours.get(frame)
        if part.kind not in TERMS_OF_SUMS or (part.kind in NONBONDED and own is None):
            if own is None:
                raise NothingSharedError(
                    f"the draft System has a {part.kind} that is not in the target System"
                )
            continue
        if part.kind == "NonbondedForce":
            assert own is not None
            result += _pairs_beyond(own, part)
        elif part.kind == "CustomNonbondedForce":
            continue  # exclusions that the target has and the draft has not: its pairs are closer
        else:
            result += _terms_beyond(ours, frame, part)
    return result


def _terms_beyond(ours: Mapping[str, _Part], own_frame: str, part: _Part) -> list[_Extra]:
    """Terms for particles for which the target has none of this kind, or of this expression."""
    alike = (
        own
        for frame, own in ours.items()
        if own.kind == part.kind and (frame == own_frame or not part.kind.startswith("Custom"))
    )
    covered = {frozenset(_particles_of(term)) for own in alike for term in own.terms}
    extra = [
        term for term in part.terms.elements() if frozenset(_particles_of(term)) not in covered
    ]
    if not extra:
        return []

    def make(rows: Mapping[str, str]) -> openmm.Force:
        root = ElementTree.fromstring(ElementTree.tostring(part.root))
        section = ElementTree.SubElement(root, TERMS_OF_SUMS[part.kind])
        tag = TERMS_OF_SUMS[part.kind].removesuffix("s")
        for term in extra:
            relabel(ElementTree.SubElement(section, tag, dict(term)), rows)
        return openmm.XmlSerializer.deserialize(ElementTree.tostring(root, encoding="unicode"))

    particles = {index for term in extra for index in _particles_of(term)}
    return [_Extra(f"{len(extra)} terms of a {part.kind}", particles, make)]


def _pairs_beyond(own: _Part, part: _Part) -> list[_Extra]:
    """Pairs that are exceptions in one of the two, or in both with other parameters."""
    ours, theirs = (
        {frozenset(_particles_of(term)): dict(term) for term in each.terms} for each in (own, part)
    )
    pairs = [
        pair
        for pair in ours.keys() | theirs.keys()
        if _interaction(own.root, pair, ours) != _interaction(part.root, pair, theirs)
    ]
    if not pairs:
        return []

    def make(rows: Mapping[str, str]) -> openmm.Force:
        force = openmm.CustomBondForce(
            f"{COULOMB}*q/r + 4*e1*((s1/r)^12-(s1/r)^6) - 4*e2*((s2/r)^12-(s2/r)^6)"
        )
        for name in ("q", "s1", "e1", "s2", "e2"):
            force.addPerBondParameter(name)
        force.setUsesPeriodicBoundaryConditions(part.root.get("exceptionsUsePeriodic") == "1")
        for pair in sorted(pairs, key=sorted):
            i, j = (int(rows[str(index)]) for index in sorted(pair))
            charge, length, depth = _interaction(part.root, pair, theirs)
            own_charge, own_length, own_depth = _interaction(own.root, pair, ours)
            force.addBond(i, j, [charge - own_charge, length, depth, own_length, own_depth])
        return force

    particles = {index for pair in pairs for index in pair}
    return [_Extra(f"{len(pairs)} pairs of a NonbondedForce", particles, make)]


def _interaction(
    root: ElementTree.Element, pair: frozenset[int], exceptions: Mapping[frozenset[int], dict]
) -> tuple[float, float, float]:
    """Product of charges in e^2, sigma in nm (1 where it does not matter) and epsilon in kJ/mol of
    two particles."""
    if pair in exceptions:
        charge, length, depth = (float(exceptions[pair][name]) for name in ("q", "sig", "eps"))
        return charge, length if depth else 1.0, depth
    particles = root.find("Particles")
    assert particles is not None
    (q1, s1, e1), (q2, s2, e2) = (
        [float(node.get(name, 0)) for name in ("q", "sig", "eps")]
        for node in (particles[index] for index in pair)
    )
    depth = float(np.sqrt(e1 * e2))
    return q1 * q2, 0.5 * (s1 + s2) if depth else 1.0, depth


def _stand_in_system(
    target: openmm.System, subset: Indices, extras: Iterable[_Extra]
) -> openmm.System:
    result, rows = reduce_system(target, subset), rows_of(subset)
    for each in extras:
        result.addForce(each.make(rows))
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
        frame, part = _part_of(force)
        known = result.get(frame)
        if known is not None and part.kind in TERMS_OF_SUMS and part.kind not in NONBONDED:
            part = part._replace(terms=known.terms + part.terms)
        elif known is not None:  # the same Force twice
            frame = f"{frame} again"
        result[frame] = part
    return result


def _part_of(force: openmm.Force) -> tuple[str, _Part]:
    kind = type(force).__name__
    try:
        root = ElementTree.fromstring(_xml_of(force))
    except openmm.OpenMMException as error:
        raise NothingSharedError(f"a {kind} cannot be compared ({error})") from error
    section = root.find(TERMS_OF_SUMS.get(kind, "none"))
    terms: Counter[Term] = Counter()
    if section is not None:
        terms.update(tuple(sorted(node.attrib.items())) for node in section)
        root.remove(section)
    frame = copy.copy(root)
    frame.attrib = {name: value for name, value in root.items() if name not in NOT_COMPARED}
    return ElementTree.tostring(frame, encoding="unicode"), _Part(kind, root, terms)


def reach_of_sum(force: openmm.Force) -> Indices | None:
    """The particles on which a sum of terms acts; None of any other Force."""
    kind = type(force).__name__
    if kind not in TERMS_OF_SUMS or kind in NONBONDED:
        return None
    section = ElementTree.fromstring(_xml_of(force)).find(TERMS_OF_SUMS[kind])
    found = set[int]() if section is None else set[int]().union(*map(particles_of, section))
    return np.array(sorted(found), dtype=np.int64)
