"""The samplers of a Context: one for each temperature, friction, step size and seed."""

from __future__ import annotations

import logging
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
from ..core.engine import Engine
from ..core.noise import StepNoise
from ..core.sampler import SpeculativeSampler, Tuner
from ..core.schemes import SCHEMES, Scheme, reciprocal
from ..core.statistics import Round, Stopwatch
from ..core.tuning import WindowTuner
from ..core.window import State
from ..drafts.estimates import native_estimates
from .barostat import BarostatMoves
from .boundpair import BoundPair
from .enginechoice import choose_engine, find_obstacle
from .snapshot import SystemSnapshot

Array = NDArray[np.float64]

logger = logging.getLogger(__name__)

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
        """Go on with the seed of an earlier run."""
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


class Engines(NamedTuple):
    """What makes the engine: where draft and target share nothing, and where they do."""

    of_all: Callable[..., Engine]  #: as NativeEngine
    of_subset: Callable[..., Engine]  #: as NativeSubsetEngine
    of_context: Callable[..., Engine]  #: likewise, as ContextEngine
    wanted: str  #: 'host', 'context' or 'auto'


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
        self._engines, self._access, self._is_tuned = engines, access, tuner is not None
        self._system, self._masses, self._pair, self._moves = system, masses, pair, moves
        self._projections = Projections(system)
        self._scheme_name, self._window, self.tuner = scheme_name, window, tuner
        if correction is None:
            atoms = len(masses[pair.subset])
            correction = "secant" if atoms <= MAX_ATOMS_OF_JACOBIAN else "per-step"
        self._correction = correction
        self._round_callbacks, self._stopwatch = round_callbacks, stopwatch
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
        engine = self._make_engine(settings, scheme)
        return SpeculativeSampler(
            engine,
            pair,
            StepNoise(seed, engine.noise_particles, self._cm_removal_frequency),
            self._window,
            corrector=self._make_corrector(scheme),
            clock=self.clock if pair.uses_times else None,
            tuner=self.tuner,
            intervention=self._moves,
            round_callbacks=self._round_callbacks,
            stopwatch=self._stopwatch,
            learns_beside=not pair.target.keeps_cores_busy,
        )

    def _make_engine(self, settings: Settings, scheme: Scheme) -> Engine:
        pair, engines, wanted = self._pair, self._engines, self._engines.wanted
        obstacle = self._find_obstacle()
        if obstacle is not None and wanted == "context":
            raise ValueError(f"engine='context' is not possible here: {obstacle}")
        sharing = pair.sharing
        if sharing is None:
            return engines.of_all(scheme, self._masses, pair.draft)
        subset, tolerance = sharing.subset, settings.constraint_tolerance

        def on_host() -> Engine:
            projection = sharing.projection_at(tolerance)
            return engines.of_subset(
                scheme, self._masses, sharing.forces, pair.draft, subset, projection
            )

        def in_context() -> Engine:
            context = sharing.rollout_context(self.seed.of(settings))
            return engines.of_context(scheme, self._masses, context, pair.draft, subset, tolerance)

        if obstacle is not None:
            logger.info("engine: host, as %s", obstacle)
            return on_host()
        positions, velocities, *_ = self._access.get_state()
        return choose_engine(
            wanted,
            {"host": on_host, "context": in_context},
            State(positions, velocities, 0),
            sharing.system,
            sharing.platform,
            self._is_tuned,
        )

    def _find_obstacle(self) -> str | None:
        """To the Context engine."""
        pair, sharing = self._pair, self._pair.sharing
        if sharing is None:
            return "draft and target share no forces"
        shared = sharing.system  # to be kept while its forces are looked at
        return find_obstacle(
            self._system,
            shared.getForces(),
            sharing.subset,
            self._scheme_name,
            pair.uses_times,
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
