"""A torch.nn.Module that takes a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .base import (
    Array,
    BatchedTarget,
    Evaluation,
    SubBatches,
    as_float64,
    checked,
    torch_is_out_of_memory,
)

if TYPE_CHECKING:
    import torch


class ModuleTarget(BatchedTarget):
    """Energies and forces from a batched module in nm and kJ/mol.

    Parameters
    ----------
    module : torch.nn.Module
        Called with positions (B, N, 3) in nm; gives energies (B,) in kJ/mol, or energies and forces
        (B, N, 3) in kJ/mol/nm. Without forces they are minus the gradient, by autograd.
    periodic : bool
        Whether the module takes the box (3, 3) in nm as its second argument.
    device, dtype : torch.device, torch.dtype, optional
        Of the positions given to it; default those of the module's first floating-point parameter
        or buffer, or else float64 on the CPU.

    Raises
    ------
    TypeError
        If ``module`` is not a torch.nn.Module.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        *,
        periodic: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        import torch

        if not isinstance(module, torch.nn.Module):
            raise TypeError(f"module is a {type(module).__name__}, not a torch.nn.Module")
        self._torch, self._module, self._periodic = torch, module, periodic
        tensors = [*module.parameters(), *module.buffers()]
        first = next((tensor for tensor in tensors if tensor.is_floating_point()), None)
        default_device = torch.device("cpu") if first is None else first.device
        default_dtype = torch.float64 if first is None else first.dtype
        self._device = default_device if device is None else torch.device(device)
        self._dtype = default_dtype if dtype is None else dtype
        self._in_parts = SubBatches(self._evaluate, torch_is_out_of_memory)

    def evaluate(self, positions: Array, box: Array | None = None) -> Evaluation:
        """See BatchedTarget."""
        return self._in_parts(positions, box)

    def _evaluate(self, positions: Array, box: Array | None) -> Evaluation:
        if self._periodic and box is None:
            raise ValueError("the module is periodic, but there is no box")
        x = self._tensor(positions).requires_grad_()
        arguments = (self._tensor(box),) if self._periodic else ()
        result = self._module(x, *arguments)
        if isinstance(result, tuple):
            energies, forces = result
        else:
            energies = result
            (gradient,) = self._torch.autograd.grad(energies.sum(), x)
            forces = -gradient
        return checked(as_float64(energies), as_float64(forces), positions, "the module")

    def _tensor(self, array: Array | None) -> torch.Tensor:
        array = np.ascontiguousarray(array)  # torch has no negative strides
        return self._torch.tensor(array, dtype=self._dtype, device=self._device)
