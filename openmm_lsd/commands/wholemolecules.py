"""Frames of a trajectory in which no molecule is torn by the periodic box."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit

from ..contexts.periodicity import topology_box
from ..drafts.molgraph import (
    MolecularGraph,
    differences,
    graph_of_topology,
    molecules_of,
    with_contacts,
    with_missing_bonds,
)
from .case import Array

Indices = NDArray[np.int64]


class Frame(NamedTuple):
    """What DCDReporter asks a State for."""

    positions: Array
    box: unit.Quantity

    def getPositions(self, asNumpy: bool = True) -> unit.Quantity:  # noqa: N802, N803
        """(N, 3)."""
        return unit.Quantity(self.positions, unit.nanometer)

    def getPeriodicBoxVectors(self) -> unit.Quantity:  # noqa: N802
        """Of the Context."""
        return self.box


class WholeMolecules:
    """Brings molecules into the periodic box without tearing them, as viewers want to have them.

    OpenMM does this by the bonds of its forces, and the forces of a network have none.

    Parameters
    ----------
    topology : openmm.app.Topology
        With a box if there is one; bonds that it does not have are found by distance.
    positions : Quantity, (N, 3)
        Of a sound structure.
    """

    def __init__(self, topology: app.Topology, positions: unit.Quantity) -> None:
        box = topology_box(topology)
        self.periodic = box is not None
        self._levels: list[tuple[Indices, Indices]] = []
        self._molecules = np.zeros(topology.getNumAtoms(), dtype=int)
        if box is None:
            return
        sites = np.array(positions.value_in_unit(unit.nanometer), dtype=np.float64)
        graph = with_missing_bonds(_with_extra_particles(topology), sites, box)
        graph = with_contacts(graph, sites, box)  # metals and salts are no molecules
        self._find_molecules(graph)
        # What is bonded to its own image (a crystal of silicon) cannot be whole.
        whole = self._joined(sites, box)
        bonds = whole[graph.bonds[:, 1]] - whole[graph.bonds[:, 0]]
        across = np.abs(bonds - differences(whole, graph.bonds, box)).max(axis=1) > 1e-6
        if across.any():
            endless = np.isin(self._molecules, self._molecules[graph.bonds[across, 0]])
            kept = graph.bonds[~endless[graph.bonds[:, 0]]]
            self._find_molecules(MolecularGraph(graph.elements, kept))

    def _find_molecules(self, graph: MolecularGraph) -> None:
        roots = []
        for index, members in enumerate(molecules_of(graph)):
            self._molecules[members] = index
            roots.append(int(members[0]))
        self._levels = _levels_of(graph, roots)

    def _joined(self, positions: Array, box: Array) -> Array:
        """Each atom at its image that is nearest to the atom it is bonded to."""
        positions = positions.copy()
        for parents, children in self._levels:
            bonds = differences(positions, np.stack([parents, children], axis=1), box)
            positions[children] = positions[parents] + bonds
        return positions

    def frame(self, state: openmm.State) -> Frame:
        """The positions of a State that OpenMM has not wrapped; as they are without a box."""
        positions = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
        box = state.getPeriodicBoxVectors()
        if not self.periodic:
            return Frame(positions, box)
        vectors = np.array(box.value_in_unit(unit.nanometer))
        positions = self._joined(positions, vectors)
        counts = np.bincount(self._molecules)
        centres = np.stack(
            [np.bincount(self._molecules, column) / counts for column in positions.T], axis=1
        )
        cells = np.zeros_like(centres)
        for axis in (2, 1, 0):
            cells[:, axis] = np.floor(centres[:, axis] / vectors[axis, axis])
            centres -= cells[:, axis, None] * vectors[axis]
        return Frame(positions - (cells @ vectors)[self._molecules], box)


def _with_extra_particles(topology: app.Topology) -> MolecularGraph:
    """The graph of a Topology in which virtual sites are bonded to an atom of their residue."""
    graph = graph_of_topology(topology)
    bonds = []
    for residue in topology.residues():
        atoms = list(residue.atoms())
        first = next((atom for atom in atoms if atom.element is not None), None)
        if first is not None:
            bonds += [(first.index, atom.index) for atom in atoms if atom.element is None]
    pairs = np.sort(np.array(bonds, dtype=int).reshape(-1, 2), axis=1)
    everything = np.concatenate([graph.bonds, pairs])
    return MolecularGraph(graph.elements, np.unique(everything, axis=0).reshape(-1, 2))


def _levels_of(graph: MolecularGraph, roots: list[int]) -> list[tuple[Indices, Indices]]:
    """Bonds of a tree in every molecule, by their distance from its root: parents, children."""
    seen = np.zeros(len(graph.elements), dtype=bool)
    seen[roots] = True
    levels = []
    while roots:
        pairs = []
        for parent in roots:
            for child in graph.neighbours[parent]:
                if not seen[child]:
                    seen[child] = True
                    pairs.append((parent, child))
        roots = [child for _, child in pairs]
        if pairs:
            parents, children = np.array(pairs).T
            levels.append((parents, children))
    return levels
