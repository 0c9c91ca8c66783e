"""Ray itself: importing it, starting it, leaving it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

INSTALL = 'pip install "openmm-lsd[ray]"'


def import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            f"a RayTarget needs Ray, which cannot be imported here ({error}); install it with: "
            f"{INSTALL}"
        ) from error
    return ray


NICENESS = "RAY_worker_niceness"


@contextmanager
def _workers_as_urgent_as_this_process() -> Iterator[None]:
    """Ray that is started in here gives its workers no lower priority, unless the user said so.

    By default it does (a niceness of 15), and whatever else is busy on the machine, threads in
    which drafts learn among it, would hold up the workers that the whole run waits for.
    """
    is_free = NICENESS not in os.environ
    if is_free:
        os.environ[NICENESS] = "0"
    try:
        yield
    finally:
        if is_free:
            del os.environ[NICENESS]


class Sessions:
    """Ray, as far as RayTargets have started it: shut down when the last of them is closed."""

    def __init__(self) -> None:
        self._targets = 0
        self._ours: str | None = None  # address of the session that was entered here
        self._asked_for: str | None = None

    def enter(self, ray: Any, address: str | None) -> None:
        if not ray.is_initialized():
            with _workers_as_urgent_as_this_process():
                ray.init(address=address, include_dashboard=False, logging_level=logging.WARNING)
            self._targets, self._asked_for = 0, address
            self._ours = ray.get_runtime_context().gcs_address
        elif address is not None and not (self._is_ours(ray) and address == self._asked_for):
            raise ValueError(
                f"address is {address!r}, but this process is connected to the Ray cluster at "
                f"{ray.get_runtime_context().gcs_address} already; leave address out to use that"
            )
        self._targets += 1

    def leave(self, ray: Any) -> None:
        self._targets -= 1
        if self._targets <= 0 and self._is_ours(ray):
            self._ours = None
            ray.shutdown()

    def _is_ours(self, ray: Any) -> bool:
        if self._ours is None or not ray.is_initialized():
            return False
        return ray.get_runtime_context().gcs_address == self._ours


sessions = Sessions()
