"""The target of a Context: given by the user or built from the System, and checked before use."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial

import numpy as np
from numpy.typing import NDArray

from .._native import ContextAccess, keep_freed_memory
from ..contexts.checks import has_forces, virtual_sites
from ..contexts.forcecontext import signed
from ..contexts.interrupts import InterruptWatch
from ..core.clock import Times
from ..core.errors import TargetError
from ..core.schemes import Scheme
from ..core.statistics import Statistics
from ..targets import BatchedTarget, SystemTarget, TargetMismatchError
from ..targets.ofsubset import CompletedTarget
from ..targets.virtualsites import VirtualSiteTarget
from .sharing import Sharing
from .snapshot import SystemSnapshot
from .targetcheck import Surroundings, check_target, set_up_target

Array = NDArray[np.float64]

logger = logging.getLogger(__name__)

SETTLED_ROUNDS = 1000  # of a window, after which it is worth a preparation of its own


class BoundTarget:
    """The target of one Context.

    Parameters
    ----------
    access : ContextAccess
    system : SystemSnapshot
    masses : (N,) amu
    given : BatchedTarget or None
        None: it is built from the System.
    window : int
        Sites at once, for which it is prepared.
    is_reproducible : bool
        Whether the same positions must always give the same forces.
    sharing : Sharing or None
        If there is one, the target is that of its subset, of the forces that are not shared.
    statistics : Statistics
    interrupts : InterruptWatch
    """

    def __init__(
        self,
        access: ContextAccess,
        system: SystemSnapshot,
        masses: Array,
        given: BatchedTarget | None,
        window: int,
        is_reproducible: bool,
        sharing: Sharing | None,
        statistics: Statistics,
        interrupts: InterruptWatch,
    ) -> None:
        self._access, self._system, self._masses = access, system, masses
        self._window, self._is_reproducible, self._sharing = window, is_reproducible, sharing
        self._statistics, self._interrupts = statistics, interrupts
        if given is not None and virtual_sites(system):
            given = VirtualSiteTarget(given, system)
        self.is_given = given is not None
        self._target: BatchedTarget | None = given
        self._built: SystemTarget | None = None
        self._is_checked = False
        self._parameters: dict[str, float] = {}
        self._rounds_of: dict[int, int] = {}  # by the window

    @property
    def uses_times(self) -> bool:
        """Whether its forces may depend on time or step count."""
        return self._target is not None and self._target.uses_times

    @property
    def keeps_cores_busy(self) -> bool:
        """See BatchedTarget."""
        return self._target is not None and self._target.keeps_cores_busy

    @property
    def built(self) -> SystemTarget | None:
        """What was built from the System."""
        return self._built

    def single_states(self) -> AbstractContextManager:
        """See BatchedTarget."""
        return self._ready.single_states()

    @property
    def _ready(self) -> BatchedTarget:
        assert self._target is not None, "set_up comes first"
        return self._target

    def forces(self, positions: Array, box: Array | None, times: Times | None) -> Array:
        """Forces (B, N, 3) of what is not shared, on the subset."""
        if self.is_given and self._parameters:  # it may be another Simulation's, too
            self._ready.set_parameters(self._parameters)
        return self._ready.forces_at(positions, box, times)

    @property
    def whole(self) -> BatchedTarget:
        """All forces, of all particles."""
        if self._sharing is None:
            return self._ready
        return CompletedTarget(self._ready, self._sharing.forces.context, self._sharing.subset)

    def prepare_settled(self, positions: Array, window: int, box: Array | None) -> None:
        """A round of this window is about to be evaluated; one that has settled is prepared for."""
        rounds = self._rounds_of[window] = self._rounds_of.get(window, 0) + 1
        if rounds != SETTLED_ROUNDS:
            return
        try:
            self._ready.prepare(positions, window, box)
        except Exception as error:  # whatever a target may raise
            logger.info("the target cannot be prepared for %d states (%s)", window, error)

    def set_parameters(self, parameters: Mapping[str, float]) -> None:
        """See BatchedTarget."""
        self._parameters = dict(parameters)
        if self._target is not None:
            self._target.set_parameters(parameters)

    def refresh(self) -> None:
        """Parameters of the System's forces have changed."""
        if self._built is not None:
            self._built.refresh(self._system.getForces())

    def discard(self) -> None:
        """It is rebuilt when it is set up next, unless it was given."""
        if self._built is not None:
            self._built.close()
            self._target = self._built = None
            self._is_checked = False

    def set_up(
        self, force_groups: int, scheme: Scheme, box: Array | None, parameters: Mapping[str, float]
    ) -> None:
        """Build it if there is none, and compare it with the Context.

        A target that is new is prepared and validated at states around the present; later, when
        something has changed, its forces are only compared with the Context's own.

        Raises
        ------
        TargetMismatchError
        TargetError
            If there are no forces.
        """
        positions, velocities, time, step_count = self._access.get_state()
        keep_freed_memory()
        try:
            if self._target is None:
                self._build(force_groups, positions, time, step_count)
            self.set_parameters(parameters)
            reference = None
            if has_forces(self._system):
                reference = partial(self._access.forces, groups=signed(force_groups))
            self._check(
                Surroundings(positions, self._masses, box, time, step_count, scheme, reference)
            )
            if self._is_reproducible and self._built is not None:
                self._built.forget_history()  # how much was tried depends on the clock
        except TargetMismatchError:
            self._discard_unchecked()
            raise
        except Exception as error:
            self._discard_unchecked()
            self._interrupts.raise_interrupt(error)
            raise TargetError(
                f"the target failed at the state before step {step_count}, or close to it: {error}",
                step_count,
            ) from error
        finally:
            self._access.set_state(positions, velocities, time, step_count)

    def _discard_unchecked(self) -> None:
        """What failed before it was checked is rebuilt: other forces may count then."""
        if not self._is_checked:
            self.discard()

    def _build(self, force_groups: int, positions: Array, time: float, step_count: int) -> None:
        self._built = SystemTarget(
            self._system,
            positions,
            groups=force_groups,
            groups_of_forces=self._system.groups,
            platform=self._access.get_platform(),
            properties=self._access.get_properties(),
            time=time,
            step_count=step_count,
            subset=None if self._sharing is None else self._sharing.subset,
            indices=None if self._sharing is None else self._sharing.slow,
            reproducible=self._is_reproducible,
        )
        self._target = self._built
        particles = self._system if self._sharing is None else self._sharing.reduced
        if virtual_sites(particles):
            self._target = VirtualSiteTarget(self._built, particles)

    def _check(self, around: Surroundings) -> None:
        target = self.whole
        if self._is_checked:
            if np.isfinite(around.forces(target)).all():
                check_target(target, around)
            return
        self._rounds_of.clear()
        seconds = set_up_target(target, around, self._window, is_given=self.is_given)
        # Where forces are not finite the sampler will name step and atom.
        if seconds is not None:
            self._is_checked = True
            self._statistics.note_plain_step(seconds)

    def close(self) -> None:
        """Let go of what was built here."""
        if self._built is not None:
            self._built.close()


def warn_of_missing_forces(target: BatchedTarget, is_periodic: bool) -> None:
    """Tell the user what a System without forces cannot do."""
    logger.warning("the System has no forces: energies that reporters ask the Context for are zero")
    if is_periodic and not target.takes_box:
        logger.warning(
            "there is a periodic box, and the target, a %s, takes none", type(target).__name__
        )
