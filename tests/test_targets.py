"""Every form of target that needs no further package gives the same energies and forces.

Four bonded particles in a potential written down four times: for OpenMM, for torch, for NumPy and
for one state. What a Context of the System says is the measure.
"""

import functools
import sys
import time

import numpy as np
import openmm
import pytest
import torch
from particles import (
    BOX,
    LENGTH,
    MASSES,
    PAIRS,
    POSITIONS,
    REFERENCE,
    VELOCITIES,
    Bonds,
    lsd,
    torch_force,
)

from openmm_lsd import LSDIntegrator, TargetError
from openmm_lsd.contexts import autotune
from openmm_lsd.contexts.forcecontext import ForceContext
from openmm_lsd.core.clock import Times
from openmm_lsd.targets import (
    BatchedTarget,
    ContextTarget,
    FunctionTarget,
    ModuleTarget,
    PythonForceTarget,
    SystemTarget,
    TorchForceTarget,
    as_target,
    base,
    batched,
    torchforce,
    validate_target,
)
from openmm_lsd.targets.base import Parts, describe_function, is_out_of_memory
from openmm_lsd.targets.torchforce import Plan

STATES = POSITIONS + 0.01 * np.random.default_rng(3).standard_normal((6, 4, 3))
FIRST, SECOND = (list(column) for column in zip(*PAIRS, strict=True))


def bonds(positions):
    """Energies (B,) and forces (B, 4, 3) of anharmonic bonds between all pairs."""
    bond = positions[:, FIRST] - positions[:, SECOND]
    length = np.linalg.norm(bond, axis=-1)
    stretch = length - LENGTH
    energies = (1000 * stretch**2 - 3000 * stretch**3 + 6000 * stretch**4).sum(axis=1)
    slope = 2000 * stretch - 9000 * stretch**2 + 24000 * stretch**3
    along = (slope / length)[..., None] * bond
    forces = np.zeros_like(positions)
    for pair in range(len(PAIRS)):
        forces[:, FIRST[pair]] -= along[:, pair]
        forces[:, SECOND[pair]] += along[:, pair]
    return energies, forces


@batched
def scaled_bonds(positions, box, parameters):
    """Bonds, times a parameter."""
    energies, forces = bonds(positions)
    return parameters["scale"] * energies, parameters["scale"] * forces


def one_state(state):
    """The same for OpenMM, one state at a time."""
    positions = np.array(state.getPositions(asNumpy=True)._value)
    energies, forces = scaled_bonds.function(positions[None], None, state.getParameters())
    return energies[0], forces[0]


def in_a_box(state):
    """A potential that depends on the box."""
    positions = np.array(state.getPositions(asNumpy=True)._value)
    width = state.getPeriodicBoxVectors(asNumpy=True)._value[0, 0]
    return 10 * width * np.sum(positions**2), -20 * width * positions


@batched
def in_a_box_batched(positions, box, parameters):
    return 10 * box[0, 0] * np.sum(positions**2, axis=(1, 2)), -20 * box[0, 0] * positions


def system_of(*forces):
    system = openmm.System()
    for mass in MASSES:
        system.addParticle(mass)
    system.setDefaultPeriodicBoxVectors(*BOX)
    for force in forces:
        system.addForce(force)
    return system


def openmm_bonds():
    force = openmm.CustomBondForce("s*(1000*d^2-3000*d^3+6000*d^4); d=r-0.15")
    force.addGlobalParameter("s", 1.0)
    for pair in PAIRS:
        force.addBond(*pair, [])
    return force


def python_force(function, scale=1.0, **options):
    force = openmm.PythonForce(function, {"scale": scale}, **options)
    return force


def python_target(function):
    system = system_of(python_force(function))
    target = PythonForceTarget(system.getForce(0), POSITIONS)
    target.system = system  # owns the force
    return target


TARGETS = {
    "module": lambda: ModuleTarget(Bonds()),
    "one context": lambda: ContextTarget(system_of(openmm_bonds()), contexts=1),
    "three contexts": lambda: ContextTarget(system_of(openmm_bonds()), contexts=3),
    "contexts on CPU": lambda: ContextTarget(
        system_of(openmm_bonds()), platforms={"CPU": {}}, contexts=2
    ),
    "python function": lambda: python_target(one_state),
    "batched python function": lambda: python_target(scaled_bonds),
    "system": lambda: SystemTarget(system_of(openmm_bonds()), POSITIONS),
    "system of python force": lambda: SystemTarget(system_of(python_force(one_state)), POSITIONS),
}


def reference(states, *forces):
    return ForceContext(system_of(*(forces or (openmm_bonds(),))), REFERENCE).evaluate(states)


