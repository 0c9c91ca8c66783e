"""Between a Context and the sampler: what was bound, what has changed, state in and state out."""

from __future__ import annotations

import gc
import logging
import secrets
from collections.abc import Callable
from functools import partial
from time import perf_counter
from timeit import timeit
from typing import Any, NamedTuple

import numpy as np
import openmm
from numpy.typing import NDArray

from . import racing
from ._native import ContextAccess, commit, keep_freed_memory
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
from .draft import DraftChoice
from .periodicity import is_periodic
from .restart import Record, digest_of
from .rollout import reciprocal
from .sampler import Round, SpeculativeSampler, State, Statistics, TargetError
from .schemes import SCHEMES, Scheme
from .targets import BatchedTarget, SystemTarget, TargetMismatchError, validate_target
from .targets.base import Evaluation
from .targets.pythonforce import as_python_force
from .targets.torchforce import as_torch_force
from .targets.virtualsites import PlacedTarget
from .tuning import WindowTuner

Array = NDArray[np.float64]

logger = logging.getLogger(__name__)

CHECKED_STATES = 3
TIMED_STEPS = 3
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
        draft: DraftChoice,
        target: BatchedTarget | None,
        scheme_name: str,
        window: int | None,
        statistics: Statistics,
        watchers: list[Callable[[Round], Any]],
    ) -> None:
        self._access = access
        self._system = _python_system(access)
        check_system(self._system, "target")
        if draft.system is not None:
            check_pair(self._system, draft.system)
        self._masses = masses_of(self._system)
        self._immobile = self._masses[:, None] == 0
        self._has_immobile = bool(self._immobile.any())
        self._has_barostat = barostat_frequency(self._system) is not None
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
        self._fingerprint = _fingerprint(self._system)
        self._settings: Settings | None = None
        self._sampler: SpeculativeSampler | None = None
        self._step_count = -1
        self._in_context: Array | None = None  # positions of the state that it has itself made
        self.noise_step = 0  # index of the next step's random numbers
        self._moves = BarostatMoves(access, self._take_box)
        self._begun = 0  # steps beyond the committed ones that the barostats have begun: 0 or 1
        self._record: Record | None = None  # to go on from
        self._fresh_seed = secrets.randbits(63)
        self.correction = "per-step"  # before the first step; see SpeculativeSampler
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
        self._draft = draft.make(self._state()[0], self._masses, self._box())
        self._environment_of_draft()

    def is_current(self) -> bool:
        """Whether the integrator still belongs to the System that was bound, with its particles.

        Raises openmm.OpenMMException if its Context was deleted.
        """
        if self._access.get_system_address() != int(self._system.this):
            return False
        return not self._access.touched or np.array_equal(self._access.get_masses(), self._masses)

    def settings(self) -> Settings:
        """Those of the integrator at present."""
        return Settings(*self._access.get_settings())

    def step(self, steps: int, settings: Settings, plain: Callable[[int], None] | None) -> None:
        """Advance the Context by ``steps``, and ``noise_step`` with it.

        If the target fails the Context shows the last committed state, and so it does when the
        run is interrupted. ``plain``, if given, lets the Context do plain steps by itself.
        """
        sampler, target = self._prepared(settings), self._target
        assert target is not None
        begin, counted = perf_counter(), self._statistics.seconds
        time, step_count = self._access.get_time()

        # A target that was given may be a faster form of the System's forces, if it has any.
        by_itself = plain if self._given_target is None else None

        def plain_steps(state: State, n: int) -> tuple[Array, Array, int]:
            done = state.step - self.noise_step
            at = time + done * settings.step_size
            if state.positions is not self._in_context:
                self._access.set_state(state.positions, state.velocities, at, step_count + done)
            self._in_context = None
            self._moves.tell(state.step)
            box = self._access.get_box() if self._has_barostat else None
            try:
                assert by_itself is not None
                with target.single_states():
                    by_itself(n)
                self._moves.begun += n
            except Exception as error:
                count = self._access.get_time()[1]
                n = count - (step_count + done)
                self._moves.begun += n + 1
                if n == 0:
                    raise TargetError(
                        f"the target failed at the state before step {count}: {error}", count
                    ) from error
            if box is not None and not np.array_equal(self._access.get_box(), box):
                self._take_box()
            positions, velocities, *_ = self._access.get_state()
            self._in_context = positions
            return positions, velocities, n

        moves = self._moves
        moves.begun = self.noise_step + self._begun
        try:
            sampler.advance(steps, None if by_itself is None else plain_steps)
        finally:
            positions, velocities, step = sampler.state
            done = step - self.noise_step
            for _ in range(done):
                time += settings.step_size
            moves.tell(step)
            self._begun = moves.begun - step
            self.noise_step, self._step_count = step, step_count + done
            if self._has_immobile:  # OpenMM leaves them alone, their velocities too
                velocities = np.where(self._immobile, self._start_velocities, velocities)
            if self._has_immobile or self._has_barostat or positions is not self._in_context:
                self._access.set_state(positions, velocities, time, self._step_count)
                self._in_context = None
            self._access.acknowledge()
            counted = self._statistics.seconds - counted
            self._statistics.overhead_seconds += perf_counter() - begin - counted

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
        """Energies (B,) and forces (B, N, 3) of the target, after the first step."""
        assert self._target is not None
        return self._target.evaluate(positions, self._box_of_target)

    def _forces_at_sites(self, sites: Array) -> Array:
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
        return self.evaluate(sites)[1]

    def discrepancies(self, positions: Array) -> Array:
        """Target force minus draft force at positions (B, N, 3), after the first step."""
        draft_forces = np.stack([self._draft(each) for each in positions])
        return self.evaluate(positions)[1] - draft_forces

    def _prepared(self, settings: Settings) -> SpeculativeSampler:
        """The sampler, standing where the Context stands; made anew if something has changed."""
        sampler, target, record = self._sampler, self._target, self._record
        if record is not None:
            sampler, self._fresh_seed = None, record["seed"]
        previous = self._settings
        if previous is not None and settings.force_groups != previous.force_groups:
            target = self._given_target
        if self._access.touched:
            check_system(self._system, "target")
            fingerprint = _fingerprint(self._system)
            if fingerprint != self._fingerprint:
                if fingerprint.forces != self._fingerprint.forces or self._own_target is None:
                    target = self._given_target
                else:  # a bias grows, a restraint is tightened: may happen often
                    self._own_target.refresh()
                self._fingerprint = fingerprint
                sampler = None
            if self._access.changed:
                sampler = None
            # Now, because what follows may fail, and be tried again.
            self._target, self._sampler = target, sampler
        if sampler is None or target is None or settings != previous:
            scheme = SCHEMES[self._scheme_name](
                settings.temperature, settings.friction, settings.step_size
            )
            scheme.check_noise(reciprocal(self._masses))
            if sampler is None or target is None:
                self._state()
                self._environment_of_draft()
                self._target = self._checked_target(target, settings, scheme)
            sampler = self._new_sampler(settings, scheme)
        elif (sampler.state.step, self._step_count) == (
            self.noise_step,
            self._access.get_time()[1],
        ):
            return sampler
        positions, velocities, step_count = self._state()
        self._start_velocities = velocities
        if record is None or not self._resume(record, sampler, settings):
            sampler.set_state(positions, velocities, self.noise_step, step_count=step_count)
        self._sampler, self._settings, self._record = sampler, settings, None
        return sampler

    def go_on_from(self, record: Record) -> None:
        """The Context has been loaded from a checkpoint or a State that had this record."""
        self._record = record
        self._begun = record["begun"]

    def _resume(self, record: Record, sampler: SpeculativeSampler, settings: Settings) -> bool:
        """Give draft and barostats their memory back; and the sampler, if all is as it was."""
        if record["draft state"] is not None:
            self._draft.restore(record["draft state"])
        barostats = record["barostats"]
        if barostats.shape == self._access.get_barostat_memory().shape:
            self._access.set_barostat_memory(barostats)
        if (
            record["sampler"] is None
            or Settings(*record["settings"]) != settings
            or record["system"] != self._fingerprint.contents
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
            and not access.changed
            and (not access.touched or _fingerprint(self._system) == self._fingerprint)
            and (sampler.state.step, self._step_count) == (self.noise_step, access.get_time()[1])
        )
        return {
            "seed": settings.seed % 2**64 or self._fresh_seed,
            "settings": list(settings),
            "system": self._fingerprint.contents,
            "shown": self._shown(),
            "draft state": self._draft.snapshot(),
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
        return digest_of(positions, velocities, self._access.get_box(), parameters, step_count)

    def _new_sampler(self, settings: Settings, scheme: Scheme) -> SpeculativeSampler:
        target = self._target
        assert target is not None
        self._take_box()
        sampler = SpeculativeSampler(
            scheme,
            self._masses,
            self._draft,
            self._forces_at_sites,
            self._window,
            settings.seed % 2**64 or self._fresh_seed,
            correction=self.correction,
            cm_removal_frequency=cm_removal_frequency(self._system),
        )
        sampler.commit, sampler.statistics = commit, self._statistics
        sampler.tuner, sampler.watchers = self.tuner, self._watchers
        if self._has_barostat:
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
                    platform=self._access.get_platform(),
                    properties=self._access.get_properties(),
                )
                if virtual_sites(self._system):
                    target = PlacedTarget(target, self._system)
            target.set_parameters(parameters)
            new = target is not self._validated
            if new:
                target.prepare(positions, self._window, box)
                self._rounds_of.clear()
            # Where these are not finite the sampler will name step and atom.
            if has_forces(self._system):
                forces = self._context_forces(positions[None], settings)
            else:
                forces = target.evaluate(positions[None], box)[1]
            if np.isfinite(forces).all():
                validate_target(
                    target,
                    positions,
                    self._masses,
                    box=box,
                    scheme=scheme,
                    reference=partial(self._context_forces, settings=settings)
                    if has_forces(self._system)
                    else None,
                    batch=CHECKED_STATES,
                    directions=2 if new else 0,
                    rows=new,
                )
                self._validated = target
                if new:
                    self._time_plain_step(target, positions, settings)
        except TargetMismatchError:
            raise
        except Exception as error:
            raise TargetError(
                f"the target failed at the state before step {step_count}, or close to it: {error}",
                step_count,
            ) from error
        finally:
            self._access.set_state(positions, velocities, time, step_count)
        return target

    def _time_plain_step(self, target: BatchedTarget, positions: Array, settings: Settings) -> None:
        """Of a plain run the forces take the time; the first evaluations have been done."""

        def evaluate() -> None:
            if has_forces(self._system):
                self._context_forces(positions[None], settings)
            else:
                target.evaluate(positions[None], self._box())

        with target.single_states():
            seconds = [timeit(evaluate, number=1) for _ in range(TIMED_STEPS)]
        self._statistics.plain_step_seconds = min(seconds)

    def _context_forces(self, states: Array, settings: Settings) -> Array:
        """The forces (B, N, 3) that the Context's integrator would see."""
        groups = settings.force_groups - 2**32 * (settings.force_groups >= 2**31)
        return self._access.forces(states, groups)


class Fingerprint(NamedTuple):
    """Of a System's forces: their addresses and groups, and a digest of what is in them."""

    forces: list[tuple[int, int]]
    contents: str


def _fingerprint(system: openmm.System) -> Fingerprint:
    """See Fingerprint.

    The code behind a TorchForce or a PythonForce cannot be exchanged, nor always serialised.
    """
    forces = system.getForces()
    contents = (
        openmm.XmlSerializer.serialize(force)
        for force in forces
        if as_torch_force(force) is None and as_python_force(force) is None
    )
    return Fingerprint(
        [(int(force.this), force.getForceGroup()) for force in forces], digest_of("".join(contents))
    )


def _python_system(access: ContextAccess) -> openmm.System:
    """The Python System that the Context was made from, found by its address.

    The Context's Python object keeps it alive. Making a copy in C++ instead is no way: a TorchForce
    does not survive its own serialisation.
    """
    address = access.get_system_address()
    for candidate in gc.get_objects():
        if issubclass(type(candidate), openmm.System) and int(candidate.this) == address:
            return candidate
    raise RuntimeError(
        "the System of the Context is not to be found among Python's objects; make the Context "
        "with openmm.Context or openmm.app.Simulation and keep it"
    )
