"""What runs in a Ray worker's process, and the messages to and from it."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .._native import keep_freed_memory
from ..core.clock import Times
from .base import Array, BatchedTarget, Evaluation, checked

# What numerical libraries read when they are loaded.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "OPENMM_CPU_THREADS",
)


class Answer(NamedTuple):
    energies: Array  # kJ/mol
    forces: Array  # kJ/mol/nm
    failure: str | None


class Share(NamedTuple):
    """What a worker is to evaluate."""

    positions: Array
    box: Array | None
    times: Times | None

    def rows(self, rows: slice) -> Share:
        times = None if self.times is None else self.times.rows(rows)
        return Share(self.positions[rows], self.box, times)

    def failed(self) -> Answer:
        """An answer of which no row is known yet."""
        shape = self.positions.shape
        return Answer(np.full(shape[:1], np.nan), np.full(shape, np.nan), None)


def as_message(share: Share, is_first: bool) -> bytes:
    """One piece of bytes each way: arrays of this size cost Ray more."""
    return pickle.dumps((tuple(share), is_first), pickle.HIGHEST_PROTOCOL)


class Actor:
    """Holds the target in a worker's process."""

    def __init__(self, threads: int) -> None:
        for name in THREAD_VARIABLES:
            os.environ[name] = str(threads)
        keep_freed_memory()
        self._threads = threads

    def is_there(self) -> bool:
        """Unless it is dead."""
        return True

    def start(
        self,
        factory: Callable[[], BatchedTarget],
        parameters: Mapping[str, float] | None,
        preparations: Sequence[tuple],
    ) -> tuple[int, bool, str | None]:
        """Make the target; not in the constructor, whose exceptions Ray turns into text.

        Returns the process id, whether the target's forces may depend on the time, and its
        ``one_by_one``.
        """
        with portable_errors():
            self._target = factory()
            if not isinstance(self._target, BatchedTarget):
                raise TypeError(
                    f"the factory made a {type(self._target).__name__}; it must make a "
                    "BatchedTarget"
                )
            torch = sys.modules.get("torch")
            if torch is not None:
                torch.set_num_threads(self._threads)
            if parameters is not None:
                self._target.set_parameters(parameters)
            for preparation in preparations:
                self._target.prepare(*preparation)
        return os.getpid(), self._target.uses_times, self._target.one_by_one

    def set_parameters(self, parameters: Mapping[str, float]) -> None:
        with portable_errors():
            self._target.set_parameters(parameters)

    def prepare(self, positions: Array, batch: int, box: Array | None) -> None:
        with portable_errors():
            self._target.prepare(np.array(positions), batch, box)

    def evaluate(self, message: bytes) -> bytes:
        """The Answer to ``as_message``, pickled likewise."""
        values, is_first = pickle.loads(message)
        answer = self._evaluate(Share(*values), is_first)
        return pickle.dumps(answer, pickle.HIGHEST_PROTOCOL)

    def _evaluate(self, share: Share, is_first: bool) -> Answer:
        """Energies and forces; NaN from the first failing state on, but if that is the batch's
        first (``is_first``), its exception."""
        try:
            return Answer(*self._evaluation(share), None)
        except Exception as error:
            whole = error
        answer = share.failed()
        count = len(share.positions)
        for row in range(count):
            try:
                if count == 1:
                    raise whole
                energies, forces = self._evaluation(share.rows(slice(row, row + 1)))
            except Exception as error:
                if is_first and row == 0:
                    with portable_errors():
                        raise
                return answer._replace(failure=f"state {row} of its share failed: {error!r}")
            answer.energies[row], answer.forces[row] = energies[0], forces[0]
            if not np.isfinite(forces).all():
                return answer._replace(failure=f"state {row} of its share is not finite")
        return answer._replace(
            failure=f"its share failed as a whole ({whole!r}), though no state does by itself"
        )

    def _evaluation(self, share: Share) -> Evaluation:
        return checked(*self._target.evaluate_at(*share), share.positions)


class portable_errors:  # noqa: N801
    """Exceptions that cannot be pickled leave as a RuntimeError that says the same."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: type | None, error: BaseException | None, __: object) -> None:
        if not isinstance(error, Exception):
            return
        from ray import cloudpickle

        try:
            cloudpickle.loads(cloudpickle.dumps(error))
        except Exception:
            raise RuntimeError(f"{type(error).__name__}: {error}") from None
