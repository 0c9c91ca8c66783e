"""The Context in which the Context engine drafts: the shared forces, and its program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import openmm
from numpy.typing import NDArray

from .._native import ContextAccess, DraftingContext
from ..contexts.checks import virtual_sites
from ..contexts.forcecontext import groups_of, signed
from ..core.schemes import Scheme
from .draftingprogram import GO, RECOVER, DraftingProgram

Array = NDArray[np.float64]

GROUPS = 32  # of forces, in OpenMM


def free_groups(forces: list[openmm.Force]) -> list[int]:
    """Force groups in which none of the forces is."""
    used = 0
    for force in forces:
        used |= groups_of(force)
    return [group for group in range(GROUPS) if not used >> group & 1]


class Place(NamedTuple):
    """Where and how a Context computes: platform, its properties, bits of the force groups that
    count, the seed of the noise of all particles outside the subset, and the usual window."""

    platform: str
    properties: Mapping[str, str]
    force_groups: int
    seed: int
    window: int


class _Made(NamedTuple):
    """A Context that was made, with what must outlive it."""

    native: DraftingContext
    program: DraftingProgram
    access: ContextAccess
    context: openmm.Context
    system: openmm.System
    has_virtual_sites: bool


class RolloutContext:
    """A Context that drafts windows and goes to any state of the last one.

    Parameters
    ----------
    make_system : callable
        Gives a new System: particles, constraints, virtual sites and the shared forces, and a
        CMMotionRemover that acts at every step, if the motion of the centre of mass is removed.
    subset : (n,) int
    place : Place

    Attributes
    ----------
    windows : int
        How many have been drafted.
    drafted : int
        The last state of the window, by the number of steps done.
    """

    def __init__(
        self,
        make_system: Callable[[], openmm.System],
        subset: NDArray[np.int64],
        place: Place,
    ) -> None:
        self._make_system, self._subset, self._place = make_system, subset, place
        self._scheme: tuple[Scheme, float] | None = None
        self._environment: tuple[Array | None, Mapping[str, float]] = None, {}
        self._made: _Made | None = None
        self._number = self._state = 0
        self._is_stale = self._is_broken = False
        self.windows = self.drafted = 0

    @property
    def native(self) -> DraftingContext:
        """For the native rollout."""
        return self._present.native

    @property
    def _present(self) -> _Made:
        assert self._made is not None, "made by make()"
        return self._made

    def has_room(self, length: int) -> bool:
        """Whether a window of this length can be drafted by the Context as it is."""
        made = self._made
        return made is not None and length <= made.program.capacity and not self._is_stale

    def make(self, length: int, step: int) -> None:
        """A new Context with room for windows of this length, the first from this step on.

        Its noise is that of no other: of seed, step, and the number of Contexts before.
        """
        place, system = self._place, self._make_system()
        removes = any(isinstance(each, openmm.CMMotionRemover) for each in system.getForces())
        stand_in, vectors = free_groups(system.getForces())[-2:]
        native = DraftingContext(int(system.this), self._subset.tolist(), stand_in, vectors)
        capacity = place.window
        if length > capacity:
            capacity = 2 ** (length - 1).bit_length()
        program = DraftingProgram(capacity, vectors, removes)
        integrator = program.integrator
        groups = place.force_groups & ~(1 << vectors) | 1 << stand_in
        integrator.setIntegrationForceGroups(signed(groups))
        sequence = np.random.SeedSequence([place.seed, step, self._number])
        integrator.setRandomNumberSeed(int(sequence.generate_state(1)[0]) % (2**31 - 1) + 1)
        platform = openmm.Platform.getPlatform(place.platform)
        context = openmm.Context(system, integrator, platform, dict(place.properties))
        native.attach(int(integrator.this))
        access = program.bind(context, self._subset)
        sites = bool(virtual_sites(system))
        self._made = _Made(native, program, access, context, system, sites)
        self._number, self._is_stale = self._number + 1, False
        self.set_environment(*self._environment)
        if self._scheme is not None:
            self.set_scheme(*self._scheme)

    def refresh(self) -> None:
        """The forces have changed."""
        self._is_stale = True

    def set_scheme(self, scheme: Scheme, tolerance: float) -> None:
        """Temperature, friction and step size, and the relative tolerance of constraints."""
        self._scheme = scheme, tolerance
        if self._made is not None:
            self._made.program.set_scheme(scheme)
            self._made.program.integrator.setConstraintTolerance(tolerance)

    def set_environment(self, box: Array | None, parameters: Mapping[str, float]) -> None:
        """Take over the periodic box (3, 3) in nm and those parameters that there are."""
        self._environment = box, dict(parameters)
        if self._made is None:
            return
        access = self._made.access
        if box is not None and not np.array_equal(access.get_box(), box):
            access.set_box(np.ascontiguousarray(box))
        for name, value in access.get_parameters().items():
            if parameters.get(name, value) != value:
                access.set_parameter(name, parameters[name])

    def set_state(self, positions: Array, velocities: Array) -> None:
        """Of all particles (N, 3), where the next window begins."""
        self._present.access.set_state(positions, velocities, 0.0, 0)
        self._state, self._is_broken = 0, False

    def take(self, state: int, is_broken: bool) -> None:
        """A window was drafted so far; broken if the positions are not finite after that."""
        self._state = self.drafted = state
        self.windows += 1
        self._is_broken = is_broken

    def go_to(
        self,
        state: int,
        shift: Array | None = None,
        drift: Array | None = None,
        vectors: Array | None = None,
    ) -> None:
        """To a state of the window, by steps done; what is added ends the window.

        Parameters
        ----------
        state : int
        shift, drift : (3,), optional
            Added to all positions (nm) and velocities (nm/ps).
        vectors : (2, n, 3), optional
            Likewise, to those of the subset.
        """
        along = np.zeros(self._present.program.capacity)
        if self._is_broken:
            mode, along[:state] = RECOVER, 1.0
        else:
            mode = GO
            along[self._state : state] = 1.0
            along[state : self._state] = -1.0
        nothing = np.zeros(3)
        self._present.program.set_move(
            mode,
            along.tolist(),
            state,
            nothing if shift is None else shift,
            nothing if drift is None else drift,
        )
        if vectors is None:
            vectors = np.zeros((2, len(self._subset), 3))
        made = self._present
        made.native.run(np.ascontiguousarray(vectors))
        if made.has_virtual_sites:  # a device leaves them where they were
            made.context.computeVirtualSites()
        self._state, self._is_broken = state, False

    def read(self) -> tuple[Array, Array]:
        """Positions and velocities (N, 3) of the state that it is in."""
        positions, velocities, *_ = self._present.access.get_state()
        return positions, velocities

    def snapshot(self) -> dict[str, Any] | None:
        """All that the next windows depend on, for ``restore``; None if none was drafted."""
        made = self._made
        if made is None:
            return None
        return {
            "platform": self._place.platform,
            "checkpoint": np.frombuffer(made.context.createCheckpoint(), dtype=np.uint8),
            "capacity": made.program.capacity,
            "counts": [self._number, self.windows, self.drafted, self._state],
            "flags": [self._is_stale, self._is_broken],
        }

    def restore(self, record: dict[str, Any] | None) -> None:
        """Go on as the one that the snapshot was taken of."""
        if record is None:
            return
        if record["platform"] != self._place.platform:
            raise openmm.OpenMMException("the checkpoint is of another platform")
        if self._made is None or self._made.program.capacity != record["capacity"]:
            self.make(record["capacity"], 0)
        self._present.context.loadCheckpoint(record["checkpoint"].tobytes())
        self._present.program.forget_values()
        self._number, self.windows, self.drafted, self._state = record["counts"]
        self._is_stale, self._is_broken = record["flags"]
