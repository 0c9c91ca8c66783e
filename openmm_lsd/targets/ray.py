"""Any target on several workers: cores or devices of this machine, or nodes of a cluster.

Engine: Ray (Moritz et al., OSDI 2018; https://docs.ray.io). A worker is a Ray actor.
"""

from __future__ import annotations

import logging
import math
import operator
import os
import pickle
import weakref
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np

from ..core.clock import Times
from .base import Array, BatchedTarget, Evaluation
from .raysessions import import_ray, sessions
from .rayworker import Actor, Answer, Share, as_message

logger = logging.getLogger(__name__)

ONE_WORKER = (
    "there is one worker, whose target takes one state; with more of them states are shared"
)
DYING_TIME = 60.0  # seconds in which a worker that is ended is gone, also on a busy machine


class WorkerError(RuntimeError):
    """A worker of a RayTarget cannot be started, or was lost and its replacements too."""


class _LostError(Exception):
    """A worker died, or did not answer in time."""


class RayTarget(BatchedTarget):
    """A target on W workers, between which the states of a batch are divided evenly.

    Shares are contiguous and depend on B and W alone, and a batch is complete before it is handed
    on: nothing depends on who answers first. If a row of the target's results depends on that
    row alone, to the last bit, the results are the same for every number of workers.

    A worker that dies, or does not answer in time, is replaced and its share evaluated again. A
    state at which the target fails costs the rest of its share only: these rows are NaN. If it is
    the first row of the batch, the target's own exception is raised. Parameters are forwarded.

    Parameters
    ----------
    factory : callable, () -> BatchedTarget
        Called once in each worker, on the worker's own device. It travels there by value, or by
        name if it can be imported there.
    workers : int
        W, at least 1.
    num_cpus, num_gpus : float
        What Ray sets aside for each worker; also the number of threads (at least 1) of the
        numerical libraries in it.
    address : str, optional
        Of a running cluster, as in ``ray.init``. Default: the one that this process is connected
        to, or else what ``ray.init`` finds or starts; that is left again with the last RayTarget.
    timeout : float, seconds
        Within which a worker must have evaluated its share; later it counts as lost. The first
        share of a worker, in which a model may be compiled, may take as long as ``start_timeout``
        if that is longer.
    start_timeout : float, seconds
        Within which all workers must have started, made their target and prepared it.
    runtime_env : mapping, optional
        Of the workers, as in Ray.

    Raises
    ------
    ImportError
        If Ray is not installed.
    TypeError, ValueError
        If an argument is not as above, or the cluster is too small for the workers.
    WorkerError
        If not all workers start in time, or a lost one cannot be replaced.
    Exception
        What ``factory`` raises.
    """

    def __init__(
        self,
        factory: Callable[[], BatchedTarget],
        workers: int,
        *,
        num_cpus: float = 1,
        num_gpus: float = 0,
        address: str | None = None,
        timeout: float = 600.0,
        start_timeout: float = 300.0,
        runtime_env: Mapping[str, Any] | None = None,
    ) -> None:
        if not callable(factory):
            raise TypeError(
                f"factory is a {type(factory).__name__}; it must be callable without arguments "
                "and make a target"
            )
        workers = operator.index(workers)
        if workers < 1:
            raise ValueError(f"workers is {workers}; it must be at least 1")
        for name, value in (("num_cpus", num_cpus), ("num_gpus", num_gpus)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value}; it must be finite and not negative")
        for name, value in (("timeout", timeout), ("start_timeout", start_timeout)):
            if not value > 0:
                raise ValueError(f"{name} is {value}; it must be positive")
        self._ray = import_ray()
        self._timeout, self._start_timeout = timeout, start_timeout
        self._parameters: dict[str, float] | None = None
        self._preparations: dict[int, tuple] = {}  # by the share of a worker
        self.replaced = 0  # workers, since the start
        self._one_by_one: str | None = None  # of a worker's target
        self._resources = _Resources()
        self._workers = self._resources.workers
        sessions.enter(self._ray, address)
        self._finalizer = weakref.finalize(self, _release, self._ray, self._resources)
        try:
            self._check_size(workers, num_cpus, num_gpus)
            options: dict[str, Any] = {
                "num_cpus": num_cpus,
                "num_gpus": num_gpus,
                "max_restarts": 0,
            }
            if runtime_env is not None:
                options["runtime_env"] = dict(runtime_env)
            self._actor_class = self._ray.remote(Actor).options(**options)
            self._factory = self._ray.put(factory)
            self._threads = max(1, int(num_cpus))
            self._workers.extend(self._new_worker() for _ in range(workers))
            self._await(self._workers)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> RayTarget:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, and Ray if it was started here for RayTargets and this is the last."""
        self._finalizer()

    @property
    def one_by_one(self) -> str | None:
        """See BatchedTarget."""
        return ONE_WORKER if len(self._workers) == 1 and self._one_by_one else None

    @property
    def pids(self) -> list[int]:
        """The process of each worker, on its node."""
        return [worker.pid for worker in self._workers]

    def evaluate(self, positions: Array, box: Array | None = None) -> Evaluation:
        """See BatchedTarget; failing states leave NaN in their rows and after them in the share.

        Raises
        ------
        WorkerError
            If workers cannot be replaced, or the first state loses every worker it is given to.
        Exception
            What the target raises at the first state.
        """
        return self.evaluate_at(positions, box)

    def evaluate_at(
        self, positions: Array, box: Array | None = None, times: Times | None = None
    ) -> Evaluation:
        """See BatchedTarget and ``evaluate``."""
        self._check_open()
        positions = np.asarray(positions, dtype=np.float64)
        if len(positions) == 0:
            return np.zeros(0), np.zeros(positions.shape)
        batch = Share(positions, box, times if self.uses_times else None)
        sizes = _even_shares(len(positions), len(self._workers))
        ends = np.cumsum(sizes).tolist()
        shares = [batch.rows(slice(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
        answers = self._ask(shares)
        for index, answer in enumerate(answers):
            if answer.failure:
                logger.info("worker %d: %s", index, answer.failure)
        return (
            np.concatenate([answer.energies for answer in answers]),
            np.concatenate([answer.forces for answer in answers]),
        )

    def _ask(self, shares: Sequence[Share]) -> list[Answer]:
        """The answers to all shares, by a call for each; workers that are lost are replaced."""
        asked = self._workers[: len(shares)]
        seconds = self._time_to_answer(asked)
        deadline = perf_counter() + seconds
        calls = [self._submit(index, share, index == 0) for index, share in enumerate(shares)]
        try:
            answers = list(map(pickle.loads, self._ray.get(calls, timeout=seconds)))
            for worker in asked:
                worker.note_answer()
            return answers
        except self._ray.exceptions.RayError:
            return [
                self._answer(index, call, share, deadline)
                for index, (call, share) in enumerate(zip(calls, shares, strict=True))
            ]

    def _time_to_answer(self, workers: Sequence[_Worker]) -> float:
        """Seconds for a share; a slow first answer is no sign that a worker hangs."""
        if all(worker.has_answered for worker in workers):
            return self._timeout
        return max(self._timeout, self._start_timeout)

    def set_parameters(self, parameters: Mapping[str, float]) -> None:
        """See BatchedTarget; forwarded to every worker, also to those started later."""
        self._check_open()
        parameters = dict(parameters)
        if parameters != self._parameters:
            self._parameters = parameters
            try:
                self._on_all("set_parameters", (parameters,))
            except BaseException:
                self._parameters = None
                raise

    def prepare(self, positions: Array, batch: int, box: Array | None = None) -> None:
        """See BatchedTarget; every worker prepares for its share."""
        self._check_open()
        share = _even_shares(batch, len(self._workers))[0]
        self._preparations[share] = (np.array(positions), share, box)
        try:
            self._on_all("prepare", self._preparations[share])
        except BaseException:
            del self._preparations[share]
            raise

    def _check_open(self) -> None:
        if not self._finalizer.alive:
            raise RuntimeError("the RayTarget is closed")
        if self._resources.process != os.getpid():
            raise WorkerError(
                "this process was forked from the one whose RayTarget this is, and has no "
                "connection to its workers; make a RayTarget here, or start processes by 'spawn'"
            )
        if not self._ray.is_initialized():
            raise WorkerError("Ray was shut down, and the workers with it; make a new RayTarget")

    def _check_size(self, workers: int, num_cpus: float, num_gpus: float) -> None:
        """At once, where Ray would wait for ever."""
        present = self._ray.cluster_resources()
        for resource, each in (("CPU", num_cpus), ("GPU", num_gpus)):
            needed, there = workers * each, present.get(resource, 0)
            if needed > there + 1e-6:
                raise ValueError(
                    f"{workers} workers with num_{resource.lower()}s={each:g} need {needed:g} "
                    f"{resource}s; Ray's cluster has {there:g}. Ask for fewer workers, or for a "
                    "smaller part of one each"
                )

    def _new_worker(self) -> _Worker:
        actor = self._actor_class.remote(self._threads)
        preparations = list(self._preparations.values())
        started = actor.start.remote(self._factory, self._parameters, preparations)
        return _Worker(actor, started)

    def _await(self, workers: Sequence[_Worker]) -> None:
        """Until all of them have started, or an error."""
        count = len(workers)
        calls = [worker.started for worker in workers]
        ready, _ = self._ray.wait(calls, num_returns=count, timeout=self._start_timeout)
        for worker in workers:
            if worker.started in ready:
                pid, self.uses_times, self._one_by_one = self._start_result(worker)
                worker.note_start(pid)
        if len(ready) < count:
            free = self._ray.available_resources()
            raise WorkerError(
                f"{len(ready)} of {count} workers started within {self._start_timeout:g} s; the "
                f"cluster has {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs left. "
                "Is it busy with something else? Else give a longer start_timeout"
            )

    def _start_result(self, worker: _Worker) -> tuple[int, bool, str | None]:
        """What ``Actor.start`` gave; the exception of its factory; or a WorkerError."""
        try:
            return self._get(worker.started, perf_counter() + self._start_timeout)
        except _LostError as error:
            raise WorkerError(f"a worker died while it was started: {error}") from error

    def _on_all(self, method: str, arguments: tuple) -> None:
        """Call a method of every worker; one that is lost meanwhile is replaced."""
        calls = [getattr(worker.actor, method).remote(*arguments) for worker in self._workers]
        deadline = perf_counter() + self._start_timeout
        failure = None
        for index, call in enumerate(calls):
            try:
                self._get(call, deadline)
            except _LostError as error:
                self._replace(index, error)  # the new one is given the same at its start
            except Exception as error:
                failure = error  # Ray logs those that nobody asks for
        if failure is not None:
            raise failure

    def _submit(self, index: int, share: Share, is_first: bool) -> Any:
        return self._workers[index].actor.evaluate.remote(as_message(share, is_first))

    def _get(self, call: Any, deadline: float) -> Any:
        """What a call gave; the target's exception; or a _LostError."""
        exceptions = self._ray.exceptions
        try:
            return self._ray.get(call, timeout=max(0.0, deadline - perf_counter()))
        except exceptions.RayTaskError as error:
            raise _original(error) from error
        except exceptions.GetTimeoutError:
            raise _LostError("it did not answer in time") from None
        except exceptions.RayError as error:
            raise _LostError(_first_line(error)) from error

    def _answer(self, index: int, call: Any, share: Share, deadline: float) -> Answer:
        """The answer to a call, for which the worker is replaced if need be.

        The share is then evaluated once more, and if that worker is lost too, state after state:
        a state at which the process dies or never comes back fails like any other.
        """
        is_first = index == 0
        try:
            return pickle.loads(self._get(call, deadline))
        except _LostError as error:
            self._replace(index, error)
        try:
            return self._once_more(index, share, is_first)
        except _LostError as error:
            self._replace(index, error)
        answer = share.failed()
        for row in range(len(share.positions)):
            one = slice(row, row + 1)
            try:
                energies, forces, failure = self._once_more(
                    index, share.rows(one), is_first and row == 0
                )
            except _LostError as error:
                self._replace(index, error)
                if is_first and row == 0:
                    raise WorkerError(
                        f"worker {index} of {len(self._workers)} and both its replacements were "
                        f"lost at the first state; the last because {error}. Does the target "
                        f"evaluate this state without Ray, and within timeout={self._timeout:g} s?"
                    ) from error
                return answer._replace(failure=f"lost at state {row} of its share: {error}")
            answer.energies[one], answer.forces[one] = energies, forces
            if failure:
                return answer._replace(failure=failure)
        return answer

    def _once_more(self, index: int, share: Share, is_first: bool) -> Answer:
        worker = self._workers[index]
        call = self._submit(index, share, is_first)
        deadline = perf_counter() + self._time_to_answer([worker])
        answer = pickle.loads(self._get(call, deadline))
        worker.note_answer()
        return answer

    def _replace(self, index: int, reason: Exception) -> None:
        """A new worker for one that was lost."""
        logger.warning("worker %d was lost (%s); starting another", index, reason)
        _kill(self._ray, self._workers[index])
        self._workers[index] = worker = self._new_worker()
        try:
            self._await([worker])
        except BaseException as error:
            # Else it would be taken for one that has a target; death takes a moment.
            _kill(self._ray, worker)
            self._await_death(worker)
            if not isinstance(error, Exception):
                raise
            raise WorkerError(
                f"worker {index} was lost ({reason}) and could not be replaced: {error}"
            ) from error
        self.replaced += 1

    def _await_death(self, worker: _Worker) -> None:
        deadline = perf_counter() + DYING_TIME
        try:
            while perf_counter() < deadline:
                self._ray.get(worker.actor.is_there.remote(), timeout=DYING_TIME)
        except self._ray.exceptions.RayError:
            pass


