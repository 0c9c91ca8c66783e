"""Langevin Speculative Dynamics on plain arrays: draft, verify, commit, keep.

Method: Kosmala, Guennemann, Gao and Wood, arXiv:2606.02455, with a correction for every step of
the window (the parareal iteration of Lions, Maday and Turinici, C. R. Acad. Sci. Paris 332, 661
(2001)) in place of one constant offset, and a secant estimate of how it changes off the old path.
The committed steps follow the plain scheme with the target's forces exactly, whatever the draft; a
bad draft only commits fewer of them per round.

Units: nm, ps, amu, kJ/mol. Arrays are float64, positions and velocities (N, 3).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .beside import Beside
from .clock import Clock, Times
from .constraints import ConstraintError
from .corrections import Corrections, Outlook
from .correctors import Corrector, Following, make_corrector
from .engine import Engine, NumpyEngine
from .errors import SharedForceError, TargetError
from .jacobian import Secant
from .lessons import Lessons
from .noise import StepNoise
from .schemes import Scheme
from .statistics import Round, Statistics, Stopwatch
from .verifier import ForcePair, Pair, Verifier
from .window import AnyState, CommittedSteps, Draws, MeasuredRound, State, Verified, Window

Array = NDArray[np.float64]

PLAIN_STEPS = 10  # at a time, where the tuner wants plain steps; as Simulation.step does

DoPlainSteps = Callable[[AnyState, int], tuple[Array, Array, int]]


class Intervention(Protocol):
    """What changes the state from outside at the start of some steps: a barostat."""

    @property
    def next_step(self) -> int | None:
        """Index of the next step at whose start the state may change; None: never."""

    def apply(self, state: AnyState) -> tuple[Array, Array]:
        """Positions and velocities from which that step starts, given those before it."""


class Tuner(Protocol):
    """Chooses windows during a run."""

    window: int  #: of the next round; one is plain dynamics

    def record(self, committed: int, seconds: float, rounds: int = 1) -> None:
        """Rounds of ``window`` sites committed so many steps in so much time."""


class SpeculativeSampler:
    """Speculative dynamics for any two force functions.

    Parameters
    ----------
    engine : Engine
        Drafts windows and commits them: ``engine.NumpyEngine`` for any draft.
    pair : Pair
        Says by how much the target differs from the draft: ``verifier.ForcePair`` for any target.
    noise : StepNoise
        Random numbers of every step.
    window : int
        K, the number of sites drafted and evaluated per round.
    corrector : Corrector, optional
        Makes corrections of what was measured; default ``correctors.Following``.
    clock : Clock, optional
        Where forces depend on time or step count.
    tuner : Tuner, optional
        If there is one, it chooses the windows, from ``window`` on.
    intervention : Intervention, optional
        No window goes past the next one.
    round_callbacks : sequence of callables, Round ->
        Called after every round; what is added to it later counts too.
    stopwatch : Stopwatch, optional
        With the Statistics that are counted on.
    learns_beside : bool
        Whether to learn while the target is evaluated, in another thread, after the first steps;
        else between two rounds. Pays unless the target keeps all cores busy.

    Raises
    ------
    ValueError
        If the window is not positive.
    TargetError
        From ``advance``: the target fails, or is not finite, at a committed state.
    """

    def __init__(
        self,
        engine: Engine,
        pair: Pair,
        noise: StepNoise,
        window: int,
        *,
        corrector: Corrector | None = None,
        clock: Clock | None = None,
        tuner: Tuner | None = None,
        intervention: Intervention | None = None,
        round_callbacks: Sequence[Callable[[Round], Any]] = (),
        stopwatch: Stopwatch | None = None,
        learns_beside: bool = True,
    ) -> None:
        if window < 1:
            raise ValueError(f"window is {window}; it must be at least 1")
        self.window = window
        self.engine, self._noise = engine, noise
        masses = engine.masses[engine.subset]
        self._corrector = Following(engine.scheme, masses) if corrector is None else corrector
        self._lessons = Lessons(engine.trainable, self._corrector, learns_beside)
        self._stopwatch = Stopwatch(Statistics()) if stopwatch is None else stopwatch
        particles = np.arange(len(engine.masses))[engine.subset]
        self._verifier = Verifier(pair, self.statistics, engine.project_forces, particles)
        self._clock, self._tuner, self._intervention = clock, tuner, intervention
        self._round_callbacks = round_callbacks
        self._state: AnyState | None = None
        self._queue: deque[AnyState] = deque()
        self._step_count_offset = 0
        self._outlook = self._no_outlook()

    @classmethod
    def of_forces(
        cls,
        scheme: Scheme,
        masses: ArrayLike,
        draft: Callable[..., Array],
        target: Callable[..., Array],
        window: int,
        seed: int,
        *,
        engine: Callable[..., Engine] = NumpyEngine,
        correction: str = "secant",
        cm_removal_frequency: int = 0,
        **options: Any,
    ) -> SpeculativeSampler:
        """A sampler of two functions.

        Parameters
        ----------
        scheme, masses, draft : as in ``engine.NumpyEngine``
        target : callable, as in ``verifier.ForcePair``
        window : int
        seed, cm_removal_frequency : as in ``noise.StepNoise``
        engine : callable
            Makes the engine.
        correction : 'secant', 'per-step', 'constant' or 'none'
            See ``correctors``.
        options
            As of the constructor.
        """
        made = engine(scheme, masses, draft)
        own_masses = made.masses[made.subset]
        noise = StepNoise(seed, len(own_masses), cm_removal_frequency)
        corrector = make_corrector(correction, scheme, own_masses)
        options = {"corrector": corrector, **options}
        return cls(made, ForcePair(target), noise, window, **options)

    @property
    def statistics(self) -> Statistics:
        """What was done so far."""
        return self._stopwatch.statistics

    def take_engine(self, engine: Engine) -> None:
        """Let another engine draft and commit from now on, with the same draft and scheme."""
        self.engine = engine

    def take_tuner(self, tuner: Tuner | None) -> None:
        """Let another tuner choose the windows from now on."""
        self._tuner = tuner

    def set_state(
        self,
        positions: ArrayLike,
        velocities: ArrayLike,
        step: int = 0,
        *,
        step_count: int | None = None,
    ) -> None:
        """Start afresh from a committed state; the queue and the corrections are dropped.

        Parameters
        ----------
        positions, velocities : (N, 3) nm, nm/ps
        step : int
            Index n of the next step, which chooses its random numbers.
        step_count : int, optional
            The count that decides when the motion of the centre of mass is removed; by default
            ``step``.
        """
        shape = (len(self.engine.masses), 3)
        positions = np.array(positions, dtype=np.float64)
        velocities = np.array(velocities, dtype=np.float64)
        for name, array in (("positions", positions), ("velocities", velocities)):
            if array.shape != shape:
                raise ValueError(f"{name} have shape {array.shape}; expected {shape}")
            if not np.isfinite(array).all():
                atom = int(np.argwhere(~np.isfinite(array))[0, 0])
                raise ValueError(f"{name} are not finite: atom {atom} has {array[atom]}")
        velocities[self.engine.masses[:, 0] == 0] = 0.0
        self.finish_lessons(step)
        self._state = State(positions, velocities, step)
        self._queue = deque()
        self._step_count_offset = (step if step_count is None else step_count) - step
        self._outlook = self._no_outlook()
        self._lessons.start(step)
        self._stopwatch.begin_lap()

    def snapshot(self) -> dict[str, Any]:
        """All that the next steps depend on besides draft and estimates, for ``restore``."""
        corrections, times_measured = self._outlook
        return {
            "window": self.window,
            **self.engine.snapshot([self.state, self._front, *self._queue]),
            "step count offset": self._step_count_offset,
            "corrections": [corrections.forces, corrections.sites, corrections.secant],
            "times measured": times_measured,
            **self._corrector.snapshot(),
            **self._lessons.snapshot(),
        }

    def can_restore(self, record: dict[str, Any]) -> bool:
        """Whether the snapshot is of a sampler with an engine of the same kind."""
        return record.get("engine", "host") == self.engine.name

    def restore(self, record: dict[str, Any]) -> None:
        """Continue as the sampler that the snapshot was taken of; the window may be another."""
        self._state, _, *queue = self.engine.restore(record)
        self._queue = deque(queue)
        self._step_count_offset = record["step count offset"]
        forces, sites, secant = record["corrections"]
        secant = None if secant is None else Secant(*secant)
        corrections = Corrections(forces, sites, secant=secant)
        self._outlook = Outlook(corrections, record["times measured"])
        self._corrector.restore(record)
        self._lessons.restore(record)
        self._stopwatch.begin_lap()
        window, self.window = self.window, record["window"]
        if self._tuner is None:
            self._set_window(window)

    @property
    def state(self) -> AnyState:
        """The committed state that was handed out last."""
        if self._state is None:
            raise RuntimeError("the sampler has no state yet; call set_state first")
        return self._state

    @property
    def next_draft_step(self) -> int:
        """Index of the first step that is not committed."""
        return self._front.step

    @property
    def _front(self) -> AnyState:
        """The committed state from which the next window is drafted."""
        return self._queue[-1] if self._queue else self.state

    def advance(self, n: int, plain: DoPlainSteps | None = None) -> tuple[Array, Array]:
        """Positions and velocities exactly ``n`` steps on; further committed steps stay queued.

        The arrays are the sampler's own: not to be changed.
        If the target fails, or the run is interrupted, ``state`` is the last committed state.

        Parameters
        ----------
        n : int
        plain : callable, State, steps -> positions, velocities, steps done
            Does plain steps of the same scheme and target from a committed state by other means,
            with random numbers of its own; raises TargetError if it cannot do one. Taken where the
            tuner finds that no window pays.
        """
        state = self.state
        goal = state.step + n
        with self._stopwatch.part("overhead"):
            while state.step < goal:
                if not self._queue:
                    self._intervene()
                    if plain is not None and self._tuner is not None and self._tuner.window == 1:
                        self._plain_round(plain, min(goal - state.step, PLAIN_STEPS))
                    else:
                        self._round()
                state = self._state = self._queue[0]
                self._queue.popleft()
        return state.positions, state.velocities

    def _round(self) -> None:
        """Draft a window, verify it, commit a part of it, keep what was measured."""
        to_learn = self._begin_lessons()
        self._follow_tuner()
        state, length = self._front, self._length()
        count = state.step + self._step_count_offset
        draws = self._noise.draw(state.step, length, count)
        times = None if self._clock is None else self._clock.times(state.step, length)
        known = self._outlook.resized(length)
        corrections = self._corrector.complete(known.corrections)
        part = self._stopwatch.part
        with part("draft"):
            window = self._draft(state, corrections, draws, times)
        with part("learning"), Beside(to_learn) as learning, part("target"):
            verified = self._verifier.verify(window.sites, window.draft_forces, count, times)
        committed = self._commit(state, window, verified, draws)
        measured = MeasuredRound.of(state.step, window, verified, committed.num_steps, times)
        if learning.result:
            measured = self._measured_anew(measured)
        self._keep(measured, committed, known.times_measured)
        became = Round.of(measured, committed, len(window.sites), known.times_measured)
        self._account(measured, became, is_shortened=length < self.window)

    def _no_outlook(self) -> Outlook:
        return Outlook.nothing(self.window, len(self.engine.masses[self.engine.subset]))

    def _draft(
        self, state: AnyState, corrections: Corrections, draws: Draws, times: Times | None
    ) -> Window:
        try:
            return self.engine.draft(state, corrections, draws, times)
        except SharedForceError as error:
            count = state.step + self._step_count_offset
            raise TargetError(
                f"the target failed at the state before step {count}: {error}", count
            ) from error

    def _commit(
        self, state: AnyState, window: Window, verified: Verified, draws: Draws
    ) -> CommittedSteps:
        try:
            return self.engine.commit(state, window, verified.target_forces, draws)
        except ConstraintError as error:
            count = state.step + self._step_count_offset
            raise TargetError(
                f"a step of the target's forces went wrong, from the state before step {count}: "
                f"{error}; is the starting structure, the time step or the potential sound there?",
                count,
            ) from error

    def _keep(
        self, measured: MeasuredRound, committed: CommittedSteps, times_measured: NDArray[np.int_]
    ) -> None:
        """The committed steps, and what was measured for those after them."""
        states = committed.states(measured.step)
        corrections = self._corrector.next(measured, self.window, self._lessons.ahead)
        rest = measured.committed if self._corrector.keeps_rows else len(measured.sites)
        known = times_measured[rest : len(measured.sites)]
        times_measured = np.ones(len(measured.sites) - rest, dtype=int)
        times_measured[: len(known)] += known
        # At once: an interrupt must not come between.
        self._queue, self._outlook = deque(states), Outlook(corrections, times_measured)

    def _account(self, measured: MeasuredRound, became: Round, *, is_shortened: bool) -> None:
        """Tell statistics, tuner, lessons and callbacks of a round."""
        self.statistics.count_round(became, self.window, is_shortened)
        if self._tuner is not None:
            seconds = self._stopwatch.lap()
            if not is_shortened:
                self._tuner.record(became.committed, seconds)
        self._lessons.add(measured)
        for tell in self._round_callbacks:
            tell(became)

    def _plain_round(self, plain: DoPlainSteps, n: int) -> None:
        """Steps without a draft; what is known about later ones belongs to other noise."""
        self._learn_at_once()
        with self._stopwatch.part("target"):
            positions, velocities, n = plain(self._front, n)
        step = self._front.step + n
        if not math.isfinite(np.vdot(positions, positions) + np.vdot(velocities, velocities)):
            count = step + self._step_count_offset
            raise TargetError(
                f"plain steps of the target led to a state that is not finite, before step {count}"
                "; is the time step or the potential sound there?",
                count,
            )
        self._queue = deque([State(positions, velocities, step)])
        self._outlook = self._no_outlook()
        self._lessons.forget_ahead()
        self.statistics.count_plain_steps(n)
        assert self._tuner is not None
        self._tuner.record(n, self._stopwatch.lap(), rounds=n)

    def _intervene(self) -> None:
        """What is due at the front: all committed steps have been handed out, but no more."""
        outside = self._intervention
        if outside is None or outside.next_step is None or self._front.step < outside.next_step:
            return
        self._learn_at_once()
        self._corrector.interrupt()
        front, outlook = self._front, self._outlook
        positions, velocities = outside.apply(front)
        self._state = State(positions, velocities, front.step)
        displacements = (positions - front.positions)[self.engine.subset]
        corrections = outlook.corrections.moved(displacements)
        self._outlook = outlook._replace(corrections=corrections)

    def _begin_lessons(self) -> Callable[[], bool] | None:
        """Learn at once, if it is time to; or what to do while the target is evaluated."""
        lessons = self._lessons
        are_due = lessons.are_due
        if are_due and not lessons.may_wait:
            self._learn_at_once()
            return None
        with self._stopwatch.part("learning"):
            lessons.close_round()
        return lessons.learn if are_due else None

    def _learn_at_once(self) -> None:
        """From all that is past; what is kept for the next steps is measured again."""
        with self._stopwatch.part("learning"):
            last = self._lessons.last
            self._lessons.close_round()
            if self._lessons.learn() and last is not None:
                measured = self._measured_anew(last)
                corrections = self._corrector.next(measured, self.window, None)
                self._outlook = self._outlook._replace(corrections=corrections)

    def _measured_anew(self, measured: MeasuredRound) -> MeasuredRound:
        """The same, against a draft that has changed."""
        self._lessons.forget_ahead()
        draft_forces = self.engine.forces(measured.sites, measured.times)
        discrepancies = measured.target_forces - draft_forces
        projected = self.engine.project_forces(measured.sites, discrepancies)
        return measured._replace(discrepancies=projected)

    def finish_lessons(self, step: int) -> None:
        """Learn now from what is past, if this is the next step: before something else changes."""
        self._lessons.finish(step)

    def _follow_tuner(self) -> None:
        if self._tuner is not None and self._tuner.window != self.window:
            self._set_window(self._tuner.window)

    def _set_window(self, window: int) -> None:
        """Another K; what was kept for later steps of a longer window is given up."""
        self._outlook, self.window = self._outlook.resized(window), window

    def _length(self) -> int:
        """Of the next window: K, or as many steps as there are to the next intervention."""
        outside = self._intervention
        next_step = None if outside is None else outside.next_step
        return self.window if next_step is None else min(self.window, next_step - self._front.step)
