"""Virtual sites: particles without mass, whose positions follow from those of their parents."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

import numpy as np
import openmm

from ..contexts.checks import virtual_sites
from ..contexts.forcecontext import ForceContext, without_forces
from ..core.clock import Times
from .base import Array, BatchedTarget, Evaluation


class VirtualSiteTarget(BatchedTarget):
    """A target at positions whose virtual sites are where their parents put them.

    A sampler moves the particles that have mass; it need not know of the others.

    Parameters
    ----------
    target : BatchedTarget
        Its forces on virtual sites must be counted with the forces on their parents.
    system : openmm.System
        Whose virtual sites.
    """

    def __init__(self, target: BatchedTarget, system: openmm.System) -> None:
        self._target = target
        self._sites = ForceContext(without_forces(system), _reference())
        self.gives_energies, self.conservative = target.gives_energies, target.conservative
        self.uses_times = target.uses_times
        self.takes_box, self.keeps_cores_busy = target.takes_box, target.keeps_cores_busy

    @property
    def one_by_one(self) -> str | None:
        """See BatchedTarget."""
        return self._target.one_by_one

    def evaluate(self, positions: Array, box: Array | None = None) -> Evaluation:
        """See BatchedTarget."""
        return self.evaluate_at(positions, box)

    def evaluate_at(
        self, positions: Array, box: Array | None = None, times: Times | None = None
    ) -> Evaluation:
        """See BatchedTarget."""
        return self._target.evaluate_at(self._place(positions, box), box, times)

    def forces_at(
        self, positions: Array, box: Array | None = None, times: Times | None = None
    ) -> Array:
        """See BatchedTarget."""
        return self._target.forces_at(self._place(positions, box), box, times)

    def _place(self, positions: Array, box: Array | None) -> Array:
        self._sites.set_environment(box, {})
        return self._sites.access.with_virtual_sites(np.ascontiguousarray(positions))

    def set_parameters(self, parameters: Mapping[str, float]) -> None:
        """See BatchedTarget."""
        self._target.set_parameters(parameters)

    def prepare(self, positions: Array, batch: int, box: Array | None = None) -> None:
        """See BatchedTarget."""
        self._target.prepare(positions, batch, box)

    def single_states(self) -> AbstractContextManager:
        """See BatchedTarget."""
        return self._target.single_states()

    def close(self) -> None:
        """See BatchedTarget."""
        self._target.close()


class VirtualSiteForces:
    """Forces on virtual sites, handed on to their parents by the chain rule.

    OpenMM does it: in a Context where each site is pulled by the force in question.

    Parameters
    ----------
    system : openmm.System
        Whose virtual sites.
    """

    def __init__(self, system: openmm.System) -> None:
        self._sites = np.array(sorted(virtual_sites(system)), dtype=int)
        if len(self._sites):
            self._pull = openmm.CustomExternalForce("-(fx*x + fy*y + fz*z)")
            for component in ("fx", "fy", "fz"):
                self._pull.addPerParticleParameter(component)
            for site in self._sites.tolist():
                self._pull.addParticle(site, [0.0, 0.0, 0.0])
            pulled = without_forces(system)
            pulled.addForce(self._pull)
            self._context = ForceContext(pulled, _reference())

    def __call__(self, positions: Array, forces: Array, box: Array | None) -> Array:
        """``forces`` (B, N, 3), less those on the sites, plus what these do to the parents."""
        if not forces[:, self._sites].any():
            return forces
        self._context.set_environment(box, {})
        result = forces.copy()
        result[:, self._sites] = 0.0
        for state, row, out in zip(positions, forces, result, strict=True):
            for index, site in enumerate(self._sites.tolist()):
                self._pull.setParticleParameters(index, site, row[site])
            self._context.update(self._pull)
            handed_on = self._context.forces(state[None])[0]
            handed_on[self._sites] = 0.0
            out += handed_on
        return result


def _reference() -> openmm.Platform:
    return openmm.Platform.getPlatform("Reference")
