"""A target of some of the atoms, in an environment that a force field describes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import openmm
from openmm import app, unit

from ..contexts.periodicity import box_of
from ..contexts.subsets import reduce_topology
from ..core.errors import last_line
from ..selections import select_atoms
from ..structures import NEUTRAL, totals_of
from ..systems import with_target, with_torch_force
from ..targets.ofsubset import arguments_of_module
from .forms import FORMS, Form, warn_of_charges

if TYPE_CHECKING:
    import ase


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
    species: ase.Atoms | None = None,
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
    species : ase.Atoms, optional
        Of everything, with charges and magnetic moments.

    Raises
    ------
    ValueError
        If the target is of no known form, or is none of these atoms; or the species says the charge
        or the spin of everything.
    """
    atoms = select_atoms(topology, selection)
    if spec.endswith((".pt", ".pth")) and Path(spec).is_file():
        if positions is not None:
            _try_model(spec, system, atoms, positions)
        warn_of_charges(species, spec)
        return with_torch_force(system, spec, atoms=atoms)
    kind, _, rest = spec.partition(":")
    if kind not in FORMS:
        raise ValueError(
            f"--ml-atoms: the target must be a model of the atoms, not {spec!r}; use model.pt, "
            + ", ".join(form.usage for form in FORMS.values())
        )
    own = None if species is None else _of_atoms(species, atoms)
    return _embed(FORMS[kind], rest, system, topology, atoms, needs_energies, own)


def _of_atoms(species: ase.Atoms, atoms: list[int]) -> ase.Atoms:
    said = [key for key, value in totals_of(species).items() if value not in NEUTRAL[key]]
    if said:
        raise ValueError(
            f"--ml-atoms: the {' and the '.join(said)} in the structure's file are those of "
            "everything; leave them out there, and say those of the atoms in the target's call"
        )
    return species[atoms]


def _try_model(
    spec: str, system: openmm.System, atoms: list[int], positions: unit.Quantity
) -> None:
    """Once, before the pairs of atoms are excluded one by one, of which there may be millions.

    In the precision of either kind of platform. What a CPU cannot do may be for a GPU.
    """
    import torch

    takes_box, _ = arguments_of_module(spec)
    box = box_of(system)
    if torch.cuda.is_available() or (takes_box and box is None):
        return
    own = [positions[atom].value_in_unit(unit.nanometer) for atom in atoms]
    module = torch.jit.load(spec, map_location="cpu")
    errors = []
    for dtype in (torch.float64, torch.float32):
        try:
            module(*(torch.tensor(np.array(x), dtype=dtype) for x in (own, box)[: 1 + takes_box]))
            return
        except Exception as error:  # whatever a module may raise
            errors.append(error)
    raise ValueError(
        f"{spec} does not take the {len(atoms)} atoms of --ml-atoms: {last_line(errors[0])}"
    )


def _embed(
    form: Form,
    rest: str,
    system: openmm.System,
    topology: app.Topology,
    atoms: list[int],
    needs_energies: bool,
    species: ase.Atoms | None,
) -> openmm.System:
    if form.prefix == "openmmml":
        from openmmml import MLPotential

        warn_of_charges(species, f"openmmml:{rest}")
        return MLPotential(rest).createMixedSystem(topology, system, atoms)
    made = form.build(rest, reduce_topology(topology, np.array(atoms)), species)
    assert not isinstance(made, openmm.System)
    return with_target(system, made, atoms=atoms, needs_energies=needs_energies)
