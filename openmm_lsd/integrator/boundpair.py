"""Draft and target of a Context: built where both Systems are seen, in one environment."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray

from .._native import ContextAccess
from ..contexts.checks import has_forces, virtual_sites
from ..contexts.constraints import constraints_of
from ..contexts.cores import allowed_cores
from ..contexts.digests import digest_of
from ..contexts.interrupts import InterruptWatch
from ..contexts.periodicity import is_periodic
from ..contexts.sharedforces import NothingSharedError
from ..core.clock import Times
from ..core.errors import checked_forces
from ..core.schemes import Scheme
from ..core.statistics import Statistics
from ..core.window import Verified
from ..drafts.draft import DraftSpec
from ..drafts.fingerprint import state_beside, take_fingerprint
from ..drafts.molgraph import Pairs, pairs_within
from ..targets import BatchedTarget
from ..targets.base import Evaluation
from ..targets.virtualsites import VirtualSiteTarget
from .boundtarget import BoundTarget, warn_of_missing_forces
from .sharing import Sharing
from .snapshot import SystemSnapshot

Array = NDArray[np.float64]

logger = logging.getLogger(__name__)


class BoundPair:
    """A verifier.Pair: the target of a Context and its draft.

    Parameters
    ----------
    access : ContextAccess
    system : SystemSnapshot
        What the Context holds.
    masses : (N,) amu
    positions : (N, 3) nm
        Where the draft is built.
    spec : DraftSpec
    given : BatchedTarget or None
        None: the target is built from the System.
    window : int
        Sites at once.
    force_groups : int
        Bits, of the target's forces that count.
    is_tuned : bool
        Whether the window will change. If it does not, the same positions always give the same
        forces, to the last bit.
    statistics : Statistics
    interrupts : InterruptWatch

    Attributes
    ----------
    draft : NativeDraft
        Of the subset, if there is one.
    target : BoundTarget
    sharing : Sharing or None
        What draft and target share, if anything.
    subset : slice or (n,) int
        The particles on which they may differ.
    box : (3, 3) nm or None
        In which forces are evaluated.
    """

    def __init__(
        self,
        access: ContextAccess,
        system: SystemSnapshot,
        masses: Array,
        positions: Array,
        spec: DraftSpec,
        given: BatchedTarget | None,
        window: int,
        force_groups: int,
        is_tuned: bool,
        statistics: Statistics,
        interrupts: InterruptWatch,
    ) -> None:
        self._access, self._system, self._interrupts = access, system, interrupts
        self._window, self._is_tuned = window, is_tuned
        self._is_periodic = is_periodic(system, access.get_box(), spec.system, spec.topology)
        if given is not None and not has_forces(system):
            warn_of_missing_forces(given, self._is_periodic)
        cores = allowed_cores(access.get_properties().get("Threads"))
        self.sharing: Sharing | None = None
        self._given_draft, self._beside = spec, state_beside(positions)
        if spec.potential is not None and virtual_sites(system):
            spec = spec._replace(potential=VirtualSiteTarget(spec.potential, system))
        if given is None and spec.potential is None:
            try:
                self.sharing = Sharing(
                    access, system, positions, spec, force_groups, cores, not is_tuned
                )
            except NothingSharedError as reason:
                logger.info("draft and target share no forces: %s", reason)
        self.target = BoundTarget(
            access,
            system,
            masses,
            given,
            window,
            not is_tuned,
            self.sharing,
            statistics,
            interrupts,
        )
        self.box = self.find_box()
        particles: openmm.System = system
        self.subset: slice | NDArray[np.int64] = slice(None)
        if self.sharing is not None:
            spec, particles = self.sharing.draft_spec, self.sharing.reduced
            self.subset = self.sharing.subset
        constraints = np.array(sorted(constraints_of(particles)), dtype=int).reshape(-1, 2)
        self.draft = spec.build(
            positions[self.subset],
            masses[self.subset],
            self.box,
            cores,
            reproducible=not is_tuned,
            constraints=constraints,
        )
        self.take_environment()

    def fingerprint_of_draft(self) -> dict[str, Any] | None:
        """Of what may have been changed between two checkpoints; always at the same state."""
        potential = self._given_draft.unknown_forces(self._beside)
        if potential is None:
            return None
        box, parameters = self.find_box(), self._access.get_parameters()
        return take_fingerprint(potential, self._beside, box, parameters)

    def describe_subset(self) -> str | None:
        """A digest; None if nothing is shared."""
        return None if self.sharing is None else digest_of(self.sharing.subset, self.sharing.slow)

    def find_box(self) -> Array | None:
        """Periodic box vectors (3, 3) in nm, of the Context; None if the target is not periodic."""
        periodic = self._is_periodic
        if has_forces(self._system):  # which may have been edited
            periodic = self._system.usesPeriodicBoundaryConditions()
        return self._access.get_box() if periodic else None

    def take_environment(self) -> None:
        """The Context's box and parameters are those of draft and target from now on."""
        self.box = self.find_box()
        self._set_environment()

    def _set_environment(self) -> None:
        box, parameters = self.find_box(), self._access.get_parameters()
        self.draft.set_environment(box, parameters)
        if self.sharing is not None:
            self.sharing.set_environment(box, parameters)

    def refresh(self) -> None:
        """Parameters of the System's forces have changed."""
        self.target.refresh()
        if self.sharing is not None:
            self.sharing.refresh(self._system)
            self._set_environment()

    def set_up_target(self, force_groups: int, scheme: Scheme) -> None:
        """See BoundTarget.set_up."""
        self._set_environment()
        parameters = self._access.get_parameters()
        self.target.set_up(force_groups, scheme, self.find_box(), parameters)

    @property
    def uses_times(self) -> bool:
        """Whether forces may depend on time or step count."""
        shared = self.sharing is not None and self.sharing.forces.uses_times
        return shared or self.draft.uses_times or self.target.uses_times

    def pairs_within(self, positions: Array, cutoff: float) -> tuple[Pairs, Array]:
        """See JacobianEstimate."""
        return pairs_within(positions, cutoff, self.box)

    def compare(self, sites: Array, draft_forces: Array, times: Times | None) -> Verified:
        """See verifier.Pair."""
        self._interrupts.raise_pending()  # the draft may have hidden one
        if self._is_tuned and len(sites) != self._window:
            self.target.prepare_settled(sites[0], len(sites), self.box)
        try:
            forces = self.target.forces(sites, self.box, times)
        except Exception as error:
            self._interrupts.raise_interrupt(error)
            raise
        forces = checked_forces(forces, sites.shape)
        with np.errstate(invalid="ignore"):  # the Verifier says which are not finite
            return Verified(forces, forces - draft_forces)

    def evaluate(self, positions: Array) -> Evaluation:
        """Energies (B,) and forces (B, N, 3) of all forces at present, after it was set up."""
        times = Times.same(len(positions), *self._access.get_time())
        return self.target.whole.evaluate_at(positions, self.box, times)

    def discrepancies(self, sites: Array) -> Array:
        """Target force minus draft force at sites (B, n, 3) of the subset, likewise."""
        time = self._access.get_time()
        times = Times.same(len(sites), *time)
        draft_forces = np.stack([self.draft(each, Times.same(1, *time)) for each in sites])
        return self.target.forces(sites, self.box, times) - draft_forces

    def close(self) -> None:
        """Let go of what was built here."""
        self.target.close()
