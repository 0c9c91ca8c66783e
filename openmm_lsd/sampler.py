"""Langevin Speculative Dynamics on plain arrays: draft, verify, commit, keep.

Method: Kosmala, Guennemann, Gao and Wood, arXiv:2606.02455, with a correction for every step of
the window (the parareal iteration of Lions, Maday and Turinici, C. R. Acad. Sci. Paris 332, 661
(2001)) in place of one constant offset, and a secant estimate of how it changes off the old path.
The committed steps follow the plain scheme with the target's forces exactly, whatever the draft; a
bad draft only commits fewer of them per round.

Units: nm, ps, amu, kJ/mol. Arrays are float64, positions and velocities (N, 3).
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .beside import Beside
from .clock import Clock, Times
from .commit import commit
from .jacobian import JacobianEstimate, Secant
from .noise import StepNoise
from .prediction import Prediction
from .rollout import Corrections, Window, reciprocal, rollout
from .schemes import Scheme
from .tuning import WindowTuner

Array = NDArray[np.float64]

logger = logging.getLogger(__name__)

# A discrepancy may change from one step to the next by what gives an atom this many times its
# thermal speed. In sound runs at 1 fs the largest seen is 0.4, at 2 fs 1.1.
LARGEST_LEAP = 2.0
# Nor by more than this many times what was seen at committed steps (heavy atoms leap far less);
# the largest seen is forgotten by and by.
LEAP_BEYOND_SEEN, KEPT_PER_ROUND = 8.0, 0.99
# And where a correction was wrong by this many times the thermal speed, the draft went astray.
LARGEST_ERROR = 1.0

FAILED_BATCHES_TOLD = 3  # once is no more than the other node that did not answer

# Several rounds are learned from together, which costs less: not before there are so many new steps
# for each that has been learned from since the start.
NEW_STEPS, MOST_NEW_STEPS = 1 / 8, 48
# That may be done while the target is evaluated, in a thread beside it; but not before so many
# steps have been learned from: the next window needs what there is to know.
LEARNED_AT_ONCE = 384

PLAIN_STEPS = 10  # at a time, where the tuner wants plain steps; as Simulation.step does

TIMES_MEASURED = ("0x", "1x", "2x", "3x+")  # before, that statistics tell apart

CORRECTIONS = ("secant", "per-step", "constant", "none")


class TargetError(RuntimeError):
    """The target's forces at a committed state cannot be had: an exception, or not finite.

    The sampler stands at the last committed state, ``step``; ``atom`` is the index of the first
    atom whose force is not finite, or None.
    """

    def __init__(self, message: str, step: int, atom: int | None = None) -> None:
        super().__init__(message)
        self.step = step
        self.atom = atom


def checked_forces(forces: ArrayLike, shape: tuple[int, ...], name: str = "the target") -> Array:
    """What a target returned for positions of ``shape``, as an array of that shape."""
    try:
        array = np.asarray(forces, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} returned a {type(forces).__name__}, not an array") from None
    if array.shape != shape:
        raise ValueError(
            f"{name} returned forces of shape {array.shape} for positions of shape {shape}"
        )
    return array


def without_leaps(
    discrepancies: Array, errors: Array, first: int, largest: Array, largest_error: Array
) -> Array:
    """Discrepancies (K, N, 3) of a window, cured of rows that no sound path has.

    From row ``first`` on, where an atom's discrepancy differs by more than ``largest`` (N, 1) from
    the row before, or the draft, as it was corrected, was wrong there by more than
    ``largest_error`` (N, 1), as ``errors`` (K, N, 3) say, that row takes its place and that of all
    later ones. A wrong correction leads the draft to wild sites, and what is measured there are the
    next round's corrections: without this, one mishap would feed itself, and the run would go on
    with one step per round for good.

    Row j of the result depends on rows up to j only, as the measurability rule demands.
    """
    wrong = np.abs(errors[first - 1 : -1]) > largest_error
    leaps = np.abs(discrepancies[first:] - discrepancies[first - 1 : -1]) > largest
    if not (wrong.any() or leaps.any()):
        return discrepancies
    result = discrepancies.copy()
    astray = np.zeros(result.shape[1], dtype=bool)
    for row in range(first, len(result)):
        astray |= wrong[row - first].any(axis=1)
        astray |= (np.abs(result[row] - result[row - 1]) > largest).any(axis=1)
        result[row, astray] = result[row - 1, astray]
    return result


def _rows_held(array: Array, first: int, count: int) -> Array:
    """So many rows from ``first`` on; after the last one, that again and again."""
    result = np.empty((count, *array.shape[1:]))
    present = min(max(len(array) - first, 0), count)
    result[:present] = array[first : first + present]
    result[present:] = array[-1]
    return result


@dataclasses.dataclass
class Statistics:
    """What the sampler did since it was made.

    ``steps`` counts committed steps. Each is ``accepted`` (committed positions equal drafted
    ones), ``rejected`` (transported elsewhere; ends the round), or the last of a window, which is
    a plain target step and neither. ``failed_sites`` counts windows that ended early because the
    target failed at a site, ``failed_batches`` those that failed as a batch although each of their
    states could be evaluated. ``shortened_windows`` counts rounds of fewer than K sites,
    which end where a barostat tries a move. ``noise_shifts`` is the sum of |delta| over the
    accepted and the rejected ones. ``learning_seconds`` are those that steps waited for, not what
    is learned while the target is evaluated.

    ``examined`` (4, 3) tells these by how often a step's own discrepancy had been measured before,
    in earlier rounds: 0, 1, 2, 3 or more times. Its columns are how many there were, how many of
    them were rejected, and the sum of their |delta|.

    ``window_length`` is K of the last round, and ``plain_step_seconds`` what a force at one state
    took the Context when the target was new; both zero before the first step.
    """

    rounds: int = 0
    steps: int = 0
    accepted: int = 0
    rejected: int = 0
    failed_sites: int = 0
    failed_batches: int = 0
    shortened_windows: int = 0
    noise_shifts: float = 0.0
    window_length: int = 0
    plain_step_seconds: float = 0.0
    draft_seconds: float = 0.0
    target_seconds: float = 0.0
    learning_seconds: float = 0.0
    overhead_seconds: float = 0.0
    examined: Array = dataclasses.field(
        default_factory=lambda: np.zeros((len(TIMES_MEASURED), 3)), compare=False
    )

    def since(self, earlier: Statistics) -> Statistics:
        """What has been added to an earlier copy."""
        now, before = dataclasses.asdict(self), dataclasses.asdict(earlier)
        present = ("window_length", "plain_step_seconds")
        return Statistics(**{k: v if k in present else v - before[k] for k, v in now.items()})

    @property
    def seconds(self) -> float:
        """Spent in steps."""
        return self.counted_seconds + self.overhead_seconds

    @property
    def counted_seconds(self) -> float:
        """All that has a name, overhead excepted."""
        return self.draft_seconds + self.target_seconds + self.learning_seconds

    @property
    def steps_per_round(self) -> float:
        """Committed steps per batched target evaluation."""
        return self.steps / self.rounds if self.rounds else 0.0

    @property
    def acceptance_rate(self) -> float:
        """Accepted steps as a fraction of the steps that could be accepted or rejected."""
        tried = self.accepted + self.rejected
        return self.accepted / tried if tried else 0.0

    @property
    def mean_noise_shift(self) -> float:
        """|delta| of the steps that could be accepted or rejected, in units of the noise."""
        tried = self.accepted + self.rejected
        return self.noise_shifts / tried if tried else 0.0

    @property
    def noise_shifts_by_measurement(self) -> list[float | None]:
        """Mean |delta| of steps measured 0, 1, 2, 3 or more times before; None: there were none."""
        return [total / count if count else None for count, _, total in self.examined.tolist()]

    def __str__(self) -> str:
        total = self.seconds
        share = 100.0 / total if total > 0 else 0.0
        text = (
            f"{self.steps} steps in {self.rounds} rounds: {self.steps_per_round:.2f} steps per "
            f"round, acceptance rate {self.acceptance_rate:.3f}; {total:.2f} s: "
            f"target {share * self.target_seconds:.0f} %, "
            f"draft {share * self.draft_seconds:.0f} %, "
            + (f"learning {share * self.learning_seconds:.1f} %, " if self.learning_seconds else "")
            + f"overhead {share * self.overhead_seconds:.0f} %"
        )
        if self.shortened_windows:
            text += f"; {self.shortened_windows} windows that end at a barostat's move"
        if self.failed_sites:
            text += f"; {self.failed_sites} windows cut short where the target failed"
        if self.failed_batches:
            text += f"; {self.failed_batches} batches that failed, evaluated state by state"
        return text


class State(NamedTuple):
    """A committed state at the start of step ``step``."""

    positions: Array
    velocities: Array
    step: int


PlainSteps = Callable[[State, int], tuple[Array, Array, int]]


class Intervention(Protocol):
    """What changes the state from outside at the start of some steps: a barostat."""

    @property
    def next_step(self) -> int | None:
        """Index of the next step at whose start the state may change; None: never."""

    def apply(self, state: State) -> tuple[Array, Array]:
        """Positions and velocities from which that step starts, given those before it."""


class Round(NamedTuple):
    """What became of one window, for ``watchers``.

    ``noise_shifts`` are the |delta| of the committed steps that were accepted or rejected; all but
    the last of them were accepted, and the last unless ``rejected``.
    """

    step: int  #: index of the first
    drafted: int  #: sites
    #: how often each of the leading ones, drafted with a discrepancy of its own, had been measured
    times_measured: Sequence[int] | NDArray[np.int_]
    verified: int  #: sites whose target forces could be had
    committed: int
    rejected: bool  #: the last committed step was transported elsewhere
    noise_shifts: list[float]

    @property
    def kept(self) -> int:
        """Sites that were drafted with a discrepancy of their own."""
        return len(self.times_measured)


def _examined(times_measured: NDArray[np.int_], shifts: list[float], accepted: bool) -> Array:
    """What a round adds to ``Statistics.examined``."""
    rows = [[0, 0, 0.0] for _ in TIMES_MEASURED]
    times = [min(times, len(rows) - 1) for times in times_measured[: len(shifts)].tolist()]
    times += [0] * (len(shifts) - len(times))
    for row, shift in zip(times, shifts, strict=True):
        rows[row][0] += 1
        rows[row][2] += shift
    if not accepted:
        rows[times[-1]][1] += 1
    return np.array(rows)


class _Lesson(NamedTuple):
    """What a round leaves to be learned from; arrays as in ``_round``."""

    step: int
    sites: Array
    target_forces: Array
    discrepancies: Array
    errors: Array
    committed: int
    times: Times | None = None


class _Committed(NamedTuple):
    """Steps of one round that have been handed out, to be learned from; arrays (B, N, 3)."""

    step: int  #: index of the first
    sites: Array
    discrepancies: Array
    earlier_sites: Array  #: of the first of them, as measured in the round before
    earlier_discrepancies: Array

    @property
    def end(self) -> int:
        """Index of the step after the last."""
        return self.step + len(self.sites)


class _Measured(NamedTuple):
    """Steps that have been drafted and measured, but not committed yet."""

    step: int  #: index of the first
    sites: Array
    discrepancies: Array


class SpeculativeSampler:
    """Speculative dynamics for any two force functions.

    Parameters
    ----------
    scheme : schemes.Middle or schemes.ABOBA
    masses : (N,) amu
        Particles of zero mass do not move.
    draft : callable, positions (N, 3) -> forces (N, 3)
        May offer ``rollout``, with the arguments of ``rollout.rollout`` less the first; and, to
        learn, ``start`` and ``learn`` as draft.LearningDraft.
    target : callable, positions (B, N, 3) -> forces (B, N, 3)
        With a clock it is given the Times of the states as well.
    window : int
        K, the number of sites drafted and evaluated per round.
    seed : int
        Key of the random numbers; those of step n depend on (seed, n) only.
    correction : 'secant', 'per-step', 'constant' or 'none'
        'per-step' adds to each step the discrepancy that was measured for it a round ago, or, if
        there is none yet, the last one of the window; 'secant' lets it change with the positions as
        well, by ``jacobian``. 'constant' is the published rule: the discrepancy of the last
        committed step is added throughout the window. 'none' drafts with the bare draft force.
    cm_removal_frequency : int
        As ``openmm.CMMotionRemover``: the motion of the centre of mass is removed at the start of
        every step whose count is a multiple of it. 0: never.
    jacobian : JacobianEstimate, optional
        For correction 'secant', in the place of a new one.
    prediction : Prediction, optional
        For correction 'secant', in the place of a new one.
    clock : Clock, optional
        Where forces depend on time or step count. A draft whose ``uses_times`` is true takes Times
        as a last argument, also to ``rollout``.
    learns_beside : bool
        Whether to learn while the target is evaluated, in another thread, after the first steps;
        else between two rounds. Pays unless the target keeps all cores busy.

    Raises
    ------
    ValueError
        If an argument is not as above.
    TargetError
        From ``advance``: the target fails, or is not finite, at a committed state.
    """

    def __init__(
        self,
        scheme: Scheme,
        masses: ArrayLike,
        draft: Callable[..., Array],
        target: Callable[..., Array],
        window: int,
        seed: int,
        *,
        correction: str = "secant",
        cm_removal_frequency: int = 0,
        jacobian: JacobianEstimate | None = None,
        prediction: Prediction | None = None,
        clock: Clock | None = None,
        learns_beside: bool = True,
    ) -> None:
        if window < 1:
            raise ValueError(f"window is {window}; it must be at least 1")
        if correction not in CORRECTIONS:
            raise ValueError(f"correction is {correction!r}; it must be one of {CORRECTIONS}")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed is {seed}; it must be from 0 to 2^64 - 1")
        self.scheme = scheme
        self.window = window
        self.correction = correction
        self.statistics = Statistics()
        self.tuner: WindowTuner | None = None  # if there is one, it chooses ``window``
        self.intervention: Intervention | None = None  # no window goes past the next one
        self.watchers: list[Callable[[Round], Any]] = []  # called after every round
        self.commit: Callable[..., tuple] = commit  # or what does the same faster
        self._masses = np.array(masses, dtype=np.float64).reshape(-1, 1)
        if not (np.isfinite(self._masses).all() and (self._masses >= 0).all()):
            raise ValueError("masses must be finite and not negative")
        inverse_masses = reciprocal(self._masses)
        self._step_noise = StepNoise(seed, len(self._masses))
        self._noise_scale = scheme.noise_scale(inverse_masses)
        scheme.check_noise(inverse_masses)
        thermal_force = self._masses * scheme.thermal_speed(inverse_masses) / scheme.step_size
        self._largest_leap = LARGEST_LEAP * thermal_force
        self._largest_error = LARGEST_ERROR * thermal_force
        self._inverse_leap = reciprocal(self._largest_leap)
        self._draft: Any = draft
        self._rollout = getattr(draft, "rollout", None) or partial(rollout, draft)
        self._learns = hasattr(draft, "learn")
        self._estimate: JacobianEstimate | None = None
        self._prediction: Prediction | None = None
        if correction == "secant":
            self._estimate = JacobianEstimate(self._masses) if jacobian is None else jacobian
            self._prediction = Prediction(len(self._masses)) if prediction is None else prediction
        self._clock = clock
        self._learns_beside = learns_beside
        self._times_of_draft = clock is not None and getattr(draft, "uses_times", False)
        self._target = target
        self._cm_removal_frequency = cm_removal_frequency
        self._state: State | None = None
        self._waiting: list[_Committed] = []  # in a row, of one draft

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
        shape = (len(self._masses), 3)
        positions = np.array(positions, dtype=np.float64)
        velocities = np.array(velocities, dtype=np.float64)
        for name, array in (("positions", positions), ("velocities", velocities)):
            if array.shape != shape:
                raise ValueError(f"{name} have shape {array.shape}; expected {shape}")
            if not np.isfinite(array).all():
                atom = int(np.argwhere(~np.isfinite(array))[0, 0])
                raise ValueError(f"{name} are not finite: atom {atom} has {array[atom]}")
        velocities[self._masses[:, 0] == 0] = 0.0
        self.finish_lessons(step)
        self._state = self._front = State(positions, velocities, step)
        self._queue: deque[State] = deque()
        self._step_count_offset = (step if step_count is None else step_count) - step
        self._corrections = self._no_corrections()
        self._measured: _Measured | None = None
        self._times_measured = np.zeros(0, dtype=int)  # of the leading steps of the next window
        self._leap_seen = np.inf  # at committed steps, in units of the largest allowed
        self._lesson: _Lesson | None = None
        self._learned = 0  # steps
        if self._learns:
            self._draft.start(step)
        if self._estimate is not None:
            self._estimate.start(step)
        if self._prediction is not None:
            self._prediction.start(step)
        self._lap_began = self._seconds_without_learning()

    def snapshot(self) -> dict[str, Any]:
        """All that the next steps depend on besides the draft, for ``restore``."""
        lesson, measured = self._lesson, self._measured
        return {
            "window": self.window,
            "states": [tuple(each) for each in (self.state, self._front, *self._queue)],
            "step count offset": self._step_count_offset,
            "corrections": [
                self._corrections.forces,
                self._corrections.sites,
                self._corrections.secant,
            ],
            "measured": None if measured is None else measured._asdict(),
            "leap seen": self._leap_seen,
            "times measured": self._times_measured,
            "lesson": None if lesson is None else lesson._asdict(),
            "waiting": [tuple(each) for each in self._waiting],
            "learned": self._learned,
        }

    def restore(self, record: dict[str, Any]) -> None:
        """Go on as the sampler that the snapshot was taken of; the window may be another."""
        self._state, self._front, *queue = (State(*each) for each in record["states"])
        self._queue = deque(queue)
        self._step_count_offset = record["step count offset"]
        forces, sites, secant = record["corrections"]
        secant = None if secant is None else Secant(*secant)
        self._corrections = Corrections(forces, sites, secant=secant)
        measured = record["measured"]
        self._measured = None if measured is None else _Measured(**measured)
        self._leap_seen = record["leap seen"]
        self._times_measured = record["times measured"]
        self._lap_began = self._seconds_without_learning()
        lesson = record["lesson"]
        self._lesson = None if lesson is None else _Lesson(**lesson)
        if self._lesson is not None and self._lesson.times is not None:
            self._lesson = self._lesson._replace(times=Times(*self._lesson.times))
        self._waiting = [_Committed(*each) for each in record["waiting"]]
        self._learned = record["learned"]
        window, self.window = self.window, record["window"]
        if self.tuner is None:
            self._set_window(window)

    @property
    def state(self) -> State:
        """The committed state that was handed out last."""
        if self._state is None:
            raise RuntimeError("the sampler has no state yet; call set_state first")
        return self._state

    def advance(self, n: int, plain: PlainSteps | None = None) -> tuple[Array, Array]:
        """Positions and velocities exactly ``n`` steps on; further committed steps stay queued.

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
        self._mark = perf_counter(), self.statistics.counted_seconds
        try:
            while state.step < goal:
                if not self._queue:
                    self._intervene()
                    if plain is not None and self.tuner is not None and self.tuner.window == 1:
                        self._plain_round(plain, min(goal - state.step, PLAIN_STEPS))
                    else:
                        self._round()
                state = self._state = self._queue.popleft()
        finally:
            self._count_overhead()
        return state.positions, state.velocities

    def _count_overhead(self) -> None:
        """All time since the mark that has no other name."""
        before, counted = self._mark
        self._mark = now, counted_now = perf_counter(), self.statistics.counted_seconds
        self.statistics.overhead_seconds += now - before - (counted_now - counted)

    def _lap(self) -> float:
        """Seconds spent in steps since the last call, with what lies between rounds; not those
        of learning."""
        self._count_overhead()
        before, self._lap_began = self._lap_began, self._seconds_without_learning()
        return self._lap_began - before

    def _seconds_without_learning(self) -> float:
        return self.statistics.seconds - self.statistics.learning_seconds

    def _intervene(self) -> None:
        """What is due at the front: all committed steps have been handed out, but no more."""
        outside = self.intervention
        if outside is None or outside.next_step is None or self._front.step < outside.next_step:
            return
        self._learn_last_round()
        if self._prediction is not None:
            self._prediction.interrupt()
        positions, velocities = outside.apply(self._front)
        self._corrections = self._corrections.moved(positions - self._front.positions)
        self._state = self._front = State(positions, velocities, self._front.step)

    def _length(self) -> int:
        """Of the next window: K, or as many steps as there are to the next intervention."""
        next_step = None if self.intervention is None else self.intervention.next_step
        return self.window if next_step is None else min(self.window, next_step - self._front.step)

    def _round(self) -> None:
        """Draft a window, verify it, commit a part of it, keep what was learned."""
        is_due = self._is_learning_due()
        if is_due and not (self._learns_beside and self._learned >= LEARNED_AT_ONCE):
            self._learn_last_round()
            is_due = False
        self._take_leave()
        if self.tuner is not None and self.tuner.window != self.window:
            self._set_window(self.tuner.window)
        statistics = self.statistics
        length = self._length()
        positions, velocities, step = self._front
        noise, log_uniforms = self._step_noise(step, length)
        kicks = self._noise_scale * noise
        removals = self._cm_removals(step, length)
        corrections = self._corrections.rows(slice(length))
        if self._estimate is not None:
            corrections = corrections._replace(jacobian=self._estimate.jacobian)
        times = None if self._clock is None else self._clock.times(step, length)

        begin = perf_counter()
        arrays = (self._masses, positions, velocities, corrections, kicks, removals)
        when = (times,) if self._times_of_draft else ()
        window = self._rollout(self.scheme, *arrays, *when)
        drafted = perf_counter()
        with Beside(self._learn_waiting if is_due else None) as learning:
            target_forces = self._verify(window.sites, step, times)
            verified = perf_counter()
        learned = perf_counter()
        statistics.draft_seconds += drafted - begin
        statistics.target_seconds += verified - drafted
        statistics.learning_seconds += learned - verified

        committed, shifts, accepted = self._commit(
            window, target_forces, noise, log_uniforms, removals
        )
        statistics.noise_shifts += sum(shifts)
        statistics.accepted += len(shifts) - (not accepted)
        statistics.rejected += not accepted
        times_measured = self._times_measured[:length]
        statistics.examined = statistics.examined + _examined(times_measured, shifts, accepted)
        discrepancies = target_forces - window.draft_forces[: len(target_forces)]
        errors = discrepancies - window.corrections[: len(discrepancies)]
        if learning.result:  # the draft has changed
            discrepancies = self._discrepancies(window.sites, target_forces, times)
            self._measured = None
        corrections = self._next_corrections(window.sites, discrepancies, errors, len(committed))
        next_times = np.zeros(0, dtype=int)
        if self._corrects_each_step:
            known = times_measured[len(committed) : len(target_forces)]
            next_times = np.ones(len(target_forces) - len(committed), dtype=int)
            next_times[: len(known)] += known
        # All at once: an interrupt must not come between.
        self._queue, self._front, self._corrections, self._times_measured = (
            deque(committed),
            committed[-1],
            corrections,
            next_times,
        )
        statistics.rounds += 1
        statistics.window_length = self.window
        statistics.shortened_windows += length < self.window
        statistics.steps += len(committed)
        if self.tuner is not None:
            seconds = self._lap()
            if length == self.window:
                self.tuner.record(len(committed), seconds)
        if self._learns or self._estimate is not None:
            self._lesson = _Lesson(
                step, window.sites, target_forces, discrepancies, errors, len(committed), times
            )
        if self.watchers:
            drafted, verified = len(window.sites), len(target_forces)
            became = Round(
                step,
                drafted,
                times_measured[:drafted],
                verified,
                len(committed),
                not accepted,
                shifts,
            )
            for watch in self.watchers:
                watch(became)

    def _plain_round(self, plain: PlainSteps, n: int) -> None:
        """Steps without a draft; what is known about later ones belongs to other noise."""
        self._learn_last_round()
        begin = perf_counter()
        positions, velocities, n = plain(self._front, n)
        seconds = perf_counter() - begin
        step = self._front.step + n
        if not math.isfinite(np.vdot(positions, positions) + np.vdot(velocities, velocities)):
            count = step + self._step_count_offset
            raise TargetError(
                f"plain steps of the target led to a state that is not finite, before step {count}"
                "; is the time step or the potential sound there?",
                count,
            )
        self._front = State(positions, velocities, step)
        self._queue = deque([self._front])
        self._corrections, self._measured = self._no_corrections(), None
        self._times_measured = self._times_measured[:0]
        self.statistics.window_length = 1
        self.statistics.rounds += n
        self.statistics.steps += n
        self.statistics.target_seconds += seconds
        assert self.tuner is not None
        self.tuner.record(n, self._lap(), rounds=n)

    def _is_learning_due(self) -> bool:
        """Whether there are enough new steps, those of the last round included."""
        if self._lesson is None:
            return False
        new = sum(len(each.sites) for each in self._waiting) + self._lesson.committed
        return new >= min(NEW_STEPS * self._learned, MOST_NEW_STEPS)

    def _take_leave(self) -> None:
        """Of the last round, which waits to be learned from.

        Not before all of its steps have been handed out: should the run be taken up at one of them,
        the noise of the later ones is used again, and must not have shaped the draft.
        """
        lesson, self._lesson = self._lesson, None
        if lesson is None:
            return
        begin = perf_counter()
        step, committed, discrepancies = lesson.step, lesson.committed, lesson.discrepancies
        sites = lesson.sites[: len(discrepancies)]
        if self._waiting and self._waiting[-1].end != step:  # an interrupt came between
            self._waiting = []
        self._waiting.append(
            _Committed(
                step, sites[:committed], discrepancies[:committed], *self._earlier(step, committed)
            )
        )
        self._measured = _Measured(step + committed, sites[committed:], discrepancies[committed:])
        self.statistics.learning_seconds += perf_counter() - begin

    def _learn_last_round(self) -> None:
        """Learn at once from all that is past."""
        lesson = self._lesson
        self._take_leave()
        begin = perf_counter()
        if self._learn_waiting() and lesson is not None:
            # What is measured now begins after the committed rows: a secant would compare each row
            # with a later one.
            self._measured = None
            sites = lesson.sites[: len(lesson.target_forces)]
            discrepancies = self._discrepancies(sites, lesson.target_forces, lesson.times)
            self._corrections = self._next_corrections(
                sites, discrepancies, lesson.errors, lesson.committed
            )
        self.statistics.learning_seconds += perf_counter() - begin

    def _discrepancies(self, sites: Array, target_forces: Array, times: Times | None) -> Array:
        """Of the draft as it is now, at so many of the sites as there are target forces."""
        draft_forces = [
            self._draft(sites[k])
            if times is None or not self._times_of_draft
            else self._draft(sites[k], times.rows(slice(k, k + 1)))
            for k in range(len(target_forces))
        ]
        return target_forces - np.stack(draft_forces)

    def _learn_waiting(self) -> bool:
        """Learn from all that waits for it; whether the draft has changed."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return False
        step = waiting[0].step
        sites = np.concatenate([each.sites for each in waiting])
        discrepancies = np.concatenate([each.discrepancies for each in waiting])
        self._learned += len(sites)
        if self._estimate is not None:
            for each in waiting:
                self._estimate.learn(*each)
        if self._prediction is not None and self._estimate is not None:
            self._prediction.learn(step, sites, discrepancies, self._estimate.jacobian)
        changed = self._learns and self._draft.learn(step, sites, discrepancies)
        if changed and self._prediction is not None:
            self._prediction.interrupt()
        return bool(changed)

    def finish_lessons(self, step: int) -> None:
        """Learn now from what is past, if this is the next step: before something else changes.

        Nothing is learned from this or later steps: their noise is about to be used again.
        """
        if self._waiting and self._waiting[-1].end > step:
            self._waiting = []
        self._learn_waiting()

    def _earlier(self, step: int, committed: int) -> tuple[Array, Array]:
        """Sites and discrepancies of the first of these steps, as measured in the round before."""
        measured = self._measured
        if measured is None or measured.step != step:
            nothing = np.empty((0, *self._front.positions.shape))
            return nothing, nothing
        return measured.sites[:committed], measured.discrepancies[:committed]

    def _set_window(self, window: int) -> None:
        """Another K; what was kept for later steps of a longer window is given up."""
        self._corrections = self._corrections.rows(np.minimum(np.arange(window), self.window - 1))
        self.window = window
        self._times_measured = self._times_measured[:window]

    def _no_corrections(self) -> Corrections:
        return Corrections(np.zeros((self.window, len(self._masses), 3)))

    def _cm_removals(self, step: int, length: int) -> NDArray[np.bool_]:
        frequency = self._cm_removal_frequency
        if not frequency:
            return np.zeros(length, dtype=bool)
        counts = np.arange(step, step + length) + self._step_count_offset
        return np.asarray(counts % frequency == 0)

    def _verify(self, sites: Array, step: int, times: Times | None) -> Array:
        """Target forces at the sites up to the first that fails; an error if that is the first.

        ``step`` is the index of the first site's step.
        """
        when = () if times is None else (times.rows(slice(len(sites))),)
        count = step + self._step_count_offset
        try:
            forces = checked_forces(self._target(sites, *when), sites.shape)
        except Exception as error:
            if len(sites) == 1:
                raise TargetError(
                    f"the target failed at the state before step {count}: {error}", count
                ) from error
            # The batch does not say which site it failed at: one after another.
            rows: list[Array] = []
            for k in range(len(sites)):
                one = slice(k, k + 1)
                own = None if times is None else times.rows(one)
                try:
                    rows.append(self._verify(sites[one], step + k, own))
                except TargetError:
                    if not rows:
                        raise
                    break
            self.statistics.failed_sites += len(rows) < len(sites)
            if len(rows) == len(sites):
                self._count_failed_batch(error)
            return np.concatenate(rows)
        finite = np.isfinite(forces)
        if finite.all():
            return forces
        usable = int(np.argmin(finite.all(axis=(1, 2))))
        if usable == 0:
            atom = int(np.argwhere(~np.isfinite(forces[0]))[0, 0])
            raise TargetError(
                f"the target's force on atom {atom} is {forces[0, atom]} at the state before step "
                f"{count}; is the starting structure, the time step or the potential sound there?",
                count,
                atom,
            )
        self.statistics.failed_sites += 1
        return forces[:usable]

    def _count_failed_batch(self, error: Exception) -> None:
        """A batch has failed of which no state fails by itself."""
        self.statistics.failed_batches += 1
        if self.statistics.failed_batches == FAILED_BATCHES_TOLD:
            logger.warning(
                "%d batches have failed whose states can be evaluated one by one, which takes as "
                "long as plain dynamics or longer; the last with %s: %s. Does the target take a "
                "batch? (this is said once)",
                FAILED_BATCHES_TOLD,
                type(error).__name__,
                error,
            )

    def _commit(
        self,
        window: Window,
        target_forces: Array,
        noise: Array,
        log_uniforms: Array,
        removals: NDArray[np.bool_],
    ) -> tuple[list[State], list[float], bool]:
        """See ``commit.commit``; the committed states, for arrays of positions and velocities."""
        front, verified = self._front, len(target_forces)
        positions, velocities, shifts, accepted = self.commit(
            self.scheme,
            self._masses,
            self._noise_scale,
            front.positions,
            front.velocities,
            window.velocities,
            target_forces,
            window.draft_forces[:verified] + window.corrections[:verified],
            noise,
            log_uniforms,
            removals,
        )
        states = zip(positions, velocities, strict=True)
        return [State(*each, front.step + k) for k, each in enumerate(states, 1)], shifts, accepted

    def _leap_allowed(self, committed: Array) -> Array:
        """The largest sound leap (N, 1), by the discrepancies at committed steps (B, N, 3)."""
        if len(committed) > 1:
            seen = float((np.abs(committed[1:] - committed[:-1]) * self._inverse_leap).max())
            kept = KEPT_PER_ROUND * self._leap_seen
            self._leap_seen = max(seen, kept) if np.isfinite(kept) else seen
        return min(1.0, LEAP_BEYOND_SEEN * self._leap_seen) * self._largest_leap

    @property
    def _corrects_each_step(self) -> bool:
        return self.correction in ("secant", "per-step")

    def _next_corrections(
        self, sites: Array, discrepancies: Array, errors: Array, committed: int
    ) -> Corrections:
        """Of the next window, whose first step is row ``committed`` of ``discrepancies``.

        Measurability: the correction of step n may depend on the noise of steps before n alone.
        Row j of ``discrepancies`` was measured at the force site of step j of this window, which
        is a function of the noise of steps before j. So row j may serve as the correction of step
        j (its own, a round ago) and of every later step; never of an earlier one.
        """
        if not self._corrects_each_step:
            forces = np.zeros((self.window, *discrepancies.shape[1:]))
            if self.correction == "constant":
                forces[:] = discrepancies[committed - 1]
            return Corrections(forces)
        largest = self._leap_allowed(discrepancies[:committed])
        smooth = without_leaps(discrepancies, errors, committed, largest, self._largest_error)
        forces = _rows_held(smooth, committed, self.window)
        if self._estimate is None or self._prediction is None:
            return Corrections(forces)
        usable = len(smooth)
        if smooth is discrepancies:
            predicted = self._prediction.predict(
                sites[:usable], smooth, self._estimate.jacobian, largest
            )
            new = forces[usable - committed :]
            if predicted is not None and len(new):
                new += _rows_held(predicted, 0, len(new))
        else:  # a wild site is no place to start from
            leaps = (smooth != discrepancies).any(axis=(1, 2))
            usable = max(int(leaps.argmax()), 1)
        secant = self._secant(sites, discrepancies, committed)
        return Corrections(
            forces, _rows_held(sites[:usable], committed, self.window), secant=secant
        )

    def _secant(self, sites: Array, discrepancies: Array, committed: int) -> Secant | None:
        """Of the next window: this round compared with the one before."""
        measured = self._measured
        if measured is None or measured.step != self._front.step:
            return None
        rows = slice(committed, min(len(measured.sites), len(discrepancies)))
        count = max(0, rows.stop - rows.start)
        result = Secant(*np.zeros((2, self.window, *sites.shape[1:])))
        np.subtract(sites[rows], measured.sites[rows], out=result.displacements[:count])
        np.subtract(discrepancies[rows], measured.discrepancies[rows], out=result.changes[:count])
        return result
