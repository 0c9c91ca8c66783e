"""Seconds per step, measured in turns: what disturbs a shared machine disturbs all alike."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import openmm

from ..contexts.autotune import time_candidates
from ..contexts.cores import allowed_cores
from ..targets.torchplugin import as_torch_force
from .case import Case, Log, Run, StateInBox

TRIALS = 5


def seconds_per_step(run: Run, steps: int) -> float:
    """Of one block."""
    begin = perf_counter()
    run.step(steps)
    return (perf_counter() - begin) / steps


def seconds_per_step_of_a_block(run: Run, *, untimed: float, timed: float, least: int) -> float:
    """Of as many steps as take ``timed`` seconds, and ``least``; after others that do not count.

    What ran before has left its own in the caches, and threads must be woken.
    """
    step_for(run, untimed, least)
    seconds, steps = step_for(run, timed, least)
    return seconds / steps


def step_for(run: Run, enough: float, least: int) -> tuple[float, int]:
    """Steps for so many seconds, ``least`` at a time: the seconds and how many they were."""
    begin, seconds, steps = perf_counter(), 0.0, 0
    while seconds < enough or steps < least:
        run.step(least)
        steps += least
        seconds = perf_counter() - begin
    return seconds, steps


def fastest(candidates: Sequence[Run], state: StateInBox, steps: int, log: Log) -> Run:
    """The run with the shortest median time per step; one candidate is not timed."""
    if len(candidates) == 1:
        return candidates[0]
    for run in candidates:
        run.set_state(*state)
    seconds = time_candidates(lambda run: run.step(steps), candidates, warm_up=1, turns=TRIALS)
    for run, median in seconds.items():
        log(f"  {settings_of(run)}: {1e3 * median / steps:.2f} ms per step")
    return min(seconds, key=seconds.__getitem__)


def fastest_plain(case: Case, state: StateInBox, steps: int, log: Log) -> Run:
    """Plain dynamics on the platform and with the number of torch threads that are fastest."""
    platforms = [case.platform] if case.platform else _platforms()
    uses_torch = any(as_torch_force(force) is not None for force in case.target.getForces())
    threads = sorted({1, _cores()}) if uses_torch else [None]
    candidates = [case.plain(platform, count) for platform in platforms for count in threads]
    log("plain dynamics, the fastest of:")
    return fastest(candidates, state, steps, log)


def settings_of(run: Run) -> str:
    """Platform, and threads where they were chosen."""
    return run.platform + (f", {run.threads} torch threads" if run.threads else "")


def _platforms() -> list[str]:
    """A GPU's if there is one, else both of the CPU's: small systems are faster on Reference."""
    names = [
        openmm.Platform.getPlatform(index).getName()
        for index in range(openmm.Platform.getNumPlatforms())
    ]
    on_gpu = [name for name in ("CUDA", "HIP") if name in names]
    return on_gpu or ["Reference", "CPU"]


def _cores() -> int:
    import torch

    return min(torch.get_num_threads(), allowed_cores())
