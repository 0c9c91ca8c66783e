"""Pairs of atoms within a cutoff in each of a batch of states, images of a box included."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .base import Array

Indices = NDArray[np.int64]

# States further apart than this are not searched for pairs together: what one search saves would be
# lost on pairs that are neighbours in none of them. Those of a window lie within 0.2 angstrom.
WIDEST_REACH = 0.5  # angstrom


class Pairs(NamedTuple):
    """Pairs of atoms; the vector from the first to the second is x[second] - x[first] + shift."""

    state: Indices  # (P,)
    first: Indices  # (P,)
    second: Indices  # (P,)
    image: Indices  # (P, 3): of the second atom, in box vectors
    shift: Array  # (P, 3), angstrom

    def once(self) -> Pairs:
        """Each pair in one of its two directions."""
        sign = np.zeros(len(self.image), dtype=np.int64)
        for column in self.image.T:
            sign = np.where(sign == 0, np.sign(column), sign)
        keep = (self.first < self.second) | ((self.first == self.second) & (sign > 0))
        return Pairs(*(part[keep] for part in self))


def find_pairs(positions: Array, cutoff: float, box: Array | None) -> tuple[Array, Pairs]:
    """All pairs of atoms closer than the cutoff, in both directions, in each of a batch of states.

    States that are near one another, as those of a window are, share one search: around one of
    them, with the cutoff widened by twice the farthest that an atom of the others is away. Its
    pairs are then measured in all of these states.

    Parameters
    ----------
    positions : (B, n, 3) angstrom
    cutoff : float
        angstrom
    box : (3, 3) angstrom or None

    Returns
    -------
    positions : (B, n, 3) angstrom
        Atoms moved by whole box vectors to lie in or near the box.
    pairs : Pairs
        They belong to the returned positions.
    """
    positions = positions.copy()
    found: list[Pairs] = []
    left = np.arange(len(positions))
    while len(left):
        reference = positions[left[0]].copy()
        reach = np.linalg.norm(positions[left] - reference, axis=2).max(axis=1)
        together = reach <= WIDEST_REACH
        states, left = left[together], left[~together]
        if box is not None:
            wrapped = np.floor(reference @ np.linalg.inv(box)) @ box
            reference = reference - wrapped
            positions[states] -= wrapped
        first, second, image = _pairs_of_one(reference, cutoff + 2 * reach[together].max(), box)
        shift = np.zeros((len(first), 3)) if box is None else image @ box
        x = positions[states]
        distances = np.linalg.norm(x[:, second] - x[:, first] + shift, axis=2)
        row, pair = np.nonzero(distances < cutoff)
        found.append(Pairs(states[row], first[pair], second[pair], image[pair], shift[pair]))
    return positions, Pairs(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def _pairs_of_one(
    positions: Array, reach: float, box: Array | None
) -> tuple[Indices, Indices, Indices]:
    """First atoms, second atoms and their images of all pairs in one state.

    The images of the atoms within ``reach`` of the box are laid out around it and found by a tree.
    """
    from scipy.spatial import cKDTree

    count = len(positions)
    atoms, images = np.arange(count), np.zeros((count, 3), dtype=np.int64)
    copies = positions
    if box is not None:
        # Where an atom may lie, in fractions of the box vectors, to be within reach of the box.
        margin = reach * np.linalg.norm(np.linalg.inv(box), axis=0)
        most = np.ceil(margin).astype(np.int64)
        around = np.stack(
            np.meshgrid(*(np.arange(-m, m + 1) for m in most), indexing="ij"), axis=-1
        ).reshape(-1, 3)
        fractions = (positions @ np.linalg.inv(box))[None] + around[:, None]
        near = ((fractions >= -margin) & (fractions <= 1 + margin)).all(axis=2)
        which, atoms = np.nonzero(near)
        images = around[which]
        copies = positions[atoms] + images @ box
    centres, others = cKDTree(positions), cKDTree(copies)
    pairs = centres.sparse_distance_matrix(others, reach, output_type="ndarray")
    first, copy = pairs["i"].astype(np.int64), pairs["j"].astype(np.int64)
    itself = (atoms[copy] == first) & (images[copy] == 0).all(axis=1)
    first, copy = first[~itself], copy[~itself]
    order = np.lexsort((copy, first))
    return first[order], atoms[copy[order]], images[copy[order]]
