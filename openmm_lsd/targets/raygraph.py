"""One method of several Ray actors, called again and again at a sixth of what remote calls cost.

Engine: Ray's compiled graphs. The calls are set up once; after that messages go through memory
that the processes share (or Ray's own transfers between nodes).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


class CompiledCalls:
    """A method, taking bytes and giving bytes, of each of several actors.

    Parameters
    ----------
    ray : module
    methods : sequence of actor methods, of different actors

    Raises
    ------
    Exception
        Whatever Ray raises if it cannot compile them.
    """

    def __init__(self, ray: Any, methods: Sequence[Any]) -> None:
        from ray.dag import InputNode, MultiOutputNode

        self._ray = ray
        with InputNode() as message:
            if len(methods) == 1:  # a graph with one input hands it on as it is
                calls = [methods[0].bind(message)]
            else:
                calls = [method.bind(message[i]) for i, method in enumerate(methods)]
        self._graph = MultiOutputNode(calls).experimental_compile()

    def __call__(self, messages: Sequence[bytes], timeout: float) -> list[bytes]:
        """The answers, in order.

        Raises
        ------
        ray.exceptions.RayTaskError
            If a method raises.
        Exception
            If an actor died, or did not answer in time: the graph is then to be closed.
        """
        return self._ray.get(self._graph.execute(*messages), timeout=timeout)

    def close(self, end: Callable[[], None]) -> None:
        """Give the actors back. ``end`` kills those that will not answer; else this waits for them.

        Ray reports at length on the calls that it then cannot cancel.
        """
        with _silent("ray.dag.compiled_dag_node"):
            end()
            self._graph.teardown()


@contextmanager
def _silent(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)