class _Worker:
    """What is known here of an actor."""

    def __init__(self, actor: Any, started: Any) -> None:
        self.actor = actor
        self.started = started  # reference to its process id
        self.pid = 0
        self.has_answered = False

    def note_start(self, pid: int) -> None:
        """It has made its target."""
        self.pid = pid

    def note_answer(self) -> None:
        """It has evaluated a share."""
        self.has_answered = True


class _Resources:
    """What is to be given back at the end."""

    def __init__(self) -> None:
        self.workers: list[_Worker] = []
        self.process = os.getpid()


def _release(ray: Any, resources: _Resources) -> None:
    if resources.process != os.getpid():
        return  # a forked child, to which they do not belong
    while resources.workers:
        _kill(ray, resources.workers.pop())
    sessions.leave(ray)


def _kill(ray: Any, worker: _Worker) -> None:
    if ray.is_initialized():  # else its processes are gone, and ray.kill would start Ray
        ray.kill(worker.actor)


def _even_shares(states: int, workers: int) -> list[int]:
    """Sizes of contiguous shares, the larger ones first, none empty."""
    workers = min(states, workers)
    return [states // workers + (index < states % workers) for index in range(workers)]


def _original(error: Any) -> BaseException:
    """The exception of which Ray tells."""
    cause = error.cause
    return cause if isinstance(cause, Exception) else error


def _first_line(error: BaseException) -> str:
    lines: Sequence[str] = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
