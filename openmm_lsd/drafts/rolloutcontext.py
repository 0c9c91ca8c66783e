"""The Context in which the Context engine drafts: the shared forces, and its program."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import openmm
from numpy.typing import NDArray

from .._native import ContextAccess, DraftingContext
from ..contexts.forcecontext import groups_of, signed
from ..core.schemes import Scheme
from .draftingprogram import GO, RECOVER, DraftingProgram

Array = NDArray[np.float64]

GROUPS = 32  # of forces, in OpenMM
LEAST_CAPACITY = 16


def free_groups(forces: list[openmm.Force]) -> list[int]:
    """Force groups in which none of the forces is."""
    used = 0
    for force in forces:
        used |= groups_of(force)
    return [group for group in range(GROUPS) if not used >> group & 1]


class RolloutContext:
    """A Context that drafts windows and goes to any state of the last one.

    Parameters
    ----------
    make_system : callable
        Gives a new System: particles, constraints, virtual sites and the shared forces, and a
        CMMotionRemover that acts at every step, if the motion of the centre of mass is removed.
    subset : (n,) int
    platform : str
    properties : mapping of str to str
        Of the platform.
    force_groups : int
        Bits, of the shared forces that count.
    seed : int
        Of the noise of all particles outside the subset.

    Attributes
    ----------
    native : DraftingContext
    windows : int
        How many have been drafted.
    drafted : int
        The last state of the window, by the number of steps done.
    """

    def __init__(
        self,
        make_system: Callable[[], openmm.System],
        subset: NDArray[np.int64],
        platform: str,
        properties: Mapping[str, str],
        force_groups: int,
        seed: int,
    ) -> None:
        self._make_system, self._subset = make_system, subset
        self._platform, self._properties = platform, dict(properties)
        self._force_groups, self._seed = force_groups, seed
        self._scheme: tuple[Scheme, float] | None = None
        self._box: Array | None = None
        self._parameters: Mapping[str, float] = {}
        self._capacity = self._made = self._state = 0
        self._is_stale = self._is_broken = False
        self.windows = self.drafted = 0

    def has_room(self, length: int) -> bool:
        """Whether a window of this length can be drafted by the Context as it is."""
        return length <= self._capacity and not self._is_stale

    def make(self, length: int, step: int) -> None:
        """A new Context with room for windows of this length, the first from this step on.

        Its noise is that of no other: of seed, step, and the number of Contexts before.
        """
        self._capacity = capacity = max(LEAST_CAPACITY, 2 ** (length - 1).bit_length())
        system = self._make_system()
        removes = any(isinstance(each, openmm.CMMotionRemover) for each in system.getForces())
        stand_in, vectors = free_groups(system.getForces())[-2:]
        self.native = DraftingContext(int(system.this), self._subset.tolist(), stand_in, vectors)
        self._program = DraftingProgram(capacity, vectors, removes)
        integrator = self._program.integrator
        groups = self._force_groups & ~(1 << vectors) | 1 << stand_in
        integrator.setIntegrationForceGroups(signed(groups))
        sequence = np.random.SeedSequence([self._seed, step, self._made])
        integrator.setRandomNumberSeed(int(sequence.generate_state(1)[0]) % (2**31 - 1) + 1)
        platform = openmm.Platform.getPlatform(self._platform)
        self._system, self._made, self._is_stale = system, self._made + 1, False
        self._context = openmm.Context(system, integrator, platform, self._properties)
        self.native.attach(int(integrator.this))
        self._access: ContextAccess = self._program.bind(self._context, self._subset)
        self._set_environment()
        if self._scheme is not None:
            self.set_scheme(*self._scheme)

    def refresh(self) -> None:
        """The forces have changed."""
        self._is_stale = True

    def set_scheme(self, scheme: Scheme, tolerance: float) -> None:
        """Temperature, friction and step size, and the relative tolerance of constraints."""
        self._scheme = scheme, tolerance
        if self._capacity:
            self._program.set_scheme(scheme)
            self._program.integrator.setConstraintTolerance(tolerance)

    def set_environment(self, box: Array | None, parameters: Mapping[str, float]) -> None:
        """Take over the periodic box (3, 3) in nm and those parameters that there are."""
        self._box, self._parameters = box, dict(parameters)
        if self._capacity:
            self._set_environment()

    def _set_environment(self) -> None:
        access = self._access
        if self._box is not None and not np.array_equal(access.get_box(), self._box):
            access.set_box(np.ascontiguousarray(self._box))
        for name, value in access.get_parameters().items():
            if self._parameters.get(name, value) != value:
                access.set_parameter(name, self._parameters[name])

    def set_state(self, positions: Array, velocities: Array) -> None:
        """Of all particles (N, 3), where the next window begins."""
        self._access.set_state(positions, velocities, 0.0, 0)
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
        along = np.zeros(self._capacity)
        if self._is_broken:
            mode, along[:state] = RECOVER, 1.0
        else:
            mode = GO
            along[self._state : state] = 1.0
            along[state : self._state] = -1.0
        nothing = np.zeros(3)
        self._program.set_move(
            mode,
            along.tolist(),
            state,
            nothing if shift is None else shift,
            nothing if drift is None else drift,
        )
        if vectors is None:
            vectors = np.zeros((2, len(self._subset), 3))
        self.native.run(np.ascontiguousarray(vectors))
        self._state, self._is_broken = state, False

    def read(self) -> tuple[Array, Array]:
        """Positions and velocities (N, 3) of the state that it is in."""
        positions, velocities, *_ = self._access.get_state()
        return positions, velocities
