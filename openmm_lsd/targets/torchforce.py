"""All states of a batch through the module of a TorchForce at once.

How a module can be given a batch, and how the batch is best run on this machine, is found out
once, by trying: ``Plan`` names the ways, ``TorchForceTarget.prepare`` measures them.
"""

from __future__ import annotations

import functools
import itertools
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import openmm

from ..contexts.autotune import choose, recall, remember
from ..contexts.cores import ThreadPool, allowed_cores, keep_torch_alive_in_children, torch_threads
from ..contexts.digests import digest_of
from ..core.errors import last_line
from .base import (
    Array,
    BatchedTarget,
    CachedOnDevice,
    Evaluation,
    ForceSettings,
    Parts,
    is_out_of_memory,
    nearest_prepared,
    on_host,
    perturb,
)
from .cudagraph import CUDAGraphed
from .torchplugin import as_torch_force

if TYPE_CHECKING:
    import torch

    Arguments = tuple[torch.Tensor, ...]

logger = logging.getLogger(__name__)

ROUNDING = 2e-5  # of the root mean square of forces: what single precision may lose
ENERGY_ROUNDING = 0.01  # kJ/mol
BATCH_PERTURBATION = 0.01  # nm
SLOW = 0.5  # s per state, above which a batch that is right is good enough
BATCHINGS = ("batch", "vmap", "loop")  # the first that works is the fastest

ONE_BY_ONE = (
    "the module of a TorchForce takes one state, and torch.vmap cannot run it (set the log level "
    "of openmm_lsd to INFO to see why); write its forward for positions of shape (B, N, 3) that "
    "gives B energies"
)


class Plan(NamedTuple):
    """A way to run a batch.

    batching : 'batch' calls the module with a leading batch dimension, 'vmap' vectorises it with
        torch.vmap, 'loop' calls it once per state.
    executor : 'scripted' is the module as it is, 'frozen' its frozen copy, 'interpreted' runs
        TorchScript without its optimiser, whose fused kernels can lose on a CPU; 'graphed' replays
        a CUDA graph of the module, if the TorchForce's property useCUDAGraphs asks for that.
    workers : threads of ours, each with an equal share of the batch.
    threads : threads of torch inside each of them.
    """

    batching: str
    executor: str
    workers: int
    threads: int

    def __str__(self) -> str:
        return f"{self.batching}, {self.executor}, {self.workers} workers x {self.threads} threads"


