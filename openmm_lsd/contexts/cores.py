"""How many cores of this machine may be used, and threads that survive a fork."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

# What users bound the cores of a process by; OpenMM and OpenMP libraries read these.
THREAD_LIMITS = ("OPENMM_CPU_THREADS", "OMP_NUM_THREADS")


def allowed_cores(threads: str | None = None) -> int:
    """Number of cores that this process may keep busy, at least 1.

    The smallest of the cores that it may run on, of what the environment variables
    OPENMM_CPU_THREADS and OMP_NUM_THREADS say, and of ``threads``.

    Parameters
    ----------
    threads : str, optional
        The property ``Threads`` of a Context's platform.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    limits = [os.environ.get(name) for name in THREAD_LIMITS]
    for limit in (*limits, threads):
        # OMP_NUM_THREADS may be a list, of which the first is for the outermost level.
        first = "" if limit is None else limit.split(",")[0].strip()
        if first.isdigit() and int(first) > 0:
            cores = min(cores, int(first))
    return cores


def keep_torch_alive_in_children() -> None:
    """From now on let forked children compute with one thread of torch.

    A fork copies none of the threads of torch's pool, for which the child would wait for ever.
    """
    global _is_registered
    if not _is_registered and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_one_torch_thread)
        _is_registered = True


_is_registered = False
_most_torch_threads: int | None = None  # in a forked child


def _one_torch_thread() -> None:
    global _most_torch_threads
    _most_torch_threads = 1
    sys.modules["torch"].set_num_threads(1)


def torch_threads(threads: int) -> int:
    """As many threads of torch, or fewer where there can be no more."""
    return threads if _most_torch_threads is None else min(threads, _most_torch_threads)


class ThreadPool:
    """Threads for a map over shares; made at the first use, and again in a forked child.

    A fork copies none of the threads, so that a child would wait for them for ever.

    Parameters
    ----------
    workers : int
    name : str
        Prefix of the threads' names.
    start : callable, optional
        Makes an executor whose threads need more than a name.
    """

    def __init__(
        self, workers: int, name: str, start: Callable[[], ThreadPoolExecutor] | None = None
    ) -> None:
        self._start = start or (lambda: ThreadPoolExecutor(workers, name))
        self._executor: ThreadPoolExecutor | None = None
        self._process = 0

    def map(self, function: Callable[..., T], *arguments: Iterable[Any]) -> Iterator[T]:
        """As ``map``, in the threads."""
        if self._executor is None or self._process != os.getpid():
            self._executor, self._process = self._start(), os.getpid()
        return self._executor.map(function, *arguments)

    def shutdown(self) -> None:
        """End the threads; the next use starts others."""
        executor, self._executor = self._executor, None
        if executor is not None and self._process == os.getpid():
            executor.shutdown()
