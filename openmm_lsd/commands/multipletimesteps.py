"""OpenMM's multiple time steps with the same two potentials: how evaluations are saved today."""

from __future__ import annotations

import copy
import dataclasses

import openmm

from ..contexts.forcecontext import fastest_context
from ..core.clock import Times
from ..systems import with_target
from ..targets import SystemTarget
from ..targets.base import Array, BatchedTarget, Evaluation
from .case import Case, Run, StateInBox


class MultipleTimeSteps(Run):
    """MTSLangevinIntegrator: ``ratio`` steps of the draft for each of target minus draft."""

    def __init__(self, case: Case, ratio: int, positions: Array) -> None:
        assert isinstance(case.draft, openmm.System)
        self._ratio = ratio
        self._start: StateInBox | None = None
        platform = openmm.Platform.getPlatform(case.platform or "Reference")
        target = SystemTarget(case.target, positions, platform=platform.getName())
        target.prepare(positions, 1)
        system = with_target(case.target, Difference(target, case.draft, positions))
        outer = system.getForce(0)
        outer.setForceGroup(1)
        for force in case.draft.getForces():
            if not isinstance(force, openmm.CMMotionRemover):
                inner = copy.deepcopy(force)
                inner.setForceGroup(0)
                system.addForce(inner)
        integrator = openmm.MTSLangevinIntegrator(
            case.temperature, case.friction, ratio * case.step_size, [(1, 1), (0, ratio)]
        )
        integrator.setRandomNumberSeed(case.seed)
        super().__init__(dataclasses.replace(case, target=system), integrator, platform.getName())

    def step(self, steps: int) -> None:
        """So many of the draft's steps, rounded down to whole ones of the target.

        If the particles fly apart they are put back to where they were at first, and the rest of
        these steps is left out: what is timed then is of no use anyway.
        """
        if self._start is None:
            self._start = self.state_in_box
        try:
            super().step(steps // self._ratio)
        except openmm.OpenMMException as error:
            if "NaN" not in str(error):
                raise
            self.blew_up = True
            self.set_state(*self._start)


class Difference(BatchedTarget):
    """Target minus draft."""

    def __init__(self, target: BatchedTarget, draft: openmm.System, positions: Array) -> None:
        self._target, self._draft = target, fastest_context(draft, positions)
        self.uses_times = target.uses_times or self._draft.uses_times

    def evaluate(self, positions: Array, box: Array | None = None) -> Evaluation:
        """See BatchedTarget."""
        return self.evaluate_at(positions, box)

    def evaluate_at(
        self, positions: Array, box: Array | None = None, times: Times | None = None
    ) -> Evaluation:
        """See BatchedTarget."""
        times = Times.same(len(positions)) if times is None else times
        energies, forces = self._target.evaluate_at(positions, box, times)
        self._draft.set_environment(box, {})
        draft_energies, draft_forces = self._draft.evaluate(positions, times)
        return energies - draft_energies, forces - draft_forces
