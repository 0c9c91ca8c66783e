"""What is simulated, and the Simulations of it: LSD and plain dynamics on the same System."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit

from ..contexts.checks import (
    cm_removal_frequency,
    default_box,
    different_masses,
    masses_of,
    virtual_sites,
)
from ..contexts.constraints import SystemProjection, count_active_constraints
from ..contexts.periodicity import box_in_words
from ..core.schemes import MOLAR_GAS_CONSTANT, SCHEMES, Scheme
from ..integrator.integrator import LSDIntegrator
from ..structures import formula
from ..systems import MolecularSystem
from ..targets import BatchedTarget
from ..targets.torchplugin import check_torch_forces
from .rigidity import constraints_in_words

Array = NDArray[np.float64]
Log = Callable[[str], Any]
StateInBox = tuple[Array, Array, Array | None]  # positions, velocities, box vectors

CONSTRAINT_TOLERANCE = 1e-5  # of OpenMM's integrators


@dataclasses.dataclass
class Case:
    """A molecule, its two potentials, and the conditions.

    Parameters
    ----------
    topology : openmm.app.Topology
    positions : Quantity, (N, 3)
    draft : openmm.System, BatchedTarget or 'auto'
    target : openmm.System
    temperature, friction, step_size : float
        kelvin, 1/ps, ps.
    scheme : 'middle' or 'aboba'
    platform : str, optional
        Of the target's Context; default OpenMM's choice.
    seed : int
        0: fresh ones.
    name : str
    velocities : Quantity, (N, 3), optional
        To start from; default: drawn at the temperature.
    minimize : bool, optional
        The energy first, and draw velocities; default: unless there are velocities.
    engine : 'auto', 'host' or 'context'
    sources : mapping
        Where 'masses', 'box' and 'velocities' are from, in words.
    """

    topology: app.Topology
    positions: unit.Quantity
    draft: openmm.System | BatchedTarget | str
    target: openmm.System
    temperature: float = 300.0
    friction: float = 1.0
    step_size: float = 0.001
    scheme: str = "middle"
    platform: str | None = None
    seed: int = 0
    name: str = ""
    velocities: unit.Quantity | None = None
    minimize: bool | None = None
    engine: str = "auto"
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, molecule: MolecularSystem, **conditions: Any) -> Case:
        """What ``systems.load`` gives, under conditions."""
        draft = conditions.pop("draft", molecule.draft)
        conditions.setdefault("velocities", molecule.velocities)
        return cls(molecule.topology, molecule.positions, draft, molecule.target, **conditions)

    @property
    def atoms(self) -> int:
        """Number of particles."""
        return self.target.getNumParticles()

    def lsd(
        self, window: int | str = "auto", draft: openmm.System | BatchedTarget | str | None = None
    ) -> Run:
        """LSDIntegrator."""
        return Run(self, self.integrator(window, draft), self.platform)

    def integrator(
        self,
        window: int | str = "auto",
        draft: openmm.System | BatchedTarget | str | None = None,
        kind: type[LSDIntegrator] | None = None,
    ) -> LSDIntegrator:
        """A new LSDIntegrator, or one of a kind derived from it, under these conditions."""
        return (kind or LSDIntegrator)(
            self.temperature,
            self.friction,
            self.step_size,
            self.draft if draft is None else draft,
            windowLength=window,
            scheme=self.scheme,
            randomNumberSeed=self.seed,
            topology=self.topology,
            engine=self.engine,
        )

    def plain(self, platform: str | None = None, threads: int | None = None) -> Run:
        """LangevinMiddleIntegrator; with ABOBA the CustomIntegrator of the same scheme."""
        if self.scheme == "middle":
            plain = openmm.LangevinMiddleIntegrator(self.temperature, self.friction, self.step_size)
            plain.setRandomNumberSeed(self.seed)
        else:
            xml = openmm.XmlSerializer.serialize(self.integrator(1))
            plain = openmm.XmlSerializer.deserialize(xml)
        return Run(self, plain, platform or self.platform, threads)

    def build_scheme(self) -> Scheme:
        """Of both, in NumPy."""
        projection = None
        if self.target.getNumConstraints():
            projection = SystemProjection(self.target, CONSTRAINT_TOLERANCE)
        return SCHEMES[self.scheme](self.temperature, self.friction, self.step_size, projection)

    def temperature_of(self, velocities: Array) -> float:
        """Kinetic temperature in kelvin of velocities (N, 3) in nm/ps, as they are stored."""
        masses = masses_of(self.target)
        kinetic = 0.5 * float((masses[:, None] * velocities**2).sum())
        return 2.0 * kinetic / (self.degrees_of_freedom * MOLAR_GAS_CONSTANT)

    @property
    def degrees_of_freedom(self) -> int:
        """Of the kinetic energy, as OpenMM's reporters count them."""
        moving = int((masses_of(self.target) > 0).sum())
        fixed = count_active_constraints(self.target) + 3 * bool(cm_removal_frequency(self.target))
        return 3 * moving - fixed

    @property
    def starts_minimized(self) -> bool:
        """Whether the energy is minimised first."""
        return self.velocities is None if self.minimize is None else self.minimize

    @property
    def start_in_words(self) -> str:
        """How a Run begins."""
        if self.starts_minimized:
            return "minimising the energy, velocities drawn at the temperature"
        if self.velocities is None:
            return "velocities drawn at the temperature; the energy is not minimised"
        speeds = np.array(self.velocities.value_in_unit(unit.nanometer / unit.picosecond))
        source = f" from {self.sources['velocities']}" if "velocities" in self.sources else ""
        kelvin = f"{self.temperature_of(speeds):.0f} K"
        return f"velocities{source}, {kelvin}; the energy is not minimised"

    @property
    def is_periodic(self) -> bool:
        """Whether the target is."""
        return self.target.usesPeriodicBoundaryConditions()

    def description(self) -> str:
        """Atoms, masses, box and constraints of what is simulated, in words."""
        parts = [f"{self.atoms} atoms ({formula(self.topology)})", self._masses_in_words()]
        box = "no periodic box"
        if self.is_periodic:
            box = f"periodic box {box_in_words(default_box(self.target))}{self._source('box')}"
        return "; ".join([*parts, box, constraints_in_words(self.target, self.topology)])

    def _masses_in_words(self) -> str:
        masses = masses_of(self.target)
        virtual = virtual_sites(self.target)
        known = [
            masses[atom.index]
            if atom.element is None
            else atom.element.mass.value_in_unit(unit.dalton)
            for atom in self.topology.atoms()
        ]
        fixed = set(np.flatnonzero(masses == 0).tolist()) - virtual
        other = set(different_masses(masses, np.array(known))) - virtual - fixed
        words = [f"{len(other)} masses are not those of the elements{self._source('masses')}"]
        if not other:
            words = ["masses of the elements"]
        words += [f"fixed: {len(fixed)}"] * bool(fixed)
        words += [f"virtual sites: {len(virtual)}"] * bool(virtual)
        return ", ".join(words)

    def _source(self, what: str) -> str:
        return f" (from {self.sources[what]})" if what in self.sources else ""

    def conditions(self) -> str:
        """In words."""
        return (
            f"{self.atoms} atoms, {self.temperature:g} K, friction {self.friction:g}/ps, "
            f"time step {1e3 * self.step_size:g} fs, scheme {self.scheme}"
        )


