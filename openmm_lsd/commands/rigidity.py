"""What is rigid, as the command line says it: constraints, rigid water, heavy hydrogens."""

from __future__ import annotations

from typing import Any, NamedTuple

import openmm
from openmm import app, unit

from ..contexts.checks import virtual_sites
from ..contexts.constraints import constraints_of

CONSTRAINTS: dict[str, Any] = {
    "none": None,
    "h-bonds": app.HBonds,
    "all-bonds": app.AllBonds,
    "h-angles": app.HAngles,
}


class Rigidity(NamedTuple):
    """Of a target; None: as is usual for it.

    ``constraints`` is a key of CONSTRAINTS, ``rigid_water`` a bool, and ``hydrogen_mass`` in amu
    that of hydrogens whose heavy atom gives them mass.
    """

    constraints: str | None = None
    rigid_water: bool | None = None
    hydrogen_mass: float | None = None

    @property
    def given(self) -> list[str]:
        """Options of the command line that were given."""
        water = "--rigid-water" if self.rigid_water else "--no-rigid-water"
        names = ("--constraints", water, "--hydrogen-mass")
        return [name for name, value in zip(names, self, strict=True) if value is not None]

    @property
    def adds_constraints(self) -> bool:
        """Whether something was asked for that is rigid."""
        return self.constraints not in (None, "none") or bool(self.rigid_water)

    def of_force_field(self) -> dict[str, Any]:
        """Options of ``createSystem``, whose default is rigid water."""
        return {
            "constraints": CONSTRAINTS[self.constraints or "none"],
            "rigidWater": self.rigid_water is None or self.rigid_water,
        }

    def of_network(self) -> dict[str, Any]:
        """The same, where everything is flexible by default."""
        return {**self.of_force_field(), "rigidWater": bool(self.rigid_water)}


def repartition_masses(system: openmm.System, topology: app.Topology, hydrogen_mass: float) -> None:
    """Give hydrogens this mass (amu), and take it from the atoms that they are bound to.

    As OpenMM's ``createSystem(hydrogenMass=...)``: hydrogens of rigid water stay as they are.

    Raises
    ------
    ValueError
        If the Topology has no bonds to hydrogen, or a heavy atom would be left without mass.
    """
    rigid, sites, found = constraints_of(system), virtual_sites(system), False
    for bond in topology.bonds():
        heavy, hydrogen = sorted(bond, key=lambda atom: atom.element is app.element.hydrogen)
        if hydrogen.element is not app.element.hydrogen or heavy.element in (
            app.element.hydrogen,
            None,
        ):
            continue
        pair = min(heavy.index, hydrogen.index), max(heavy.index, hydrogen.index)
        if (hydrogen.residue.name == "HOH" and pair in rigid) or sites & set(pair):
            continue
        found = True
        transfer = hydrogen_mass * unit.dalton - system.getParticleMass(hydrogen.index)
        rest = system.getParticleMass(heavy.index) - transfer
        if not rest > 0 * unit.dalton:
            raise ValueError(
                f"with hydrogens of {hydrogen_mass:g} amu nothing is left of the mass of atom "
                f"{heavy.index} ({heavy.name})"
            )
        system.setParticleMass(hydrogen.index, hydrogen_mass)
        system.setParticleMass(heavy.index, rest)
    if not found:
        raise ValueError(
            "--hydrogen-mass: the topology has no bonds to hydrogen, except perhaps those of rigid "
            "water"
        )


def constraints_in_words(system: openmm.System, topology: app.Topology) -> str:
    """Such as '2259 constraints: 749 rigid waters and 12 others'."""
    pairs = set(constraints_of(system))
    if not pairs:
        return "no constraints"
    in_waters, waters = 0, 0
    for residue in topology.residues():
        own = {atom.index for atom in residue.atoms()}
        if len(own) < 3 or len(own) > 5 or residue.name not in ("HOH", "WAT"):
            continue
        count = sum((min(i, j), max(i, j)) in pairs for i in own for j in own if i < j)
        if count == 3:
            in_waters, waters = in_waters + 3, waters + 1
    parts = [f"{waters} rigid waters"] * bool(waters)
    parts += [f"{len(pairs) - in_waters} others"] * bool(waters and len(pairs) > in_waters)
    words = f": {' and '.join(parts)}" if parts else ""
    return f"{len(pairs)} constraints{words}"
