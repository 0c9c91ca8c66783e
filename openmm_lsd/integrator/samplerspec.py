"""The samplers of a Context: one for each temperature, friction, step size and seed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._native import ContextAccess
from ..contexts.checks import cm_removal_frequency
from ..contexts.constraints import Projections
from ..core.clock import Clock
from ..core.correctors import Corrector, Following, make_corrector
from ..core.noise import StepNoise
from ..core.sampler import SpeculativeSampler, Tuner
from ..core.schemes import SCHEMES, Scheme, reciprocal
from ..core.statistics import Round, Stopwatch
from ..core.tuning import WindowTuner
from ..drafts.estimates import native_estimates
from .barostat import BarostatMoves
from .boundpair import BoundPair
from .enginechoice import EngineMaker, Engines
from .roundcallbacks import RoundCallbacks
from .snapshot import SystemSnapshot

Array = NDArray[np.float64]

MAX_ATOMS_OF_JACOBIAN = 5000  # it takes 8 kB of each


class Settings(NamedTuple):
    """What the user may change between steps without touching the Context's state."""

    temperature: float
    friction: float
    step_size: float
    seed: int
    force_groups: int
    constraint_tolerance: float = 1e-5  # OpenMM's default: records of before have none


class Seed:
    """The seed where the user gave none: fresh in every Context, and in every forked process."""

    def __init__(self) -> None:
        self._take_fresh()

    def _take_fresh(self) -> None:
        self.fresh, self._process = secrets.randbits(63), os.getpid()

    def resume(self, seed: int) -> None:
        """Continue with the seed of an earlier run."""
        self.fresh = seed

    def of(self, settings: Settings) -> int:
        """The one that was given, or the fresh one."""
        return settings.seed % 2**64 or self.fresh

    def follow_fork(self, given: int) -> bool:
        """Whether this process was forked, and random numbers are others now."""
        if os.getpid() == self._process:
            return False
        self._process = os.getpid()
        if given == 0:
            self._take_fresh()
        return given == 0


class SamplerSpec:
    """What the samplers of one Context have in common.

    Parameters
    ----------
    access : ContextAccess
    system : SystemSnapshot
    masses : (N,) amu
    pair : BoundPair
    moves : BarostatMoves
    scheme_name : str
    correction : str or None
        See ``correctors.make_corrector``; by default 'secant', but for very many atoms 'per-step'.
    window : int
        K; of the first windows, if there is a tuner.
    tuner : Tuner or None
    round_callbacks : sequence of callables
    stopwatch : Stopwatch
    engines : Engines
    """

    def __init__(
        self,
        access: ContextAccess,
        system: SystemSnapshot,
        masses: Array,
        pair: BoundPair,
        moves: BarostatMoves,
        scheme_name: str,
        correction: str | None,
        window: int,
        tuner: Tuner | None,
        round_callbacks: Sequence[Callable[[Round], Any]],
        stopwatch: Stopwatch,
        engines: Engines,
    ) -> None:
        self._engines = EngineMaker(
            engines, access, system, masses, pair, scheme_name, tuner is not None
        )
        self._masses, self._pair, self._moves = masses, pair, moves
        self._projections = Projections(system)
        self._scheme_name, self._window, self.tuner = scheme_name, window, tuner
        if correction is None:
            atoms = len(masses[pair.subset])
            correction = "secant" if atoms <= MAX_ATOMS_OF_JACOBIAN else "per-step"
        self._correction = correction
        self._round_callbacks = RoundCallbacks(access, round_callbacks)
        self._stopwatch = stopwatch
        self._cm_removal_frequency = cm_removal_frequency(system)
        if access.on_device:  # where OpenMM's kernel does it at every step
            self._cm_removal_frequency = min(self._cm_removal_frequency, 1)
        self._estimates = native_estimates(masses[pair.subset], pair.pairs_within)
        self.clock, self.seed = Clock(), Seed()

    def take_tuner(self, tuner: Tuner | None) -> None:
        """Let another tuner choose the windows of the next samplers."""
        self.tuner = tuner

    def make_scheme(self, settings: Settings) -> Scheme:
        """The scheme at these settings.

        Raises
        ------
        ValueError
            If its noise cannot be computed.
        """
        scheme = SCHEMES[self._scheme_name](
            settings.temperature,
            settings.friction,
            settings.step_size,
            self._projections.at(settings.constraint_tolerance),
        )
        scheme.check_noise(reciprocal(self._masses))
        return scheme

    def build(self, settings: Settings, scheme: Scheme) -> SpeculativeSampler:
        """A sampler, with what was learned so far; the target has been set up."""
        pair, seed = self._pair, self.seed.of(settings)
        engine = self._engines.make(scheme, seed, self._window, settings.constraint_tolerance)
        return SpeculativeSampler(
            engine,
            pair,
            StepNoise(seed, len(self._masses[pair.subset]), self._cm_removal_frequency),
            self._window,
            corrector=self._make_corrector(scheme),
            clock=self.clock if pair.uses_times else None,
            tuner=self.tuner,
            intervention=self._moves,
            round_callbacks=(self._round_callbacks,),
            stopwatch=self._stopwatch,
            learns_beside=not pair.target.keeps_cores_busy,
        )

    def _make_corrector(self, scheme: Scheme) -> Corrector:
        masses = self._masses[self._pair.subset, None]
        if self._correction == Following.name:
            return Following(scheme, masses, *self._estimates)
        return make_corrector(self._correction, scheme, masses)

    def snapshot(self) -> dict[str, Any]:
        """What draft and estimates have learned, and the tuner found, for ``restore``."""
        jacobian, prediction = self._estimates
        return {
            "draft state": self._pair.draft.snapshot(),
            "jacobian": jacobian.snapshot(),
            "prediction": prediction.snapshot(),
            "tuned window": None if self.tuner is None else self.tuner.window,
        }

    def restore(self, record: dict[str, Any]) -> None:
        """Give draft and estimates their memory back."""
        jacobian, prediction = self._estimates
        if record["draft state"] is not None:
            self._pair.draft.restore(record["draft state"])
        jacobian.restore(record["jacobian"])
        prediction.restore(record["prediction"])

    def resume_tuner(self, record: dict[str, Any]) -> None:
        """Let the tuner start from the window that was found."""
        if isinstance(self.tuner, WindowTuner) and record["tuned window"] is not None:
            self.tuner.resume_at(record["tuned window"])
