"""The Context in which the Context engine drafts: the shared forces, and its program."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import openmm
from numpy.typing import NDArray

from .._native import ContextAccess, DraftingContext
from ..contexts.forcecontext import groups_of, signed
from ..core.schemes import Scheme
from .draftingprogram import DraftingProgram

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


class Move(NamedTuple):
    """To a state of the last window, by the number of steps done; what is added to all positions
    and velocities (3,), and to those of the subset beyond that (2, n, 3)."""

    state: int
    shift: Array
    drift: Array
    of_subset: Array


class Kept(NamedTuple):
    """Where a state is: in which window (RolloutContext), after how many of its steps, and what is
    to be added, as of Move."""

    window: int
    state: int
    shift: Array
    drift: Array
    of_subset: Array


class Record(NamedTuple):
    """Which window a Context holds; see ``_native.DraftingContext``."""

    windows: int = 0
    drafted: int = 0
    state: int = 0
    begun_from: int = 0
    is_broken: bool = False


class _Made(NamedTuple):
    """A Context that was made, with what must outlive it."""

    native: DraftingContext
    program: DraftingProgram
    access: ContextAccess
    context: openmm.Context
    system: openmm.System
    process: int


class RolloutContext:
    """A Context that drafts windows and goes to any state of the last one.

    Parameters
    ----------
    system : openmm.System
        Particles, constraints, virtual sites and the shared forces, and a CMMotionRemover that acts
        at every step, if the motion of the centre of mass is removed.
    subset : (n,) int
    place : Place
    """

    def __init__(self, system: openmm.System, subset: NDArray[np.int64], place: Place) -> None:
        self._system, self._subset, self.place = system, subset, place
        self._scheme: tuple[Scheme, float] | None = None
        self._environment: tuple[Array | None, Mapping[str, float]] = None, {}
        self._made: _Made | None = None
        self._number = 0
        self._is_stale = False

    @property
    def record(self) -> Record:
        """Which window the Context holds."""
        return Record() if self._made is None else Record(*self._made.native.record)

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

    def check(self) -> None:
        """Raise what OpenMM raises if no Context can be made here; nothing if there is one."""
        if self._made is None:
            self.make(1, 0)
            self.close()
            self._number = 0  # its noise is that of another step

    def make(self, length: int, step: int) -> None:
        """A new Context with room for windows of this length, the first from this step on.

        Its noise is that of no other: of seed, step, and the number of Contexts before.
        """
        place, system = self.place, openmm.XmlSerializer.clone(self._system)
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
        native.attach(int(context.this), capacity)
        # States of the Context before are not to be found in this one.
        native.set_record(Record(self.record.windows + 1))
        access = program.bind(context, self._subset)
        self.close()
        self._made = _Made(native, program, access, context, system, os.getpid())
        self._number, self._is_stale = self._number + 1, False
        self.set_environment(*self._environment)
        if self._scheme is not None:
            self.set_scheme(*self._scheme)

    def close(self) -> None:
        """Let go of the Context."""
        made = self._made
        if made is not None and made.process != os.getpid():
            # To destroy what another process has made would be to wait for threads of that.
            for each in (made.context, made.program.integrator, made.system):
                each.this.disown()
        self._made = None

    def refresh(self, system: openmm.System) -> None:
        """The forces have changed."""
        self._system, self._is_stale = system, True

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
        self.native.forget()
        self._present.access.set_state(positions, velocities, 0.0, 0)

    def find(self, kept: Kept) -> Move | None:
        """How to come to a state; None if it has been overwritten."""
        now, window = self.record, kept.window
        if window == now.windows:
            return Move(kept.state, kept.shift, kept.drift, kept.of_subset)
        if window == now.windows - 1 and kept.state == now.begun_from > 0:
            return Move(0, np.zeros(3), np.zeros(3), np.zeros_like(kept.of_subset))
        return None

    def go_to(self, state: int) -> None:
        """To a state of the window, by steps done."""
        nothing = np.zeros(3)
        self.native.go_to(Move(state, nothing, nothing, np.zeros((2, len(self._subset), 3))))

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
            "platform": self.place.platform,
            "checkpoint": np.frombuffer(made.context.createCheckpoint(), dtype=np.uint8),
            "capacity": made.program.capacity,
            "record": list(made.native.record),
            "counts": [self._number, self._is_stale],
        }

    def restore(self, record: dict[str, Any] | None) -> None:
        """Go on as the one that the snapshot was taken of."""
        if record is None:
            return
        if record["platform"] != self.place.platform:
            raise openmm.OpenMMException("the checkpoint is of another platform")
        made = self._made
        if made is None or made.program.capacity != record["capacity"] or self._is_stale:
            self.make(record["capacity"], 0)
        self._present.context.loadCheckpoint(record["checkpoint"].tobytes())
        self.native.set_record(Record(*record["record"]))
        self._number, self._is_stale = record["counts"]
