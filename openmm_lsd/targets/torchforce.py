"""All states of a batch through the module of a TorchForce at once.

How a module can be given a batch, and how the batch is best run on this machine, is found out
once, by trying: ``Plan`` names the ways, ``TorchForceBatch.choose`` measures them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import openmm
from numpy.typing import NDArray

from ..racing import race

if TYPE_CHECKING:
    import torch

Array = NDArray[np.float64]

logger = logging.getLogger(__name__)

ROUNDING = 2e-5  # of the root mean square force: what single precision may lose

INSTALL = 'pip install "torch>=2.9,<2.10" openmmtorch==1.5'


def import_openmmtorch() -> Any:
    """The module openmmtorch; it needs torch's libraries, so torch is imported first.

    Raises
    ------
    ImportError
        If either cannot be imported, with what to install.
    """
    try:
        import torch  # noqa: F401, I001
        import openmmtorch

        load_plugin()
    except ImportError as error:
        raise ImportError(
            f"a TorchForce needs torch 2.9 and openmmtorch, which cannot be imported here "
            f"({error}); install them with: {INSTALL}"
        ) from error
    return openmmtorch


def load_plugin() -> None:
    """Load the TorchForce plugin if OpenMM failed to, which it does if it is imported before torch.

    Loading all plugins again would register platforms twice.
    """
    for failure in openmm.Platform.getPluginLoadFailures():
        library = failure.removeprefix("Error loading library ").split(":")[0]
        if "OpenMMTorch" in Path(library).name and library not in _retried:
            _retried.add(library)
            try:
                openmm.Platform.loadPluginLibrary(library)
            except openmm.OpenMMException as error:
                logger.info("plugin %s: %s", library, error)


_retried: set[str] = set()


def as_torch_force(force: openmm.Force) -> Any | None:
    """``force`` as openmmtorch.TorchForce, or None if it is something else."""
    if type(force).__name__ == "TorchForce":
        return force
    # Without the plugin's Python layer OpenMM hands out a bare Force; its name gives it away.
    if type(force).__name__ == "Force" and force.getName() == "TorchForce":
        import_openmmtorch()
    try:
        from openmmtorch import TorchForce
    except ImportError:
        return None
    return TorchForce.cast(force) if TorchForce.isinstance(force) else None


class Plan(NamedTuple):
    """A way to run a batch.

    batching : 'batch' calls the module with a leading batch dimension, 'vmap' vectorises it with
        torch.vmap, 'loop' calls it once per state.
    executor : 'scripted' is the module as it is, 'frozen' its frozen copy, 'interpreted' runs
        TorchScript without its optimiser, whose fused kernels can lose on a CPU.
    workers : threads of ours, each with an equal share of the batch.
    threads : threads of torch inside each of them.
    """

    batching: str
    executor: str
    workers: int
    threads: int

    def __str__(self) -> str:
        return f"{self.batching}, {self.executor}, {self.workers} workers x {self.threads} threads"


class TorchForceBatch:
    """Forces of one TorchForce at a batch of positions.

    Parameters
    ----------
    force : openmmtorch.TorchForce
    device : torch.device
    dtype : torch.dtype
        Of the positions given to the module, as the Context's platform would give them.
    """

    # Plans already measured in this process: the same model is run the same way, so that two
    # runs with the same seed agree to the last bit.
    _measured: dict[tuple, Plan] = {}  # noqa: RUF012

    def __init__(self, force: Any, device: torch.device, dtype: torch.dtype) -> None:
        import torch

        self._torch = torch
        self._device, self._dtype = device, dtype
        self._outputs_forces = bool(force.getOutputsForces())
        self._periodic = bool(force.usesPeriodicBoundaryConditions())
        self._parameter_names = [
            force.getGlobalParameterName(i) for i in range(force.getNumGlobalParameters())
        ]
        self._module = force.getModule().to(device)
        self._executors: dict[str, Any] = {"scripted": self._module, "interpreted": self._module}
        self._arguments: tuple[torch.Tensor, ...] = ()
        self._pools: dict[tuple[int, int], ThreadPoolExecutor] = {}
        self.plan = Plan("loop", "scripted", 1, torch.get_num_threads())

    def set_environment(self, box: Array, parameters: Mapping[str, float]) -> None:
        """Take over the periodic box (3, 3) in nm and the values of the Context's parameters."""
        torch = self._torch
        arguments = []
        if self._periodic:
            arguments.append(torch.tensor(box, dtype=self._dtype, device=self._device))
        for name in self._parameter_names:
            value = float(parameters[name])
            arguments.append(torch.tensor(value, dtype=torch.float64, device=self._device))
        self._arguments = tuple(arguments)

    def forces(self, positions: Array) -> Array:
        """Forces (B, N, 3) in kJ/mol/nm at positions (B, N, 3) in nm."""
        return self._run(self.plan, positions)

    def choose(self, positions: Array) -> Plan:
        """Find the fastest plan whose forces agree with those of single states; keep it.

        Parameters
        ----------
        positions : (B, N, 3) nm
            A batch of the size that is to be run fast, of states that differ.
        """
        torch = self._torch
        threads = torch.get_num_threads()
        try:
            reference = self._run(self.plan, positions)
        except Exception as error:  # whatever a module may raise
            logger.info("TorchForce: states near the present one fail (%s)", _last_line(error))
            return self.plan
        if not np.isfinite(reference).all():
            logger.info("TorchForce: forces are not finite near the present state")
            return self.plan
        tolerance = ROUNDING * float(np.sqrt(np.mean(reference**2)))
        self._add_frozen()
        graph = str(self._module.inlined_graph)
        key = (graph, positions.shape, self._dtype, self._device, threads)
        known = self._measured.get(key)
        if known is not None and self._is_right(known, positions, reference, tolerance):
            self.plan = known
            return known
        for batching in ("batch", "vmap", "loop"):
            plan = self._fastest(batching, positions, reference, tolerance, threads)
            if plan is not None:
                self.plan = plan
                break
        logger.info("TorchForce: chosen: %s", self.plan)
        self._measured[key] = self.plan
        return self.plan

    def _fastest(
        self, batching: str, positions: Array, reference: Array, tolerance: float, threads: int
    ) -> Plan | None:
        """The fastest plan with this batching whose forces are right, or None."""
        layouts = [(1, threads)]
        if self._device.type == "cpu" and threads > 1:
            layouts += [(1, 1), (min(threads, len(positions)), 1)]
        plans = []
        for executor in self._executors:
            for layout in layouts:
                plan = Plan(batching, executor, *layout)
                if not self._is_right(plan, positions, reference, tolerance):
                    break
                plans.append(plan)
        if not plans:
            return None
        seconds = race(lambda plan: self._run(plan, positions), plans)
        for plan, median in seconds.items():
            logger.info("TorchForce: %s: %.2f ms for %d", plan, 1e3 * median, len(positions))
        return min(seconds, key=seconds.__getitem__)

    def _is_right(self, plan: Plan, positions: Array, reference: Array, tolerance: float) -> bool:
        try:
            difference = np.abs(self._run(plan, positions) - reference)
        except Exception as error:  # whatever a module may raise when it meets a batch
            logger.info("TorchForce: %s: does not work (%s)", plan, _last_line(error))
            return False
        if (difference <= tolerance).all():
            return True
        logger.info("TorchForce: %s: forces off by %.3g kJ/mol/nm", plan, difference.max())
        return False

    def _add_frozen(self) -> None:
        if self._module.training:
            return
        try:
            self._executors["frozen"] = self._torch.jit.freeze(self._module)
        except Exception as error:
            logger.info("TorchForce: cannot be frozen (%s)", _last_line(error))

    def _run(self, plan: Plan, positions: Array) -> Array:
        if plan.workers == 1:
            with self._threads(plan.threads):
                return self._share(plan, positions)
        pool = self._pool(plan.workers, plan.threads)
        shares = np.array_split(positions, plan.workers)
        return np.concatenate(list(pool.map(lambda share: self._share(plan, share), shares)))

    def _share(self, plan: Plan, positions: Array) -> Array:
        torch = self._torch
        module = self._executors[plan.executor]
        x = torch.tensor(positions, dtype=self._dtype, device=self._device)
        with torch.jit.optimized_execution(plan.executor != "interpreted"):
            if plan.batching == "loop":
                forces = torch.stack([self._evaluate(module, row, ()) for row in x])
            else:
                call = module if plan.batching == "batch" else self._vectorised(module)
                forces = self._evaluate(call, x, (len(x),))
        return forces.to(device="cpu", dtype=torch.float64).numpy()

    def _vectorised(self, module: Callable) -> Callable:
        return self._torch.vmap(module, in_dims=(0,) + (None,) * len(self._arguments))

    def _evaluate(self, call: Callable, x: torch.Tensor, batch: tuple[int, ...]) -> torch.Tensor:
        """Forces of the shape of ``x``; the call must give energies of the shape ``batch``."""
        if self._outputs_forces:
            with self._torch.no_grad():
                energy, forces = call(x, *self._arguments)
        else:
            energy = call(x.requires_grad_(), *self._arguments)
            (gradient,) = self._torch.autograd.grad(energy.sum(), x)
            forces = -gradient
        if batch and energy.shape != batch:
            raise ValueError(f"energies of shape {tuple(energy.shape)} instead of {batch}")
        if forces.shape != x.shape:
            raise ValueError(f"forces of shape {tuple(forces.shape)} instead of {tuple(x.shape)}")
        return forces

    @contextmanager
    def _threads(self, threads: int) -> Iterator[None]:
        before = self._torch.get_num_threads()
        if threads == before:
            yield
            return
        self._torch.set_num_threads(threads)
        try:
            yield
        finally:
            self._torch.set_num_threads(before)

    def _pool(self, workers: int, threads: int) -> ThreadPoolExecutor:
        """Threads whose torch runs on ``threads`` threads each; torch keeps that per thread."""
        if (workers, threads) not in self._pools:
            before = self._torch.get_num_threads()
            ready = threading.Barrier(workers + 1)

            def prepare() -> None:
                self._torch.set_num_threads(threads)
                ready.wait()

            pool = ThreadPoolExecutor(workers, "openmm-lsd-torch", initializer=prepare)
            for _ in range(workers):
                pool.submit(lambda: None)
            ready.wait()
            self._torch.set_num_threads(before)
            self._pools[workers, threads] = pool
        return self._pools[workers, threads]


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"
