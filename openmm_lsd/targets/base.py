"""What every target is: energies and forces of a batch of states in one call."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np
import openmm
from numpy.typing import ArrayLike, NDArray
from openmm import unit

from ..contexts.autotune import recall, remember
from ..contexts.digests import digest_of
from ..core.clock import Times
from ..core.errors import checked_forces

if TYPE_CHECKING:
    import torch

Array = NDArray[np.float64]
Evaluation = tuple[Array, Array]
T = TypeVar("T")

FASTER, LONG = 0.75, 1.0  # of the time; s

logger = logging.getLogger(__name__)

ANGSTROM_PER_NM = (1 * unit.nanometer).value_in_unit(unit.angstrom)
KJ_PER_MOL_PER_EV = (
    1 * unit.elementary_charge * unit.volt * unit.AVOGADRO_CONSTANT_NA
).value_in_unit(unit.kilojoule_per_mole)


class ForceSettings(NamedTuple):
    """How the Context computes a Force that a target is to stand in for.

    ``positions`` (N, 3) nm are a state at which it can be computed, at ``time`` (ps) and
    ``step_count``, in ``box`` (3, 3) nm; ``platform`` and ``properties`` are those of the Context,
    and ``cores`` is the most that may be kept busy. The target will be given the particles of
    ``subset``, in ascending order; all, if it is None. ``system`` is that of the Force, if it has
    one.
    """

    positions: Array
    box: Array | None
    platform: str
    properties: Mapping[str, str]
    cores: int
    time: float = 0.0
    step_count: int = 0
    subset: NDArray[np.int64] | None = None
    system: openmm.System | None = None

    def rows(self, particles: ArrayLike) -> NDArray[np.int64]:
        """Where these particles are among those that the target will be given."""
        particles = np.asarray(particles, dtype=np.int64)
        return particles if self.subset is None else np.searchsorted(self.subset, particles)


class BatchedTarget(ABC):
    """Energies and forces of B independent states of the same N particles.

    Made for LSDIntegrator, which evaluates the sites of a window at once, and useful wherever many
    conformations are to be evaluated: scoring, replica exchange, path ensembles.
    """

    gives_energies = True  # else they are NaN: dynamics needs forces only
    conservative = True  # else forces need not be minus the gradient of the energy
    uses_times = False  # whether ``evaluate_at`` does more than ``evaluate``
    takes_box = True  # else a periodic box makes no difference to it
    keeps_cores_busy = False  # in this process: nothing else should run at the same time

    @property
    def one_by_one(self) -> str | None:
        """Why a batch takes as long as its states one after another, and what to do about that;
        None if it does not."""
        return None

    @abstractmethod
    def evaluate(self, positions: Array, box: Array | None = None) -> Evaluation:
        """Energies (B,) in kJ/mol and forces (B, N, 3) in kJ/mol/nm.

        A state that cannot be evaluated may raise, or leave NaN in its row.

        Parameters
        ----------
        positions : (B, N, 3) nm
            Must not be changed. Row i of the results depends on row i alone.
        box : (3, 3) nm or None
            Periodic box vectors as rows, OpenMM's reduced form; None: not periodic.
        """

    def evaluate_at(
        self, positions: Array, box: Array | None = None, times: Times | None = None
    ) -> Evaluation:
        """As ``evaluate``, for states of which each has a time and a step count of its own.

        What LSDIntegrator calls. A target whose forces depend on them overrides this, and says so
        by ``uses_times``; for others they mean nothing.

        Parameters
        ----------
        times : Times, optional
            ``times`` (B,) in ps and ``step_counts`` (B,); default zero for all.
        """
        return self.evaluate(positions, box)

    def forces_at(
        self, positions: Array, box: Array | None = None, times: Times | None = None
    ) -> Array:
        """Forces only, as ``evaluate_at``; overridden where energies take time."""
        return self.evaluate_at(positions, box, times)[1]

    def set_parameters(self, parameters: Mapping[str, float]) -> None:  # noqa: B027
        """Take over the values of the Context's global parameters, if any play a part."""

    def prepare(self, positions: Array, batch: int, box: Array | None = None) -> None:  # noqa: B027
        """Find the fastest way to evaluate ``batch`` states near ``positions`` (N, 3) nm.

        Called again for every size of a batch that comes to be used.
        """

    def single_states(self) -> AbstractContextManager:
        """Settings of this process under which single states are fastest, wherever computed."""
        return nullcontext()

    def close(self) -> None:  # noqa: B027
        """Give back what is held outside this process (workers, devices). May be called twice."""


