"""One method of several Ray actors, called again and again for a third of what remote calls cost.

Engine: Ray's compiled graphs. The calls are set up once; after that messages go through memory
that the processes share, or between nodes by Ray's own transfers.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
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
        logging.getLogger("ray.dag.compiled_dag_node").addFilter(_is_news)
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

    def close(self) -> None:
        """Give the actors back; waits for those that are neither done nor dead."""
        self._graph.teardown()


def _is_news(record: logging.LogRecord) -> bool:
    """Not how a graph is closed, nor that the calls of a dead actor cannot be cancelled."""
    return record.levelno > logging.INFO and record.msg != "Error cancelling worker task"
