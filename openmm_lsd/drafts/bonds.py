"""Bonds that form while a molecule moves: proton transfer, reactions, crystals that melt."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .molgraph import NONMETALS, MolecularGraph, graph_of_positions, with_contacts

Array = NDArray[np.float64]

BETWEEN_LOOKS = 128  # steps; as many as there are atoms, if that is more


class BondMonitor:
    """The bonds of a molecule, to which those are added that form.

    None is taken away: the terms of a bond that is broken are bounded, and those of a proton that
    goes to and fro must be there on both sides.

    Parameters
    ----------
    graph : MolecularGraph
    positions : (N, 3) nm
        Pairs that are close enough for a bond here, but have none in ``graph``, never get one.
    box : (3, 3) nm, optional
    """

    def __init__(self, graph: MolecularGraph, positions: Array, box: Array | None) -> None:
        self._graph = self._graph_at_start = graph
        self._nonmetals = np.where(np.isin(graph.elements, NONMETALS), graph.elements, 0)
        self._ignored = self._close_pairs(positions, box)
        self.reset()

    def reset(self) -> None:
        """Forget the bonds that have formed."""
        self._take(self._graph_at_start)
        self._next_look = 0

    def _take(self, graph: MolecularGraph) -> None:
        self._graph = graph
        self._known = self._ignored.union(map(tuple, graph.bonds.tolist()))

    def snapshot(self) -> dict[str, Any]:
        """All that it knows, for ``restore``."""
        return {
            "bonds at start": self._graph_at_start.bonds,
            "bonds": self._graph.bonds,
            "ignored": np.array(sorted(self._ignored), dtype=int).reshape(-1, 2),
            "next look": self._next_look,
        }

    def restore(self, record: dict[str, Any]) -> None:
        """Go on as the one that the snapshot was taken of."""
        elements = self._graph.elements
        self._graph_at_start = MolecularGraph(elements, record["bonds at start"])
        self._ignored = set(map(tuple, record["ignored"].tolist()))
        self._take(MolecularGraph(elements, record["bonds"]))
        self._next_look = record["next look"]

    def update(self, step: int, positions: Array, box: Array | None) -> bool:
        """Whether there are bonds that are new; looks now and then only."""
        if step < self._next_look:
            return False
        self._next_look = step + max(BETWEEN_LOOKS, len(positions))
        formed = self._close_pairs(positions, box) - self._known
        if formed:
            bonds = formed.union(map(tuple, self._graph.bonds.tolist()))
            self._take(MolecularGraph(self._graph.elements, np.array(sorted(bonds))))
        return bool(formed)

    def graph_at(self, positions: Array, box: Array | None) -> MolecularGraph:
        """The bonds, and the contacts that there are at these positions."""
        return with_contacts(self._graph, positions, box)

    def _close_pairs(self, positions: Array, box: Array | None) -> set[tuple[int, int]]:
        return set(map(tuple, graph_of_positions(self._nonmetals, positions, box).bonds.tolist()))
