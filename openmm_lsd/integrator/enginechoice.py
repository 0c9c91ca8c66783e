"""Which engine drafts: on the host, or in a Context."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import openmm
from numpy.typing import NDArray

from .._native import ContextAccess
from ..contexts import autotune
from ..contexts.checks import cm_removal_frequency, masses_of, virtual_sites
from ..contexts.constraints import constraints_of
from ..contexts.digests import digest_of
from ..contexts.forcecontext import describe_system
from ..contexts.platforms import HOSTS
from ..core.corrections import Corrections
from ..core.engine import Engine
from ..core.schemes import Scheme
from ..core.window import Draws, State
from ..drafts.rolloutcontext import free_groups
from .boundpair import BoundPair
from .sharing import Sharing
from .snapshot import SystemSnapshot

Array = NDArray[np.float64]

logger = logging.getLogger(__name__)

NOT_POSSIBLE = "engine='context' is not possible here"
LENGTH_OF_TRIAL = 8  # steps
LONGEST_TRIAL = 2.0  # s
MOVED = np.array([1.0, 2.0, -1.5])  # nm
ROUNDING, LEAST_FORCE = 1e-3, 0.05  # of forces; kJ/mol/nm

# Forces that only depend on where particles are to each other.
INVARIANT = {
    "AmoebaGeneralizedKirkwoodForce",
    "AmoebaMultipoleForce",
    "AmoebaTorsionTorsionForce",
    "AmoebaVdwForce",
    "AmoebaWcaDispersionForce",
    "CMAPTorsionForce",
    "CMMotionRemover",
    "CustomAngleForce",
    "CustomBondForce",
    "CustomCentroidBondForce",
    "CustomCompoundBondForce",
    "CustomGBForce",
    "CustomHbondForce",
    "CustomManyParticleForce",
    "CustomNonbondedForce",
    "CustomTorsionForce",
    "DrudeForce",
    "GBSAOBCForce",
    "GayBerneForce",
    "HarmonicAngleForce",
    "HarmonicBondForce",
    "HippoNonbondedForce",
    "LCPOForce",
    "NonbondedForce",
    "PeriodicTorsionForce",
    "RBTorsionForce",
    "RMSDForce",
}
COORDINATE = re.compile(r"\b[xyz]\d*\b")  # in the expression of a custom force


def is_invariant(force: openmm.Force) -> bool:
    """Whether its energy stays the same if all particles are moved by one vector."""
    if isinstance(force, openmm.CustomCVForce):
        variables = range(force.getNumCollectiveVariables())
        return all(is_invariant(force.getCollectiveVariable(each)) for each in variables)
    if type(force).__name__ not in INVARIANT:
        return False
    expression = force.getEnergyFunction() if hasattr(force, "getEnergyFunction") else ""
    return COORDINATE.search(expression) is None


def find_obstacle(
    system: openmm.System,
    shared: Iterable[openmm.Force],
    subset: NDArray[np.int64],
    scheme_name: str,
    uses_times: bool,
) -> str | None:
    """Why windows of these forces cannot be drafted in a Context, in words; None if they can."""
    inside, shared = set(subset.tolist()), list(shared)
    if scheme_name != "middle":
        return f"the scheme is {scheme_name!r}; it must be 'middle'"
    if uses_times:
        return "forces may depend on time or step count"
    if any(i in inside or j in inside for i, j in constraints_of(system)):
        return "there are constraints on particles of the subset"
    if inside & virtual_sites(system):
        return "there are virtual sites in the subset"
    if len(free_groups(shared)) < 2:
        return "the shared forces leave no two force groups free"
    if cm_removal_frequency(system):
        fixed = set(np.flatnonzero(masses_of(system) == 0).tolist()) - virtual_sites(system)
        bound = [type(force).__name__ for force in shared if not is_invariant(force)]
        if fixed or bound:
            what = f"{len(fixed)} particles" if fixed else f"what a {bound[0]} acts on"
            return (
                f"the System has a CMMotionRemover, and {what} cannot be moved along with all "
                "others; leave one of them out"
            )
    return None


class Engines(NamedTuple):
    """What makes the engine: where draft and target share nothing, and where they do."""

    of_all: Callable[..., Engine]  #: as NativeEngine
    of_subset: Callable[..., Engine]  #: as NativeSubsetEngine
    of_context: Callable[..., Engine]  #: likewise, as ContextEngine
    wanted: str  #: 'host', 'context' or 'auto'


class EngineMaker:
    """Makes the engines of the samplers of one Context.

    Parameters
    ----------
    engines : Engines
    access : ContextAccess
    system : SystemSnapshot
    masses : (N,) amu
    pair : BoundPair
    scheme_name : str
    is_tuned : bool
        Whether the window will change. If it does not, nothing may depend on the clock.
    """

    def __init__(
        self,
        engines: Engines,
        access: ContextAccess,
        system: SystemSnapshot,
        masses: Array,
        pair: BoundPair,
        scheme_name: str,
        is_tuned: bool,
    ) -> None:
        self._engines, self._access, self._system = engines, access, system
        self._masses, self._pair = masses, pair
        self._scheme_name, self._is_tuned = scheme_name, is_tuned

    def make(self, scheme: Scheme, seed: int, window: int, tolerance: float) -> Engine:
        """The engine that is wanted; with 'auto' the one that drafts faster.

        Parameters
        ----------
        scheme : Scheme
        seed : int
            Of the noise of the particles outside the subset.
        window : int
            The usual one.
        tolerance : float
            Relative, of the constraints.

        Raises
        ------
        ValueError
            If the engine that is wanted is not possible.
        """
        engines, pair, masses = self._engines, self._pair, self._masses
        sharing = pair.sharing
        if sharing is None:
            if engines.wanted == "context":
                raise ValueError(f"{NOT_POSSIBLE}: draft and target share no forces")
            return engines.of_all(scheme, masses, pair.draft)
        subset = sharing.subset

        def on_host() -> Engine:
            projection = sharing.projection_at(tolerance)
            forces = sharing.forces, pair.draft
            return engines.of_subset(scheme, masses, *forces, subset, seed, projection)

        def in_context() -> Engine:
            context = sharing.rollout_context(seed, window)
            return engines.of_context(scheme, masses, context, pair.draft, subset, tolerance)

        if engines.wanted == "auto":
            return self._choose(sharing, seed, window, on_host, in_context)
        if engines.wanted == "host":
            return on_host()
        obstacle = self._find_obstacle(sharing)
        if obstacle is not None:
            raise ValueError(f"{NOT_POSSIBLE}: {obstacle}")
        return in_context()

    def _choose(
        self,
        sharing: Sharing,
        seed: int,
        window: int,
        on_host: Callable[[], Engine],
        in_context: Callable[[], Engine],
    ) -> Engine:
        """Without timing, where the same seed must give the same trajectory."""
        if not self._is_tuned and sharing.platform in HOSTS:
            return on_host()
        obstacle = self._find_obstacle(sharing)
        if obstacle is not None:
            logger.info("engine: host, as %s", obstacle)
            return on_host()
        if self._is_tuned:
            return self._faster(in_context(), on_host(), sharing)
        try:
            sharing.rollout_context(seed, window).check()
        except Exception as error:  # whatever platforms may raise
            message = "engine: host, as the Context engine does not work on %s: %s"
            logger.warning(message, sharing.platform, error)
            return on_host()
        return in_context()

    def _faster(self, in_context: Engine, on_host: Engine, sharing: Sharing) -> Engine:
        made = {each.name: each for each in (on_host, in_context)}
        positions, velocities, *_ = self._access.get_state()
        state = State(positions, velocities, 0)
        draws = _draws(len(sharing.subset))
        corrections = Corrections(np.zeros((LENGTH_OF_TRIAL, len(sharing.subset), 3)))

        def draft(name: str) -> None:
            made[name].draft(state, corrections, draws, None)

        key = f"engine {digest_of(describe_system(sharing.system), sharing.platform)}"
        name = autotune.choose(key, list(made), draft, what="engine", longest=LONGEST_TRIAL)
        logger.info("engine: %s", name)
        return made[name or "host"]

    def _find_obstacle(self, sharing: Sharing) -> str | None:
        """To the Context engine."""
        shared = sharing.system  # to be kept while its forces are looked at
        obstacle = find_obstacle(
            self._system,
            shared.getForces(),
            sharing.subset,
            self._scheme_name,
            self._pair.uses_times,
        )
        if obstacle is None and cm_removal_frequency(self._system) and not self._may_be_moved():
            return (
                "the System has a CMMotionRemover, and the slow forces depend on where their "
                "particles are; leave it out"
            )
        return obstacle

    def _may_be_moved(self) -> bool:
        """Whether the slow forces stay as they are if all particles are moved by one vector."""
        pair = self._pair
        positions = self._access.get_state()[0][pair.subset]
        sites = np.stack([positions, positions + MOVED])
        forces = pair.target.forces(sites, pair.box, None)
        size = np.sqrt(np.mean(forces[0] ** 2))
        return bool(np.abs(forces[1] - forces[0]).max() <= ROUNDING * size + LEAST_FORCE)


def _draws(particles: int) -> Draws:
    length = LENGTH_OF_TRIAL
    noise = np.random.default_rng(1).standard_normal((length, particles, 3))
    return Draws(noise, np.zeros(length), np.zeros(length, dtype=bool))
