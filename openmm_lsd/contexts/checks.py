"""What the Systems of target and draft must be; every error says what to change."""

from __future__ import annotations

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import unit

from .._native import class_of_force
from ..core.schemes import Middle
from .constraints import constraints_of

SAME_MASS = 0.01  # amu
# Of the shorter of two: steps keep the target's constraints, and those of another force field
# (TIP3P for AMOEBA water) are a bit longer or shorter.
SAME_LENGTH = 0.1
KNOWN_PLUGINS = ("TorchForce",)


def masses_of(system: openmm.System) -> NDArray[np.float64]:
    """Masses (N,) in amu."""
    return np.array(
        [
            system.getParticleMass(i).value_in_unit(unit.dalton)
            for i in range(system.getNumParticles())
        ]
    )


def default_box(system: openmm.System) -> NDArray[np.float64]:
    """Periodic box vectors (3, 3) in nm that the System was given, or OpenMM's default."""
    vectors = system.getDefaultPeriodicBoxVectors()
    return np.array([vector.value_in_unit(unit.nanometer) for vector in vectors])


def has_forces(system: openmm.System) -> bool:
    """Whether anything acts on the particles."""
    return any(not changes_state(force) for force in system.getForces())


def barostat_frequency(system: openmm.System) -> int | None:
    """Steps between the moves of the barostats; None if there are no moves."""
    forces = (force for force in system.getForces() if "Barostat" in type(force).__name__)
    return min((f.getFrequency() for f in forces if f.getFrequency() > 0), default=None)


def cm_removal_frequency(system: openmm.System) -> int:
    """Steps between removals of the motion of the centre of mass; 0 if there are none."""
    frequencies = {
        force.getFrequency()
        for force in system.getForces()
        if isinstance(force, openmm.CMMotionRemover)
    }
    if len(frequencies) > 1:
        raise ValueError(
            "the target System has CMMotionRemovers of different frequencies, "
            f"{sorted(frequencies)}; keep one of them"
        )
    return frequencies.pop() if frequencies else 0


_trusted: set[str] = set()


def trust_force(name: str) -> None:
    """Allow a class of Force that openmm_lsd does not know.

    Its energy must be a function of positions, box, global parameters, time and step count alone.
    One that remembers where it was evaluated (PLUMED's metadynamics), or that changes the state
    during a step, would silently spoil the dynamics, because LSD evaluates forces at positions that
    are never visited.

    Parameters
    ----------
    name : str
        Of the class, without namespaces, for example 'DeepmdForce'.
    """
    _trusted.add(name)


def changes_state(force: openmm.Force) -> bool:
    """Whether a Force is none, but changes velocities, positions or the box during a step."""
    return class_changes_state(type(force).__name__)


def class_changes_state(name: str) -> bool:
    """The same, of the name of a class."""
    return "Barostat" in name or name in ("CMMotionRemover", "AndersenThermostat")


def virtual_sites(system: openmm.System) -> set[int]:
    """Indices of the particles that are virtual sites."""
    return {i for i in range(system.getNumParticles()) if system.isVirtualSite(i)}


def _check_force(force: openmm.Force, role: str) -> None:
    name = type(force).__name__
    if isinstance(force, openmm.AndersenThermostat):
        raise ValueError(
            f"the {role} System has an AndersenThermostat; remove it, LSDIntegrator is a "
            "thermostat itself"
        )
    if isinstance(force, openmm.DrudeForce):
        raise ValueError(
            f"the {role} System has Drude particles, whose cold oscillators need an integrator of "
            "their own; use openmm.DrudeLangevinIntegrator"
        )
    if role == "draft" and "Barostat" in name:
        raise ValueError(
            f"the draft System has a {name}; remove it, the barostat belongs to the target System"
        )
    if name == "Force" or not type(force).__module__.startswith("openmm."):
        kind = class_of_force(int(force.this)).split("::")[-1]
        if kind not in (*KNOWN_PLUGINS, *_trusted):
            raise ValueError(
                f"the {role} System has a {kind}, a Force that openmm_lsd does not know; if it is "
                "a function of positions, box, parameters and time alone, say so with "
                f"openmm_lsd.trust_force({kind!r})"
            )


def check_system(system: openmm.System, role: str) -> None:
    """Raise ValueError if a System holds what LSD cannot do; ``role``: 'target' or 'draft'."""
    masses = masses_of(system)
    if not (masses >= 0).all():  # a hydrogenMass that is too large
        first = int(np.argmax(~(masses >= 0)))
        raise ValueError(
            f"particle {first} of the {role} System has a mass of {masses[first]:g} amu; is "
            "hydrogenMass too large?"
        )
    for force in system.getForces():
        _check_force(force, role)


def check_scheme(system: openmm.System, scheme: str) -> None:
    """Raise ValueError if a scheme cannot keep the constraints of a System."""
    count = system.getNumConstraints()
    if count and scheme != Middle.name:
        raise ValueError(
            f"the target System has {count} constraints, which scheme={scheme!r} does not support; "
            f"use scheme={Middle.name!r}"
        )


def different_masses(masses: NDArray[np.float64], others: NDArray[np.float64]) -> list[int]:
    """Indices of the particles whose masses (N,) in amu differ.

    Force fields round those of the elements differently (15.999, 15.99943); what this must find is
    hydrogenMass or fixed atoms in one of the two.
    """
    differ = (np.abs(masses - others) > SAME_MASS) | ((masses == 0) != (others == 0))
    return np.flatnonzero(differ).tolist()


def _check_constraints(target: openmm.System, draft: openmm.System) -> None:
    lengths, draft_lengths = constraints_of(target), constraints_of(draft)
    different = sorted(
        pair
        for pair in lengths.keys() | draft_lengths.keys()
        if not _are_alike(lengths.get(pair), draft_lengths.get(pair))
    )
    if not different:
        return
    first = different[0]
    own, drafts = (
        f"{each[first]:.4g} nm" if first in each else "none" for each in (lengths, draft_lengths)
    )
    raise ValueError(
        f"the target and draft Systems have different constraints, {len(different)} in all; the "
        f"first is that between particles {first[0]} and {first[1]}: {own} in the target System, "
        f"{drafts} in the draft System; build both with the same constraints and rigidWater"
    )


def _are_alike(length: float | None, other: float | None) -> bool:
    if length is None or other is None:
        return False
    return abs(length - other) < SAME_LENGTH * min(length, other)


def check_pair(target: openmm.System, draft: openmm.System) -> None:
    """Raise ValueError unless draft and target hold the same particles and constraints."""
    count, draft_count = target.getNumParticles(), draft.getNumParticles()
    if count != draft_count:
        raise ValueError(
            f"the target System has {count} particles and the draft System {draft_count}; build "
            "both from the same Topology"
        )
    different_sites = virtual_sites(target) ^ virtual_sites(draft)
    if different_sites:
        first = min(different_sites)
        raise ValueError(
            f"particle {first} is a virtual site in one of the target and draft Systems only; give "
            "both the same (a site that has no force in one of them does no harm)"
        )
    masses, draft_masses = masses_of(target), masses_of(draft)
    different = different_masses(masses, draft_masses)
    if different:
        first = different[0]
        raise ValueError(
            f"the masses of {len(different)} particles differ, first that of particle {first}: "
            f"{masses[first]} amu in the target System, {draft_masses[first]} amu in the draft "
            "System; give both the same (hydrogenMass, fixed atoms of zero mass)"
        )
    _check_constraints(target, draft)
