"""The program of a CustomIntegrator that drafts a window and keeps its states.

All steps of the window stay where the Context is, on any platform: forces, constraints and noise
are OpenMM's. The host gives the subset its forces and its noise (``_native.DraftingContext``); the
rest draws noise by itself. What was drafted is kept as displacements and velocities, not as
positions: between two steps a device may put molecules elsewhere in the periodic box.

Modes of one ``step(1)``: 0 drafts a step, 1 goes to another state of the window, 2 likewise, but
from where the window began, if the positions are no longer finite.
"""

from __future__ import annotations

import numpy as np
import openmm
from numpy.typing import NDArray

from .._native import ContextAccess
from ..core.schemes import Scheme

# Global variables: what a move adds to all positions and velocities.
SHIFT, DRIFT = ([f"{name}_{axis}" for axis in "xyz"] for name in ("shift", "drift"))


class DraftingProgram:
    """The integrator of a Context in which windows are drafted.

    Parameters
    ----------
    capacity : int
        The longest window.
    vector_group : int
        Force group of the vectors that the host hands in.
    removes_cm_motion : bool
        Whether the System has a CMMotionRemover, which then acts where the host says so.

    Attributes
    ----------
    integrator : openmm.CustomIntegrator
    """

    def __init__(self, capacity: int, vector_group: int, removes_cm_motion: bool) -> None:
        self.capacity = capacity
        self.integrator = program = openmm.CustomIntegrator(0.001)
        names = ["mode", "slot", "removal", "decay", "scale", *SHIFT, *DRIFT]
        names += [f"along{k}" for k in range(capacity)] + [f"pick{k}" for k in range(capacity + 1)]
        for name in names:
            program.addGlobalVariable(name, 0.0)
        for name in ("rest", "begin", "before", "free"):
            program.addPerDofVariable(name, 0.0)
        for k in range(capacity):
            program.addPerDofVariable(f"moved{k}", 0.0)
        for k in range(capacity + 1):
            program.addPerDofVariable(f"speed{k}", 0.0)
        vectors = f"f{vector_group}"
        self._add_step(vectors, removes_cm_motion)
        self._add_moves(vectors)

    def _add_step(self, vectors: str, removes_cm_motion: bool) -> None:
        program = self.integrator
        program.beginIfBlock("mode = 0")
        program.beginIfBlock("slot = 0")
        program.addComputePerDof("begin", "x")
        program.addComputePerDof("speed0", "v")
        program.endBlock()
        if removes_cm_motion:
            program.beginIfBlock("removal = 1")
            program.addUpdateContextState()
            program.endBlock()
        program.addComputePerDof("before", "x")
        program.addComputePerDof("v", "v + dt*f/m")
        program.addConstrainVelocities()
        program.addComputePerDof("x", "x + 0.5*dt*v")
        program.addComputePerDof("v", f"decay*v + scale*rest*gaussian/sqrt(m) + {vectors}")
        program.addComputePerDof("x", "x + 0.5*dt*v")
        program.addComputePerDof("free", "x")
        program.addConstrainPositions()
        program.addComputePerDof("v", "v + (x - free)/dt")
        for k in range(self.capacity):
            program.beginIfBlock(f"slot = {k}")
            program.addComputePerDof(f"moved{k}", "x - before")
            program.addComputePerDof(f"speed{k + 1}", "v")
            program.endBlock()
        program.endBlock()

    def _add_moves(self, vectors: str) -> None:
        # What is not finite must not be multiplied by zero.
        along = " + ".join(f"select(along{k}, along{k}*moved{k}, 0)" for k in range(self.capacity))
        speed = " + ".join(f"select(pick{k}, speed{k}, 0)" for k in range(self.capacity + 1))
        program = self.integrator
        program.beginIfBlock("mode > 0")
        # Apart: OpenMM's Reference platform knows no force groups where there are vectors.
        program.addComputePerDof("x", f"select(mode - 1, begin, x) + {along} + {vectors}")
        program.addComputePerDof("x", f"x + vector({', '.join(SHIFT)})")
        program.addComputePerDof("v", f"{speed} + {vectors}")
        program.addComputePerDof("v", f"v + vector({', '.join(DRIFT)})")
        program.endBlock()

    def bind(self, context: openmm.Context, subset: NDArray[np.int64]) -> ContextAccess:
        """To the Context that was made with it; the subset draws no noise."""
        rest = np.ones((context.getSystem().getNumParticles(), 3))
        rest[subset] = 0.0
        self.integrator.setPerDofVariableByName("rest", rest)
        return ContextAccess(int(self.integrator.this))

    def set_scheme(self, scheme: Scheme) -> None:
        """Temperature, friction and step size are those of a scheme from now on."""
        self.integrator.setStepSize(scheme.step_size)
        scale = float(scheme.noise_scale(np.ones((1, 1)))[0, 0])
        self.integrator.setGlobalVariableByName("decay", scheme.decay)
        self.integrator.setGlobalVariableByName("scale", scale)
