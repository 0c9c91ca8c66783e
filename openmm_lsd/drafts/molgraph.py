"""Which atoms are bonded, and which of them are alike."""

from __future__ import annotations

import dataclasses
import itertools
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from openmm import app, unit

Array = NDArray[np.float64]
Pairs = NDArray[np.int64]

# Covalent radii in pm of the elements from hydrogen to curium: Cordero et al., Dalton Trans. 2832
# (2008); sp3 carbon, high-spin manganese, iron and cobalt.
COVALENT_RADII = np.array(
    [
        *(31, 28, 128, 96, 84, 76, 71, 66, 57, 58, 166, 141, 121, 111, 107, 105, 102, 106, 203),
        *(176, 170, 160, 153, 139, 161, 152, 150, 124, 132, 122, 122, 120, 119, 120, 120, 116),
        *(220, 195, 190, 175, 164, 154, 147, 146, 142, 139, 145, 144, 142, 139, 139, 138, 139),
        *(140, 244, 215, 207, 204, 203, 201, 199, 198, 198, 196, 194, 192, 192, 189, 190, 187),
        *(187, 175, 170, 162, 151, 144, 141, 136, 136, 132, 145, 146, 148, 140, 150, 150, 260),
        *(221, 215, 206, 200, 196, 190, 187, 180, 169),
    ]
)
BOND_TOLERANCE = 1.25  # times the sum of the radii
MOST_BONDS = 6  # atoms that seem to have more are in a metal or a salt
CONTACT_TOLERANCE = 1.3  # times the distance of the nearest atom
# Between the angles in which atoms of close-packed and cubic lattices see two of their neighbours:
# 55 to 71, 90, 109 to 146 and 180 degrees.
BETWEEN_CORNERS = np.radians([80.0, 100.0, 160.0])
SQUARE_CORNER = 1  # its number among them
LONGEST_CONTACT = 0.6  # nm
ALKALI_METALS = (3, 11, 19, 37, 55, 87, 12, 20, 38, 56, 88)  # and alkaline earth metals but Be
NONMETALS = (1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 33, 34, 35, 52, 53)


@dataclasses.dataclass(frozen=True)
class MolecularGraph:
    """Atoms and their bonds.

    Parameters
    ----------
    elements : (N,) int
        Atomic numbers; 0 for particles that are no atoms.
    bonds : (B, 2) int
        Each once, the smaller index first.
    contacts : (C, 2) int
        Close pairs that are no bonds with a direction: of atoms in metals and salts, of single
        atoms.
    corners : (T, 4) int
        i, j, k of two contacts of an atom j, i before k, and which kind of angle lies between them,
        see BETWEEN_CORNERS.
    """

    elements: NDArray[np.int64]
    bonds: Pairs
    contacts: Pairs = dataclasses.field(default_factory=lambda: np.zeros((0, 2), dtype=int))
    corners: Pairs = dataclasses.field(default_factory=lambda: np.zeros((0, 4), dtype=int))

    @cached_property
    def neighbours(self) -> list[list[int]]:
        """Bonded atoms of each atom, in ascending order."""
        return neighbours_of(len(self.elements), self.bonds)

    @cached_property
    def kinds_of_corners(self) -> dict[tuple[int, ...], int]:
        """By i, j, k."""
        return {(i, j, k): kind for i, j, k, kind in self.corners.tolist()}

    def colours(self, depth: int) -> list[int]:
        """Numbers that are equal for atoms whose surroundings up to ``depth`` bonds look alike.

        Colour refinement (Weisfeiler and Lehman 1968): stops early where it changes nothing.
        """
        colours = self._numbered([(int(element),) for element in self.elements])
        for _ in range(depth):
            refined = self._numbered(
                [
                    (colours[i], *sorted(colours[j] for j in self.neighbours[i]))
                    for i in range(len(colours))
                ]
            )
            if max(refined, default=0) == max(colours, default=0):
                break
            colours = refined
        return colours

    @staticmethod
    def _numbered(keys: list[tuple[int, ...]]) -> list[int]:
        numbers = {key: number for number, key in enumerate(sorted(set(keys)))}
        return [numbers[key] for key in keys]


