"""What the Systems of target and draft must be; every error says what to change."""

from __future__ import annotations

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import unit

SAME_MASS = 0.01  # amu


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
    return any(not isinstance(force, openmm.CMMotionRemover) for force in system.getForces())


def has_barostat(system: openmm.System) -> bool:
    """Whether there is a barostat, at whatever frequency."""
    return any("Barostat" in type(force).__name__ for force in system.getForces())


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


def check_system(system: openmm.System, role: str) -> None:
    """Raise ValueError if a System holds what LSD cannot do yet; ``role``: 'target' or 'draft'."""
    count = system.getNumConstraints()
    if count:
        raise ValueError(
            f"the {role} System has {count} constraints, which LSDIntegrator does not support yet; "
            "build it with constraints=None, rigidWater=False"
        )
    for index in range(system.getNumParticles()):
        if system.isVirtualSite(index):
            raise ValueError(
                f"particle {index} of the {role} System is a virtual site, which LSDIntegrator "
                "does not support yet; use a model without virtual sites"
            )
    for force in system.getForces():
        name = force.getName()
        kind = type(force).__name__
        if "Barostat" in kind:
            raise ValueError(
                f"the {role} System has a barostat ({name}), which LSDIntegrator does not support "
                "yet; remove it and run at constant volume"
            )
        if isinstance(force, openmm.AndersenThermostat):
            raise ValueError(
                f"the {role} System has an AndersenThermostat; remove it, LSDIntegrator is a "
                "thermostat itself"
            )


def check_pair(target: openmm.System, draft: openmm.System) -> None:
    """Raise ValueError unless draft and target hold the same particles."""
    count, draft_count = target.getNumParticles(), draft.getNumParticles()
    if count != draft_count:
        raise ValueError(
            f"the target System has {count} particles and the draft System {draft_count}; build "
            "both from the same Topology"
        )
    masses, draft_masses = masses_of(target), masses_of(draft)
    # Only the target's masses are used. Force fields round those of the elements differently
    # (15.999, 15.99943); what this must find is hydrogenMass or fixed atoms in one of the two.
    different = np.flatnonzero(
        (np.abs(masses - draft_masses) > SAME_MASS) | ((masses == 0) != (draft_masses == 0))
    )
    if len(different):
        first = different[0]
        raise ValueError(
            f"the masses of {len(different)} particles differ, first that of particle {first}: "
            f"{masses[first]} amu in the target System, {draft_masses[first]} amu in the draft "
            "System; give both the same (hydrogenMass, fixed atoms of zero mass)"
        )
