"""Atoms by a selection in MDTraj's language."""

from __future__ import annotations

from openmm import app


def select_atoms(topology: app.Topology, selection: str) -> list[int]:
    """Indices of the atoms that a selection in MDTraj's language names.

    Raises
    ------
    ValueError
        If it cannot be understood, or names no atom.
    """
    import mdtraj

    try:
        found = mdtraj.Topology.from_openmm(topology).select(selection)
    except Exception as error:  # whatever its parser may raise
        raise ValueError(f"the selection {selection!r} cannot be understood: {error}") from error
    if not len(found):
        raise ValueError(f"the selection {selection!r} names none of the atoms")
    return found.tolist()
