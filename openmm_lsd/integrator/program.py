"""Plain dynamics of the target as a CustomIntegrator's program; an XML round trip gives it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import openmm

from ..core.schemes import MOLAR_GAS_CONSTANT

Integrator = TypeVar("Integrator", bound=openmm.CustomIntegrator)

# Names of the program's variables, which must not be those of parameters of the Context.
TEMPERATURE, FRICTION, NOISE_STEP = "lsd_temperature", "lsd_friction", "lsd_noise_step"


PROGRAM_METHODS = (
    "addGlobalVariable",
    "addPerDofVariable",
    "addTabulatedFunction",
    "addComputeGlobal",
    "addComputePerDof",
    "addComputeSum",
    "addConstrainPositions",
    "addConstrainVelocities",
    "addUpdateContextState",
    "beginIfBlock",
    "beginWhileBlock",
    "endBlock",
    "setKineticEnergyExpression",
)


def add_program(integrator: openmm.CustomIntegrator, scheme: str) -> None:
    """Add variables and steps of 'middle' or 'aboba' to an integrator that has none."""
    program = openmm.CustomIntegrator  # whose methods LSDIntegrator refuses
    for name in (TEMPERATURE, FRICTION, "lsd_kT", "lsd_a", "lsd_b", NOISE_STEP):
        program.addGlobalVariable(integrator, name, 0.0)
    program.addUpdateContextState(integrator)
    program.addComputeGlobal(integrator, "lsd_kT", f"{MOLAR_GAS_CONSTANT!r}*{TEMPERATURE}")
    program.addComputeGlobal(integrator, "lsd_a", f"exp(-{FRICTION}*dt)")
    program.addComputeGlobal(integrator, "lsd_b", "sqrt(1-lsd_a*lsd_a)")
    if scheme == "middle":
        program.addPerDofVariable(integrator, "lsd_x", 0.0)
        program.addComputePerDof(integrator, "v", "v + dt*f/m")
        program.addConstrainVelocities(integrator)
        program.addComputePerDof(integrator, "x", "x + 0.5*dt*v")
        program.addComputePerDof(integrator, "v", "lsd_a*v + lsd_b*sqrt(lsd_kT/m)*gaussian")
        program.addComputePerDof(integrator, "x", "x + 0.5*dt*v")
        program.addComputePerDof(integrator, "lsd_x", "x")
        program.addConstrainPositions(integrator)
        program.addComputePerDof(integrator, "v", "v + (x-lsd_x)/dt")
    elif scheme == "aboba":
        program.addComputePerDof(integrator, "x", "x + 0.5*dt*v")
        program.addComputePerDof(
            integrator, "v", "lsd_a*v + 0.5*(1+lsd_a)*dt*f/m + lsd_b*sqrt(lsd_kT/m)*gaussian"
        )
        program.addComputePerDof(integrator, "x", "x + 0.5*dt*v")
    else:
        raise ValueError(f"there is no program of scheme {scheme!r}")


def refuse_program(integrator: type[Integrator]) -> type[Integrator]:
    """A class decorator: methods that would change the program raise ValueError."""
    for name in PROGRAM_METHODS:
        setattr(integrator, name, _refusal_of(name))
    return integrator


def _refusal_of(name: str) -> Callable:
    def refuse(self: openmm.CustomIntegrator, *arguments: Any) -> None:
        raise ValueError(
            f"{name}() would have no effect: an LSDIntegrator runs the steps of its own scheme. "
            "Forces, restraints and barostats belong in the System; temperature, friction and "
            "the Context's parameters can be changed between steps; a program of your own needs "
            "an openmm.CustomIntegrator"
        )

    refuse.__name__ = name
    refuse.__doc__ = "Raises ValueError: the steps are those of the scheme."
    return refuse
