"""A valence force field for any molecule: its terms from the bonds, its parameters guessed.

The terms of class II force fields (Hagler and Ewig, Comput. Phys. Commun. 84, 131 (1994)) first,
those that matter most for how the stiffness changes after them. What an LSD draft must get right is
the stiffness; what changes slowly (charges, say) the corrections take care of.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .molgraph import (
    BOND_TOLERANCE,
    SQUARE_CORNER,
    MolecularGraph,
    Pairs,
    covalent_radii,
    differences,
)
from .valence import (
    ANGLE,
    ATOMS_OF_KIND,
    DISTANCE,
    MOST_FACTORS,
    TORSION,
    ValenceTerms,
)

Array = NDArray[np.float64]
Coordinate = tuple[int, tuple[int, ...]]  # kind, atoms
Product = tuple[int, ...]  # coordinates, by number
Number = Callable[..., int]  # of the coordinate of a kind and atoms
Stage = Callable[[MolecularGraph, Number], list[Product]]

# Atoms that look alike in their surroundings share parameters; the surroundings reach as far as
# they may with no more parameters than this.
MOST_PARAMETERS = 800
WIDEST_SURROUNDINGS = 8  # bonds
MANY_ALIKE = 8  # atoms of every kind, from which on a step tells enough for more terms

SHORTEST_BOND = 0.3  # times the sum of the radii
LEAST_LENGTH = 0.05  # nm, of what is no element
TETRAHEDRAL = float(np.arccos(-1 / 3))  # rad
BOND_LIMIT = 0.04  # nm
CONTACT_LIMIT = 0.08
ANGLE_LIMIT = 0.7  # rad

# Guesses, as in classical force fields: a single C-C bond has 2.6e5 kJ/mol/nm^2, and a bond that
# is shorter than the covalent radii say is stiffer by the fifth power.
BOND_CONSTANT = 2.6e5
BOND_CONSTANTS_OF_HYDROGEN = {6: 2.9e5, 7: 3.6e5, 8: 4.6e5, 16: 2.3e5}  # to C, N, O, S
ANGLE_CONSTANT, ANGLE_CONSTANT_WITH_HYDROGEN = 580.0, 420.0  # kJ/mol/rad^2
ANGLE_CUBIC = -0.5  # 1/rad, times the coefficient of the square
GUESSED = (DISTANCE, ANGLE)  # kinds of coordinates whose powers have guesses


RIGID = -1  # number of every coordinate that does not change
NO_PAIRS: Pairs = np.zeros((0, 2), dtype=int)


class AutoDraft(NamedTuple):
    """A valence force field that can be learned."""

    terms: ValenceTerms
    guesses: Array  #: of its parameters, (P,)
    stages: tuple[int, ...]  #: see learning.Learner

    def without_guesses(self) -> AutoDraft:
        """The same, to start from nothing: on top of other forces."""
        return self._replace(guesses=np.zeros_like(self.guesses))


def auto_draft(
    graph: MolecularGraph,
    positions: Array,
    box: Array | None = None,
    most_parameters: int = MOST_PARAMETERS,
    constraints: Pairs = NO_PAIRS,
    stages: Sequence[Stage] | None = None,
) -> AutoDraft:
    """A valence force field for a molecule.

    ``constraints`` (C, 2) are pairs of atoms at a fixed distance: what is rigid has no terms.
    ``stages`` make the terms, by default those of STAGES, and bond_pair_terms where there are many
    atoms of each kind; the parameters of the first come first.
    Reference values of bonds and angles are means over equivalent ones at ``positions`` (N, 3) in
    nm, where a bond that is broken, or whose atoms overlap, counts with the sum of the covalent
    radii; those of torsions are zero.
    """
    numbers: dict[Coordinate, int] = {}
    is_fixed = set(map(frozenset, constraints.tolist()))

    def number(kind: int, *atoms: int) -> int:
        if kind != TORSION and all(map(is_fixed.__contains__, _pairs_of(atoms))):
            return RIGID
        return numbers.setdefault((kind, min(atoms, atoms[::-1])), len(numbers))

    # In small rings torsions share angles and bonds: each product once.
    products: list[Product] = []
    counts: list[int] = []
    optional: tuple[Stage, ...] = ()
    if stages is None:
        of_kind = Counter(graph.colours(WIDEST_SURROUNDINGS)).values()
        optional = (bond_pair_terms,) if min(of_kind, default=0) >= MANY_ALIKE else ()
        stages = STAGES
    for stage in (*stages, *optional):
        made = (tuple(sorted(each)) for each in stage(graph, number))
        products += (each for each in made if RIGID not in each)
        products = list(dict.fromkeys(products))
        counts.append(len(products))
    coordinates = list(numbers)
    needed = counts[len(stages) - 1]
    for depth in range(WIDEST_SURROUNDINGS, -1, -1):
        colours = graph.colours(depth)
        classes, count = _classes(products, coordinates, colours, graph.kinds_of_corners)
        required = 1 + max(classes[:needed], default=-1)
        if required <= most_parameters:
            break
    if optional and count > most_parameters:  # they are not worth coarser classes of the others
        products, classes, counts = products[:needed], classes[:needed], counts[: len(stages)]
    kinds = np.array([kind for kind, _ in coordinates], dtype=np.int32)
    atoms = np.array([_padded(each, 4, 0) for _, each in coordinates], dtype=np.int32)
    atoms = atoms.reshape(-1, 4)
    ends = atoms[:, :2].astype(int)
    lengths = np.linalg.norm(differences(positions, ends, box), axis=1)
    terms = ValenceTerms(
        particles=len(graph.elements),
        kinds=kinds,
        atoms=atoms,
        references=np.zeros(len(coordinates)),
        limits=np.full(len(coordinates), np.inf),
        factors=np.array(
            [_padded(product, MOST_FACTORS, -1) for product in products], dtype=np.int32
        ).reshape(-1, MOST_FACTORS),
        classes=np.array(classes, dtype=np.int32),
    )
    with np.errstate(divide="ignore", invalid="ignore"):  # by r0 = 0
        references = np.where(kinds == DISTANCE, lengths, terms.coordinates(positions, box)[0])
    contacts = set(map(tuple, graph.contacts.tolist()))
    is_contact = np.array([tuple(pair) in contacts for pair in ends.tolist()], dtype=bool)
    is_contact &= kinds == DISTANCE
    radii = covalent_radii(graph.elements)
    sums_of_radii = radii[ends].sum(axis=1)
    is_broken = (references > BOND_TOLERANCE * sums_of_radii) & ~is_contact
    is_broken |= references < SHORTEST_BOND * sums_of_radii
    is_broken &= (kinds == DISTANCE) & (sums_of_radii > 0)
    references = np.where(is_broken, sums_of_radii, references)
    references = np.where(kinds == DISTANCE, np.maximum(references, LEAST_LENGTH), references)
    references = np.where(np.isfinite(references), references, TETRAHEDRAL)  # of atoms that overlap
    each = [(q,) for q in range(len(coordinates))]
    alike, _ = _classes(each, coordinates, colours, graph.kinds_of_corners)
    sums = np.bincount(alike, references)
    means = (sums / np.bincount(alike))[alike] if len(alike) else references
    references = np.where(kinds == TORSION, 0.0, means)
    limits = np.select(
        [is_contact, kinds == DISTANCE, kinds == ANGLE],
        [CONTACT_LIMIT, BOND_LIMIT, ANGLE_LIMIT],
        np.inf,
    )
    terms = dataclasses.replace(terms, references=references, limits=limits)
    guesses = _guesses(graph, terms, products)
    return AutoDraft(terms, guesses, tuple(1 + max(classes[:end], default=-1) for end in counts))


def _pairs_of(atoms: Sequence[int]) -> Iterator[frozenset[int]]:
    return map(frozenset, itertools.combinations(atoms, 2))


def class_two_terms(graph: MolecularGraph, number: Number) -> list[Product]:
    """Those that a fit to few steps can tell apart (Hagler and Ewig, Comput. Phys. Commun. 84, 131
    (1994)): bonds up to the third power, angles up to the second, pairs of bonds and angles that
    share their central atom, torsions and their products with the angles along them."""
    products: list[Product] = []
    for i, j in graph.bonds.tolist():
        bond = number(DISTANCE, i, j)
        products += [(bond,) * power for power in (1, 2, 3)]
    for j, around in enumerate(graph.neighbours):
        bonds = [number(DISTANCE, i, j) for i in around]
        angles = [number(ANGLE, i, j, k) for i, k in itertools.combinations(around, 2)]
        products += [(each,) * power for each in angles for power in (1, 2)]
        products += itertools.combinations(bonds + angles, 2)
    for i, j, k, m in torsions_of(graph):
        torsion = number(TORSION, i, j, k, m)
        angles = [number(ANGLE, i, j, k), number(ANGLE, j, k, m)]
        products += [(torsion,), *((torsion, angle) for angle in angles)]
    return products


def curvature_terms(graph: MolecularGraph, number: Number) -> list[Product]:
    """Those that say most about how stiffness differs from one conformation to the next, by
    benchmarks/hessian_error.py."""
    products: list[Product] = []
    for i, j in graph.bonds.tolist():
        products.append((number(DISTANCE, i, j),) * 4)
    for j, around in enumerate(graph.neighbours):
        angles = []
        for i, k in itertools.combinations(around, 2):
            angles.append(number(ANGLE, i, j, k))
            products.append((angles[-1],) * 3)
            products += [(number(DISTANCE, end, j), angles[-1], angles[-1]) for end in (i, k)]
        products += itertools.combinations(angles, 3)
    for i, j, k, m in torsions_of(graph):
        first, second = number(ANGLE, i, j, k), number(ANGLE, j, k, m)
        products += [(number(TORSION, i, j, k, m), first, second), (first, second)]
        bonds = number(DISTANCE, i, j), number(DISTANCE, k, m)
        products += [(bonds[0], second), (bonds[1], first), bonds]
    return products


def contact_terms(graph: MolecularGraph, number: Number) -> list[Product]:
    """Of metals and salts: contacts up to the fourth power; pairs of those of an atom up to the
    third, as in the series of an embedding energy; and the square corners between them, whose ends
    are the second neighbours in fcc metals and rock salt."""
    products: list[Product] = []
    for i, j in graph.contacts.tolist():
        products += [(number(DISTANCE, i, j),) * power for power in (1, 2, 3, 4)]
    for i, j, k, kind in graph.corners.tolist():
        first, second = number(DISTANCE, i, j), number(DISTANCE, j, k)
        pairs = [(first, first), (first, second), (second, second)]
        products += [(first, second), (first, first, second), (first, second, second)]
        if kind == SQUARE_CORNER:
            corner = number(ANGLE, i, j, k)
            products += [(corner,), (corner, corner), (first, corner), (second, corner)]
            products += [(*pair, corner) for pair in pairs]
    return products


def terms_of_first_fit(graph: MolecularGraph, number: Number) -> list[Product]:
    """Those of bonds and of contacts."""
    return class_two_terms(graph, number) + contact_terms(graph, number)


def bond_pair_terms(graph: MolecularGraph, number: Number) -> list[Product]:
    """How two bonds of an atom, or at the ends of a torsion, and what lies between them change how
    one stiffens the other. Covalent crystals need them; large molecules have too many of them."""
    products: list[Product] = []
    for j, around in enumerate(graph.neighbours):
        for i, k in itertools.permutations(around, 2):
            first, second = number(DISTANCE, i, j), number(DISTANCE, j, k)
            products.append((first, first, second, second))
            others = (number(ANGLE, i, j, end) for end in around if end not in (i, k))
            products += [(first, second, angle) for angle in others]
        bonds = [number(DISTANCE, i, j) for i in around]
        products += itertools.combinations(bonds, 3)
    for i, j, k, m in torsions_of(graph):
        torsion = number(TORSION, i, j, k, m)
        bonds = [number(DISTANCE, i, j), number(DISTANCE, j, k), number(DISTANCE, k, m)]
        first, middle, last = bonds
        products += [(torsion, first, last), (torsion, torsion, first, last)]
        products += [(first, first, last, last), (torsion, first, middle, last)]
        products += [(torsion, torsion, bond) for bond in bonds]
        angles = number(ANGLE, i, j, k), number(ANGLE, j, k, m)
        products += [(torsion, torsion, angle) for angle in angles]
    return products


STAGES = (terms_of_first_fit, curvature_terms)


def torsions_of(graph: MolecularGraph) -> Iterator[tuple[int, int, int, int]]:
    """Atoms of all chains of three bonds, each once."""
    for j, k in graph.bonds.tolist():
        for i, m in itertools.product(graph.neighbours[j], graph.neighbours[k]):
            if i != k and j != m and i != m:
                yield i, j, k, m


def _classes(
    products: Sequence[Product],
    coordinates: Sequence[Coordinate],
    colours: Sequence[int],
    kinds_of_corners: dict[tuple[int, ...], int],
) -> tuple[list[int], int]:
    """A number for each product, the same for equivalent ones; and how many numbers there are."""
    numbers: dict[tuple, int] = {}
    classes = []
    for product in products:
        factors = [coordinates[q] for q in product]
        kind = kinds_of_corners.get(_corner_of(factors)) if kinds_of_corners else None
        classes.append(numbers.setdefault((_key(factors, colours), kind), len(numbers)))
    return classes, len(numbers)


def _corner_of(coordinates: Sequence[Coordinate]) -> tuple[int, ...]:
    """Of two contacts of an atom, or of an angle: its atoms as MolecularGraph.corners has them; of
    other products nothing."""
    for kind, atoms in coordinates:
        if kind == ANGLE:
            return min(atoms, atoms[::-1])
    pairs = {frozenset(atoms) for kind, atoms in coordinates if kind == DISTANCE}
    if len(pairs) != 2 or len(frozenset.union(*pairs)) != 3:
        return ()
    (centre,) = frozenset.intersection(*pairs)
    first, last = sorted(frozenset.symmetric_difference(*pairs))
    return first, centre, last


def _key(coordinates: Sequence[Coordinate], colours: Sequence[int]) -> tuple:
    """A name of a product of coordinates that equivalent ones share.

    It says for each coordinate which atoms it takes, numbered as they come, and their colours: of
    all the names that a product can be given, the smallest.
    """
    numbers: dict[int, int] = {}
    pattern = tuple(
        (kind, *(numbers.setdefault(atom, len(numbers)) for atom in atoms))
        for kind, atoms in coordinates
    )
    colours_of_pattern = [colours[atom] for atom in numbers]
    name, orders = _smallest_name(pattern)
    return name, min(tuple(colours_of_pattern[n] for n in order) for order in orders)


@cache
def _smallest_name(pattern: tuple[tuple[int, ...], ...]) -> tuple[tuple, set[tuple[int, ...]]]:
    """The smallest name of a product, and the orders of its atoms that lead to it.

    Coordinates may come in any order, and each be read from either end.
    """
    orders: dict[tuple, set[tuple[int, ...]]] = {}
    for permuted in set(itertools.permutations(pattern)):
        for directions in itertools.product((1, -1), repeat=len(pattern)):
            numbers: dict[int, int] = {}
            name = tuple(
                (kind, *(numbers.setdefault(atom, len(numbers)) for atom in atoms[::direction]))
                for (kind, *atoms), direction in zip(permuted, directions, strict=True)
            )
            orders.setdefault(name, set()).add(tuple(numbers))
    smallest = min(orders)
    return smallest, orders[smallest]


def _guesses(graph: MolecularGraph, terms: ValenceTerms, products: Sequence[Product]) -> Array:
    """Powers of bonds and of angles have some; nothing is known about contacts."""
    guesses = np.zeros(terms.parameters)
    unknown = {*map(tuple, graph.contacts.tolist()), *graph.kinds_of_corners}
    for product, parameter in zip(products, terms.classes, strict=True):
        q, power = product[0], len(product)
        if power < 2 or set(product) != {q} or terms.kinds[q] not in GUESSED:
            continue
        kind, length = terms.kinds[q], terms.references[q]
        atoms = terms.atoms[q, : ATOMS_OF_KIND[kind]].tolist()
        if tuple(atoms) in unknown:
            continue
        elements = graph.elements[atoms].tolist()
        if kind == DISTANCE:
            series = {2: 1.0}
            constant = _bond_constant(elements, length)
        else:
            series = {2: 1.0, 3: ANGLE_CUBIC}
            constant = ANGLE_CONSTANT_WITH_HYDROGEN if 1 in elements else ANGLE_CONSTANT
        guesses[parameter] = 0.5 * constant * series.get(power, 0.0)
    return guesses


def _bond_constant(elements: Sequence[int], length: float) -> float:
    if 1 in elements:
        return BOND_CONSTANTS_OF_HYDROGEN.get(max(elements), BOND_CONSTANT)
    radii = covalent_radii(np.array(elements)).sum()
    return BOND_CONSTANT * float(np.clip(radii / length, 0.5, 1.5)) ** 5


def _padded(values: Sequence[int], length: int, filling: int) -> list[int]:
    return [*values, *[filling] * (length - len(values))]
