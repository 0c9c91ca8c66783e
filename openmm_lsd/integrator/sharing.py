"""What draft and target of a Context share: found out, evaluated, kept up to date."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import openmm
from numpy.typing import NDArray

from .._native import ContextAccess
from ..contexts.checks import cm_removal_frequency, default_box
from ..contexts.constraints import Projections, SystemProjection
from ..contexts.forcecontext import ForceContext, copy_constraints, fastest_context
from ..contexts.platforms import reproducible_properties
from ..contexts.sharedforces import find_shared_forces, shared_system
from ..contexts.subsets import reduce_system, reduce_topology
from ..drafts.draft import Draft, DraftSpec
from ..drafts.rolloutcontext import Place, RolloutContext
from ..targets.base import ForceSettings
from ..targets.slowforces import find_slow_forces
from ..targets.system import SystemTarget
from .snapshot import SystemSnapshot

Array = NDArray[np.float64]

logger = logging.getLogger(__name__)


def _slow_forces_of(
    draft: openmm.System | None, where: ForceSettings
) -> Mapping[int, NDArray[np.int64] | None]:
    return {} if draft is None else find_slow_forces(draft.getForces(), where)


class Sharing:
    """The forces that draft and target of a Context share, in a Context of their own.

    Parameters
    ----------
    access : ContextAccess
    system : SystemSnapshot
    positions : (N, 3) nm
    spec : DraftSpec
    force_groups : int
        Bits.
    cores : int or None
    reproducible : bool
        Whether the same positions must always give the same forces.

    Attributes
    ----------
    subset : (n,) int
        The particles on which draft and target may differ, in ascending order.
    slow : list of int
        Indices of the System's forces that are the target's only.
    draft_spec : DraftSpec
        Of the subset.
    forces : drafts.Draft
        The shared forces, of all particles.
    reduced : openmm.System
        The particles of the subset, without forces.
    force_groups : int
    platform : str
        Where the shared forces are computed.

    Raises
    ------
    NothingSharedError
    """

    def __init__(
        self,
        access: ContextAccess,
        system: SystemSnapshot,
        positions: Array,
        spec: DraftSpec,
        force_groups: int,
        cores: int | None,
        reproducible: bool,
    ) -> None:
        time, step_count = access.get_time()
        where = ForceSettings(
            positions,
            default_box(system),
            access.get_platform(),
            access.get_properties(),
            cores or 1,
            time,
            step_count,
        )
        slow = find_slow_forces(system.getForces(), where)
        slow_of_draft = _slow_forces_of(spec.system, where)
        found = find_shared_forces(
            system, slow, spec.system, system.groups, force_groups, slow_of_draft
        )
        for line in found.lines:
            logger.info("%s", line)
        self.force_groups, self._system = force_groups, system
        self._rollout: RolloutContext | None = None
        self._environment: tuple[Array | None, Mapping[str, float]] = None, {}
        self.subset, self._indices, self.slow = found.subset, found.shared, found.slow
        self.reduced = reduce_system(system, self.subset)
        self._projections = Projections(reduce_system(system, self.subset, [1.0]))
        topology = spec.topology
        if topology is not None and topology.getNumAtoms() == len(positions):
            topology = reduce_topology(topology, self.subset)
        self.draft_spec = spec._replace(system=found.stand_in, topology=topology)
        if spec.system is not None and slow_of_draft:
            potential = SystemTarget(
                spec.system,
                positions,
                platform=spec.platform.getName() if spec.platform else "Reference",
                subset=self.subset,
                indices=list(slow_of_draft),
                reproducible=reproducible,
            )
            self.draft_spec = self.draft_spec._replace(system=None, potential=potential)
        shared = self._forces_of(system)
        platform = access.get_platform()
        # As for the target, whose forces they are. Who names the Context's platform for the draft
        # wants all cores of it.
        platforms: dict[str, Mapping[str, str]] = {platform: access.get_properties()}
        platforms.setdefault("Reference", {})
        if reproducible and (spec.platform is None or spec.platform.getName() != platform):
            platforms = reproducible_properties(platforms)
        context = fastest_context(shared, positions, platforms)
        self.platform, self._properties = context.platform, context.properties
        self.forces = Draft(self._make(shared))

    def _forces_of(self, system: SystemSnapshot) -> openmm.System:
        return shared_system(system, self._indices)

    def _make(self, shared: openmm.System) -> ForceContext:
        platform = openmm.Platform.getPlatform(self.platform)
        return ForceContext(shared, platform, self._properties, self.force_groups)

    @property
    def system(self) -> openmm.System:
        """Particles and shared forces, as they are."""
        return self._forces_of(self._system)

    def rollout_context(self, seed: int, window: int) -> RolloutContext:
        """In which windows can be drafted: the same forces in a Context of its own."""
        place = Place(self.platform, self._properties, self.force_groups, seed, window)
        if self._rollout is None or self._rollout.place != place:
            if self._rollout is not None:
                self._rollout.close()
            self._rollout = RolloutContext(self._rollout_system(), self.subset, place)
            self._rollout.set_environment(*self._environment)
        return self._rollout

    def _rollout_system(self) -> openmm.System:
        system = self.system
        copy_constraints(self._system, system)
        if cm_removal_frequency(self._system):
            system.addForce(openmm.CMMotionRemover(1))
        return system

    def projection_at(self, tolerance: float) -> SystemProjection | None:
        """Onto the constraints of the subset, with the rest as one particle more."""
        return self._projections.at(tolerance)

    def refresh(self, system: SystemSnapshot) -> None:
        """Parameters of the System's forces have changed."""
        self._system = system
        if self._rollout is not None:
            self._rollout.refresh(self._rollout_system())
        self.forces.take_context(self._make(self._forces_of(system)))

    def set_environment(self, box: Array | None, parameters: Mapping[str, float]) -> None:
        """See NativeDraft."""
        self._environment = box, parameters
        self.forces.set_environment(box, parameters)
        if self._rollout is not None:
            self._rollout.set_environment(box, parameters)
