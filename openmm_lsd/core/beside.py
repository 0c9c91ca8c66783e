"""Something to do while the machine waits for something else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Beside(Generic[T]):
    """Do something in a thread of its own while the block lasts; at its end it is done.

    Parameters
    ----------
    function : callable, () -> T, or None
        None: there is nothing to do. Its error is raised at the end, if the block has none.

    Attributes
    ----------
    result : T or None
        What it returned, after the block.
    """

    def __init__(self, function: Callable[[], T] | None) -> None:
        self.result: T | None = None
        self._error: BaseException | None = None
        self._function = function
        self._thread = None if function is None else threading.Thread(target=self._run)

    def _run(self) -> None:
        assert self._function is not None
        try:
            self.result = self._function()
        except BaseException as error:
            self._error = error

    def __enter__(self) -> Beside[T]:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._thread is not None:
            self._thread.join()
        if self._error is not None and error is None:
            raise self._error
