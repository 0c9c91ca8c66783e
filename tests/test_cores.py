"""How many cores are used, and what happens in forked processes."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import openmm
import pytest
import torch
from particles import (
    POSITIONS,
    REFERENCE,
    Bonds,
    draft_system,
    harmonic_bonds,
    lsd,
    system_of,
    torch_force,
)

from openmm_lsd.contexts.cores import ThreadPool, allowed_cores
from openmm_lsd.contexts.forcecontext import ForceContext
from openmm_lsd.targets import ContextTarget, SystemTarget, TorchForceTarget

# The number of cores


@pytest.fixture
def eight_cores(monkeypatch):
    for name in ("OPENMM_CPU_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    return monkeypatch


@pytest.mark.parametrize(
    ("openmm_threads", "omp_threads", "threads", "expected"),
    [
        (None, None, None, 8),
        ("3", None, None, 3),
        (None, "2", None, 2),
        ("3", "2", "5", 2),
        ("3", "4,2", "2", 2),
        (None, "4,2", None, 4),
        ("12", None, "16", 8),
        ("", "none", None, 8),
        ("0", None, None, 8),
    ],
)
def test_allowed_cores(eight_cores, openmm_threads, omp_threads, threads, expected):
    for name, value in (("OPENMM_CPU_THREADS", openmm_threads), ("OMP_NUM_THREADS", omp_threads)):
        if value is not None:
            eight_cores.setenv(name, value)
    assert allowed_cores(threads) == expected


@pytest.mark.parametrize("name", ["OPENMM_CPU_THREADS", "OMP_NUM_THREADS"])
@pytest.mark.parametrize("limit", [1, 2, 3])
def test_contexts_keep_to_the_limit(eight_cores, name, limit):
    """No more threads evaluate at once, whichever layout is chosen or tried."""
    eight_cores.setenv(name, str(limit))
    target = ContextTarget(draft_system())
    for layout in target._layouts(16):
        assert layout.contexts * max(1, layout.threads) <= limit
    assert {layout.contexts for layout in target._layouts(16)} == {1, limit}
    used = set()
    evaluate = ForceContext.evaluate

    def watched(self, *arguments):
        used.add(threading.get_ident())
        return evaluate(self, *arguments)

    eight_cores.setattr(ForceContext, "evaluate", watched)
    target.prepare(POSITIONS, 16)
    target.evaluate(np.repeat(POSITIONS[None], 16, axis=0))
    assert len(used - {threading.get_ident()}) <= limit


def test_threads_property_of_a_context_bounds_target_and_draft(eight_cores):
    """Contexts of the target, plans of a TorchForce, threads of the draft."""
    properties = {"Threads": "2"}
    system = system_of(harmonic_bonds(), torch_force(Bonds))
    target = SystemTarget(system, POSITIONS, platform="CPU", properties=properties)
    assert all(part._cores == 2 for part in target.parts)
    for layout in target.in_contexts[0]._layouts(16):
        assert layout.contexts * max(1, layout.threads) <= 2

    pool = ContextTarget(draft_system(), platforms={"CPU": properties}, contexts=2)
    pool.evaluate(np.repeat(POSITIONS[None], 2, axis=0))
    platform = openmm.Platform.getPlatform("CPU")
    own = [each._context for (contexts,) in [pool._pools.values()] for each in contexts]
    assert [platform.getPropertyValue(each, "Threads") for each in own] == ["1", "1"]

    integrator = lsd(draftPlatform="CPU", windowLength=2)
    context = openmm.Context(system_of(harmonic_bonds()), integrator, platform, {"Threads": "1"})
    context.setPositions(POSITIONS)
    integrator.step(1)
    own = integrator._binding.pair.draft.context._context
    assert platform.getPropertyValue(own, "Threads") == "1"
    assert integrator._binding.pair.target.built.in_contexts[0]._cores == 1


def test_torch_plans_keep_to_the_limit(eight_cores):
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        target = TorchForceTarget(torch_force(Bonds), cores=2)
        assert target.plan(16).threads == 2
        target.prepare(POSITIONS, 16)
        for plan in target.plans.values():
            assert plan.workers * plan.threads <= 2
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


# Forks


FORK = """
import multiprocessing, sys
import torch
sys.path.insert(0, "tests")
import numpy as np
import openmm
from particles import *
from openmm_lsd.targets import ContextTarget, TorchForceTarget
from openmm_lsd.targets.torchforce import Plan

fork = multiprocessing.get_context("fork")

