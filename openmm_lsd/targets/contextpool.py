"""Any System through a pool of Contexts, evaluated side by side."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import numpy as np
import openmm

from ..contexts.autotune import choose
from ..contexts.cores import ThreadPool, allowed_cores
from ..contexts.digests import digest_of
from ..contexts.forcecontext import ALL_GROUPS, ForceContext, holds_python, no_platform
from ..contexts.platforms import platforms_to_try
from ..core.clock import Times
from .base import Array, BatchedTarget, Evaluation, nearest_prepared, perturb

T = TypeVar("T")

logger = logging.getLogger(__name__)

BATCH_PERTURBATION = 0.001  # nm; the forces of any System are finite that near


class Layout(NamedTuple):
    """Contexts on a platform, each with its share of the batch; ``threads`` for the CPU platform,
    0 elsewhere."""

    platform: str
    contexts: int
    threads: int

    def __str__(self) -> str:
        threads = f" of {self.threads} threads" if self.threads else ""
        return f"{self.contexts} x {self.platform}{threads}"


class ContextTarget(BatchedTarget):
    """Energies and forces of a System, by Contexts that each take a share of the batch.

    The Contexts run in threads; native code releases Python's lock. OpenMM's Reference platform
    runs on one core, so one Context per core is faster by the number of cores. The same holds for
    AMOEBA without a GPU, which has no other platform. A System that holds a PythonForce, be it in a
    CustomCVForce, runs in one Context: users' functions are called by one thread at a time.

    Parameters
    ----------
    system : openmm.System
        With any forces that OpenMM can compute; those that change the state (thermostats,
        barostats) do nothing here.
    platforms : mapping of names to properties, optional
        To choose from; default all that OpenMM has loaded.
    contexts : int, optional
        How many; default one, or as many as there are cores, whichever turns out faster.
    groups : int
        Bits of the force groups that count, as ``Integrator.getIntegrationForceGroups``.
    cores : int, optional
        The most cores to keep busy; default ``cores.allowed_cores()``.

    Raises
    ------
    openmm.OpenMMException
        If the System works on none of the platforms.
    ValueError
        If ``contexts`` is not positive.
    """

    def __init__(
        self,
        system: openmm.System,
        *,
        platforms: Mapping[str, Mapping[str, str]] | None = None,
        contexts: int | None = None,
        groups: int = ALL_GROUPS,
        cores: int | None = None,
    ) -> None:
        if contexts is not None and contexts < 1:
            raise ValueError(f"contexts is {contexts}; it must be at least 1")
        if any(map(holds_python, system.getForces())):
            contexts = 1
        self._system, self._groups = system, groups
        self._platforms = platforms_to_try() if platforms is None else dict(platforms)
        self.keeps_cores_busy = set(self._platforms) <= {"CPU", "Reference"}
        self._contexts = contexts
        self._cores = allowed_cores() if cores is None else cores
        self._pools: dict[Layout, list[ForceContext]] = {}
        self._threads = ThreadPool(self._cores if contexts is None else contexts, "lsd-context")
        self._parameters: dict[str, float] = {}
        self._first = self._first_that_works()
        self.uses_times = self._pool(self._first)[0].uses_times
        self._chosen: dict[int, Layout] = {}  # by the largest number of Contexts that can share

    def renew(self, system: openmm.System) -> ContextTarget:
        """The same for a System whose forces have other parameters."""
        self.close()
        result = ContextTarget(
            system,
            platforms=self._platforms,
            contexts=self._contexts,
            groups=self._groups,
            cores=self._cores,
        )
        result._chosen, result._parameters = self._chosen, self._parameters
        return result

    def _first_that_works(self) -> Layout:
        failures = {}
        for layout in self._layouts(1):
            try:
                self._pool(layout)
            except Exception as error:  # platforms raise what they like
                failures[layout.platform] = error
            else:
                return layout
        raise no_platform(failures)

    def _layouts(self, batch: int) -> list[Layout]:
        counts = {1, self._sharing(batch)} if self._contexts is None else {self._contexts}
        layouts = []
        for platform, properties in self._platforms.items():
            given = int(properties.get("Threads", self._cores))
            for count in sorted(counts):
                threads = max(1, min(self._cores, given) // count) if platform == "CPU" else 0
                layouts.append(Layout(platform, count, threads))
        return layouts

    def _sharing(self, batch: int) -> int:
        """How many Contexts can have a share of the batch."""
        return min(self._cores, batch)

    def layout(self, batch: int) -> Layout:
        """How this number of states is run."""
        if not self._chosen:
            return self._first
        return nearest_prepared(self._chosen, self._sharing(batch))

    def _pool(self, layout: Layout) -> list[ForceContext]:
        if layout not in self._pools:
            properties = dict(self._platforms[layout.platform])
            if layout.threads:
                properties["Threads"] = str(layout.threads)
            platform = openmm.Platform.getPlatform(layout.platform)
            self._pools[layout] = [
                ForceContext(self._system, platform, properties, self._groups)
                for _ in range(layout.contexts)
            ]
        return self._pools[layout]

    def set_parameters(self, parameters: Mapping[str, float]) -> None:
        """See BatchedTarget."""
        self._parameters = dict(parameters)

    def prepare(self, positions: Array, batch: int, box: Array | None = None) -> None:
        """See BatchedTarget; the platform and the number of Contexts are chosen."""
        states = perturb(positions, batch, BATCH_PERTURBATION)
        xml = openmm.XmlSerializer.serialize(self._system)
        sharing = self._sharing(batch)
        platforms = [(name, sorted(own.items())) for name, own in self._platforms.items()]
        key = f"contexts {digest_of(xml, sharing, platforms, self._contexts)}"
        layouts = self._layouts(batch)
        layout = choose(
            key, layouts, lambda each: self._run(each, states, box), what="Contexts", warm_up=1
        )
        if layout is None:
            return  # these positions may be at fault; the first evaluation will say
        self._chosen[sharing] = layout
        self._pools = {layout: self._pool(layout) for layout in self._chosen.values()}

    def forget_history(self) -> None:
        """Evaluate from now on in Contexts that have not computed anything.

        Neighbour lists, and with them the last bits of forces, depend on what came before.
        """
        self._pools = {
            layout: pool for layout, pool in self._pools.items() if layout.platform == "Reference"
        }

    def evaluate(self, positions: Array, box: Array | None = None) -> Evaluation:
        """See BatchedTarget."""
        return self.evaluate_at(positions, box)

    def evaluate_at(
        self, positions: Array, box: Array | None = None, times: Times | None = None
    ) -> Evaluation:
        """See BatchedTarget."""
        return self._run(self.layout(len(positions)), positions, box, times)

    def forces_at(
        self, positions: Array, box: Array | None = None, times: Times | None = None
    ) -> Array:
        """See BatchedTarget; a device is asked once instead of twice."""
        layout = self.layout(len(positions))
        return np.concatenate(self._map(layout, ForceContext.forces, positions, box, times))

    def _run(
        self, layout: Layout, positions: Array, box: Array | None, times: Times | None = None
    ) -> Evaluation:
        parts = self._map(layout, ForceContext.evaluate, positions, box, times)
        energies, forces = zip(*parts, strict=True)
        return np.concatenate(energies), np.concatenate(forces)

    def _map(
        self,
        layout: Layout,
        compute: Callable[[ForceContext, Array, Times | None], T],
        positions: Array,
        box: Array | None,
        times: Times | None,
    ) -> list[T]:
        """Of every Context, for its share of the states."""
        contexts = self._pool(layout)[: len(positions)]
        for context in contexts:
            context.set_environment(box, self._parameters)
        if not self.uses_times:
            times = None
        elif times is None:
            times = Times.same(len(positions))
        if len(contexts) == 1:
            return [compute(contexts[0], positions, times)]
        shares = np.array_split(positions, len(contexts))
        ends = np.cumsum([len(share) for share in shares]).tolist()
        parts = self._threads.map(
            compute,
            contexts,
            shares,
            [
                None if times is None else times.rows(slice(end - len(share), end))
                for share, end in zip(shares, ends, strict=True)
            ],
        )
        return list(parts)

    def close(self) -> None:
        """See BatchedTarget."""
        self._threads.shutdown()
        self._pools.clear()
