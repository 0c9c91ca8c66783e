"""A torch.nn.Module that takes a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..contexts.cores import keep_torch_alive_in_children
from .base import (
    Array,
    BatchedTarget,
    CachedOnDevice,
    Evaluation,
    Parts,
    checked,
    describe_model,
    is_out_of_memory,
    on_host,
)
from .cudagraph import CUDAGraphed

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
    cuda_graph : bool
        Whether to record the computation once for every shape and to replay it, which spares a
        small module on a GPU most of its time. It must launch the same kernels whatever the values
        are: no shapes that depend on them, as those of neighbour lists do.

    Raises
    ------
    TypeError
        If ``module`` is not a torch.nn.Module.
    ValueError
        If CUDA graphs are asked for on another device.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        *,
        periodic: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        cuda_graph: bool = False,
    ) -> None:
        import torch

        if not isinstance(module, torch.nn.Module):
            raise TypeError(f"module is a {type(module).__name__}, not a torch.nn.Module")
        self._torch, self._module, self._periodic = torch, module, periodic
        self.takes_box = periodic
        tensors = [*module.parameters(), *module.buffers()]
        first = next((tensor for tensor in tensors if tensor.is_floating_point()), None)
        default_device = torch.device("cpu") if first is None else first.device
        default_dtype = torch.float64 if first is None else first.dtype
        self._device = default_device if device is None else torch.device(device)
        self._dtype = default_dtype if dtype is None else dtype
        if cuda_graph and self._device.type != "cuda":
            raise ValueError(f"a CUDA graph needs a CUDA device; the module is on {self._device}")
        self._graphed = CUDAGraphed(self._compute, device=self._device) if cuda_graph else None
        self._box = CachedOnDevice(self._tensor)
        keep_torch_alive_in_children()
        self._in_parts = Parts(self._evaluate, is_out_of_memory)

    def evaluate(self, positions: Array, box: Array | None = None) -> Evaluation:
        """See BatchedTarget."""
        return self._in_parts(positions, box)

    def prepare(self, positions: Array, batch: int, box: Array | None = None) -> None:
        """See BatchedTarget."""
        model = describe_model(self._module, self._dtype, self._device)
        self._in_parts.prepare(positions, batch, box, model)

    def _evaluate(self, positions: Array, box: Array | None) -> Evaluation:
        if self._periodic and box is None:
            raise ValueError("the module is periodic, but there is no box")
        arguments = () if box is None or not self._periodic else (self._box(box),)
        if self._graphed is None:
            energies, forces = self._compute(self._tensor(positions), *arguments)
        else:  # which copies from the host to where its graph reads
            energies, forces = self._graphed(self._tensor(positions, "cpu"), *arguments)
        return checked(*on_host(energies, forces), positions, "the module")

    def _compute(self, x: torch.Tensor, *arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result = self._module(x.requires_grad_(), *arguments)
        if isinstance(result, tuple):
            return result
        (gradient,) = self._torch.autograd.grad(result.sum(), x)
        return result, -gradient

    def _tensor(self, array: Array, device: Any = None) -> torch.Tensor:
        array = np.ascontiguousarray(array)  # torch has no negative strides
        return self._torch.tensor(array, dtype=self._dtype, device=device or self._device)
