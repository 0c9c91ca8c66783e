"""A target of some of the atoms, in an environment that a force field describes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import openmm
from openmm import app, unit

from ..contexts.subsets import reduce_topology
from ..core.errors import last_line
from ..selections import select_atoms
from ..systems import with_target, with_torch_force
from ..targets.ofsubset import arguments_of_module
from .forms import FORMS, Form


class MLAtoms(NamedTuple):
    """What ``--ml-atoms`` and ``--environment`` say."""

    selection: str  #: in MDTraj's language
    environment: Sequence[str]  #: names of a force field, as of a draft


def embed_target(
    spec: str,
    system: openmm.System,
    topology: app.Topology,
    selection: str,
    needs_energies: bool = True,
    positions: unit.Quantity | None = None,
) -> openmm.System:
    """The System with a target in the place of what acts between some of its atoms.

    Parameters
    ----------
    spec : str
        As of ``target_system``, but no force field.
    system : openmm.System
        Of everything.
    needs_energies : bool
        See ``systems.with_target``.
    positions : Quantity, (N, 3), optional
        Of everything; where they are given, a file with a model is tried there first.

    Raises
    ------
    ValueError
        If the target is of no known form, or is none of these atoms.
    """
    atoms = select_atoms(topology, selection)
    if spec.endswith((".pt", ".pth")) and Path(spec).is_file():
        if positions is not None:
            _try_model(spec, system, atoms, positions)
        return with_torch_force(system, spec, atoms=atoms)
    kind, _, rest = spec.partition(":")
    if kind not in FORMS:
        raise ValueError(
            f"--ml-atoms: the target must be a model of the atoms, not {spec!r}; use model.pt, "
            + ", ".join(form.usage for form in FORMS.values())
        )
    return _embed(FORMS[kind], rest, system, topology, atoms, needs_energies)


def _try_model(
    spec: str, system: openmm.System, atoms: list[int], positions: unit.Quantity
) -> None:
    """Once, before the pairs of atoms are excluded one by one, of which there may be millions."""
    alone = openmm.System()
    for atom in atoms:
        alone.addParticle(system.getParticleMass(atom))
    takes_box, _ = arguments_of_module(spec)
    if takes_box and system.usesPeriodicBoundaryConditions():
        alone.setDefaultPeriodicBoxVectors(*system.getDefaultPeriodicBoxVectors())
    alone = with_torch_force(alone, spec)
    platform = openmm.Platform.getPlatform("Reference")
    context = openmm.Context(alone, openmm.VerletIntegrator(0.001), platform)
    context.setPositions([positions[atom] for atom in atoms])
    try:
        context.getState(energy=True)
    except openmm.OpenMMException as error:
        raise ValueError(
            f"{spec} does not take the {len(atoms)} atoms of --ml-atoms: {last_line(error)}"
        ) from None


def _embed(
    form: Form,
    rest: str,
    system: openmm.System,
    topology: app.Topology,
    atoms: list[int],
    needs_energies: bool,
) -> openmm.System:
    if form.prefix == "openmmml":
        from openmmml import MLPotential

        return MLPotential(rest).createMixedSystem(topology, system, atoms)
    made = form.build(rest, reduce_topology(topology, np.array(atoms)))
    assert not isinstance(made, openmm.System)
    return with_target(system, made, atoms=atoms, needs_energies=needs_energies)
