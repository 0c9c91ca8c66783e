"""Which engine drafts: on the host, or in a Context."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import openmm
from numpy.typing import NDArray

from ..contexts import autotune
from ..contexts.checks import cm_removal_frequency, masses_of, virtual_sites
from ..contexts.constraints import constraints_of
from ..contexts.digests import digest_of
from ..contexts.forcecontext import describe_system
from ..contexts.platforms import HOSTS
from ..core.corrections import Corrections
from ..core.engine import Engine
from ..core.window import Draws, State
from ..drafts.rolloutcontext import free_groups

Array = NDArray[np.float64]

logger = logging.getLogger(__name__)

ENGINES = ("auto", "host", "context")
LENGTH_OF_TRIAL = 8  # steps
LONGEST_TRIAL = 2.0  # s

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


def choose_engine(
    wanted: str,
    engines: Mapping[str, Callable[[], Engine]],
    state: State,
    shared: openmm.System,
    platform: str,
    is_tuned: bool,
) -> Engine:
    """The engine that is wanted; with 'auto' the one that drafts faster.

    Without timing, where the same seed must give the same trajectory: then it is the platform of
    the shared forces that decides.
    """
    if wanted == "auto" and not is_tuned:
        wanted = "host" if platform in HOSTS else "context"
    if wanted != "auto":
        return engines[wanted]()
    made = {name: make() for name, make in engines.items()}
    draws = {name: _draws(engine) for name, engine in made.items()}

    def draft(name: str) -> None:
        engine, length = made[name], LENGTH_OF_TRIAL
        corrections = Corrections(np.zeros((length, len(engine.masses[engine.subset]), 3)))
        engine.draft(state, corrections, draws[name], None)

    key = f"engine {digest_of(describe_system(shared), platform)}"
    name = autotune.choose(key, list(made), draft, what="engine", longest=LONGEST_TRIAL)
    logger.info("engine: %s", name)
    return made[name or "host"]


def _draws(engine: Engine) -> Draws:
    length = LENGTH_OF_TRIAL
    noise = np.random.default_rng(1).standard_normal((length, engine.noise_particles, 3))
    return Draws(noise, np.zeros(length), np.zeros(length, dtype=bool))
