"""Bonds, angles and dihedral angles of a Topology, and their values by MDTraj.

MDTraj computes in single precision. That blunts a test a little where angles are nearly 180 degrees
(they come in steps of some 3e-4), and never sharpens it: both samples are read the same way.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from openmm import app, unit

from ..case import Array

if TYPE_CHECKING:
    import mdtraj

Indices = NDArray[np.int64]


def bond_pairs(topology: app.Topology) -> Indices:
    """(n, 2), in the order of the Topology."""
    bonds = [(bond[0].index, bond[1].index) for bond in topology.bonds()]
    return np.array(bonds, dtype=np.int64).reshape(-1, 2)


def angle_triples(bonds: Indices) -> Indices:
    """(n, 3): every two bonds of an atom, which is in the middle."""
    triples = []
    for (i, j), (k, m) in itertools.combinations(bonds.tolist(), 2):
        shared = {i, j} & {k, m}
        if len(shared) == 1:
            (middle,) = shared
            ends = ({i, j} | {k, m}) - shared
            triples.append((min(ends), middle, max(ends)))
    return np.array(triples, dtype=np.int64).reshape(-1, 3)


def dihedral_quadruples(topology: app.Topology) -> tuple[Indices, list[str]]:
    """One dihedral for every bond that can turn: (n, 4) indices and names such as 'N-CA-C-O'."""
    neighbours: dict[int, list[int]] = {}
    atoms = list(topology.atoms())
    bonds = bond_pairs(topology).tolist()
    for i, j in bonds:
        neighbours.setdefault(i, []).append(j)
        neighbours.setdefault(j, []).append(i)

    def mass(index: int) -> float:
        element = atoms[index].element
        return 0.0 if element is None else element.mass.value_in_unit(unit.dalton)

    def rank(index: int) -> tuple[bool, float, float, int]:
        """The chain goes on before it ends, along heavy atoms: phi is C-N-CA-C, psi N-CA-C-N."""
        around = neighbours[index]
        return len(around) > 1, mass(index), sum(map(mass, around)), -index

    quadruples, names = [], []
    for j, k in bonds:
        ends = [[i for i in neighbours[middle] if i != other] for middle, other in ((j, k), (k, j))]
        if all(ends):
            quadruple = (max(ends[0], key=rank), j, k, max(ends[1], key=rank))
            quadruples.append(quadruple)
            names.append("-".join(atoms[index].name for index in quadruple))
    return np.array(quadruples, dtype=np.int64).reshape(-1, 4), names


def bond_lengths(positions: Array, pairs: Indices) -> Array:
    """(T, n) in nm, of positions (T, N, 3) in nm; not to the nearest image, as all here."""
    import mdtraj

    lengths = mdtraj.compute_distances(_trajectory(positions), pairs, periodic=False)
    return lengths.astype(np.float64)


def bond_angles(positions: Array, triples: Indices) -> Array:
    """(T, n) in radians from 0 to pi."""
    import mdtraj

    angles = mdtraj.compute_angles(_trajectory(positions), triples, periodic=False)
    return angles.astype(np.float64)


def dihedral_angles(positions: Array, quadruples: Indices) -> Array:
    """(T, n) in radians from -pi to pi, by the convention of IUPAC."""
    import mdtraj

    angles = mdtraj.compute_dihedrals(_trajectory(positions), quadruples, periodic=False)
    return angles.astype(np.float64)


def _trajectory(positions: Array) -> mdtraj.Trajectory:
    """About the centre of every frame: far from the origin single precision would not do."""
    import mdtraj

    return mdtraj.Trajectory(positions - positions.mean(axis=1, keepdims=True), None)


def wrapped(angles: Array) -> Array:
    """From -pi to pi."""
    return (angles + np.pi) % (2.0 * np.pi) - np.pi
