"""Between a Context and the sampler: what was bound, what has changed, state in and state out."""

from __future__ import annotations

import gc
import logging
import secrets
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import NamedTuple

import numpy as np
import openmm
from numpy.typing import NDArray

from ._native import ContextAccess
from .checks import check_pair, check_system, cm_removal_frequency, masses_of
from .contexts import ForceContext, fastest_context
from .draft import Draft
from .rollout import reciprocal
from .sampler import SpeculativeSampler, Statistics
from .schemes import SCHEMES, Scheme
from .targets import SystemTarget

Array = NDArray[np.float64]
BatchForces = Callable[[Array], Array]

logger = logging.getLogger(__name__)

# The Context's forces and the batch may differ by what shifts a step by this many standard
# deviations of its noise (per component), or by rounding in single precision.
SHIFT_TOLERANCE = 0.01
SINGLE_PRECISION_TOLERANCE = 1e-4  # of the root mean square force
CHECKED_STATES = 3
PERTURBATION = 0.001  # nm, of the states at which forces are compared


class Settings(NamedTuple):
    """What the user may change between steps without touching the Context's state."""

    temperature: float
    friction: float
    step_size: float
    seed: int
    force_groups: int


class TargetMismatchError(ValueError):
    """The batched target and the Context disagree about the forces."""


