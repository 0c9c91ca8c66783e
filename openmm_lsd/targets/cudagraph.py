"""A computation on CUDA tensors, recorded once for each shape and replayed.

A small model on a GPU spends its time on launching kernels; a replay launches them all at once
(https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

    Tensors = tuple[torch.Tensor, ...]


class _Recording(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: Tensors
    outputs: Tensors


class CUDAGraphed:
    """``compute`` as a CUDA graph for each shape of its arguments.

    Parameters
    ----------
    compute : callable, tensors -> tuple of tensors
        May use autograd inside; must launch the same kernels whatever the values are.
    warmup : int
        Calls before the recording, in which torch optimises and allocates.
    device : torch.device, optional
        Where it runs; default that of its arguments, which otherwise may be on the host.
    """

    def __init__(
        self,
        compute: Callable[..., Tensors],
        warmup: int = 10,
        device: torch.device | None = None,
    ) -> None:
        self._compute, self._warmup, self._device = compute, warmup, device
        self._recordings: dict[tuple, _Recording] = {}

    def __call__(self, *inputs: torch.Tensor) -> Tensors:
        """What ``compute`` gives, in tensors that are overwritten by the next call."""
        import torch

        key = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        if key not in self._recordings:
            self._recordings[key] = self._record(inputs)
        recording = self._recordings[key]
        with torch.no_grad():  # the computation may have asked for their gradients
            for held, given in zip(recording.inputs, inputs, strict=True):
                held.copy_(given)
        recording.graph.replay()
        return recording.outputs

    def _record(self, given: Tensors) -> _Recording:
        import torch

        inputs = tuple(
            tensor.detach().to(self._device or tensor.device, copy=True) for tensor in given
        )
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(max(1, self._warmup)):
                self._compute(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = tuple(output.detach() for output in self._compute(*inputs))
        return _Recording(graph, inputs, outputs)