def neighbours_of(count: int, pairs: Pairs) -> list[list[int]]:
    """Of each of ``count`` atoms, in ascending order."""
    result: list[list[int]] = [[] for _ in range(count)]
    for i, j in pairs.tolist():
        result[i].append(j)
        result[j].append(i)
    return [sorted(each) for each in result]


def graph_of_topology(topology: app.Topology) -> MolecularGraph:
    """Elements and bonds as the Topology has them."""
    elements = [
        0 if atom.element is None else atom.element.atomic_number for atom in topology.atoms()
    ]
    bonds = {tuple(sorted((a.index, b.index))) for a, b in topology.bonds()}
    return MolecularGraph(np.array(elements), np.array(sorted(bonds), dtype=int).reshape(-1, 2))


def molecules_of(graph: MolecularGraph) -> list[NDArray[np.int64]]:
    """Indices of the atoms of each molecule, in ascending order."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count = len(graph.elements)
    ones = np.ones(len(graph.bonds))
    matrix = coo_matrix((ones, (graph.bonds[:, 0], graph.bonds[:, 1])), shape=(count, count))
    number, labels = connected_components(matrix, directed=False)
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.cumsum(np.bincount(labels, minlength=number))[:-1])


def covalent_radii(elements: NDArray[np.int64]) -> Array:
    """Radii (N,) in nm; 0 of particles that are no atoms. Beyond curium, that of curium."""
    rows = np.clip(elements, 1, len(COVALENT_RADII)) - 1
    return np.where(elements > 0, 1e-3 * COVALENT_RADII[rows], 0.0)


def graph_of_positions(
    elements: ArrayLike, positions: Array, box: Array | None = None
) -> MolecularGraph:
    """Bonds between atoms closer than 1.25 times the sum of their covalent radii.

    Parameters
    ----------
    elements : (N,) atomic numbers
    positions : (N, 3) nm
    box : (3, 3) nm, optional
    """
    numbers = np.asarray(elements)
    radii = covalent_radii(numbers)
    pairs = close_pairs(positions, 2 * BOND_TOLERANCE * radii.max(initial=0.0), box)
    lengths = np.linalg.norm(differences(positions, pairs, box), axis=1)
    bonded = lengths < BOND_TOLERANCE * radii[pairs].sum(axis=1)
    bonded &= (numbers[pairs] > 0).all(axis=1)
    return MolecularGraph(numbers, pairs[bonded])


def with_missing_bonds(
    graph: MolecularGraph, positions: Array, box: Array | None
) -> MolecularGraph:
    """The graph with bonds from distances for the atoms that have none.

    The Topology of a PDB file knows the bonds of standard residues only, if there are no CONECT
    records.
    """
    alone = np.bincount(graph.bonds.ravel(), minlength=len(graph.elements)) == 0
    if not alone.any():
        return graph
    found = graph_of_positions(graph.elements, positions, box).bonds
    bonds = np.concatenate([graph.bonds, found[alone[found].any(axis=1)]])
    return MolecularGraph(graph.elements, np.unique(bonds, axis=0).reshape(-1, 2))


def with_contacts(graph: MolecularGraph, positions: Array, box: Array | None) -> MolecularGraph:
    """The graph with contacts in the place of bonds that have no direction.

    Those of atoms with more than 6, and of alkali and alkaline earth metals. Atoms that then have
    neither bonds nor contacts get contacts to those around them that are hardly further away than
    the nearest.
    """
    number_of_bonds = np.bincount(graph.bonds.ravel(), minlength=len(graph.elements))
    undirected = (number_of_bonds > MOST_BONDS) | np.isin(graph.elements, ALKALI_METALS)
    moved = undirected[graph.bonds].any(axis=1)
    bonds, contacts = graph.bonds[~moved], graph.bonds[moved]
    alone = graph.elements > 0
    alone[np.concatenate([bonds, contacts]).ravel()] = False
    if alone.any() and len(alone) > 1:
        contacts = np.concatenate([contacts, _nearest_of(alone, positions, box)])
    contacts = np.unique(contacts, axis=0).reshape(-1, 2)
    return MolecularGraph(graph.elements, bonds, contacts, _corners(contacts, positions, box))


def _corners(contacts: Pairs, positions: Array, box: Array | None) -> Pairs:
    """See MolecularGraph."""
    atoms = [
        (i, j, k)
        for j, around in enumerate(neighbours_of(len(positions), contacts))
        for i, k in itertools.combinations(around, 2)
    ]
    triples = np.array(atoms, dtype=int).reshape(-1, 3)
    first, second = (differences(positions, triples[:, ends], box) for ends in ([1, 0], [1, 2]))
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosines = np.einsum("ij,ij->i", first, second) / lengths
    kinds = np.digitize(np.arccos(np.clip(cosines, -1.0, 1.0)), BETWEEN_CORNERS)
    return np.column_stack([triples, kinds])


def _nearest_of(chosen: NDArray[np.bool_], positions: Array, box: Array | None) -> Pairs:
    """Pairs of each chosen atom with those not much further away than its nearest."""
    cutoff = 0.3
    while True:
        pairs = close_pairs(positions, CONTACT_TOLERANCE * cutoff, box)
        lengths = np.linalg.norm(differences(positions, pairs, box), axis=1)
        nearest = np.full(len(positions), np.inf)
        np.minimum.at(nearest, pairs.ravel(), lengths.repeat(2))
        if nearest[chosen].max() <= cutoff or cutoff > LONGEST_CONTACT:
            break
        cutoff *= 1.5
    close = (lengths[:, None] <= CONTACT_TOLERANCE * nearest[pairs]) & chosen[pairs]
    return pairs[close.any(axis=1) & (lengths <= LONGEST_CONTACT)]


def elements_of_masses(masses: Array) -> NDArray[np.int64]:
    """Atomic number of the element nearest in mass; 0 for massless particles.

    Repartitioned masses (hydrogenMass) mislead this; then a Topology is needed.
    """
    known = [app.Element.getByAtomicNumber(n) for n in range(1, len(COVALENT_RADII) + 1)]
    table = np.array([element.mass.value_in_unit(unit.dalton) for element in known])
    nearest = 1 + np.abs(masses[:, None] - table).argmin(axis=1)
    return np.where(masses > 0, nearest, 0)


def differences(positions: Array, pairs: Pairs, box: Array | None) -> Array:
    """Vectors from the first to the second atom of each pair, to its nearest image."""
    vectors = positions[pairs[:, 1]] - positions[pairs[:, 0]]
    if box is not None:
        for row in (2, 1, 0):
            vectors -= box[row] * np.round(vectors[:, row, None] / box[row, row])
    return vectors


def pairs_within(positions: Array, cutoff: float, box: Array | None = None) -> tuple[Pairs, Array]:
    """``close_pairs``, and their distances (P,) in nm."""
    pairs = close_pairs(positions, cutoff, box)
    return pairs, np.linalg.norm(differences(positions, pairs, box), axis=1)


def close_pairs(positions: Array, cutoff: float, box: Array | None = None) -> Pairs:
    """Pairs (i < j) of atoms within ``cutoff`` nm."""
    if box is None:
        from scipy.spatial import KDTree  # takes a while to import

        pairs = KDTree(positions).query_pairs(cutoff, output_type="ndarray")
        return pairs[np.lexsort(pairs.T[::-1])].astype(int).reshape(-1, 2)
    import mdtraj  # takes a while to import

    frame = mdtraj.Trajectory(positions[None], None)
    frame.unitcell_vectors = box[None]
    lists = mdtraj.compute_neighborlist(frame, cutoff, periodic=True)
    pairs = [(i, int(j)) for i, close in enumerate(lists) for j in np.sort(close) if j > i]
    return np.array(pairs, dtype=int).reshape(-1, 2)
