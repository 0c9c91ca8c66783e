"""Targets of a subset of the particles, and of all by way of that subset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..contexts.forcecontext import ForceContext
from ..core.clock import Times
from .base import Array, BatchedTarget, Evaluation

Indices = NDArray[np.int64]


class EmbeddedTarget(BatchedTarget):
    """A target that wants more particles than the subset of which it takes notice.

    Parameters
    ----------
    target : BatchedTarget
    rows : (n,) int
        Where the particles of the subset are among those that the target wants.
    background : (M, 3) nm
        Positions of all of these; where the others are makes no difference.
    """

    def __init__(self, target: BatchedTarget, rows: Indices, background: Array) -> None:
        self._target, self._rows, self._background = target, rows, background
        self.gives_energies, self.conservative = target.gives_energies, target.conservative
        self.uses_times, self.takes_box = target.uses_times, target.takes_box
        self.keeps_cores_busy = target.keeps_cores_busy

    def _embed(self, positions: Array) -> Array:
        result = np.empty((*positions.shape[:-2], *self._background.shape))
        result[...] = self._background
        result[..., self._rows, :] = positions
        return result

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
        energies, forces = self._target.evaluate_at(self._embed(positions), box, times)
        return energies, np.ascontiguousarray(forces[:, self._rows])

    def forces_at(
        self, positions: Array, box: Array | None = None, times: Times | None = None
    ) -> Array:
        """See BatchedTarget."""
        forces = self._target.forces_at(self._embed(positions), box, times)
        return np.ascontiguousarray(forces[:, self._rows])

    def set_parameters(self, parameters: Mapping[str, float]) -> None:
        """See BatchedTarget."""
        self._target.set_parameters(parameters)

    def prepare(self, positions: Array, batch: int, box: Array | None = None) -> None:
        """See BatchedTarget."""
        self._target.prepare(self._embed(positions), batch, box)

    def single_states(self) -> AbstractContextManager:
        """See BatchedTarget."""
        return self._target.single_states()

    def close(self) -> None:
        """See BatchedTarget."""
        self._target.close()


class CompletedTarget(BatchedTarget):
    """A target of a subset, and the forces that all particles feel besides.

    Parameters
    ----------
    target : BatchedTarget
        Of the subset.
    shared : ForceContext
        Of all particles.
    subset : (n,) int
    """

    def __init__(self, target: BatchedTarget, shared: ForceContext, subset: Indices) -> None:
        self._target, self._shared, self._subset = target, shared, subset
        self.gives_energies, self.conservative = target.gives_energies, target.conservative
        self.uses_times = target.uses_times or shared.uses_times

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
        self._shared.set_environment(box, {})
        shared_times = times if self._shared.uses_times else None
        energies, forces = self._shared.evaluate(positions, shared_times)
        own = np.ascontiguousarray(positions[:, self._subset])
        slow_energies, slow_forces = self._target.evaluate_at(own, box, times)
        if not np.array_equal(own, positions[:, self._subset]):
            positions[:, self._subset] = own  # a target that changes them is to be found out
        forces[:, self._subset] += slow_forces
        return energies + slow_energies, forces

    def set_parameters(self, parameters: Mapping[str, float]) -> None:
        """See BatchedTarget."""
        self._target.set_parameters(parameters)
        self._shared.set_environment(None, parameters)

    def prepare(self, positions: Array, batch: int, box: Array | None = None) -> None:
        """See BatchedTarget."""
        self._target.prepare(np.ascontiguousarray(positions[self._subset]), batch, box)

    def single_states(self) -> AbstractContextManager:
        """See BatchedTarget."""
        return self._target.single_states()


def arguments_of_module(module_file: str) -> tuple[bool, bool]:
    """Whether a TorchScript module takes a box after the positions, and whether it must have it."""
    import torch

    arguments = torch.jit.load(module_file, map_location="cpu").forward.schema.arguments
    after_positions = [each for each in arguments[2:3] if "Tensor" in str(each.type)]
    return bool(after_positions), any(not each.has_default_value() for each in after_positions)


def module_of_atoms(module_file: str, atoms: Sequence[int], takes_box: bool) -> Any:
    """A TorchScript module for all particles, of which one in a file is given these only."""
    import torch

    class OfAtoms(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = torch.jit.load(module_file, map_location="cpu")
            self.atoms: torch.Tensor
            self.register_buffer("atoms", torch.tensor(list(map(int, atoms))))

        def forward(self, positions: torch.Tensor) -> torch.Tensor:
            return self.module(positions.index_select(-2, self.atoms))

    class OfAtomsInBox(OfAtoms):
        def forward(  # type: ignore[override]
            self, positions: torch.Tensor, box: torch.Tensor
        ) -> torch.Tensor:
            return self.module(positions.index_select(-2, self.atoms), box)

    return torch.jit.script((OfAtomsInBox if takes_box else OfAtoms)().eval())