class Binding:
    """Speculative dynamics in one Context.

    Parameters
    ----------
    access : ContextAccess
        Of the Context that owns the integrator.
    draft_system : openmm.System
    draft_platform : openmm.Platform or None
        None: the fastest for these forces.
    target : callable or None
        (B, N, 3) nm -> (B, N, 3) kJ/mol/nm; None: built from the Context's System.
    scheme_name, window : as in LSDIntegrator
    statistics : Statistics
        Counted on.
    """

    def __init__(
        self,
        access: ContextAccess,
        draft_system: openmm.System,
        draft_platform: openmm.Platform | None,
        target: BatchForces | None,
        scheme_name: str,
        window: int,
        statistics: Statistics,
    ) -> None:
        self._access = access
        self._system = _python_system(access)
        check_system(self._system, "target")
        check_pair(self._system, draft_system)
        self._masses = masses_of(self._system)
        self._immobile = self._masses[:, None] == 0
        self._given_target = target
        self._target: BatchForces | None = target
        self._scheme_name, self._window = scheme_name, window
        self._statistics = statistics
        self._settings: Settings | None = None
        self._sampler: SpeculativeSampler | None = None
        self._step_count = -1
        self.noise_step = 0  # index of the next step's random numbers
        self._fresh_seed = secrets.randbits(63)
        self._system_forces = any(
            not isinstance(force, openmm.CMMotionRemover) for force in self._system.getForces()
        )
        if target is not None and not self._system_forces:
            logger.warning(
                "the System has no forces: energies that reporters ask the Context for are zero"
            )
        positions = self._state()[0]
        if draft_platform is None:
            self._draft = Draft(fastest_context(draft_system, positions))
        else:
            self._draft = Draft(ForceContext(draft_system, draft_platform))
        self._environment_of_draft()

    def belongs_to(self, access: ContextAccess) -> bool:
        """Whether this is still the Context and the System that were bound."""
        if access.get_system_address() != int(self._system.this):
            return False
        return not access.changed or np.array_equal(access.get_masses(), self._masses)

    def step(self, steps: int, settings: Settings) -> None:
        """Advance the Context by ``steps``, and ``noise_step`` with it.

        If the target fails the Context shows the last committed state, and so it does when the
        run is interrupted.
        """
        sampler = self._prepared(settings)
        begin, counted = perf_counter(), self._seconds_counted()
        time, step_count = self._access.get_time()
        try:
            sampler.advance(steps)
        finally:
            positions, velocities, step = sampler.state
            done = step - self.noise_step
            for _ in range(done):
                time += settings.step_size
            self.noise_step, self._step_count = step, step_count + done
            if done:
                if self._immobile.any():  # OpenMM leaves them alone, their velocities too
                    velocities = np.where(self._immobile, self._start_velocities, velocities)
                self._access.set_state(positions, velocities, time, self._step_count)
            self._access.acknowledge()
            counted = self._seconds_counted() - counted
            self._statistics.overhead_seconds += perf_counter() - begin - counted

    def _seconds_counted(self) -> float:
        counted = self._statistics
        return counted.draft_seconds + counted.target_seconds + counted.overhead_seconds

    def _prepared(self, settings: Settings) -> SpeculativeSampler:
        """The sampler, standing where the Context stands."""
        sampler = self._sampler
        restart = sampler is None or self._access.get_time()[1] != self._step_count
        if sampler is None or settings != self._settings:
            if self._settings is None or settings.force_groups != self._settings.force_groups:
                self._target = self._given_target
            sampler = self._new_sampler(settings)
            restart = True
        if self._access.changed or self._target is None:
            check_system(self._system, "target")
            self._environment_of_draft()
            self._check_target(settings, sampler.scheme)
            restart = True
        if restart:
            positions, velocities, step_count = self._state()
            self._start_velocities = velocities
            sampler.set_state(positions, velocities, self.noise_step, step_count=step_count)
        self._sampler, self._settings = sampler, settings
        return sampler

    def _new_sampler(self, settings: Settings) -> SpeculativeSampler:
        scheme = SCHEMES[self._scheme_name](
            settings.temperature, settings.friction, settings.step_size
        )
        sampler = SpeculativeSampler(
            scheme,
            self._masses,
            self._draft,
            self._target_forces,
            self._window,
            settings.seed % 2**64 or self._fresh_seed,
            cm_removal_frequency=cm_removal_frequency(self._system),
        )
        sampler.statistics = self._statistics
        return sampler

    def _target_forces(self, positions: Array) -> Array:
        assert self._target is not None
        return self._target(positions)

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

    def _environment(self) -> tuple[Array, Mapping[str, float]]:
        return self._access.get_box(), self._access.get_parameters()

    def _environment_of_draft(self) -> None:
        box, parameters = self._environment()
        if not self._system.usesPeriodicBoundaryConditions():
            box = self._draft.context.access.get_box()
        self._draft.context.set_environment(box, parameters)

    def _check_target(self, settings: Settings, scheme: Scheme) -> None:
        """Give the target the Context's box and parameters, and compare forces with the Context.

        A target made from the System is made again if they differ: somebody changed a Force and
        updated the Context.
        """
        positions, velocities, time, step_count = self._access.get_state()
        try:
            if self._target is None:
                self._build_target(settings, scheme, positions)
            elif not self._agrees(positions[None], settings, scheme):
                if self._given_target is None:
                    logger.info("the System's forces have changed; building the target again")
                    self._build_target(settings, scheme, positions)
            states = self._perturbed(positions, CHECKED_STATES)
            if not self._agrees(states, settings, scheme):
                raise TargetMismatchError(self._mismatch)
        finally:
            self._access.set_state(positions, velocities, time, step_count)

    def _build_target(self, settings: Settings, scheme: Scheme, positions: Array) -> None:
        target = SystemTarget(
            self._system,
            settings.force_groups,
            self._access.get_platform(),
            self._access.get_properties(),
            positions,
        )
        target.set_environment(*self._environment())
        batch = self._perturbed(positions, self._window)
        target.choose(batch, self._tolerance(scheme, target(batch[:1])))
        self._target = target

    def _agrees(self, states: Array, settings: Settings, scheme: Scheme) -> bool:
        """Whether batched forces equal those of the Context at ``states`` (B, N, 3)."""
        if hasattr(self._target, "set_environment"):
            self._target.set_environment(*self._environment())
        if not self._system_forces:
            return True
        groups = settings.force_groups - 2**32 * (settings.force_groups >= 2**31)
        expected = self._access.forces(states, groups)
        if not np.isfinite(expected).all():
            return True  # the sampler will name step and atom
        forces = self._target_forces(states)
        excess = np.abs(forces - expected) - self._tolerance(scheme, expected)
        state, atom, _ = np.unravel_index(np.argmax(excess), excess.shape)
        self._mismatch = (
            f"the batched target and the Context disagree about the force on atom {atom}: "
            f"{forces[state, atom]} and {expected[state, atom]} kJ/mol/nm. The target must be the "
            "System that the Context was made from; if it is, its batched evaluation is at fault: "
            "does every row of a batch depend on that row alone?"
        )
        return bool((excess <= 0).all())

    def _tolerance(self, scheme: Scheme, forces: Array) -> Array:
        """Largest acceptable error of a force component, (N, 1) kJ/mol/nm."""
        inverse_masses = reciprocal(self._masses[:, None])
        zero = np.zeros_like(inverse_masses)
        shift_per_force = scheme.kick_shift(zero, zero, inverse_masses, zero) * reciprocal(
            scheme.noise_scale(inverse_masses)
        )
        rounding = SINGLE_PRECISION_TOLERANCE * np.sqrt(np.mean(forces**2)) + 1e-6
        return np.maximum(SHIFT_TOLERANCE * reciprocal(shift_per_force), rounding)

    def _perturbed(self, positions: Array, count: int) -> Array:
        """``count`` states near the present one, the first equal to it; always the same ones."""
        displacements = PERTURBATION * np.random.default_rng(0).standard_normal(
            (count, *positions.shape)
        )
        displacements[0] = 0.0
        return positions + displacements


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
