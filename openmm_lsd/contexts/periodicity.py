"""Whether a run is periodic: one rule for the library and for the command line.

Forces know it: a System that has some is periodic if one of them uses periodic boundary conditions,
as in plain OpenMM. A System without forces says nothing, since OpenMM gives a default box to every
System. Then what the user gave decides: a box of the System or of its Context, the Topology's box,
the draft. Where two of these contradict each other it is an error.
"""

from __future__ import annotations

import logging

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit

from .checks import default_box, has_forces

Array = NDArray[np.float64]

logger = logging.getLogger(__name__)

OPENMM_BOX = default_box(openmm.System())  # (3, 3) nm, of a System that was given none
NO_CRYSTAL = 0.1 * np.eye(3)  # nm; by convention, that of a PDB file which is of no crystal
SAME_BOX = 1e-4  # nm: a PDB file holds thousandths of an angstrom
MODEL_FORCES = ("TorchForce", "PythonForce")  # periodic or not as their author says


def is_same_box(a: Array, b: Array) -> bool:
    """Whether two boxes (3, 3) in nm are the same within what files hold."""
    return np.allclose(a, b, rtol=1e-5, atol=SAME_BOX)


def topology_box(topology: app.Topology | None) -> Array | None:
    """Box (3, 3) in nm of a Topology; None if there is none.

    A cube of 1 angstrom is none: PDB files of what is no crystal have it by convention.
    """
    vectors = None if topology is None else topology.getPeriodicBoxVectors()
    if vectors is None:
        return None
    # A Quantity of vectors, or vectors that are Quantities, as System has them.
    box = np.array([vector.value_in_unit(unit.nanometer) for vector in vectors])
    return None if is_same_box(box, NO_CRYSTAL) else box


def box_of(particles: openmm.System | app.Topology) -> Array | None:
    """Box (3, 3) in nm of what is periodic; None of what is not.

    A System with forces is periodic if they are. One without is if it was given a box, which is
    then another than OpenMM's default, a cube of 2 nm.
    """
    if not isinstance(particles, openmm.System):
        return topology_box(particles)
    box = default_box(particles)
    if has_forces(particles):
        return box if particles.usesPeriodicBoundaryConditions() else None
    return None if is_same_box(box, OPENMM_BOX) else box


def box_in_words(box: Array) -> str:
    """Edges in nm of a rectangular box, or else the three vectors."""
    if np.allclose(box, np.diag(np.diag(box)), rtol=0, atol=1e-6):
        return " x ".join(f"{edge:.6g}" for edge in np.diag(box)) + " nm"
    return ", ".join("(" + " ".join(f"{x:.6g}" for x in row) + ")" for row in box) + " nm"


def is_periodic(
    target: openmm.System,
    box: Array,
    draft: openmm.System | None = None,
    topology: app.Topology | None = None,
) -> bool:
    """Whether the target is evaluated in the periodic box of its Context.

    Parameters
    ----------
    target : openmm.System
    box : (3, 3) nm
        Of the Context.
    draft : openmm.System, optional
    topology : openmm.app.Topology, optional

    Raises
    ------
    ValueError
        If the target has no forces, and what was given besides is contradictory.
    """
    in_topology = topology_box(topology)
    if has_forces(target):
        periodic = target.usesPeriodicBoundaryConditions()
        _warn(target, periodic, box, draft, in_topology)
        return periodic
    is_given = not is_same_box(box, OPENMM_BOX)
    own = "the target System, which has no forces, was given no periodic box"
    if is_given:
        own = f"the target System, which has no forces, has a periodic box of {box_in_words(box)}"
    is_own = is_same_box(box, default_box(target))  # else the Context's was set, or has changed
    if in_topology is not None and is_own and not is_same_box(in_topology, box):
        raise ValueError(
            f"{own}, and the Topology has one of {box_in_words(in_topology)}; give both the same "
            "(System.setDefaultPeriodicBoxVectors, before the Context is made), or for an isolated "
            "molecule none (Topology.setPeriodicBoxVectors(None))"
        )
    is_given |= in_topology is not None
    if draft is None or not has_forces(draft):
        return is_given
    if not is_given and draft.usesPeriodicBoundaryConditions():
        in_draft = default_box(draft)
        if not is_same_box(in_draft, box):
            raise ValueError(
                f"{own}, and the draft System is periodic, in a box of {box_in_words(in_draft)}; "
                "give the target System this box (setDefaultPeriodicBoxVectors), or build the "
                "draft without a periodic cutoff"
            )
        return True
    if is_given and _is_isolated(draft):
        raise ValueError(
            f"{own}, and the draft System's nonbonded forces are not periodic; build the draft "
            "with a periodic cutoff or PME, or for an isolated molecule give neither the target "
            "System nor the Topology a box"
        )
    return is_given


def _is_isolated(system: openmm.System) -> bool:
    """Whether nonbonded forces are computed without a box; bonds alone do not tell."""
    return not system.usesPeriodicBoundaryConditions() and any(
        "Nonbonded" in type(force).__name__ for force in system.getForces()
    )


def _warn(
    target: openmm.System,
    periodic: bool,
    box: Array,
    draft: openmm.System | None,
    in_topology: Array | None,
) -> None:
    """Of what plain OpenMM would run, but the user hardly means."""
    models = {type(force).__name__ for force in target.getForces()}.intersection(MODEL_FORCES)
    others = in_topology is not None or (
        draft is not None and draft.usesPeriodicBoundaryConditions()
    )
    if not periodic and models and others:
        where = "the draft System is periodic"
        if in_topology is not None:
            where = f"the Topology has a periodic box of {box_in_words(in_topology)}"
        logger.warning(
            "%s, and no force of the target System uses one: it is run as an isolated molecule; "
            "setUsesPeriodicBoundaryConditions(True) on its %s makes it periodic",
            where,
            " and ".join(sorted(models)),
        )
    if (
        periodic
        and in_topology is not None
        and is_same_box(box, OPENMM_BOX)
        and not is_same_box(box, in_topology)
    ):
        logger.warning(
            "the target System is periodic in OpenMM's default box of %s, which is what it gets if "
            "it is given none, and the Topology has one of %s; set it with "
            "System.setDefaultPeriodicBoxVectors or Context.setPeriodicBoxVectors",
            box_in_words(box),
            box_in_words(in_topology),
        )