def assert_same(values, expected, digits=1e-9):
    for part, expected_part in zip(values, expected, strict=True):
        np.testing.assert_allclose(part, expected_part, rtol=digits, atol=1e-8)


@pytest.mark.parametrize("name", TARGETS)
def test_target_gives_what_the_context_gives(name):
    target = TARGETS[name]()
    digits = 1e-5 if name == "contexts on CPU" else 1e-9  # that platform computes in single
    before = STATES.copy()
    for count in (1, 2, 6):
        values = target.evaluate(STATES[:count])
        assert values[0].dtype == values[1].dtype == np.float64
        assert_same(values, reference(STATES[:count]), digits)
    target.prepare(POSITIONS, 6)
    assert_same(target.evaluate(STATES[::-1]), reference(STATES[::-1]), digits)
    assert np.array_equal(STATES, before)
    checks = validate_target(
        target, POSITIONS, MASSES, reference=lambda states: reference(states)[1]
    )
    assert len(checks) == 4 + 1 + 3 and all(check.worst <= check.allowed for check in checks)
    target.close()
    target.close()


@pytest.mark.parametrize("function", [one_state, scaled_bonds])
def test_python_force_parameters_and_groups(function):
    weak, strong = python_force(function), python_force(function, scale=1.0)
    strong.setForceGroup(3)
    system = system_of(weak, strong)
    both = SystemTarget(system, POSITIONS)
    one = SystemTarget(system, POSITIONS, groups=1 << 3)
    expected = reference(STATES)
    assert_same(one.evaluate(STATES), expected)
    for target, times in ((both, 2.0), (one, 1.0)):
        target.set_parameters({"scale": 2.5, "other": 1.0})
        assert_same(target.evaluate(STATES), tuple(2.5 * times * part for part in expected))
    assert (both.parts[0].batched is scaled_bonds) == (function is scaled_bonds)


@pytest.mark.parametrize("function", [in_a_box, in_a_box_batched])
def test_python_force_in_a_box(function):
    def force():
        result = openmm.PythonForce(function, {})
        result.setUsesPeriodicBoundaryConditions(True)
        return result

    target = SystemTarget(system_of(force()), POSITIONS)
    for width in (1.0, 1.7):
        box = width * BOX
        context = ForceContext(system_of(force()), REFERENCE)
        context.set_environment(box, {})
        assert_same(target.evaluate(STATES, box), context.evaluate(STATES))
    assert_same(target.evaluate(STATES), target.evaluate(STATES, BOX))


@pytest.mark.parametrize("function", [one_state, scaled_bonds])
def test_python_force_on_some_particles(function):
    def force():
        return openmm.PythonForce(springs_of(function), {"scale": 1.5}, [3, 1])

    def springs_of(kind):
        @batched
        def springs(positions, box, parameters):
            k = parameters["scale"] * np.array([[1.0], [2.0]])
            return np.sum(k * positions**2, axis=(1, 2)), -2 * k * positions

        if kind is scaled_bonds:
            return springs
        return lambda state: springs(state)

    target = SystemTarget(system_of(force()), POSITIONS)
    expected = reference(STATES, force())
    assert not expected[1][:, [0, 2]].any() and expected[1][:, [3, 1]].all()
    assert_same(target.evaluate(STATES), expected)


def test_batched_function_is_called_once_per_round(simulate):
    sizes = []

    @batched
    def counting(positions, box, parameters):
        sizes.append(len(positions))
        return bonds(positions)

    system = system_of(openmm.PythonForce(counting, {}))
    simulation = simulate(system, lsd(), POSITIONS, VELOCITIES)
    simulation.step(1)
    sizes.clear()
    rounds = simulation.integrator.statistics.rounds
    simulation.step(40)
    assert sizes == [simulation.integrator._window] * (
        simulation.integrator.statistics.rounds - rounds
    )


def test_batched_function_can_be_pickled_by_name():
    import pickle

    assert pickle.loads(pickle.dumps(scaled_bonds)) is scaled_bonds


def test_unpicklable_python_force_runs_beside_other_forces(simulate):
    """Forces that cannot be copied stay in the user's System."""
    scale = 0.5
    system = system_of(
        openmm.PythonForce(
            lambda state: (
                np.multiply(scale, one_state(state)[0])
                and (scale * one_state(state)[0], scale * one_state(state)[1])
            ),
            {"scale": 1.0},
        ),
        openmm_bonds(),
    )
    simulation = simulate(system, lsd(), POSITIONS, VELOCITIES)
    simulation.step(20)
    assert simulation.currentStep == 20