def checked(
    energies: ArrayLike, forces: ArrayLike, positions: Array, name: str = "the target"
) -> Evaluation:
    """What an implementation returned, as float64 arrays of the right shapes.

    Raises
    ------
    ValueError
        If a shape is wrong.
    """
    energies = np.asarray(energies, dtype=np.float64)
    if energies.shape != positions.shape[:1]:
        raise ValueError(
            f"{name} returned energies of shape {energies.shape} for positions of shape "
            f"{positions.shape}; expected {positions.shape[:1]}"
        )
    return energies, checked_forces(forces, positions.shape, name)


def perturb(positions: Array, count: int, displacement: float) -> Array:
    """``count`` states (count, N, 3) near ``positions``, the first equal to it; always the same."""
    noise = np.random.default_rng(0).standard_normal((count, *positions.shape))
    noise[0] = 0.0
    return positions + displacement * noise


def nearest_prepared(prepared: Mapping[int, T], size: int) -> T:
    """What was prepared for the next size that is no smaller, or else for the largest."""
    return prepared[min((each for each in prepared if each >= size), default=max(prepared))]


class Parts:
    """A batch in parts that fit into the memory of a device, or of the machine.

    In smaller ones, where ``prepare`` has found that to be faster.

    Parameters
    ----------
    evaluate : callable, (positions, box) -> energies, forces
        Takes ``times`` as well, if these are given.
    is_out_of_memory : callable, exception -> bool
    """

    def __init__(
        self,
        evaluate: Callable[..., Evaluation],
        is_out_of_memory: Callable[[BaseException], bool],
    ) -> None:
        self._evaluate = evaluate
        self._is_out_of_memory = is_out_of_memory
        self.largest: int | None = None  # states that fit, once too many have been tried
        self._fast: dict[int, int] = {}  # states of a part, by those of the batch

    def __call__(
        self,
        positions: Array,
        box: Array | None = None,
        times: Times | None = None,
        *,
        evaluate: Callable[..., Evaluation] | None = None,
    ) -> Evaluation:
        """Energies and forces of all states; the part is halved until it fits.

        ``evaluate`` may take the place of the one that was given to the constructor.
        """
        evaluate = evaluate or self._evaluate
        results: list[Evaluation] = []
        done = 0
        fast = self._fast.get(len(positions), len(positions))
        while done < len(positions):
            rows = slice(done, done + min(fast, self.largest or fast))
            part = positions[rows]
            try:
                more = () if times is None else (times.rows(rows),)
                energies, forces = evaluate(part, box, *more)
            except Exception as error:
                if not self._is_out_of_memory(error) or len(part) == 1:
                    raise
                self.largest = len(part) // 2
                logger.warning(
                    "%d states do not fit into memory; continuing with %d at a time",
                    len(part),
                    self.largest,
                )
                continue
            done += len(part)
            if len(part) < len(positions):  # a function may give the same arrays every time
                energies, forces = np.array(energies), np.array(forces)
            results.append((energies, forces))
        if len(results) == 1:
            return results[0]
        columns = zip(*results, strict=True)
        all_energies, all_forces = map(np.concatenate, columns)
        return all_energies, all_forces

    def prepare(self, positions: Array, batch: int, box: Array | None, model: str) -> None:
        """Find out whether ``batch`` states near ``positions`` (N, 3) nm are faster in parts.

        A batch is halved as long as that makes it a third faster: what is chosen must not depend on
        what else the machine does. It is chosen once in a process for as many states of a
        ``model``, so that two runs with one seed agree to the last bit; restarts bring it.
        """
        if batch == 1:
            return
        key = f"parts {digest_of(model, positions.shape, batch)}"
        size = recall(key, range(1, batch + 1))
        if size is None:
            size = self._find_fastest(positions, batch, box)
            remember(key, size)
        self._fast[batch] = size

    def _find_fastest(self, positions: Array, batch: int, box: Array | None) -> int:
        """The size of the parts: ``batch`` if they cannot be compared."""
        states, size = perturb(positions, batch, 0.002), batch
        self._fast.pop(batch, None)
        try:
            seconds = self._seconds_per_state(states, box)
            while size > 1:
                half = (size + 1) // 2
                in_halves = self._seconds_per_state(states[:half], box)
                if in_halves <= FASTER * seconds:  # the first time it may have been compiled
                    seconds = min(seconds, self._seconds_per_state(states[:size], box))
                if in_halves > FASTER * seconds:
                    break
                size, seconds = half, in_halves
        except Exception as error:  # whatever an implementation may raise; it will raise it again
            logger.info("parts of a batch could not be compared (%s)", error)
            return batch
        if size < batch:
            logger.info("%d states: %d at a time are faster", batch, size)
        return size

    def _seconds_per_state(self, states: Array, box: Array | None) -> float:
        """In one call; the first does not count, unless it takes long."""
        found: list[float] = []
        while len(found) < 4 and sum(found) < LONG:
            begin = perf_counter()
            self(states, box)
            found.append(perf_counter() - begin)
        return min(found[1:] or found) / len(states)


