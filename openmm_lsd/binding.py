"""Between a Context and the sampler: what was bound, what has changed, state in and state out."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import racing
from ._native import (
    ContextAccess,
    commit,
    keep_freed_memory,
    largest_device_force,
)
from .barostat import BarostatMoves
from .checks import (
    barostat_frequency,
    check_pair,
    check_system,
    cm_removal_frequency,
    has_forces,
    masses_of,
    virtual_sites,
)
from .clock import Clock, Times
from .contexts import signed
from .cores import allowed_cores
from .draft import DraftChoice
from .estimates import native_estimates
from .interrupts import counted_interrupts
from .molgraph import Pairs, pairs_within
from .periodicity import is_periodic
from .restart import Record, digest_of
from .rollout import reciprocal
from .sampler import Round, SpeculativeSampler, State, Statistics, TargetError
from .schemes import SCHEMES, Scheme
from .snapshot import SystemSnapshot
from .targetcheck import Surroundings, check_target, set_up_target
from .targets import BatchedTarget, SystemTarget, TargetMismatchError
from .targets.base import Evaluation
from .targets.virtualsites import PlacedTarget
from .tuning import WindowTuner

Array = NDArray[np.float64]

logger = logging.getLogger(__name__)

MOST_ATOMS = 5000  # of which the Jacobian is estimated; it takes 8 kB of each

TYPICAL_WINDOW = 16  # that a target is prepared for, where the window is tuned
SETTLED = 1000  # rounds of a window after which it is worth a preparation of its own


class Settings(NamedTuple):
    """What the user may change between steps without touching the Context's state."""

    temperature: float
    friction: float
    step_size: float
    seed: int
    force_groups: int


