"""What a run did, round by round and in all, and where its time went."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from time import perf_counter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .window import CommittedSteps, MeasuredRound

Array = NDArray[np.float64]

TIMES_MEASURED = ("0x", "1x", "2x", "3x+")  # before, that statistics tell apart


class Round(NamedTuple):
    """What became of one window, for ``round_callbacks``.

    ``noise_shifts`` are the |delta| of the committed steps that were accepted or rejected; all but
    the last of them were accepted, and the last unless ``rejected``.
    """

    step: int  #: index of the first
    drafted: int  #: sites
    #: how often each of the leading ones, drafted with a discrepancy of its own, had been measured
    times_measured: Sequence[int] | NDArray[np.int_]
    verified: int  #: sites that have target forces
    committed: int
    rejected: bool  #: the last committed step was transported elsewhere
    noise_shifts: list[float]

    @property
    def kept(self) -> int:
        """Sites that were drafted with a discrepancy of their own."""
        return len(self.times_measured)

    @classmethod
    def of(
        cls,
        measured: MeasuredRound,
        committed: CommittedSteps,
        drafted: int,
        times_measured: NDArray[np.int_],
    ) -> Round:
        """Of so many drafted sites, the leading ones measured that often before."""
        return cls(
            measured.step,
            drafted,
            times_measured[:drafted],
            len(measured.sites),
            measured.committed,
            not committed.accepted,
            committed.noise_shifts,
        )


def _examined(became: Round) -> Array:
    """What a round adds to ``Statistics.examined``."""
    result, shifts = np.zeros((len(TIMES_MEASURED), 3)), became.noise_shifts
    times = np.zeros(len(shifts), dtype=int)
    known = np.minimum(became.times_measured[: len(shifts)], len(result) - 1)
    times[: len(known)] = known
    result[:, 0] = np.bincount(times, minlength=len(result))
    result[:, 2] = np.bincount(times, shifts, minlength=len(result))
    if became.rejected:
        result[times[-1], 1] = 1.0
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

    ``examined`` (4, 3) splits these by how often a step's own discrepancy had been measured before,
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

    def add_seconds(self, part: str, seconds: float) -> None:
        """Spent in ``part``: draft, target, learning or overhead."""
        if part == "target":
            self.target_seconds += seconds
        elif part == "draft":
            self.draft_seconds += seconds
        elif part == "learning":
            self.learning_seconds += seconds
        else:
            self.overhead_seconds += seconds

    def count_round(self, became: Round, window: int, is_shortened: bool) -> None:
        """A round, while K is ``window``."""
        self.rounds += 1
        self.window_length = window
        self.shortened_windows += is_shortened
        self.steps += became.committed
        self.accepted += len(became.noise_shifts) - became.rejected
        self.rejected += became.rejected
        self.noise_shifts += sum(became.noise_shifts)
        self.examined = self.examined + _examined(became)

    def count_plain_steps(self, steps: int) -> None:
        """Each of them a round of its own."""
        self.rounds += steps
        self.steps += steps
        self.window_length = 1

    def count_failures(self, *, sites: int = 0, batches: int = 0) -> None:
        """Windows cut short by a site, and batches, that failed."""
        self.failed_sites += sites
        self.failed_batches += batches

    def note_plain_step(self, seconds: float) -> None:
        """What a force at one state takes the Context."""
        self.plain_step_seconds = seconds

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


class Stopwatch:
    """Gives every second to one part of the statistics: the innermost that is running."""

    def __init__(self, statistics: Statistics) -> None:
        self.statistics = statistics
        self._running: list[str] = []
        self._mark = self._lap_began = 0.0

    def part(self, name: str) -> Part:
        """While this lasts, the time is spent in 'draft', 'target', 'learning' or 'overhead'."""
        return Part(self, name)

    def enter(self, name: str) -> int:
        """That part is running now; for ``leave``."""
        self.flush()
        self._running.append(name)
        return len(self._running) - 1

    def leave(self, outer: int) -> None:
        """What ran before is running again."""
        self.flush()
        del self._running[outer:]  # also what an interrupt has left there

    def flush(self) -> None:
        """Let the statistics have what has been spent so far."""
        now = perf_counter()
        if self._running:
            self.statistics.add_seconds(self._running[-1], now - self._mark)
        self._mark = now

    def begin_lap(self) -> None:
        """From now on ``lap`` counts."""
        self.lap()

    def lap(self) -> float:
        """Seconds since the last lap began in which anything was running; without learning."""
        self.flush()
        before = self._lap_began
        self._lap_began = self.statistics.seconds - self.statistics.learning_seconds
        return self._lap_began - before


class Part:
    """See Stopwatch.part; in the time of a short round a generator would be seen."""

    __slots__ = ("_name", "_outer", "_stopwatch")

    def __init__(self, stopwatch: Stopwatch, name: str) -> None:
        self._stopwatch, self._name = stopwatch, name

    def __enter__(self) -> None:
        self._outer = self._stopwatch.enter(self._name)

    def __exit__(self, *_: object) -> None:
        self._stopwatch.leave(self._outer)
