"""Forces of an OpenMM System at given positions, through a Context of our own."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

import numpy as np
import openmm
from numpy.typing import NDArray

from .._native import ContextAccess, calls_python, copy_virtual_sites
from ..core.clock import Times
from .autotune import choose
from .digests import digest_of
from .platforms import platforms_to_try

Array = NDArray[np.float64]

logger = logging.getLogger(__name__)

ALL_GROUPS = 0xFFFFFFFF
LONGEST_TRIAL = 0.4  # s, of the platforms of a System


class ForceContext:
    """A Context that answers with forces.

    Parameters
    ----------
    system : openmm.System
    platform : openmm.Platform
    properties : mapping of str to str, optional
        Platform properties.
    groups : int
        Bits of the force groups that count.
    """

    def __init__(
        self,
        system: openmm.System,
        platform: openmm.Platform,
        properties: Mapping[str, str] | None = None,
        groups: int = ALL_GROUPS,
    ) -> None:
        self._groups = signed(groups)
        self.uses_times = any(map(may_use_time, system.getForces()))
        self.platform = platform.getName()
        self._system, self.properties = system, dict(properties or {})
        self._make()
        self._parameters = self.access.get_parameters()

    def _make(self) -> None:
        # The Context of OpenMM's Python layer keeps the System and the integrator alive.
        self._integrator = openmm.VerletIntegrator(0.001)
        self._integrator.setIntegrationForceGroups(self._groups)
        platform = openmm.Platform.getPlatform(self.platform)
        self._context = openmm.Context(self._system, self._integrator, platform, self.properties)
        self._access = ContextAccess(int(self._integrator.this))
        self._process = os.getpid()

    @property
    def access(self) -> ContextAccess:
        """Native access to the Context.

        Raises
        ------
        openmm.OpenMMException
            In a forked child, if the Context was on a device: there it cannot be used.
        """
        if self._process != os.getpid() and self.platform != "Reference":
            self._make_after_fork()
        return self._access

    def _make_after_fork(self) -> None:
        """Another Context for that of the parent process, whose threads are not in this one."""
        if self.platform != "CPU":
            raise openmm.OpenMMException(
                f"forces on platform {self.platform} were set up before this process was forked, "
                "and cannot be computed in it; start processes by 'spawn', or build the Simulation "
                "in the child"
            )
        box, parameters = self._access.get_box(), self._access.get_parameters()
        # Never destroyed: that would wait for its threads.
        self._context.thisown = self._integrator.thisown = False
        self._make()
        self._access.set_box(box)
        for name, value in parameters.items():
            self._access.set_parameter(name, value)

    def forces(self, positions: Array, times: Times | None = None) -> Array:
        """Forces (B, N, 3) in kJ/mol/nm at positions (B, N, 3) in nm, one after another.

        Each at its own time and step count, if these are given; else at those of the Context.
        """
        return self.access.forces(np.ascontiguousarray(positions), self._groups, *(times or ()))

    def evaluate(self, positions: Array, times: Times | None = None) -> tuple[Array, Array]:
        """Energies (B,) in kJ/mol and forces (B, N, 3), as ``forces``."""
        return self.access.evaluate(np.ascontiguousarray(positions), self._groups, *(times or ()))

    def has_failed_at(self, sites: Array) -> bool:
        """See drafts.nativedraft.ForceSource: a failure is an error here."""
        return False

    def update(self, force: openmm.Force) -> None:
        """Take over the changed parameters of one of the System's forces."""
        force.updateParametersInContext(self._context)

    def set_environment(self, box: Array | None, parameters: Mapping[str, float]) -> None:
        """Take over the periodic box (3, 3) in nm and those parameters that this System has."""
        if box is not None and not np.array_equal(self.access.get_box(), box):
            self.access.set_box(np.ascontiguousarray(box))
        for name in self._parameters:
            if name in parameters and parameters[name] != self._parameters[name]:
                self.access.set_parameter(name, parameters[name])
                self._parameters[name] = parameters[name]


def signed(groups: int) -> int:
    """Bits of force groups as the signed 32-bit integer that OpenMM's C++ interface takes."""
    return groups - 2**32 * (groups >= 2**31)