def choose_platform(system: openmm.System, name: str | None) -> tuple[openmm.Platform, ...]:
    """Of a Simulation, as its last argument: the one that is named, or none, for OpenMM's choice.

    OpenMM's choice may be one on which a TorchForce ends the process; then it is the next.

    Raises
    ------
    ValueError
        If that one is named.
    """
    if name is not None:
        check_torch_forces(system, name)
        return (openmm.Platform.getPlatform(name),)
    platforms = [openmm.Platform.getPlatform(i) for i in range(openmm.Platform.getNumPlatforms())]
    usable = []
    for platform in platforms:
        try:
            check_torch_forces(system, platform.getName())
        except ValueError:
            continue
        usable.append(platform)
    if len(usable) == len(platforms):
        return ()
    return (max(usable, key=lambda platform: platform.getSpeed()),)


class Run:
    """A Simulation, stepped with a number of torch threads of its own; None: as torch does it."""

    blew_up = False

    def __init__(
        self,
        case: Case,
        integrator: openmm.Integrator,
        platform: str | None = None,
        threads: int | None = None,
    ) -> None:
        chosen = choose_platform(case.target, platform)
        self.simulation = app.Simulation(case.topology, case.target, integrator, *chosen)
        self.simulation.context.setPositions(case.positions)
        self.integrator: Any = integrator
        self.threads = threads

    @property
    def platform(self) -> str:
        """Name of the Context's platform."""
        return self.simulation.context.getPlatform().getName()

    def step(self, steps: int) -> None:
        """As ``Simulation.step``."""
        with torch_threads(self.threads):
            self.simulation.step(steps)

    @property
    def state(self) -> tuple[Array, Array]:
        """Positions and velocities (N, 3) in nm and nm/ps."""
        state = self.simulation.context.getState(positions=True, velocities=True)
        positions = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
        velocities = state.getVelocities(asNumpy=True)
        return positions, velocities.value_in_unit(unit.nanometer / unit.picosecond)

    @property
    def state_in_box(self) -> StateInBox:
        """The same and the box vectors (3, 3) in nm, if there are any: what ``set_state`` takes."""
        box = None
        if self.simulation.system.usesPeriodicBoundaryConditions():
            state = self.simulation.context.getState()
            box = state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(unit.nanometer)
        return (*self.state, box)

    def set_state(self, positions: Array, velocities: Array, box: Array | None = None) -> None:
        """Go on from these; without a box in that of before."""
        if box is not None:
            self.simulation.context.setPeriodicBoxVectors(*box)
        self.simulation.context.setPositions(positions)
        self.simulation.context.setVelocities(velocities)

    def equilibrate(self, case: Case, steps: int, iterations: int = 200) -> None:
        """Begin as the case says, with so many iterations of the minimiser, and go some steps.

        Of the kinetic energy half turns into potential energy at once after minimising, so twice
        as much is drawn.
        """
        begin(self.simulation, case, iterations, drawn=2.0 if case.starts_minimized else 1.0)
        self.step(steps)


def begin(simulation: app.Simulation, case: Case, iterations: int = 0, drawn: float = 1.0) -> None:
    """Minimise the energy, and set velocities, if the case says so.

    Parameters
    ----------
    simulation : openmm.app.Simulation
        With the case's positions.
    case : Case
    iterations : int
        Of the minimiser, at most; 0: until it is done.
    drawn : float
        Of the temperature, where velocities are drawn.
    """
    if case.starts_minimized:
        simulation.minimizeEnergy(maxIterations=iterations)
    if case.velocities is not None and not case.starts_minimized:
        simulation.context.setVelocities(case.velocities)
        return
    seed = (case.seed,) if case.seed else ()
    simulation.context.setVelocitiesToTemperature(drawn * case.temperature, *seed)


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """torch computes with so many threads; None: as it does."""
    if threads is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