def test_error_in_a_python_function_is_named(simulate, state_of):
    calls = []

    def failing(state):
        calls.append(state)
        if len(calls) > 40:
            raise RuntimeError("no convergence in the basement")
        return one_state(state)

    system = system_of(openmm.PythonForce(failing, {"scale": 1.0}))
    simulation = simulate(system, lsd(), POSITIONS, VELOCITIES)
    with pytest.raises(TargetError, match="basement"):
        simulation.step(200)
    assert simulation.currentStep == simulation.integrator.statistics.steps - len(
        simulation.integrator._binding.sampler._queue
    )


def test_module_that_gives_forces_and_takes_a_box():
    class InABox(torch.nn.Module):
        def forward(self, positions, box):
            energies = 10 * box[0, 0] * positions.pow(2).sum(dim=(1, 2))
            return energies, -20 * box[0, 0] * positions

    target = ModuleTarget(InABox(), periodic=True)
    expected = in_a_box_batched.function(STATES, BOX, {})
    assert_same(target.evaluate(STATES, BOX), expected)
    with pytest.raises(ValueError, match="no box"):
        target.evaluate(STATES)


def test_module_runs_in_its_own_precision():
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float32))

        def forward(self, positions):
            assert positions.dtype == torch.float32
            return self.scale * positions.pow(2).sum(dim=(1, 2))

    module = Scaled()
    values = ModuleTarget(module).evaluate(STATES)
    np.testing.assert_allclose(values[1], -4 * STATES, rtol=1e-6)
    assert module.scale.grad is None


@pytest.mark.parametrize("name", TARGETS)
def test_dynamics_is_that_of_the_system(name, simulate, state_of):
    """The same trajectory to rounding, whichever form the target has."""
    states = []
    for target in (None, TARGETS[name]()):
        simulation = simulate(system_of(openmm_bonds()), lsd(target=target), POSITIONS, VELOCITIES)
        simulation.step(30)
        states.append(state_of(simulation))
    tolerance = 1e-4 if name == "contexts on CPU" else 1e-9
    np.testing.assert_allclose(states[1].positions, states[0].positions, atol=tolerance)


def out_of_memory_above(limit, sizes):
    def evaluate(positions, box):
        sizes.append(len(positions))
        if len(positions) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return bonds(positions)

    return Parts(evaluate, is_out_of_memory)


def test_out_of_memory_halves_the_batch_and_remembers(caplog):
    sizes = []
    evaluate = out_of_memory_above(2, sizes)
    states = np.concatenate([STATES, STATES])[:11]
    for _ in range(2):
        assert_same(evaluate(states), bonds(states))
    assert sizes == [11, 5, 2, 2, 2, 2, 2, 1, 2, 2, 2, 2, 2, 1]
    assert len(caplog.records) == 2 and "2 at a time" in caplog.text


TOO_MUCH = 10**15  # numbers


class HungryModule(torch.nn.Module):
    """Takes more memory than there is, if it is given more than two states."""

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        energies = 50.0 * positions.pow(2).sum(dim=(-2, -1))
        if positions.dim() == 3 and positions.size(0) > 2:
            energies = energies + torch.zeros(1000000000000000)[0]
        return energies


def hungry(positions, box, parameters):
    if len(positions) > 2:
        np.ones(TOO_MUCH)
    return 50.0 * np.sum(positions**2, axis=(1, 2)), -100.0 * positions


def hungry_with_torch(positions):
    if len(positions) > 2:
        torch.zeros(TOO_MUCH)
    return -100.0 * positions


def hungry_torch_force():
    target = TorchForceTarget(torch_force(HungryModule))
    target.plans[6] = Plan("batch", "scripted", 1, 1)
    return target


HUNGRY = {
    "module": lambda: ModuleTarget(HungryModule()),
    "function": lambda: FunctionTarget(hungry_with_torch),
    "batched python function": lambda: python_target(batched(hungry)),
    "torch force": hungry_torch_force,
}


@pytest.mark.parametrize("name", HUNGRY)
def test_the_machine_is_out_of_memory(caplog, name):
    """What numpy and torch raise for real; as on a device the batch is halved, once."""
    target = HUNGRY[name]()
    for _ in range(3):
        np.testing.assert_allclose(target.evaluate(STATES)[1], -100.0 * STATES, rtol=1e-12)
    assert caplog.text.count("do not fit into memory") == 2  # 6, 3, 1


def test_out_of_memory_while_plans_are_tried():
    """The batch that is right is kept, in parts, and not given up for states one by one."""
    target = TorchForceTarget(torch_force(HungryModule))
    target.prepare(POSITIONS, 6)
    assert target.plan(6).batching == "batch" and target._in_parts.largest == 1
    np.testing.assert_allclose(target.evaluate(STATES)[1], -100.0 * STATES, rtol=1e-12)


