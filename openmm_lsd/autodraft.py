"""A valence force field for any molecule: its terms from the bonds, its parameters guessed.

Bond lengths and contacts up to the third power, angles up to the second, the products of all pairs
of bonds and angles that share their central atom, torsions, and their products with the two angles
along them: the terms of class II force fields (Hagler and Ewig, Comput. Phys. Commun. 84, 131
(1994)). What an LSD draft must get right is stiffness; what changes slowly (charges, say) the
corrections take care of.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .molgraph import BOND_TOLERANCE, MolecularGraph, covalent_radii
from .valence import ANGLE, ATOMS_OF_KIND, DISTANCE, MOST_FACTORS, TORSION, ValenceTerms

Array = NDArray[np.float64]
Coordinate = tuple[int, tuple[int, ...]]  # kind, atoms

# Atoms that look alike in their surroundings share parameters; the surroundings reach as far as
# they may with no more parameters than this.
MOST_PARAMETERS = 400
WIDEST_SURROUNDINGS = 8  # bonds

BOND_LIMIT = 0.04  # nm
CONTACT_LIMIT = 0.08
ANGLE_LIMIT = 0.7  # rad

# Guesses, as in classical force fields: a single C-C bond has 2.6e5 kJ/mol/nm^2, and a bond that
# is shorter than the covalent radii say is stiffer by the fifth power.
BOND_CONSTANT = 2.6e5
BOND_CONSTANTS_OF_HYDROGEN = {6: 2.9e5, 7: 3.6e5, 8: 4.6e5, 16: 2.3e5}  # to C, N, O, S
ANGLE_CONSTANT, ANGLE_CONSTANT_WITH_HYDROGEN = 580.0, 420.0  # kJ/mol/rad^2


def auto_draft(
    graph: MolecularGraph,
    positions: Array,
    box: Array | None = None,
    most_parameters: int = MOST_PARAMETERS,
) -> tuple[ValenceTerms, Array]:
    """Terms of a valence force field, and guesses of its parameters (P,).

    Reference values of bonds and angles are means over equivalent ones at ``positions`` (N, 3) in
    nm, where a bond that is broken counts with the sum of the covalent radii; those of torsions are
    zero.
    """
    coordinates, products = _products(graph)
    for depth in range(WIDEST_SURROUNDINGS, -1, -1):
        colours = graph.colours(depth)
        classes, count = _classes(products, coordinates, colours)
        if count <= most_parameters:
            break
    kinds = np.array([kind for kind, _ in coordinates], dtype=np.int32)
    atoms = np.array([_padded(each, 4, 0) for _, each in coordinates], dtype=np.int32)
    terms = ValenceTerms(
        particles=len(graph.elements),
        kinds=kinds,
        atoms=atoms.reshape(-1, 4),
        references=np.zeros(len(coordinates)),
        limits=np.full(len(coordinates), np.inf),
        factors=np.array(
            [_padded(product, MOST_FACTORS, -1) for product in products], dtype=np.int32
        ).reshape(-1, MOST_FACTORS),
        classes=np.array(classes, dtype=np.int32),
    )
    references, _ = terms.coordinates(positions, box)
    radii = covalent_radii(graph.elements)
    contacts = set(map(tuple, graph.contacts.tolist()))
    is_contact = np.array([each in contacts for _, each in coordinates], dtype=bool)
    sums_of_radii = radii[terms.atoms[:, :2]].sum(axis=1)
    is_broken = (kinds == DISTANCE) & ~is_contact & (references > BOND_TOLERANCE * sums_of_radii)
    references = np.where(is_broken & (sums_of_radii > 0), sums_of_radii, references)
    alike, _ = _classes([(q,) for q in range(len(coordinates))], coordinates, colours)
    sums = np.bincount(alike, references)
    means = (sums / np.bincount(alike))[alike] if len(alike) else references
    references = np.where(kinds == TORSION, 0.0, means)
    limits = np.select(
        [is_contact, kinds == DISTANCE, kinds == ANGLE],
        [CONTACT_LIMIT, BOND_LIMIT, ANGLE_LIMIT],
        np.inf,
    )
    terms = dataclasses.replace(terms, references=references, limits=limits)
    return terms, _guesses(graph, terms, products, is_contact)


def _products(graph: MolecularGraph) -> tuple[list[Coordinate], list[tuple[int, ...]]]:
    """The coordinates, and which of them (by index) are multiplied in each term."""
    numbers: dict[Coordinate, int] = {}

    def number(kind: int, *atoms: int) -> int:
        return numbers.setdefault((kind, min(atoms, atoms[::-1])), len(numbers))

    products = []
    for i, j in [*graph.bonds.tolist(), *graph.contacts.tolist()]:
        bond = number(DISTANCE, i, j)
        products += [(bond,) * power for power in (1, 2, 3)]
    for j, around in enumerate(graph.neighbours):
        bonds = [number(DISTANCE, i, j) for i in around]
        angles = [number(ANGLE, i, j, k) for i, k in itertools.combinations(around, 2)]
        products += [(each,) * power for each in angles for power in (1, 2)]
        products += itertools.combinations(bonds + angles, 2)
    for j, k in graph.bonds.tolist():
        for i, m in itertools.product(graph.neighbours[j], graph.neighbours[k]):
            if i != k and j != m and i != m:
                torsion = number(TORSION, i, j, k, m)
                angles = [number(ANGLE, i, j, k), number(ANGLE, j, k, m)]
                products += [(torsion,), *((torsion, angle) for angle in angles)]
    return list(numbers), products


def _classes(
    products: Sequence[tuple[int, ...]], coordinates: Sequence[Coordinate], colours: Sequence[int]
) -> tuple[list[int], int]:
    """A number for each product, the same for equivalent ones; and how many numbers there are."""
    numbers: dict[tuple, int] = {}
    classes = [
        numbers.setdefault(_key([coordinates[q] for q in product], colours), len(numbers))
        for product in products
    ]
    return classes, len(numbers)


def _key(coordinates: Sequence[Coordinate], colours: Sequence[int]) -> tuple:
    """The smallest of the names that a product of coordinates can be given.

    A name says for each coordinate which atoms it takes, numbered as they come, and their colours.
    Coordinates may come in any order, and each be read from either end.
    """
    names = []
    for order in set(itertools.permutations(coordinates)):
        for reverse in itertools.product((1, -1), repeat=len(order)):
            seen: dict[int, int] = {}
            name = tuple(
                (kind, *(seen.setdefault(atom, len(seen)) for atom in atoms[::direction]))
                for (kind, atoms), direction in zip(order, reverse, strict=True)
            )
            names.append((name, tuple(colours[atom] for atom in seen)))
    return min(names)


def _guesses(
    graph: MolecularGraph,
    terms: ValenceTerms,
    products: Sequence[tuple[int, ...]],
    is_contact: NDArray[np.bool_],
) -> Array:
    """Only squares have any; nothing is known about contacts."""
    guesses = np.zeros(terms.parameters)
    for product, parameter in zip(products, terms.classes, strict=True):
        if len(product) == 2 and product[0] == product[1] and not is_contact[product[0]]:
            q = product[0]
            elements = graph.elements[terms.atoms[q, : ATOMS_OF_KIND[terms.kinds[q]]]].tolist()
            if terms.kinds[q] == DISTANCE:
                constant = _bond_constant(elements, terms.references[q])
            else:
                constant = ANGLE_CONSTANT_WITH_HYDROGEN if 1 in elements else ANGLE_CONSTANT
            guesses[parameter] = 0.5 * constant
    return guesses


def _bond_constant(elements: Sequence[int], length: float) -> float:
    if 1 in elements:
        return BOND_CONSTANTS_OF_HYDROGEN.get(max(elements), BOND_CONSTANT)
    radii = covalent_radii(np.array(elements)).sum()
    return BOND_CONSTANT * float(np.clip(radii / length, 0.5, 1.5)) ** 5


def _padded(values: Sequence[int], length: int, filling: int) -> list[int]:
    return [*values, *[filling] * (length - len(values))]