def in_child(function, *arguments):
    queue = fork.Queue()
    child = fork.Process(target=lambda: queue.put(function(*arguments)))
    child.start()
    child.join(60)
    if child.is_alive():
        child.kill()
        sys.exit("it hangs")
    assert child.exitcode == 0, child.exitcode
    return queue.get(timeout=10)

def simulation(integrator, platform="Reference"):
    system = system_of(harmonic_bonds(1700.0))
    context = openmm.Context(system, integrator, openmm.Platform.getPlatform(platform))
    context.setPositions(POSITIONS)
    context.setVelocities(VELOCITIES)
    return context

def positions_of(context):
    return np.array(context.getState(positions=True).getPositions(asNumpy=True)._value)

def after(context, integrator, steps):
    integrator.step(steps)
    return positions_of(context)

plain = openmm.LangevinMiddleIntegrator(0, 1, 0.001)
expected_context = simulation(plain)
expected = [after(expected_context, plain, 20) for _ in range(2)]
"""

CONTINUES = """
for platform in ("CPU", "Reference"):
    integrator = lsd(COLD, draftPlatform=platform, windowLength=4)
    context = simulation(integrator)
    integrator.step(20)
    there = in_child(after, context, integrator, 20)
    np.testing.assert_allclose(there, expected[1], rtol=0, atol=1e-9)
    there = in_child(lambda: in_child(after, context, integrator, 20))
    np.testing.assert_allclose(there, expected[1], rtol=0, atol=1e-9)
    np.testing.assert_allclose(after(context, integrator, 20), expected[1], rtol=0, atol=1e-9)

def made_there():
    integrator = lsd(COLD, draftPlatform="CPU", windowLength=4)
    return after(simulation(integrator), integrator, 20)
np.testing.assert_allclose(in_child(made_there), expected[0], rtol=0, atol=1e-9)
"""

CONTEXTS = """
states = POSITIONS + 0.01 * np.random.default_rng(1).standard_normal((7, 4, 3))
for platform in ("Reference", "CPU"):
    force = restraint()
    target = ContextTarget(
        system_of(force), platforms={platform: {}}, contexts=3, cores=3
    )
    box = 1.3 * BOX
    target.set_parameters({"strength": 2.0})
    here = target.evaluate(states, box)
    there = in_child(target.evaluate, states, box)
    for part, expected_part in zip(there, here):
        np.testing.assert_allclose(part, expected_part, rtol=1e-6)
    assert np.abs(here[1] - target.evaluate(states, box)[1]).max() < 1e-4
"""

TORCH = """
class Wide(torch.nn.Module):
    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        wide = torch.ones(300000, dtype=positions.dtype) * positions.sum()
        return torch.sin(0.01 * wide).sum() * 1e-5

torch.set_num_threads(2)
target = TorchForceTarget(torch_force(Wide), cores=2)
states = POSITIONS + 0.01 * np.random.default_rng(1).standard_normal((4, 4, 3))
for plan in (Plan("loop", "scripted", 1, 2), Plan("loop", "scripted", 2, 1)):
    target.plans = {4: plan, 1: plan}
    here = target.evaluate(states)
    there = in_child(target.evaluate, states)
    for part, expected_part in zip(there, here):
        np.testing.assert_allclose(part, expected_part, rtol=1e-9)

def made_there():
    target = TorchForceTarget(torch_force(Wide), cores=2)
    target.prepare(POSITIONS, 4)
    return target.evaluate(states)
np.testing.assert_allclose(in_child(made_there)[1], here[1], rtol=1e-9)
assert torch.get_num_threads() == 2
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("code", [CONTINUES, CONTEXTS, TORCH], ids=["run", "contexts", "torch"])
def test_a_forked_child_continues(code, tmp_path):
    """In a process of its own, which has not forked anything yet."""
    script = tmp_path / "script.py"
    script.write_text(FORK + code)
    root = Path(__file__).resolve().parent.parent
    result = subprocess.run([sys.executable, script], cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_a_device_that_does_not_survive_a_fork_is_an_error(monkeypatch):
    context = ForceContext(draft_system(), REFERENCE)
    expected = context.forces(POSITIONS[None])
    monkeypatch.setattr(os, "getpid", lambda: 1)
    np.testing.assert_array_equal(context.forces(POSITIONS[None]), expected)
    context.platform = "CUDA"
    with pytest.raises(openmm.OpenMMException, match="before this process was forked"):
        context.forces(POSITIONS[None])


def test_thread_pool():
    pool = ThreadPool(2, "some")
    for _ in range(2):
        assert list(pool.map(lambda a, b: a + b, [1, 2, 3], [10, 20, 30])) == [11, 22, 33]
        pool.shutdown()
    pool.shutdown()