def test_other_errors_are_not_out_of_memory():
    for error in (RuntimeError("no memory of this"), ValueError("not enough memory"), KeyError(1)):
        assert not is_out_of_memory(error)
    assert is_out_of_memory(MemoryError())


def test_one_state_that_does_not_fit_is_an_error():
    with pytest.raises(torch.OutOfMemoryError):
        out_of_memory_above(0, [])(STATES)


def test_what_can_be_a_target():
    function = as_target(lambda positions: -positions)
    assert isinstance(function, FunctionTarget) and not function.gives_energies
    assert isinstance(as_target(Bonds()), ModuleTarget)
    target = ContextTarget(system_of(openmm_bonds()))
    assert as_target(target) is target and isinstance(target, BatchedTarget)
    with pytest.raises(TypeError, match="target is a int"):
        LSDIntegrator(300, 1, 0.001, system_of(), target=3)
    with pytest.raises(TypeError, match="not a torch"):
        ModuleTarget(lambda x: x)


def test_contexts_say_what_is_wrong():
    with pytest.raises(ValueError, match="contexts is 0"):
        ContextTarget(system_of(openmm_bonds()), contexts=0)
    with pytest.raises(openmm.OpenMMException, match="no platform can compute"):
        ContextTarget(system_of(openmm_bonds()), platforms={"Nonesuch": {}})


def test_import_needs_no_torch():
    """In a process of its own: nothing of the package imports torch by itself."""
    import subprocess

    code = "import sys, openmm_lsd, openmm_lsd.targets; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.split() == ["False"], result.stderr


def test_a_function_that_uses_a_batched_one_is_not_taken_for_it():
    """Twice the bonds is not the bonds."""

    def twice(state):
        energy, forces = scaled_bonds(state)
        return 2 * energy, 2 * forces

    target = SystemTarget(system_of(python_force(twice)), POSITIONS)
    assert target.parts[0].batched is None
    assert_same(target.evaluate(STATES), tuple(2 * part for part in reference(STATES)))


def test_slow_layouts_are_tried_once(monkeypatch):
    """A batch of each says enough, where it takes seconds."""
    counts = []
    run = ContextTarget._run

    def watched(self, layout, *arguments):
        counts.append(layout)
        return run(self, layout, *arguments)

    monkeypatch.setattr(ContextTarget, "_run", watched)
    monkeypatch.setattr(autotune, "_choices", {})
    monkeypatch.setattr(autotune, "LONG_TRIAL", 0.0)
    target = ContextTarget(
        system_of(openmm_bonds()), platforms={"Reference": {}, "CPU": {}}, cores=3
    )
    target.prepare(POSITIONS, 6)
    assert len(counts) == len(set(counts)) == 4
    assert target.layout(6) in counts
    assert_same(target.evaluate(STATES), reference(STATES), 1e-5)


def test_slow_torch_forces_are_tried_once(monkeypatch):
    """The batch that is right is taken, and not timed."""
    sizes = []
    run = TorchForceTarget._run

    def watched(self, plan, positions, box):
        sizes.append(len(positions))
        return run(self, plan, positions, box)

    monkeypatch.setattr(TorchForceTarget, "_run", watched)
    monkeypatch.setattr(torchforce, "SLOW", 0.0)
    target = TorchForceTarget(torch_force(Bonds))
    target.prepare(POSITIONS, 4)
    assert sizes == [4, 4]
    assert target.plan(4).batching == "batch" and target.plan(1).batching == "loop"
    assert_same(target.evaluate(STATES[:4]), reference(STATES[:4]))


def test_a_form_follows_new_parameters_of_its_force(monkeypatch):
    """Of a Force that can have them, the part is made anew."""

    class Springs(FunctionTarget):
        def __init__(self, force, settings):
            constant = force.getParticleParameters(0)[1][0]
            super().__init__(lambda positions: -constant * positions)

    def of_force(force, settings):
        return Springs(force, settings) if force.getName() == "CustomExternalForce" else None

    monkeypatch.setattr("openmm_lsd.targets.system.FORMS", (of_force,))
    force = openmm.CustomExternalForce("0.5*k*(x*x+y*y+z*z)")
    force.addPerParticleParameter("k")
    for index in range(4):
        force.addParticle(index, [10.0])
    target = SystemTarget(system_of(force), POSITIONS)
    np.testing.assert_allclose(target.evaluate(STATES)[1], -10.0 * STATES)
    for index in range(4):
        force.setParticleParameters(index, index, [20.0])
    target.refresh([force])
    np.testing.assert_allclose(target.evaluate(STATES)[1], -20.0 * STATES)


