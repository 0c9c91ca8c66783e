"""TorchForce targets: their modules run in batches, beside other forces; and given targets."""

import numpy as np
import openmm
import pytest
import torch
from openmmtorch import TorchForce
from particles import (
    BOX,
    POSITIONS,
    REFERENCE,
    VELOCITIES,
    Bonds,
    BondsInBox,
    assert_close,
    bond_energies,
    lsd,
    restraint,
    restraint_forces,
    scripted,
    system_of,
    target_system,
    torch_force,
)

from openmm_lsd import TargetMismatchError
from openmm_lsd.contexts import autotune
from openmm_lsd.contexts.forcecontext import ForceContext
from openmm_lsd.targets import SystemTarget
from openmm_lsd.targets.torchforce import Plan, TorchForceTarget


class SingleState(Bonds):
    """As Bonds, for one state only: with a batch its indices mean something else."""

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        bonds = positions[self.first] - positions[self.second]
        return bond_energies(bonds).sum()


class SingleStateInBox(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.single = SingleState()

    def forward(
        self,
        positions: torch.Tensor,
        box: torch.Tensor,
        scale: torch.Tensor,
        offset: torch.Tensor,
    ) -> torch.Tensor:
        field = torch.cos(6.283185307179586 * (positions[0] - offset) / torch.diagonal(box)).sum()
        return scale * self.single(positions) + 20.0 * field


class DataDependent(torch.nn.Module):
    """Reads numbers out of the tensors, which vmap cannot do."""

    def __init__(self):
        super().__init__()
        self.single = SingleState()

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        energy = self.single(positions)
        if float((positions[0] - positions[1]).pow(2).sum()) > 0.0:
            energy = energy + 5.0 * positions[2].pow(2).sum()
        return energy


class WithForces(torch.nn.Module):
    """Gives its forces itself; takes a batch."""

    def forward(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        moved = positions - 0.1
        return 150.0 * moved.pow(2).sum(dim=(-2, -1)), -300.0 * moved


class SingleStateWithForces(torch.nn.Module):
    def forward(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        bond = positions[1] - positions[0]
        force = 400.0 * bond
        zero = torch.zeros_like(force)
        return 200.0 * bond.pow(2).sum(), torch.stack([force, -force, zero, zero])


class LeakyBatch(torch.nn.Module):
    """A spring to the mean over atoms; in a batch, to the mean over the states."""

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        return 200.0 * (positions - positions.mean(0)).pow(2).sum(dim=(-2, -1))


class SlightlyLeakyBatch(torch.nn.Module):
    """Springs to the centre of the state; in a batch, to that of its first state."""

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        states = positions.detach().reshape(-1, positions.size(-2), 3)
        return 60.0 * (positions - states[0].mean(0)).pow(2).sum(dim=(-2, -1))


# TorchForce


KINDS = {
    "batch": (Bonds, {}, "batch"),
    "batch, box, parameter": (
        BondsInBox,
        {"periodic": True, "parameters": [("scale", 1.3)]},
        "batch",
    ),
    "batch, forces": (WithForces, {"outputs_forces": True}, "batch"),
    "vmap": (SingleState, {}, "vmap"),
    "vmap, box, parameters": (
        SingleStateInBox,
        {"periodic": True, "parameters": [("scale", 1.3), ("offset", 0.1)]},
        "vmap",
    ),
    "vmap, forces": (SingleStateWithForces, {"outputs_forces": True}, "vmap"),
    "loop": (DataDependent, {}, "loop"),
    "leaky": (LeakyBatch, {}, "vmap"),
}


def chosen_batch(force):
    """The TorchForce's batched forces, with the plan chosen for 16 states."""
    batch = TorchForceTarget(force)
    batch.prepare(POSITIONS, 16, BOX)
    return batch


def context_values(force, states):
    return ForceContext(system_of(force), REFERENCE).evaluate(states)


def assert_same(values, expected):
    for part, expected_part in zip(values, expected, strict=True):
        np.testing.assert_allclose(part, expected_part, rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_torch_force_in_one_batch(kind):
    module, options, batching = KINDS[kind]
    batch = chosen_batch(torch_force(module, **options))
    states = POSITIONS + 0.03 * np.random.default_rng(5).standard_normal((16, 4, 3))
    expected = context_values(torch_force(module, **options), states)
    assert np.abs(expected[1]).max() > 10.0
    assert_same(batch.evaluate(states, BOX), expected)
    assert batch.plan(16).batching == batching
    assert (batch.one_by_one is not None) == (batching == "loop")
    for row in range(3):  # a state alone has a plan of its own
        alone = slice(row, row + 1)
        assert_same(batch.evaluate(states[alone], BOX), [part[alone] for part in expected])
    assert batch.plan(1).workers == 1


@pytest.mark.parametrize("kind", KINDS)
def test_torch_force_without_noise(build_cold, state_of, kind):
    module, options, _ = KINDS[kind]
    states = []
    for plain in (False, True):
        simulation = build_cold(system_of(torch_force(module, **options)), plain=plain)
        simulation.step(30)
        states.append(state_of(simulation))
    assert_close(*states)


def test_torch_force_that_leaks_little(simulate, state_of):
    """States a thousandth of a nm apart hardly show it; those of a window are further apart."""

    def target(positions):
        return -120.0 * (positions - positions.mean(axis=1, keepdims=True))

    states = []
    for given in (None, target):
        system = system_of(torch_force(SlightlyLeakyBatch))
        simulation = simulate(system, lsd(target=given), POSITIONS, VELOCITIES)
        simulation.step(40)
        states.append(state_of(simulation))
    assert_close(*states)


def test_torch_force_shared_among_threads():
    """With more threads than one a batch may be cut into shares."""
    torch.set_num_threads(2)
    try:
        for module in (Bonds, SingleState, DataDependent):
            batch = chosen_batch(torch_force(module))
            states = POSITIONS + 0.03 * np.random.default_rng(5).standard_normal((5, 4, 3))
            for workers in (1, 2):
                batch.plans[16] = batch.plan(16)._replace(workers=workers, threads=1)
                expected = context_values(torch_force(module), states)
                assert_same(batch.evaluate(states, BOX), expected)
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_threads_of_a_share_keep_their_number():
    """torch gives a thread the process's number of threads when it first computes in parallel."""
    torch.set_num_threads(2)
    try:
        pool = TorchForceTarget(torch_force(Bonds))._pool(2, 1)
        counts = pool.map(
            lambda _: (torch.rand(10**6).sin().sum(), torch.get_num_threads())[1], range(4)
        )
        assert list(counts) == [1, 1, 1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


class NeverEmpty(Bonds):
    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        if positions.size(0) == 0:
            raise RuntimeError("an empty batch")
        bonds = positions.index_select(-2, self.first) - positions.index_select(-2, self.second)
        return bond_energies(bonds).sum(-1)


def test_the_plan_of_one_state_is_used_for_it(monkeypatch):
    batch = chosen_batch(torch_force(Bonds))
    used = []
    run = batch._run
    monkeypatch.setattr(batch, "_run", lambda plan, *rest: used.append(plan) or run(plan, *rest))
    batch.plans[1] = Plan("loop", "interpreted", 1, 1)
    for count in (1, 3):
        batch.evaluate(np.repeat(POSITIONS[None], count, 0), BOX)
    assert used == [batch.plans[1], batch.plans[16]]


def test_plain_steps_take_the_threads_of_one_state():
    torch.set_num_threads(2)
    try:
        target = SystemTarget(system_of(torch_force(Bonds)), POSITIONS)
        target.prepare(POSITIONS, 4)
        for threads in (1, 2):
            target.parts[0].plans[1] = Plan("loop", "scripted", 1, threads)
            with target.single_states():
                assert torch.get_num_threads() == threads
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_fewer_states_than_threads():
    batch = TorchForceTarget(torch_force(NeverEmpty))
    batch.plans[4] = Plan("batch", "scripted", 2, 1)
    states = POSITIONS[None] + 0.01
    assert_same(batch.evaluate(states), context_values(torch_force(Bonds), states))


class Wrapper(torch.nn.Module):
    """The outermost code says nothing about what is inside."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        return self.model(positions)


def test_plan_belongs_to_the_whole_module():
    states = POSITIONS + 0.03 * np.random.default_rng(5).standard_normal((16, 4, 3))
    for model, batching in ((Bonds, "batch"), (SingleState, "vmap"), (DataDependent, "loop")):
        force = TorchForce(torch.jit.script(Wrapper(model())))
        batch = chosen_batch(force)
        assert batch.plan(16).batching == batching
        expected = context_values(force, states)
        assert_same(batch.evaluate(states, BOX), expected)


@pytest.mark.parametrize("executor", ["scripted", "frozen", "interpreted"])
def test_every_simulation_of_a_process_can_use_the_plan(simulate, state_of, monkeypatch, executor):
    """Whichever executor wins for the first."""
    monkeypatch.setattr(autotune, "_choices", {})
    monkeypatch.setattr(
        "openmm_lsd.contexts.autotune.time_candidates",
        lambda run, plans, **_: {plan: float(plan.executor != executor) for plan in plans},
    )
    states = []
    for _ in range(2):
        simulation = simulate(system_of(torch_force(Bonds)), lsd(), POSITIONS, VELOCITIES)
        simulation.step(20)
        states.append(state_of(simulation))
    assert states[0].equals(states[1])


def test_plan_is_not_settled_by_a_state_without_forces(monkeypatch):
    monkeypatch.setattr(autotune, "_choices", {})
    for positions in (np.full((4, 3), np.nan), POSITIONS):
        batch = TorchForceTarget(torch_force(Bonds))
        batch.prepare(positions, 16, BOX)
    assert batch.plan(16).batching == "batch"


def test_restraint_beside_the_torch_force(build_cold, state_of):
    def positions(plain, weight):
        system = system_of(torch_force(Bonds), restraint(weight))
        simulation = build_cold(system, plain=plain)
        simulation.step(30)
        return state_of(simulation)

    for weight in (1.0, 500.0):
        assert_close(positions(False, weight), positions(True, weight))


@pytest.mark.parametrize("groups", [{0}, {1}, {0, 1}, {31}])
def test_force_groups(build_cold, state_of, groups):
    states = []
    for plain in (False, True):
        simulation = build_cold(target_system(), plain=plain)
        simulation.integrator.setIntegrationForceGroups(groups)
        simulation.step(30)
        states.append(state_of(simulation))
    assert_close(*states)


# A target that is given


def test_given_target(simulate, state_of):
    states, rows = [], []

    def target(positions):
        rows.append(len(positions))
        return restraint_forces(positions)

    for given in (None, target):
        integrator = lsd(target=given, windowLength=8)
        simulation = simulate(system_of(restraint()), integrator, POSITIONS, VELOCITIES)
        simulation.step(40)
        states.append(state_of(simulation))
    assert_close(*states)
    assert max(rows) == 8


def test_given_target_takes_the_place_of_the_torch_force(simulate, build_cold, state_of):
    module = scripted(Bonds)
    calls = []

    def target(positions):
        calls.append(len(positions))
        x = torch.tensor(positions, requires_grad=True)
        return -torch.autograd.grad(module(x).sum(), x)[0].numpy()

    states = []
    for plain in (False, True):
        keywords = {} if plain else {"target": target}
        simulation = build_cold(system_of(torch_force(Bonds)), plain=plain, **keywords)
        simulation.step(30)
        states.append(state_of(simulation))
    assert_close(*states)
    assert len(calls) > 1


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: 1.05 * restraint_forces(x),
        lambda x: -restraint_forces(x),
        lambda x: restraint_forces(x) + np.outer([0, 0, 5.0, 0], [1, 0, 0]),
        lambda x: np.repeat(restraint_forces(x[:1]), len(x), axis=0),
    ],
    ids=["scaled", "energy gradient", "one atom", "first row for all"],
)
def test_given_target_that_disagrees_with_the_system(simulate, state_of, wrong):
    def stiff(positions):
        return 1000.0 * wrong(positions)

    integrator = lsd(target=stiff)
    system = system_of(restraint(strength=3000.0))
    simulation = simulate(system, integrator, POSITIONS, VELOCITIES)
    before = state_of(simulation)
    for _ in range(2):
        with pytest.raises(TargetMismatchError, match=r"atom \d of state \d"):
            simulation.step(1)
        assert state_of(simulation).equals(before)
    assert integrator.statistics.steps == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", [Bonds, SingleState])
def test_cuda_graphs_of_the_batch(kind):
    force = TorchForce(scripted(kind), {"useCUDAGraphs": "true", "CUDAGraphWarmupSteps": "5"})
    target = TorchForceTarget(force, "cuda", torch.float64)
    states = POSITIONS + 0.01 * np.random.default_rng(1).standard_normal((6, *POSITIONS.shape))
    expected = target.evaluate(states)
    for batching in ("batch", "vmap", "loop") if kind is Bonds else ("vmap", "loop"):
        target.plans[6] = Plan(batching, "graphed", 1, torch.get_num_threads())
        for order in (slice(None), slice(None, None, -1)):
            for part, whole in zip(target.evaluate(states[order]), expected, strict=True):
                np.testing.assert_allclose(part, whole[order], rtol=1e-9, atol=1e-9)


def test_cuda_graphs_are_for_cuda_devices():
    force = TorchForce(scripted(Bonds), {"useCUDAGraphs": "true"})
    target = TorchForceTarget(force)
    target.prepare(POSITIONS, 4)
    assert target.plan(4).executor != "graphed"


def test_every_size_of_a_batch_has_its_own_plan(monkeypatch):
    """The fastest layout; batching and executor are those of the size that came first."""
    raced = []

    def race(run, plans, **_):
        raced.append({(plan.batching, plan.executor) for plan in plans})
        fastest = 2 if len(raced) == 1 else 1
        return {plan: float(plan.threads != fastest) for plan in plans}

    monkeypatch.setattr(autotune, "_choices", {})
    monkeypatch.setattr(autotune, "time_candidates", race)
    torch.set_num_threads(2)
    try:
        batch = TorchForceTarget(torch_force(Bonds), cores=2)
        batch.prepare(POSITIONS, 16)
        assert {plan[0] for plan in raced[0]} == {"batch"} and len(raced[0]) == 3
        batch.prepare(POSITIONS, 4)
        assert len(raced[2]) == 1 and raced[2] < raced[0]
        assert [batch.plan(size).threads for size in (16, 5, 4, 2, 40)] == [2, 2, 1, 1, 2]
        states = POSITIONS + 0.03 * np.random.default_rng(5).standard_normal((4, 4, 3))
        assert_same(batch.evaluate(states), context_values(torch_force(Bonds), states))
    finally:
        torch.set_num_threads(1)


class Rounding(Bonds):
    """Forces are as inexact as single precision makes them, and another time others."""

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        bonds = positions.index_select(-2, self.first) - positions.index_select(-2, self.second)
        energy = bond_energies(bonds).sum(-1)
        return energy + 1e-4 * (torch.rand_like(positions) * positions).sum(-1).sum(-1)


def test_plans_are_raced_where_the_forces_vanish(monkeypatch):
    """A minimised structure: there rounding is all that is left of them."""
    monkeypatch.setattr(autotune, "_choices", {})
    context = openmm.Context(
        system_of(torch_force(Bonds)),
        openmm.VerletIntegrator(0.001),
        openmm.Platform.getPlatform("Reference"),
    )
    context.setPositions(POSITIONS)
    openmm.LocalEnergyMinimizer.minimize(context, 1e-3)
    positions = context.getState(positions=True).getPositions(asNumpy=True)._value
    raced = []
    race = autotune.time_candidates
    monkeypatch.setattr(
        autotune, "time_candidates", lambda *a, **k: raced.append(1) or race(*a, **k)
    )
    TorchForceTarget(torch_force(Rounding)).prepare(positions, 4)
    assert len(raced) == 2
