"""Which particles a TorchScript module can look at, read from its program."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]

logger = logging.getLogger(__name__)

LAST = 2**62  # TorchScript's end of a slice that has none
ATOM_DIMENSIONS = (0, -2)  # of positions (N, 3)
# What asks for no more than shape or kind; and what makes of each row a row.
ABOUT = ("aten::size", "aten::dim", "aten::len", "prim::device", "prim::dtype", "aten::is_cuda")
ROW_BY_ROW = (
    *("aten::to", "aten::mul", "aten::div", "aten::add", "aten::sub", "aten::clone"),
    *("aten::contiguous", "aten::detach", "aten::requires_grad_", "aten::type_as"),
)


class _UnknownError(Exception):
    """The program does something else with the positions."""


def particles_in_program(module: Any, particles: int) -> Indices | None:
    """Those whose positions a module may use, in ascending order; None: all, or nobody knows.

    Positions, its first argument, may be scaled and converted as a whole; all else must begin with
    a choice of rows by numbers that the program or a buffer of the module holds.

    Parameters
    ----------
    module : torch.jit.ScriptModule
    particles : int
        Their number.
    """
    try:
        reading = _Reading(module, particles)
        found = reading.particles()
    except _UnknownError as reason:
        logger.info("TorchForce: it may look at all particles (%s)", reason)
        return None
    except Exception as error:  # whatever torch may raise
        logger.info("TorchForce: its program cannot be read (%s)", error)
        return None
    return found if len(found) < particles else None


class _Reading:
    def __init__(self, module: Any, particles: int) -> None:
        self._module, self._everything = module, np.arange(particles)
        inputs = list(module.inlined_graph.inputs())
        self._self, self._positions = inputs[0], inputs[1]

    def particles(self) -> Indices:
        if self._module.inlined_graph.findAllNodes("prim::SetAttr"):
            raise _UnknownError("it changes what it holds")
        found: list[Indices] = [self._everything[:0]]
        whole = [self._positions]
        while whole:
            value = whole.pop()
            for use in value.uses():
                node = use.user
                kind = node.kind()
                if kind in ABOUT:
                    continue
                if kind in ROW_BY_ROW:
                    whole.append(node.output())
                elif kind == "prim::ListConstruct":
                    raise _UnknownError("it is put into a list")
                else:
                    rows = self._chosen(kind, list(node.inputs()), value)
                    if rows is None:
                        whole.append(node.output())
                    else:
                        found.append(rows)
        return np.unique(np.concatenate(found))

    def _chosen(self, kind: str, inputs: list[Any], value: Any) -> Indices | None:
        """Rows that a node takes of positions; None: all, as they are."""
        if inputs[0].debugName() != value.debugName():
            raise _UnknownError(kind)
        if kind == "aten::index_select" and self._constant(inputs[1]) in ATOM_DIMENSIONS:
            return self._everything[self._constant(inputs[2])]
        if kind == "aten::select" and self._constant(inputs[1]) in ATOM_DIMENSIONS:
            return self._everything[[self._constant(inputs[2])]]
        if kind == "aten::slice":
            return self._sliced(*map(self._constant, inputs[1:]))
        if kind == "aten::index":
            indices = [self._constant(each) for each in inputs[1].node().inputs()]
            if len(indices) == 1 and indices[0] is not None:
                return self._everything[indices[0]]
        raise _UnknownError(kind)

    def _sliced(self, dimension: int, start: Any, end: Any, step: int) -> Indices | None:
        start, end = start or 0, LAST if end is None else end
        if start == 0 and end >= LAST and step == 1:
            return None
        if dimension not in ATOM_DIMENSIONS:
            raise _UnknownError("a slice")
        return self._everything[start : min(end, LAST) : step]

    def _constant(self, value: Any) -> Any:
        """A number, None, or an array of indices."""
        found = self._attribute(value)
        return found.detach().cpu().numpy() if hasattr(found, "detach") else found

    def _attribute(self, value: Any) -> Any:
        node = value.node()
        if node.kind() == "prim::Constant":
            return value.toIValue()
        if node.kind() == "prim::GetAttr":
            return getattr(self._owner(next(iter(node.inputs()))), node.s("name"))
        if node.kind() == "prim::ListConstruct":
            return [self._attribute(each) for each in node.inputs()]
        if node.kind() == "aten::tensor":
            return self._attribute(next(iter(node.inputs())))
        raise _UnknownError("an index that is computed")

    def _owner(self, value: Any) -> Any:
        if value.debugName() == self._self.debugName():
            return self._module
        node = value.node()
        if node.kind() != "prim::GetAttr":
            raise _UnknownError("an index that is computed")
        return getattr(self._owner(next(iter(node.inputs()))), node.s("name"))