# Parts of a batch


def timed(seconds, sizes):
    """A function whose batch of B states takes ``seconds(B)``; notes B."""

    def compute(positions):
        sizes.append(len(positions))
        time.sleep(seconds(len(positions)))
        return np.multiply.outer(positions.sum(axis=(1, 2)), np.ones(positions.shape[1:]))

    return compute


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (lambda count: 0.002 * count * max(1, count / 4), [4, 4, 4, 4]),  # slow beyond four
        (lambda count: 0.004 * count, [16]),
        (lambda count: 0.01, [16]),
    ],
    ids=["slow if large", "proportional", "the same"],
)
def test_batches_are_divided_where_that_is_faster(seconds, expected):
    sizes = []
    function = timed(seconds, sizes)
    states = np.random.default_rng(2).standard_normal((16, 5, 3))
    model = str(expected) + str(seconds(1))
    for tries in (8, 0):  # what was chosen once is taken
        parts = Parts(lambda q, box: (np.zeros(len(q)), function(q)), is_out_of_memory)
        del sizes[:]
        parts.prepare(states[0], 16, None, model)
        assert sizes.count(16) <= tries
        del sizes[:]
        forces = parts(states)[1]
        assert sizes == expected
    np.testing.assert_array_equal(forces, timed(lambda count: 0.0, [])(states))
    del sizes[:]
    parts(states[:7])  # nothing is known of these
    assert sizes == [7]


def slow_if_large(sizes):
    return timed(lambda count: 0.002 * count * max(1, count / 4), sizes)


def as_function(sizes):
    return FunctionTarget(slow_if_large(sizes)), np.zeros((5, 3))


def as_batched_python_force(sizes):
    function = slow_if_large(sizes)

    @batched
    def compute(positions, box, parameters):
        return np.zeros(len(positions)), function(positions)

    force = openmm.PythonForce(compute, {})
    force.setParticles([0, 2, 4, 5])
    return PythonForceTarget(force, np.zeros((6, 3))), np.zeros((6, 3))


@pytest.mark.parametrize("make", [as_function, as_batched_python_force])
def test_functions_of_users_get_batches_in_parts(make):
    sizes = []
    target, positions = make(sizes)
    target.prepare(positions, 16)
    del sizes[:]
    states = np.random.default_rng(2).standard_normal((16, *positions.shape))
    times = Times(0.1 * np.arange(16), np.arange(16))
    forces = target.evaluate_at(states, None, times)[1]
    assert sizes == [4, 4, 4, 4]
    np.testing.assert_array_equal(forces, make([])[0].evaluate_at(states, None, times)[1])


def never(*_):
    raise AssertionError("called")


def test_a_first_call_that_compiles_does_not_count(monkeypatch):
    monkeypatch.setattr(base, "LONG", 0.02)
    sizes = []
    function = timed(lambda count: 0.001 if len(sizes) > 1 else 0.05, sizes)
    target = FunctionTarget(function)
    target.prepare(np.zeros((3, 3)), 16)
    del sizes[:]
    target.evaluate(np.zeros((16, 3, 3)))
    assert sizes == [16]


def test_parts_may_be_given_in_the_same_array():
    forces = np.empty((2, 1, 3))

    def reuse(positions, box=None):
        forces[:] = positions
        return np.zeros(2), forces

    parts = Parts(reuse, is_out_of_memory)
    parts.largest = 2
    states = np.random.default_rng(1).standard_normal((6, 1, 3))
    np.testing.assert_array_equal(parts(states)[1], states)


def test_functions_are_told_apart():
    def scaled(factor):
        return lambda positions: factor * positions

    functions = [lambda x: x, lambda x: -x, functools.partial(timed, 1.0), np.sin, Springs().force]
    assert len(set(map(describe_function, functions))) == len(functions)
    # Whatever they do to what they are given, it takes as long.
    assert describe_function(scaled(1.0)) == describe_function(scaled(2.0))


class Springs:
    def force(self, positions):
        return -positions


def test_a_failure_while_parts_are_compared_is_left_for_later():
    def fails(positions, box):
        raise RuntimeError("not today")

    parts = Parts(fails, is_out_of_memory)
    parts.prepare(np.zeros((2, 3)), 8, None, "fails")
    later = Parts(never, is_out_of_memory)  # in another process, after a restart
    later.prepare(np.zeros((2, 3)), 8, None, "fails")
    with pytest.raises(RuntimeError, match="not today"):
        parts(np.zeros((8, 2, 3)))