def describe_model(model: Any, *more: object) -> str:
    """Which model it is, and what ``more`` its speed depends on."""
    parameters = list(getattr(model, "parameters", tuple)())  # some of TorchSim's have none
    numbers = sum(parameter.numel() for parameter in parameters)
    first = [(each.device, each.dtype) for each in parameters[:1]]
    return repr((type(model).__qualname__, numbers, str(first), *map(str, more)))


def describe_function(function: Callable[..., Any]) -> str:
    """Which function it is, by what is the same in every process."""
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.ismethod(function):
        function = function.__func__
    if not inspect.isfunction(function):
        return repr((type(function).__module__, type(function).__qualname__))
    code = function.__code__
    what = digest_of(code.co_code, code.co_names)  # the repr of a constant may differ: of a set
    return repr((function.__module__, function.__qualname__, what))


# What torch says: of the machine's memory (a plain RuntimeError; one wording for each of its
# allocators), and of a device's where TorchScript has wrapped the error.
OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "not enough memory",
    "can't allocate memory",
    "CUDA out of memory",
    "HIP out of memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory is exhausted: Python's, NumPy's, torch's on a CPU, or that of a device."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (
        torch is not None and isinstance(error, torch.OutOfMemoryError)
    ):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


def finite_rows(
    evaluate: Callable[[Array, Array | None], Evaluation], positions: Array, box: Array | None
) -> Evaluation:
    """What ``evaluate`` gives for the states whose positions are finite, and NaN for the others.

    A search for neighbours finds none of an atom at NaN; energies and forces come out finite.
    """
    finite = np.isfinite(positions).all(axis=(1, 2))
    if finite.all():
        return evaluate(positions, box)
    energies, forces = np.full(len(positions), np.nan), np.full(positions.shape, np.nan)
    if finite.any():
        energies[finite], forces[finite] = evaluate(positions[finite], box)
    return energies, forces


def as_float64(tensor: torch.Tensor) -> Array:
    """The tensor's values, detached, on the CPU."""
    return tensor.detach().cpu().numpy().astype(np.float64)


def on_host(energies: torch.Tensor, forces: torch.Tensor) -> Evaluation:
    """As ``as_float64`` of both, with one copy if they are on a device: each waits for it."""
    if energies.device.type == "cpu" or energies.device != forces.device:
        return as_float64(energies), as_float64(forces)
    import torch

    both = as_float64(torch.cat([energies.detach().reshape(-1), forces.detach().reshape(-1)]))
    count = energies.numel()
    return both[:count].reshape(energies.shape), both[count:].reshape(forces.shape)


class CachedOnDevice(Generic[T]):
    """What ``make`` makes of an array, made again when the array is another.

    For what must be on a device and hardly ever changes, such as the box.
    """

    def __init__(self, make: Callable[[Array], T]) -> None:
        self._make = make
        self._last: tuple[Array, T] | None = None

    def __call__(self, array: Array) -> T:
        """The same object as the last time, if the array has the same values."""
        if self._last is None or not np.array_equal(array, self._last[0]):
            self._last = np.array(array), self._make(array)
        return self._last[1]
