"""The System of a Context as that Context holds it.

A Context copies its System when it is made or reinitialised. A System or a Force that is edited
later does not reach it, but by ``updateParametersInContext``, which copies some parameters of one
Force. So one System may serve several Contexts with parameters of their own.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any
from xml.etree import ElementTree

import openmm

from .._native import existing_system, note_movement
from ..contexts.digests import digest_of
from ..contexts.forcecontext import copy_constraints, copy_particles, groups_of
from ..targets.pythonforce import as_python_force
from ..targets.torchplugin import as_torch_force

logger = logging.getLogger(__name__)

# Parts of a Force's XML that updateParametersInContext leaves alone, as it does what is set for the
# Force as a whole (cutoffs, expressions: attributes of the XML's root).
NOT_UPDATED = {
    "CollectiveVariables",
    "ComputedValues",
    "EnergyParameterDerivatives",
    "EnergyTerms",
    "Exclusions",
    "ExtrapolationCoefficients",
    "Forces",
    "GlobalParameters",
    "Groups",
    "InteractionGroups",
    "MultipoleParticleGridDimension",
    "PerAcceptorParameters",
    "PerAngleParameters",
    "PerBondParameters",
    "PerDonorParameters",
    "PerParticleParameters",
    "PerTorsionParameters",
    "TypeFilters",
}


class SystemSnapshot(openmm.System):
    """A System as it was when its Context was made, with the updates of that Context since.

    Its Forces are copies, but for those that cannot be copied: a TorchForce, a PythonForce, and
    what OpenMM cannot serialize. These are the System's own.

    Parameters
    ----------
    system : openmm.System
    """

    def __init__(self, system: openmm.System) -> None:
        super().__init__()
        _copy_frame(system, self)
        self._frame = _describe_frame(system)
        self.version = 0  # number of updates
        self._announced = 0  # updates whose Force is known
        self.groups = [groups_of(force) for force in system.getForces()]  # bits, of each force
        self._system = system
        _announce_updates()
        _announce_movements()
        self._held = [_HeldForce(force) for force in system.getForces()]

    def getForces(self) -> list[openmm.Force]:  # noqa: N802 (OpenMM's name)
        """See openmm.System."""
        return [held.force for held in self._held]

    def getNumForces(self) -> int:  # noqa: N802
        """See openmm.System."""
        return len(self._held)

    def getForce(self, index: int) -> openmm.Force:  # noqa: N802
        """See openmm.System."""
        return self._held[index].force

    def usesPeriodicBoundaryConditions(self) -> bool:  # noqa: N802
        """See openmm.System."""
        return any(_uses_periodic_boundaries(force) for force in self.getForces())

    def update(self, force: openmm.Force) -> None:
        """The Context holds the present parameters of one of the System's forces."""
        self._announced += 1
        for held in self._held:
            if held.address == int(force.this):
                self.version += held.update(force)

    def update_inner(self, force: openmm.Force, path: list[int], inner: openmm.Force) -> None:
        """The Context holds parameters of a Force inside a CustomCVForce.

        ``path``: the index of the variable, of the variable inside that, and so on.
        """
        for held in self._held:
            if held.address == int(force.this):
                self.version += held.update_inner(path, inner)

    def take_unannounced(self, updates: int) -> None:
        """Take over all that differs, if nobody said which Force some of the updates were of.

        ``updates`` is the number of all that the Context has seen.
        """
        if updates <= self._announced:
            return
        self._announced = updates
        present = {int(force.this): force for force in self._system.getForces()}
        for held in self._held:
            if held.address in present:
                self.version += held.update(present[held.address])

    def note_failed_update(self) -> None:
        """An update has failed halfway; what the Context holds now must be checked."""
        self.version += 1

    @property
    def digest(self) -> str:
        """Of the particles and of all forces but TorchForces and PythonForces."""
        return digest_of(self._frame, *(held.describe() for held in self._held))


class _HeldForce:
    """One Force, as the Context holds it."""

    def __init__(self, force: openmm.Force) -> None:
        self.address = int(force.this)
        self.original = force
        self._copy: openmm.Force | None = None
        self._xml = _xml_of(force)

    @property
    def force(self) -> openmm.Force:
        if self._xml is None:
            return self.original
        if self._copy is None:
            self._copy = openmm.XmlSerializer.deserialize(self._xml)
        return self._copy

    def update(self, force: openmm.Force) -> bool:
        """Whether anything is new."""
        if self._xml is None:
            return True
        new = _xml_of(force)
        return new is not None and self._take(_updated(self._xml, new))

    def update_inner(self, path: list[int], inner: openmm.Force) -> bool:
        """Whether anything is new."""
        if self._xml is None:
            return True
        root, new = ElementTree.fromstring(self._xml), _xml_of(inner)
        place, parent = root, root
        for variable in path:
            variables = place.find("CollectiveVariables")
            if variables is None:
                return True
            parent = variables[variable]
            place = parent[0]
        if new is None:
            return True
        text = _updated(ElementTree.tostring(place, encoding="unicode"), new)
        parent[0] = ElementTree.fromstring(text)
        parent[0].tag = place.tag
        return self._take(ElementTree.tostring(root, encoding="unicode"))

    def _take(self, xml: str) -> bool:
        is_new = xml != self._xml
        if is_new:
            self._xml, self._copy = xml, None
        return is_new

    def describe(self) -> str:
        return self._xml or type(self.original).__name__


def existing(address: int) -> openmm.System:
    """The System at an address, ``int(system.this)``; it must outlive what is returned."""
    system = openmm.XmlSerializer.deserialize(
        f'<System type="{existing_system}" address="{address}"/>'
    )
    system.this.disown()
    return system