class TorchForceTarget(BatchedTarget):
    """One TorchForce, with whole batches through its module.

    Parameters
    ----------
    force : openmmtorch.TorchForce
    device : torch.device or str
    dtype : torch.dtype, optional
        Of the positions given to the module, as the Context's platform would give them; default
        double precision on the CPU, single elsewhere.
    cores : int, optional
        The most cores to keep busy, no more than torch has threads; default
        ``cores.allowed_cores()``.
    """

    def __init__(
        self,
        force: Any,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        *,
        cores: int | None = None,
    ) -> None:
        import torch

        self._torch = torch
        self._device = torch.device(device)
        on_cpu = self.keeps_cores_busy = self._device.type == "cpu"
        self._dtype = dtype or (torch.float64 if on_cpu else torch.float32)
        self._outputs_forces = bool(force.getOutputsForces())
        self._periodic = bool(force.usesPeriodicBoundaryConditions())
        self._parameters = {
            force.getGlobalParameterName(i): force.getGlobalParameterDefaultValue(i)
            for i in range(force.getNumGlobalParameters())
        }
        module = force.getModule().to(self._device)
        self._executors: dict[str, Any] = {"scripted": module, "interpreted": module}
        properties = dict(force.getProperties())
        if not on_cpu and properties.get("useCUDAGraphs") == "true":
            self._executors["graphed"] = module
        self._warmup = int(properties.get("CUDAGraphWarmupSteps", 10))
        self._graphed: dict[str, CUDAGraphed] = {}
        self._pools: dict[tuple[int, int], ThreadPool] = {}
        self._environment = CachedOnDevice(self._environment_tensors)
        self._in_parts = Parts(self._evaluate, is_out_of_memory)
        self.plans: dict[int, Plan] = {}  # by the size of the batch
        self._cores = allowed_cores() if cores is None else cores
        keep_torch_alive_in_children()

    @classmethod
    def of_force(cls, force: openmm.Force, settings: ForceSettings) -> TorchForceTarget | None:
        """Of a TorchForce, with the device and precision of the Context; None of any other."""
        own = as_torch_force(force)
        if own is None:
            return None
        device, dtype = _device_and_dtype(settings.platform, settings.properties)
        return cls(own, device, dtype, cores=settings.cores)

    def set_parameters(self, parameters: Mapping[str, float]) -> None:
        """See BatchedTarget."""
        for name in self._parameters:
            self._parameters[name] = parameters.get(name, self._parameters[name])

    def evaluate(self, positions: Array, box: Array | None = None) -> Evaluation:
        """See BatchedTarget."""
        return self._in_parts(positions, box)

    @property
    def one_by_one(self) -> str | None:
        """See BatchedTarget."""
        plans = (plan for size, plan in self.plans.items() if size > 1)
        return ONE_BY_ONE if any(plan.batching == "loop" for plan in plans) else None

    @property
    def _one_by_one(self) -> Plan:
        """As a Context would run it."""
        return Plan("loop", "scripted", 1, self._most_threads())

    def plan(self, batch: int) -> Plan:
        """How this number of states is run."""
        return nearest_prepared(self.plans, batch) if self.plans else self._one_by_one

    def _evaluate(self, positions: Array, box: Array | None) -> Evaluation:
        return self._run(self.plan(len(positions)), positions, box)

    def single_states(self) -> AbstractContextManager:
        """See BatchedTarget; a small module is faster on fewer threads."""
        return self._threads(self.plan(1).threads)

    def prepare(self, positions: Array, batch: int, box: Array | None = None) -> None:
        """Find the fastest plan whose results agree with those of single states; keep it.

        Likewise for one state alone, which plain steps take. The states tried lie further apart
        than those of a window, so that a leak between the rows of a batch shows.

        Small batches may be faster on fewer threads than large ones, so every size has a plan of
        its own; batching and executor are those of the first size that was prepared.
        """
        # Without the present one: at a minimum of the energy rounding is larger than the forces.
        states = perturb(positions, batch + 1, BATCH_PERTURBATION)[1:]
        begin = perf_counter()
        try:
            reference = self._run(self._one_by_one, states, box)
        except Exception as error:  # whatever a module may raise
            logger.info("TorchForce: states near the present one fail (%s)", last_line(error))
            return
        if not all(np.isfinite(part).all() for part in reference):
            logger.info("TorchForce: forces are not finite near the present state")
            return
        if perf_counter() - begin > SLOW * len(states):
            self.plans[batch] = self._first_right(states, box, reference)
            self.plans.setdefault(1, self._one_by_one)
            return
        self._add_frozen()
        ways = [(batching, tuple(self._executors)) for batching in BATCHINGS]
        first = next((plan for size, plan in self.plans.items() if size > 1), None)
        if first is not None:
            ways.insert(0, (first.batching, (first.executor,)))
        self.plans[batch] = self._chosen(ways, states, box, reference)
        if batch > 1:
            ways = [("loop", tuple(self._executors))]
            energies, forces = reference
            self.plans[1] = self._chosen(ways, states[:1], box, (energies[:1], forces[:1]))
        if self.plans[batch].batching != "loop":
            model = digest_of(self._graph(), self._dtype, self._device, self._most_threads())
            self._in_parts.prepare(positions, batch, box, model)

    def _first_right(self, states: Array, box: Array | None, reference: Evaluation) -> Plan:
        """The first batching whose results are right; states are too slow to try what is faster."""
        plans = [self._one_by_one._replace(batching=batching) for batching in BATCHINGS[:-1]]
        right = (plan for plan in plans if self._is_right(plan, states, box, reference))
        chosen = next(right, self._one_by_one)
        logger.info("TorchForce: %s, without trying others: states are slow", chosen)
        return chosen

    def _chosen(
        self,
        ways: Sequence[tuple[str, Sequence[str]]],
        states: Array,
        box: Array | None,
        reference: Evaluation,
    ) -> Plan:
        """The fastest plan of the first of ``ways`` (batching, executors) that is right."""
        threads = self._most_threads()
        key = f"plan {digest_of(self._graph(), states.shape, self._dtype, self._device, threads)}"
        ranks = [self._plans(batching, executors, len(states)) for batching, executors in ways]
        known = recall(key, itertools.chain(*ranks))
        wrong = set()

        def works(plan: Plan) -> bool:
            form = plan.batching, plan.executor
            if form not in wrong and not self._is_right(plan, states, box, reference):
                wrong.add(form)
            return form not in wrong

        if known is not None and works(known):
            return known
        for plans in ranks:
            chosen = choose(
                key,
                plans,
                lambda plan: self._run_in_parts(plan, states, box),
                works=works,
                what="TorchForce",
            )
            if chosen is not None:
                logger.info("TorchForce: chosen for %d: %s", len(states), chosen)
                return chosen
        remember(key, self._one_by_one)
        return self._one_by_one

    def _graph(self) -> str:
        """What the module computes, as text."""
        return str(self._executors["scripted"].inlined_graph)

    def _plans(self, batching: str, executors: Sequence[str], states: int) -> list[Plan]:
        """Ways to run this number of states with this batching."""
        threads = self._most_threads()
        layouts = [(1, threads)]
        if self._device.type == "cpu" and threads > 1:
            layouts.append((1, 1))
            if states > 1:
                layouts.append((min(threads, states), 1))
        return [Plan(batching, executor, *layout) for executor in executors for layout in layouts]

    def _is_right(
        self, plan: Plan, states: Array, box: Array | None, reference: Evaluation
    ) -> bool:
        try:
            energies, forces = self._run_in_parts(plan, states, box)
        except Exception as error:  # whatever a module may raise when it meets a batch
            logger.info("TorchForce: %s: does not work (%s)", plan, last_line(error))
            return False
        felt = reference[1].any(axis=(0, 2))  # by a few of many atoms, perhaps
        mean_square = np.mean(reference[1][:, felt] ** 2) if felt.any() else 0.0
        tolerance = ROUNDING * float(np.sqrt(mean_square))
        difference = np.abs(forces - reference[1]).max()
        if not difference <= tolerance:
            logger.info("TorchForce: %s: forces off by %.3g kJ/mol/nm", plan, difference)
            return False
        single = float(np.finfo(np.float32).eps)  # of a large total
        tolerance = 4 * single * float(np.abs(reference[0]).max()) + ENERGY_ROUNDING
        difference = np.abs(energies - reference[0]).max()
        if not difference <= tolerance:
            logger.info("TorchForce: %s: energies off by %.3g kJ/mol", plan, difference)
            return False
        return True

    def _add_frozen(self) -> None:
        if self._executors["scripted"].training:
            return
        try:
            self._executors["frozen"] = self._torch.jit.freeze(self._executors["scripted"])
        except Exception as error:
            logger.info("TorchForce: cannot be frozen (%s)", last_line(error))

    def _run_in_parts(self, plan: Plan, positions: Array, box: Array | None) -> Evaluation:
        """As ``_run``; what does not fit into memory is no fault of the plan."""
        return self._in_parts(positions, box, evaluate=functools.partial(self._run, plan))

    def _run(self, plan: Plan, positions: Array, box: Array | None) -> Evaluation:
        arguments = self._arguments(box)
        if plan.workers == 1:
            with self._threads(plan.threads):
                return self._share(plan, positions, arguments)
        pool = self._pool(plan.workers, plan.threads)
        # Never an empty share: modules need not take one.
        shares = np.array_split(positions, min(plan.workers, len(positions)))
        parts = pool.map(lambda share: self._share(plan, share, arguments), shares)
        energies, forces = zip(*parts, strict=True)
        return np.concatenate(energies), np.concatenate(forces)

    def _arguments(self, box: Array | None) -> Arguments:
        if not self._periodic:
            box = None
        elif box is None:
            raise ValueError("the TorchForce is periodic, but there is no box")
        vectors = np.ravel([] if box is None else box)
        return self._environment(np.concatenate([vectors, list(self._parameters.values())]))

    def _environment_tensors(self, values: Array) -> Arguments:
        """The box, if the force is periodic, and each parameter."""
        on_device = self._torch.tensor(values, dtype=self._torch.float64, device=self._device)
        if not self._periodic:
            return on_device.unbind()
        return on_device[:9].reshape(3, 3).to(self._dtype), *on_device[9:].unbind()

    def _share(self, plan: Plan, positions: Array, arguments: Arguments) -> Evaluation:
        torch = self._torch
        x = torch.tensor(np.ascontiguousarray(positions), dtype=self._dtype, device=self._device)
        with torch.jit.optimized_execution(plan.executor != "interpreted"):
            if plan.executor != "graphed":
                energies, forces = self._on_tensors(plan, x, *arguments)
            else:
                if plan.batching not in self._graphed:
                    compute = functools.partial(self._on_tensors, plan)
                    self._graphed[plan.batching] = CUDAGraphed(compute, self._warmup)
                energies, forces = self._graphed[plan.batching](x, *arguments)
        return on_host(energies, forces)

    def _on_tensors(
        self, plan: Plan, x: torch.Tensor, *arguments: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        torch = self._torch
        module = self._executors[plan.executor]
        if plan.batching == "batch":
            return self._call(module, x, arguments, (len(x),))
        if plan.batching == "vmap":
            vectorised = torch.vmap(module, in_dims=(0,) + (None,) * len(arguments))
            return self._call(vectorised, x, arguments, (len(x),))
        rows = [self._call(module, row, arguments, ()) for row in x]
        energies, forces = zip(*rows, strict=True)
        return torch.stack(energies), torch.stack(forces)

    def _call(
        self, module: Callable, x: torch.Tensor, arguments: Arguments, batch: tuple[int, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Energies, which must be of the shape ``batch``, and forces of the shape of ``x``."""
        if self._outputs_forces:
            with self._torch.no_grad():
                energy, forces = module(x, *arguments)
        else:
            energy = module(x.requires_grad_(), *arguments)
            (gradient,) = self._torch.autograd.grad(energy.sum(), x)
            forces = -gradient
        if batch and energy.shape != batch:
            raise ValueError(f"energies of shape {tuple(energy.shape)} instead of {batch}")
        if forces.shape != x.shape:
            raise ValueError(f"forces of shape {tuple(forces.shape)} instead of {tuple(x.shape)}")
        return energy.detach().reshape(batch), forces

    def _most_threads(self) -> int:
        return min(self._torch.get_num_threads(), self._cores)

    @contextmanager
    def _threads(self, threads: int) -> Iterator[None]:
        threads = torch_threads(threads)
        before = self._torch.get_num_threads()
        if threads == before:
            yield
            return
        self._torch.set_num_threads(threads)
        try:
            yield
        finally:
            self._torch.set_num_threads(before)

    def _pool(self, workers: int, threads: int) -> ThreadPool:
        """Threads whose torch runs on ``threads`` threads each; torch keeps that per thread."""

        def start() -> ThreadPoolExecutor:
            before = self._torch.get_num_threads()
            ready = threading.Barrier(workers + 1)

            def prepare() -> None:
                self._torch.get_num_threads()  # else the main thread's number is taken up later
                self._torch.set_num_threads(torch_threads(threads))
                ready.wait()

            executor = ThreadPoolExecutor(workers, "openmm-lsd-torch", initializer=prepare)
            for _ in range(workers):
                executor.submit(lambda: None)
            ready.wait()
            self._torch.set_num_threads(before)
            return executor

        if (workers, threads) not in self._pools:
            self._pools[workers, threads] = ThreadPool(workers, "openmm-lsd-torch", start)
        return self._pools[workers, threads]


def _device_and_dtype(
    platform: str, properties: Mapping[str, str]
) -> tuple[torch.device, torch.dtype]:
    """What the TorchForce of a Context on this platform computes with."""
    import torch

    if platform not in ("CUDA", "HIP"):
        return torch.device("cpu"), torch.float64
    index = properties.get("DeviceIndex", "0").split(",")[0]
    double = properties.get("Precision") == "double"
    return torch.device("cuda", int(index)), torch.float64 if double else torch.float32
