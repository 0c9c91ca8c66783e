"""Between a Context and the sampler: what has changed, state in and state out, restarts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._native import ContextAccess
from ..contexts import autotune
from ..contexts.checks import barostat_frequency, check_pair, check_scheme, check_system, masses_of
from ..contexts.constraints import has_uneven_triangles
from ..contexts.digests import digest_of
from ..contexts.interrupts import InterruptWatch
from ..contexts.platforms import note_in_use
from ..core.sampler import SpeculativeSampler, Tuner
from ..core.schemes import Scheme
from ..core.statistics import Round, Stopwatch
from ..core.tuning import WindowTuner
from ..drafts.draft import DraftSpec
from ..targets import BatchedTarget
from .barostat import BarostatMoves
from .boundpair import BoundPair
from .changes import ContextChanges
from .contextstate import ContextState
from .enginechoice import Engines
from .plainsteps import PlainSteps
from .restart import Record
from .samplerspec import SamplerSpec, Settings
from .snapshot import SystemSnapshot

Array = NDArray[np.float64]

logger = logging.getLogger(__name__)

TYPICAL_WINDOW = 16  # that a target is prepared for, where the window is tuned


class Binding:
    """Speculative dynamics in one Context.

    Parameters
    ----------
    access : ContextAccess
        Of the Context that owns the integrator.
    system : SystemSnapshot
        What that Context holds.
    draft : DraftSpec
    target : BatchedTarget or None
        None: built from the Context's System.
    scheme_name, window : as in LSDIntegrator
        ``window`` is None for 'auto'.
    correction : str or None
    engines : Engines
    moves : type
        Of the Intervention.
    stopwatch : Stopwatch
        With the Statistics that are counted on.
    round_callbacks : sequence of callables
        As ``SpeculativeSampler``'s.
    """

    def __init__(
        self,
        access: ContextAccess,
        system: SystemSnapshot,
        draft: DraftSpec,
        target: BatchedTarget | None,
        scheme_name: str,
        window: int | None,
        correction: str | None,
        engines: Engines,
        moves: type[BarostatMoves],
        stopwatch: Stopwatch,
        round_callbacks: Sequence[Callable[[Round], Any]],
    ) -> None:
        note_in_use(access.get_platform())
        check_system(system, "target")
        check_scheme(system, scheme_name)
        if draft.system is not None:
            check_pair(system, draft.system)
        self._access, self._system, self._stopwatch = access, system, stopwatch
        masses, tuner = masses_of(system), None
        self.masses = masses
        self._shown, self._interrupts = ContextState(access, masses), InterruptWatch()
        if window is None:
            tuner = WindowTuner(barostat_frequency(system), draft.learning)
            window = TYPICAL_WINDOW
        self.pair = BoundPair(
            access,
            system,
            masses,
            self._shown.read_checked()[0],
            draft,
            target,
            window,
            self.settings().force_groups,
            tuner is not None,
            stopwatch.statistics,
            self._interrupts,
        )
        self._moves = moves(access, self._shown.show, self.pair.take_environment)
        self._changes = ContextChanges(access, system, self.pair)
        self._spec = SamplerSpec(
            access,
            system,
            masses,
            self.pair,
            self._moves,
            scheme_name,
            correction,
            window,
            tuner,
            round_callbacks,
            stopwatch,
            engines,
        )
        self._plain_steps = PlainSteps(
            access, self._shown, self.pair, self._moves, masses, self._interrupts
        )
        self._may_step_plainly = not has_uneven_triangles(system)
        self._settings: Settings | None = None
        self._sampler: SpeculativeSampler | None = None
        self._record: Record | None = None  # to resume from

    def settings(self) -> Settings:
        """Those of the integrator at present."""
        return Settings(*self._access.get_settings())

    def is_for(self, force_groups: int) -> bool:
        """Whether it still fits: what is shared are forces of these groups."""
        sharing = self.pair.sharing
        return sharing is None or sharing.force_groups == force_groups

    @property
    def noise_step(self) -> int:
        """Index of the next step's random numbers."""
        return self._shown.step

    def step(
        self,
        steps: int,
        noise_step: int,
        settings: Settings,
        plain: Callable[[int], None] | None,
    ) -> None:
        """Advance the Context by ``steps``, the first of which has the index ``noise_step``.

        If the target fails the Context shows the last committed state, and so it does when the
        run is interrupted. ``plain``, if given, lets the Context do plain steps by itself.
        """
        self._shown.set_step(noise_step)
        with self._interrupts.watch():
            sampler = self._prepare_sampler(settings)
            with self._stopwatch.part("overhead"):
                self._advance(sampler, steps, settings, plain)

    def _advance(
        self,
        sampler: SpeculativeSampler,
        steps: int,
        settings: Settings,
        plain: Callable[[int], None] | None,
    ) -> None:
        self._shown.begin(settings.step_size)
        time, step_count = self._access.get_time()
        self._spec.clock.set(self.noise_step, time, step_count, settings.step_size)
        plain_steps = None
        # A target that was given may be a faster form of the System's forces, if it has any.
        if plain is not None and self._may_step_plainly and not self.pair.target.is_given:
            plain_steps = partial(self._plain_steps.do, run=plain, step_size=settings.step_size)
        try:
            sampler.advance(steps, plain_steps)
        finally:
            self._shown.take_back_box(sampler.state)
            self._moves.end(sampler.state.step)
            self._shown.end(sampler.state)
            self._access.mark_clean()

    def take_tuner(self, tuner: Tuner | None) -> Tuner | None:
        """Let another tuner choose the windows from now on; the one that did so before."""
        before = self._spec.tuner
        self._spec.take_tuner(tuner)
        if self._sampler is not None:
            self._sampler.take_tuner(tuner)
        return before

    @property
    def tuner(self) -> Tuner | None:
        """What chooses the windows."""
        return self._spec.tuner

    @property
    def sampler(self) -> SpeculativeSampler:
        """Made in the first step."""
        assert self._sampler is not None
        return self._sampler

    def _prepare_sampler(self, settings: Settings) -> SpeculativeSampler:
        """The sampler, standing where the Context stands; what has changed is rebuilt."""
        has_changed = self._follow_changes(settings)
        sampler = self._sampler if settings == self._settings else None
        is_as_it_was = not (has_changed or self._changes.unchecked)
        if sampler is not None and is_as_it_was and self._is_where_it_was(sampler):
            return sampler
        if self._sampler is not None:
            self._sampler.finish_lessons(self.noise_step)
            if self.tuner is not None:  # it knows what became of the steps that are discarded
                self._shown.set_step(max(self.noise_step, self._sampler.next_draft_step))
                self._moves.begin(self.noise_step)
        if sampler is None or self._changes.unchecked:
            scheme = self._spec.make_scheme(settings)
            self._check_target(settings, scheme)
            if sampler is None:
                sampler = self._spec.build(settings, scheme)
        self.pair.take_environment()
        self._access.mark_parameters()
        positions, velocities = self._shown.read()
        if not self._resume(sampler, settings):
            step, step_count = self.noise_step, self._shown.step_count
            sampler.set_state(positions, velocities, step, step_count=step_count)
        self._sampler, self._settings, self._record = sampler, settings, None
        return sampler

    def _follow_changes(self, settings: Settings) -> bool:
        """Take over what the user has changed; whether there was anything."""
        before = self._settings
        has_changed = self._changes.may_exist and self._changes.follow(before is None)
        has_changed |= self._moves.begin(self.noise_step)
        if self._record is not None:
            self._sampler = None
            self._spec.seed.resume(self._record["seed"])
            if isinstance(self.tuner, WindowTuner):
                self._spec.take_tuner(self.tuner.anew())
        elif self._spec.seed.follow_fork(self._access.get_settings()[3]):
            self._sampler = None
            self._access.renew_plain_noise()
        if before is not None and settings.force_groups != before.force_groups:
            self._changes.follow_force_groups()
        return has_changed

    def _check_target(self, settings: Settings, scheme: Scheme) -> None:
        if self._changes.unchecked:
            self._shown.read_checked()
            self.pair.set_up_target(settings.force_groups, scheme)
            self._changes.unchecked.clear()

    def _is_where_it_was(self, sampler: SpeculativeSampler) -> bool:
        """Whether the Context shows the step, and where it matters the time, of the sampler."""
        time, step_count = self._access.get_time()
        return (
            not self._shown.is_cut_short
            and sampler.state.step == self.noise_step
            and self._shown.step_count == step_count
            and (self._shown.time == time or not self.pair.uses_times)
        )

    def resume_from(self, record: Record) -> None:
        """The Context has been loaded from a checkpoint that had this record."""
        self._record = record

    def _resume(self, sampler: SpeculativeSampler, settings: Settings) -> bool:
        """Give draft and barostats their memory back; and the sampler, if all is as it was."""
        record, access = self._record, self._access
        if record is None:
            return False
        if record.get("subset") != self.pair.describe_subset():
            logger.warning("the checkpoint splits the forces differently: the draft starts afresh")
            return False
        self._spec.restore(record)
        barostats = record["barostats"]
        if barostats.shape == access.get_barostat_memory().shape:
            access.set_barostat_memory(barostats)
        if (
            record["sampler"] is None
            or not sampler.can_restore(record["sampler"])
            or Settings(*record["settings"]) != settings
            or record["system"] != self._system.digest
            or record["shown"] != self._digest_of_state()
        ):
            return False
        self._spec.resume_tuner(record)
        sampler.restore(record["sampler"])
        return True

    def record(self, settings: Settings) -> Record:
        """What ``resume_from`` takes."""
        if self._record is not None:  # no step since
            return self._record
        sampler = self._sampler
        is_in_step = (
            sampler is not None
            and settings == self._settings
            and not self._changes.has_new_forces
            and not self._changes.touch_state
            and self._is_where_it_was(sampler)
        )
        noise_step = self.noise_step
        if sampler is not None and not is_in_step:  # as the next step would
            sampler.finish_lessons(noise_step)
            if self.tuner is not None:
                noise_step = max(noise_step, sampler.next_draft_step)
        return {
            "noise step": noise_step,
            "seed": self._spec.seed.of(settings),
            "settings": list(settings),
            "system": self._system.digest,
            "shown": self._digest_of_state(),
            "subset": self.pair.describe_subset(),
            **self._spec.snapshot(),
            "sampler": sampler.snapshot() if is_in_step and sampler is not None else None,
            "barostats": self._access.get_barostat_memory(),
            "draft forces": self.pair.fingerprint_of_draft(),
            "decisions": autotune.snapshot(),
            "begun": 0,  # always; readers of before ask for it
        }

    def _digest_of_state(self) -> str:
        """Of what the Context shows."""
        positions, velocities, _, step_count = self._access.get_state()
        parameters = sorted(self._access.get_parameters().items())
        time = [self._access.get_time()[0]] if self.pair.uses_times else []
        return digest_of(
            positions, velocities, self._access.get_box(), parameters, step_count, *time
        )

    def close(self) -> None:
        """Let go of what was built for this Context."""
        self.pair.close()