def _xml_of(force: openmm.Force) -> str | None:
    """None if the Force cannot be copied by XML."""
    if as_torch_force(force) is not None or as_python_force(force) is not None:
        return None
    try:
        return openmm.XmlSerializer.serialize(force)
    except openmm.OpenMMException as error:
        logger.info("%s: cannot be serialized (%s)", type(force).__name__, error)
        return None


def _copy_frame(system: openmm.System, to: openmm.System) -> None:
    """Give an empty System all but the forces of another."""
    copy_particles(system, to)
    copy_constraints(system, to)


def _describe_frame(system: openmm.System) -> str:
    frame = openmm.System()
    _copy_frame(system, frame)
    return openmm.XmlSerializer.serialize(frame)


def _updated(old: str, new: str) -> str:
    """The XML of a Force after an update: the attributes of the old root, the parts of the new."""
    if old == new:
        return old
    root, other = ElementTree.fromstring(old), ElementTree.fromstring(new)
    parts = {part.tag: part for part in other}
    result = ElementTree.Element(root.tag, root.attrib)
    for part in root:
        replacement = parts.get(part.tag, part)
        result.append(part if part.tag in NOT_UPDATED else _merged(part, replacement))
    return ElementTree.tostring(result, encoding="unicode")


def _merged(old: ElementTree.Element, new: ElementTree.Element) -> ElementTree.Element:
    """Items with new parameters; what an item is about stays as it was.

    Which particles an exception is for, of which type a particle is, to which others it is bound:
    OpenMM reads these once. An exception that has moved keeps its old parameters.
    """
    result = ElementTree.Element(new.tag, new.attrib)
    for index, item in enumerate(old):
        if index >= len(new):
            result.append(item)
            continue
        other = new[index]
        if old.tag == "Exceptions" and _pair(item) != _pair(other):
            result.append(item)
            continue
        merged = ElementTree.SubElement(result, other.tag, other.attrib)
        if "type" in item.attrib:
            merged.set("type", item.attrib["type"])
        kept = {part.tag: part for part in item if "Covalent" in part.tag}
        merged.extend(kept.get(part.tag, part) for part in other)
    if old.tag != "Exceptions":
        result.extend(new[len(old) :])
    return result


def _pair(item: ElementTree.Element) -> tuple[str | None, ...]:
    return tuple(item.get(name) for name in ("p1", "p2", "particle1", "particle2"))


def _uses_periodic_boundaries(force: openmm.Force) -> bool:
    try:
        return force.usesPeriodicBoundaryConditions()
    except openmm.OpenMMException:  # of forces that do not say
        return False


# Calls that change a Context

MARK = "_openmm_lsd"  # of functions that stand in front of OpenMM's


def _announce_updates() -> None:
    """Let ``updateParametersInContext`` of all classes tell the integrator.

    OpenMM tells an integrator that some Force was updated, but not which. For the Contexts of other
    integrators nothing changes.
    """
    for cls in vars(openmm).values():
        if isinstance(cls, type) and issubclass(cls, openmm.Force):
            for name in vars(cls):
                if name == "updateParametersInContext":
                    _wrap_once(cls, name, _announced)
                elif name.startswith("getInnerContext"):
                    _wrap_once(cls, name, _with_outer)


def _announce_movements() -> None:
    """Let what moves atoms on a device without telling the integrator tell it; likewise."""
    for cls, names in MOVERS.items():
        for name in names:
            _wrap_once(cls, name, _moving)


# Of these OpenMM tells no integrator, or not on every platform; the first argument is the Context.
MOVERS: dict[type, Sequence[str]] = {
    openmm.Context: ("applyConstraints", "applyVelocityConstraints", "computeVirtualSites"),
    openmm.LocalEnergyMinimizer: ("minimize",),
}


def _wrap_once(cls: type, name: str, wrap: Callable[[Callable], Callable]) -> None:
    method = vars(cls)[name]
    is_static = isinstance(method, staticmethod)
    function = method.__func__ if is_static else method
    if not hasattr(function, MARK):
        wrapped = functools.wraps(function)(wrap(function))
        setattr(wrapped, MARK, True)
        setattr(cls, name, staticmethod(wrapped) if is_static else wrapped)


def _moving(move: Callable) -> Callable:
    def moved(context: openmm.Context, *args: Any, **kwargs: Any) -> Any:
        try:
            return move(context, *args, **kwargs)
        finally:
            integrator: Any = getattr(context, "_integrator", None)
            if hasattr(integrator, "note_update"):
                note_movement(int(integrator.this))

    return moved


def _announced(update: Callable) -> Callable:
    def updateParametersInContext(self: openmm.Force, context: Any) -> None:  # noqa: N802
        force, outer = self, context
        path: list[int] = []
        while hasattr(outer, "_openmm_lsd_outer"):
            addresses = [int(each.this) for each in outer.getSystem().getForces()]
            if int(force.this) not in addresses:
                break
            path.insert(0, addresses.index(int(force.this)))
            outer, force = outer._openmm_lsd_outer
        integrator: Any = getattr(outer, "_integrator", None)
        if not hasattr(integrator, "note_update"):
            update(self, context)
            return
        try:
            update(self, context)
        except BaseException:
            integrator.note_failed_update()
            raise
        if path:
            integrator.note_inner_update(force, path, self)
        else:
            integrator.note_update(self)

    return updateParametersInContext


def _with_outer(get: Callable) -> Callable:
    def getInnerContext(self: openmm.Force, context: Any) -> Any:  # noqa: N802
        inner = get(self, context)
        inner._openmm_lsd_outer = context, self
        return inner

    return getInnerContext