class Binding:
    """Speculative dynamics in one Context.

    Parameters
    ----------
    access : ContextAccess
        Of the Context that owns the integrator.
    system : SystemSnapshot
        What that Context holds.
    draft : DraftChoice
    target : BatchedTarget or None
        None: built from the Context's System.
    scheme_name, window : as in LSDIntegrator
        ``window`` is None for 'auto'.
    statistics : Statistics
        Counted on.
    watchers : list of callables
        As ``SpeculativeSampler.watchers``; what is added later counts too.
    """

    def __init__(
        self,
        access: ContextAccess,
        system: SystemSnapshot,
        draft: DraftChoice,
        target: BatchedTarget | None,
        scheme_name: str,
        window: int | None,
        statistics: Statistics,
        watchers: list[Callable[[Round], Any]],
    ) -> None:
        self._access = access
        self._system = system
        check_system(self._system, "target")
        if draft.system is not None:
            check_pair(self._system, draft.system)
        self._masses = masses_of(self._system)
        self._immobile = self._masses[:, None] == 0
        self._has_immobile = bool(self._immobile.any())
        if target is not None and virtual_sites(self._system):
            target = PlacedTarget(target, self._system)
        self._given_target = target
        self._target: BatchedTarget | None = target
        self._own_target: SystemTarget | None = None  # made from the System
        self._validated: BatchedTarget | None = None
        self._rounds_of: dict[int, int] = {}  # by the window, where that is tuned
        self._scheme_name = scheme_name
        self.tuner = None
        if window is None:
            self.tuner = WindowTuner(barostat_frequency(self._system), draft.learning)
        self._window = TYPICAL_WINDOW if window is None else window
        self._statistics, self._watchers = statistics, watchers
        self._version = system.version  # of what the target was built from
        self._unchecked = {"target"}  # what has changed in the forces since the last check
        self._checked_parameters: set[tuple] = set()  # values of the Context's parameters
        self._has_checked_box = False
        self._settings: Settings | None = None
        self._sampler: SpeculativeSampler | None = None
        self._step_count = -1
        self._in_context: Array | None = None  # positions of the state that it has itself made
        self.noise_step = 0  # index of the next step's random numbers
        self._clock = Clock()
        self._time = self._step_size = 0.0  # the time is that of noise_step
        self._moves = BarostatMoves(access, self._show, self._take_box)
        self._interrupts: list[int] = []  # while steps are done
        self._next_move: int | None = None  # after the last call of step
        self._begun = 0  # steps beyond the committed ones that the barostats have begun: 0 or 1
        self._record: Record | None = None  # to go on from
        self._fresh_seed, self._process = secrets.randbits(63), os.getpid()
        # To be changed before the first step; see SpeculativeSampler.
        self.correction = "secant" if len(self._masses) <= MOST_ATOMS else "per-step"
        self._is_periodic = is_periodic(
            self._system, self._access.get_box(), draft.system, draft.topology
        )
        if target is not None and not has_forces(self._system):
            logger.warning(
                "the System has no forces: energies that reporters ask the Context for are zero"
            )
            if self._is_periodic and not target.takes_box:
                logger.warning(
                    "there is a periodic box, and the target, a %s, takes none",
                    type(target).__name__,
                )
        cores = allowed_cores(access.get_properties().get("Threads"))
        self._is_reproducible = window is not None
        self._draft = draft.make(
            self._state()[0], self._masses, self._box(), cores, self._is_reproducible
        )
        self._environment_of_draft()
        self._jacobian, self._prediction = native_estimates(self._masses, self._pairs_within)

    def settings(self) -> Settings:
        """Those of the integrator at present."""
        return Settings(*self._access.get_settings())

    def step(self, steps: int, settings: Settings, plain: Callable[[int], None] | None) -> None:
        """Advance the Context by ``steps``, and ``noise_step`` with it.

        If the target fails the Context shows the last committed state, and so it does when the
        run is interrupted. ``plain``, if given, lets the Context do plain steps by itself.
        """
        with counted_interrupts() as self._interrupts:
            self._step(steps, settings, plain)

    def _step(self, steps: int, settings: Settings, plain: Callable[[int], None] | None) -> None:
        sampler, target = self._prepared(settings), self._target
        assert target is not None
        begin, counted = perf_counter(), self._statistics.seconds
        self._time, self._step_size = self._access.get_time()[0], settings.step_size
        self._clock.set(self.noise_step, self._time, self._access.get_time()[1], settings.step_size)

        # A target that was given may be a faster form of the System's forces, if it has any.
        by_itself = plain if self._given_target is None else None

        def plain_steps(state: State, n: int) -> tuple[Array, Array, int]:
            if state.positions is not self._in_context:
                self._show(state)
            self._in_context = None
            self._moves.hand_over(state.step)
            before, box = self._access.get_time()[1], self._access.get_box()
            try:
                assert by_itself is not None
                with target.single_states():
                    by_itself(n)
                self._moves.begun += n
            except Exception as error:
                count = self._access.get_time()[1]
                n = count - before
                self._moves.begun += n + 1
                self._raise_interrupt(error)
                if n == 0:
                    raise TargetError(
                        f"the target failed at the state before step {count}: {error}", count
                    ) from error
            if not np.array_equal(self._access.get_box(), box):
                self._take_box()
            positions, velocities, *_ = self._access.get_state()
            if self._has_immobile:
                velocities = np.where(self._immobile, 0.0, velocities)
            if self._access.on_device and self._has_overflowed(velocities):
                velocities = np.full_like(velocities, np.nan)
            self._in_context = positions
            return positions, velocities, n

        moves = self._moves
        try:
            sampler.advance(steps, None if by_itself is None else plain_steps)
        finally:
            state = sampler.state
            moves.tell(state.step)
            self._begun = moves.begun - state.step
            is_shown = state.positions is self._in_context and not self._has_immobile
            if not is_shown or moves.next_step is not None:
                self._show(state)
            self._in_context = None if not is_shown else self._in_context
            self._step_count += state.step - self.noise_step
            self.noise_step = state.step
            self._time = self._access.get_time()[0]
            self._next_move = moves.next_step
            self._access.acknowledge()
            counted = self._statistics.seconds - counted
            self._statistics.overhead_seconds += perf_counter() - begin - counted

    def _show(self, state: State) -> None:
        """Put a state into the Context, with its time and step count."""
        done, time, velocities = state.step - self.noise_step, self._time, state.velocities
        for _ in range(done):  # with the rounding of one step after another
            time += self._step_size
        if self._has_immobile:  # OpenMM leaves them alone, their velocities too
            velocities = np.where(self._immobile, self._start_velocities, velocities)
        self._access.set_state(state.positions, velocities, time, self._step_count + done)

    def _has_overflowed(self, velocities: Array) -> bool:
        """Whether a force was NaN, or too large for a device's integers: it is finite there."""
        largest = largest_device_force * self._step_size
        return bool((self._masses[:, None] * np.abs(velocities) > 0.5 * largest).any())

    def take_tuner(self, tuner: WindowTuner | None) -> None:
        """Let another object of that kind choose the windows from now on."""
        self.tuner = tuner
        if self._sampler is not None:
            self._sampler.tuner = tuner

    @property
    def sampler(self) -> SpeculativeSampler:
        """Made in the first step."""
        assert self._sampler is not None
        return self._sampler

    def evaluate(self, positions: Array) -> Evaluation:
        """Energies (B,) and forces (B, N, 3) of the target at present, after the first step."""
        assert self._target is not None
        times = Times.same(len(positions), *self._access.get_time())
        return self._target.evaluate_at(positions, self._box_of_target, times)

    def _forces_at_sites(self, sites: Array, times: Times | None = None) -> Array:
        """Target forces; a window that the tuner has settled on is prepared for."""
        window = self.sampler.window
        if self.tuner is not None and window != TYPICAL_WINDOW:
            rounds = self._rounds_of[window] = self._rounds_of.get(window, 0) + 1
            if rounds == SETTLED:
                assert self._target is not None
                try:
                    self._target.prepare(sites[0], window, self._box_of_target)
                except Exception as error:  # whatever a target may raise
                    logger.info("the target cannot be prepared for %d states (%s)", window, error)
        assert self._target is not None
        try:
            return self._target.evaluate_at(sites, self._box_of_target, times)[1]
        except Exception as error:
            self._raise_interrupt(error)
            raise

    def _raise_interrupt(self, error: Exception) -> None:
        """Raise KeyboardInterrupt if that is what OpenMM made this exception of."""
        if self._interrupts:
            raise KeyboardInterrupt from error

    def discrepancies(self, positions: Array) -> Array:
        """Target force minus draft force at positions (B, N, 3), after the first step."""
        times = Times.same(1, *self._access.get_time())
        draft_forces = np.stack([self._draft(each, times) for each in positions])
        return self.evaluate(positions)[1] - draft_forces

    def _prepared(self, settings: Settings) -> SpeculativeSampler:
        """The sampler, standing where the Context stands; what has changed is made anew."""
        record, previous = self._record, self._settings
        is_touched = self._access.touched or self._system.version != self._version
        has_changed = is_touched and self._follow_changes()
        self._moves.begun = self.noise_step + self._begun
        # The frequency of a barostat counts at once, as in plain dynamics.
        has_changed |= self._moves.next_step != self._next_move
        if record is not None:
            self._sampler, self._fresh_seed = None, record["seed"]
        elif os.getpid() != self._process:
            self._leave_parent()
        if previous is not None and settings.force_groups != previous.force_groups:
            self._target = self._given_target
            self._unchecked.add("force groups")
        sampler = self._sampler if settings == previous else None
        is_as_it_was = not (has_changed or self._unchecked)
        if sampler is not None and is_as_it_was and self._is_where_it_was(sampler):
            return sampler
        if self._sampler is not None:
            self._sampler.finish_lessons(self.noise_step)
        if sampler is None or self._unchecked:
            scheme = SCHEMES[self._scheme_name](
                settings.temperature, settings.friction, settings.step_size
            )
            scheme.check_noise(reciprocal(self._masses))
            if self._unchecked:
                self._state()
                self._environment_of_draft()
                self._target = self._checked_target(self._target, settings, scheme)
                self._unchecked.clear()
            if sampler is None:
                sampler = self._new_sampler(settings, scheme)
        self._take_box()
        positions, velocities, self._step_count = self._state()
        self._start_velocities, self._in_context = velocities, None
        if record is None or not self._resume(record, sampler, settings):
            sampler.set_state(positions, velocities, self.noise_step, step_count=self._step_count)
        self._sampler, self._settings, self._record = sampler, settings, None
        return sampler

    def _follow_changes(self) -> bool:
        """Take over what the user has changed in the Context; whether there was anything.

        Forces are compared with the Context's when they, or the parameters, are new.
        """
        self._system.take_unannounced(self._access.updates)
        if self._system.version != self._version:
            self._version = self._system.version
            if self._own_target is not None:
                self._own_target.refresh(self._system.getForces())
            self._checked_parameters.clear()
            self._unchecked.add("forces")
        if self._settings is None:  # the first step: everything is new
            return True
        has_new_parameters = bool(self._access.changed_parameters)
        if has_new_parameters:
            parameters = self._access.get_parameters()
            if self._target is not None:
                self._target.set_parameters(parameters)
            values = tuple(sorted(parameters.items()))
            if values not in self._checked_parameters:
                self._checked_parameters.add(values)
                self._unchecked.add("parameters")
        box, before = self._box(), self._box_of_target
        is_new_box = box is not None and before is not None and not np.array_equal(box, before)
        if is_new_box and not self._has_checked_box:
            self._has_checked_box = True
            self._unchecked.add("box")
        return bool(self._unchecked) or has_new_parameters or self._access.state_changed

    def _leave_parent(self) -> None:
        """This process was forked: it has random numbers of its own, unless a seed was given."""
        self._process = os.getpid()
        if self._access.get_settings()[3] == 0:
            self._fresh_seed, self._sampler = secrets.randbits(63), None
            self._access.renew_plain_noise()

    def _is_where_it_was(self, sampler: SpeculativeSampler) -> bool:
        """Whether the Context shows the step, and where it matters the time, of the sampler."""
        time, step_count = self._access.get_time()
        return (
            sampler.state.step == self.noise_step
            and self._step_count == step_count
            and (self._time == time or not self._uses_times())
        )

    def _uses_times(self) -> bool:
        return self._draft.uses_times or (self._target is not None and self._target.uses_times)

    def go_on_from(self, record: Record) -> None:
        """The Context has been loaded from a checkpoint or a State that had this record."""
        self._record = record
        self._begun = record["begun"]

    def _resume(self, record: Record, sampler: SpeculativeSampler, settings: Settings) -> bool:
        """Give draft and barostats their memory back; and the sampler, if all is as it was."""
        if record["draft state"] is not None:
            self._draft.restore(record["draft state"])
        self._jacobian.restore(record["jacobian"])
        self._prediction.restore(record["prediction"])
        barostats = record["barostats"]
        if barostats.shape == self._access.get_barostat_memory().shape:
            self._access.set_barostat_memory(barostats)
        if (
            record["sampler"] is None
            or Settings(*record["settings"]) != settings
            or record["system"] != self._system.digest
            or record["shown"] != self._shown()
        ):
            return False
        if self.tuner is not None and record["tuned window"] is not None:
            self.tuner.start_from(record["tuned window"])
        sampler.restore(record["sampler"])
        return True

    def record(self, settings: Settings) -> Record:
        """What ``go_on_from`` takes."""
        if self._record is not None:  # no step since
            return self._record
        sampler, access = self._sampler, self._access
        is_in_step = (
            sampler is not None
            and settings == self._settings
            and self._system.version == self._version
            and not (access.touched and (access.state_changed or access.changed_parameters))
            and self._is_where_it_was(sampler)
        )
        if sampler is not None and not is_in_step:  # as the next step would
            sampler.finish_lessons(self.noise_step)
        return {
            "seed": settings.seed % 2**64 or self._fresh_seed,
            "settings": list(settings),
            "system": self._system.digest,
            "shown": self._shown(),
            "draft state": self._draft.snapshot(),
            "jacobian": self._jacobian.snapshot(),
            "prediction": self._prediction.snapshot(),
            "sampler": sampler.snapshot() if is_in_step and sampler is not None else None,
            "tuned window": None if self.tuner is None else self.tuner.window,
            "barostats": access.get_barostat_memory(),
            "begun": self._begun,
            "decisions": dict(racing.decisions),
        }

    def _shown(self) -> str:
        """Digest of the state that the Context shows."""
        positions, velocities, _, step_count = self._access.get_state()
        parameters = sorted(self._access.get_parameters().items())
        time = [self._access.get_time()[0]] if self._uses_times() else []
        return digest_of(
            positions, velocities, self._access.get_box(), parameters, step_count, *time
        )

    def _new_sampler(self, settings: Settings, scheme: Scheme) -> SpeculativeSampler:
        target = self._target
        assert target is not None
        frequency = cm_removal_frequency(self._system)
        if self._access.on_device:  # where OpenMM's kernel does it at every step
            frequency = min(frequency, 1)
        sampler = SpeculativeSampler(
            scheme,
            self._masses,
            self._draft,
            self._forces_at_sites,
            self._window,
            settings.seed % 2**64 or self._fresh_seed,
            correction=self.correction,
            cm_removal_frequency=frequency,
            jacobian=self._jacobian,
            prediction=self._prediction,
            clock=self._clock if self._uses_times() else None,
            learns_beside=not target.keeps_cores_busy,
        )
        sampler.commit, sampler.statistics = commit, self._statistics
        sampler.tuner, sampler.watchers = self.tuner, self._watchers
        sampler.intervention = self._moves
        return sampler

    def _state(self) -> tuple[Array, Array, int]:
        positions, velocities, _, step_count = self._access.get_state()
        for name, array in (("positions", positions), ("velocities", velocities)):
            if not np.isfinite(array).all():
                atom = int(np.argwhere(~np.isfinite(array))[0, 0])
                raise ValueError(
                    f"the {name} in the Context are not finite, first those of atom {atom}: "
                    f"{array[atom]}; set sound ones before the next step"
                )
        return positions, velocities, step_count

    def _box(self) -> Array | None:
        """Periodic box vectors (3, 3) in nm; None if the target is not periodic."""
        periodic = self._is_periodic
        if has_forces(self._system):  # which may have been edited
            periodic = self._system.usesPeriodicBoundaryConditions()
        return self._access.get_box() if periodic else None

    def _take_box(self) -> None:
        """The box of the Context is that of target and draft from now on."""
        self._box_of_target = self._box()
        self._environment_of_draft()

    def _pairs_within(self, positions: Array, cutoff: float) -> tuple[Pairs, Array]:
        """See JacobianEstimate."""
        return pairs_within(positions, cutoff, self._box_of_target)

    def _environment_of_draft(self) -> None:
        self._draft.set_environment(self._box(), self._access.get_parameters())

    def _checked_target(
        self, target: BatchedTarget | None, settings: Settings, scheme: Scheme
    ) -> BatchedTarget:
        """The target, made from the System if there is none yet, with the Context's parameters.

        A target that is new here is validated at states around the present; later, when something
        has changed, its forces are only compared with the Context's own.

        Raises TargetMismatchError, or TargetError if the forces cannot be had.
        """
        positions, velocities, time, step_count = self._access.get_state()
        box, parameters = self._box(), self._access.get_parameters()
        keep_freed_memory()
        try:
            if target is None:
                target = self._own_target = SystemTarget(
                    self._system,
                    positions,
                    groups=settings.force_groups,
                    groups_of_forces=self._system.groups,
                    platform=self._access.get_platform(),
                    properties=self._access.get_properties(),
                    time=time,
                    step_count=step_count,
                    reproducible=self._is_reproducible,
                )
                if virtual_sites(self._system):
                    target = PlacedTarget(target, self._system)
            target.set_parameters(parameters)
            around = Surroundings(
                positions,
                self._masses,
                box,
                time,
                step_count,
                scheme,
                partial(self._context_forces, settings=settings)
                if has_forces(self._system)
                else None,
            )
            if target is not self._validated:
                self._rounds_of.clear()
                is_given = self._given_target is not None
                seconds = set_up_target(target, around, self._window, is_given=is_given)
                # Where forces are not finite the sampler will name step and atom.
                if seconds is not None:
                    self._validated, self._statistics.plain_step_seconds = target, seconds
            elif np.isfinite(around.forces(target)).all():
                check_target(target, around)
            if self._is_reproducible and self._own_target is not None:
                self._own_target.forget_history()  # how much was tried depends on the clock
        except TargetMismatchError:
            raise
        except Exception as error:
            self._raise_interrupt(error)
            raise TargetError(
                f"the target failed at the state before step {step_count}, or close to it: {error}",
                step_count,
            ) from error
        finally:
            self._access.set_state(positions, velocities, time, step_count)
        return target

    def _context_forces(self, states: Array, settings: Settings) -> Array:
        """The forces (B, N, 3) that the Context's integrator would see."""
        return self._access.forces(states, signed(settings.force_groups))