def groups_of(force: openmm.Force) -> int:
    """Bits of the force groups in which a Force is, or a part of it."""
    groups = 1 << force.getForceGroup()
    if isinstance(force, openmm.NonbondedForce) and force.getReciprocalSpaceForceGroup() >= 0:
        groups |= 1 << force.getReciprocalSpaceForceGroup()
    return groups


def holds_python(force: openmm.Force) -> bool:
    """Whether a Force is a PythonForce, or one is in it, however deep."""
    return calls_python(int(force.this))


def may_use_time(force: openmm.Force) -> bool:
    """Whether the energy of a Force may depend on time or step count.

    OpenMM's own do not, nor does a TorchForce; users' functions and Forces that are not known here
    may.
    """
    if type(force).__name__ == "TorchForce":
        return False
    is_known = type(force).__module__.startswith("openmm.") and type(force) is not openmm.Force
    return not is_known or holds_python(force)


def without_forces(system: openmm.System) -> openmm.System:
    """A System with the same particles, virtual sites and box, but no forces.

    Not a copy from which the forces are removed: copying a TorchForce takes its whole module
    through XML.
    """
    result = openmm.System()
    copy_particles(system, result)
    return result


def copy_constraints(system: openmm.System, to: openmm.System) -> None:
    """Give a System the constraints of another, instead of its own."""
    for index in reversed(range(to.getNumConstraints())):
        to.removeConstraint(index)
    for index in range(system.getNumConstraints()):
        to.addConstraint(*system.getConstraintParameters(index))


def copy_particles(system: openmm.System, to: openmm.System) -> None:
    """Give an empty System the particles, virtual sites and box of another."""
    for index in range(system.getNumParticles()):
        to.addParticle(system.getParticleMass(index))
    copy_virtual_sites(int(system.this), int(to.this))
    to.setDefaultPeriodicBoxVectors(*system.getDefaultPeriodicBoxVectors())


def describe_system(system: openmm.System) -> str:
    """A digest that is the same for the same System, in every process.

    Of a Force that OpenMM cannot serialize (a PythonForce that cannot be pickled) the class counts.
    """
    frame = without_forces(system)
    return digest_of(*map(_serialized, (frame, *system.getForces())))


def _serialized(part: openmm.System | openmm.Force) -> str:
    try:
        return openmm.XmlSerializer.serialize(part)
    except openmm.OpenMMException:
        return type(part).__name__


def is_empty(force: openmm.Force) -> bool:
    """Whether a bonded force has no terms.

    AMOEBA's force field makes several for any molecule; a Context takes seconds to compile each.
    """
    counts = [
        getattr(force, f"getNum{terms}")()
        for terms in ("Bonds", "Angles", "Torsions", "TorsionTorsions")
        if hasattr(force, f"getNum{terms}")
    ]
    return counts == [0]


def fastest_context(
    system: openmm.System,
    positions: Array,
    platforms: Mapping[str, Mapping[str, str]] | None = None,
) -> ForceContext:
    """The ForceContext on the platform that computes these forces fastest on this machine.

    Parameters
    ----------
    positions : (N, 3) nm
    platforms : mapping of names to properties, optional
        Those to try; default all that work.

    Raises
    ------
    openmm.OpenMMException
        If the System works on none of them.
    """
    platforms = platforms_to_try() if platforms is None else platforms
    made: dict[str, ForceContext] = {}
    failures: dict[str, Exception] = {}

    def run(name: str) -> None:
        try:
            if name not in made:
                platform = openmm.Platform.getPlatform(name)
                made[name] = ForceContext(system, platform, platforms[name])
            made[name].forces(positions[None])
        except Exception as error:
            failures[name] = error
            raise

    key = f"platform {digest_of(describe_system(system), sorted(platforms.items()))}"
    name = choose(key, platforms, run, what="forces on platform", warm_up=0, longest=LONGEST_TRIAL)
    if name is None:
        raise no_platform(failures)
    # Another, without the neighbour lists of the trials: as where the choice is known.
    return ForceContext(system, openmm.Platform.getPlatform(name), platforms[name])


def no_platform(failures: Mapping[str, Exception]) -> openmm.OpenMMException:
    """The error where none of the platforms works, for these reasons."""
    reasons = "; ".join(f"{name}: {error}" for name, error in failures.items())
    return openmm.OpenMMException(f"no platform can compute the forces of the System ({reasons})")
