"""A target that fails or is interrupted costs no committed state."""

import sys

import numpy as np
import pytest
import torch
from particles import (
    THREE_POSITIONS,
    THREE_VELOCITIES,
    assert_close,
    external_force,
    lsd,
    soft_draft,
    spring_forces,
    springs,
    system_of_three,
    torch_force,
)

from openmm_lsd import TargetError, TargetMismatchError
from openmm_lsd.core import correctors, lessons, sampler, verifier, window
from openmm_lsd.drafts import nativeengine
from openmm_lsd.integrator.program import NOISE_STEP
from openmm_lsd.targets import BatchedTarget, FunctionTarget

WINDOW = 16


@pytest.fixture(autouse=True)
def nothing_is_prepared(monkeypatch):
    """The calls of a target are counted here; to compare parts of a batch takes calls as well."""
    monkeypatch.setattr(FunctionTarget, "prepare", BatchedTarget.prepare)


# A target of the wrong shape


@pytest.mark.parametrize(
    "target",
    [lambda x: spring_forces(x)[0], lambda x: spring_forces(x)[:, :2], lambda x: None],
    ids=["one state", "two atoms", "None"],
)
@pytest.mark.parametrize("forces", [(), (springs,)], ids=["no forces", "forces"])
def test_target_returns_the_wrong_shape(build_three, refused, target, forces):
    system = system_of_three(*(force() for force in forces))
    simulation = build_three(system, target=target)
    refused(simulation, (ValueError, RuntimeError), "shape")


# The target fails at a committed state


class Wall(torch.nn.Module):
    """Springs to the origin; the energy does not exist where x is above 0.5 nm."""

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        wall = (0.5 - positions[..., 0]).sqrt().sum(-1)
        return wall + 50.0 * positions.pow(2).sum(dim=(-2, -1))


class ErrorBehindWall(torch.nn.Module):
    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        if bool((positions.select(-1, 0) > 0.5).any()):
            raise RuntimeError("behind the wall")
        return 50.0 * positions.pow(2).sum(dim=(-2, -1))


def behind_wall(positions):
    forces = -100.0 * positions
    forces[positions[..., 0] > 0.5] = np.nan
    return forces


def error_behind_wall(positions):
    if (positions[..., 0] > 0.5).any():
        raise RuntimeError("behind the wall")
    return -100.0 * positions


def walled_system(module=None):
    """The springs of the modules and functions above, by themselves or as a module has them."""
    if module is not None:
        return system_of_three(torch_force(module))
    return system_of_three(external_force("50*(x^2+y^2+z^2)", 3))


WALLS = {
    "TorchForce, nan": (Wall, None),
    "TorchForce, error": (ErrorBehindWall, None),
    "callable, nan": (None, behind_wall),
    "callable, error": (None, error_behind_wall),
}
TOWARDS_WALL = np.array([[0.3, 0.0, 0.0], [0.1, 0.0, 0.0], [0.1, 0.1, 0.1]])
RUNNING = np.array([[0.0, 0.0, 0.0], [20.0, 0.0, 0.0], [0.0, 0.0, 0.0]])


@pytest.mark.parametrize("first", [0, 1000])
@pytest.mark.parametrize("kind", WALLS)
def test_target_fails_at_a_committed_state(build_cold, state_of, kind, first):
    """Atom 1 runs into the wall; the Context stays at the state in which it has arrived there."""
    module, target = WALLS[kind]
    start = {"positions": TOWARDS_WALL, "velocities": RUNNING}
    simulation = build_cold(
        walled_system(module), plain=False, **start, draft=soft_draft(), target=target
    )
    simulation.currentStep = first
    with pytest.raises(TargetError) as caught:
        simulation.step(60)
    state = state_of(simulation)
    assert 10 < state.step - first < 60
    np.testing.assert_allclose(state.time, 0.001 * (state.step - first), rtol=0, atol=1e-12)
    assert state.positions[1, 0] > 0.5
    assert np.isfinite(state.positions).all() and np.isfinite(state.velocities).all()
    assert f"step {state.step}" in str(caught.value)
    if "nan" in kind:
        assert caught.value.atom == 1
        assert "atom 1" in str(caught.value)
    else:
        assert "behind the wall" in str(caught.value)

    plain = build_cold(walled_system(module), plain=True, **start)
    plain.step(state.step - first - 1)
    assert state_of(plain).positions[1, 0] < 0.5  # the state before was sound
    plain.step(1)
    np.testing.assert_allclose(state.positions, state_of(plain).positions, rtol=0, atol=1e-9)

    with pytest.raises(TargetError):
        simulation.step(1)
    assert state_of(simulation).equals(state)
    simulation.context.setPositions(TOWARDS_WALL)
    simulation.context.setVelocities(-RUNNING)
    simulation.step(5)
    assert simulation.currentStep == state.step + 5


@pytest.mark.parametrize("kind", WALLS)
def test_target_fails_before_the_first_step(build_three, refused, kind):
    module, target = WALLS[kind]
    positions = TOWARDS_WALL + np.outer([0, 0, 1], [0.5, 0.0, 0.0])
    simulation = build_three(walled_system(module), positions=positions, target=target)
    if "error" in kind:
        refused(simulation, TargetError, "step 0", "behind the wall")
    elif module is not None:
        refused(simulation, TargetError, "step 0", "atom 2")
    else:  # here the System's own forces are sound
        refused(simulation, TargetMismatchError, "atom 2", "nan")


def test_error_of_the_moment(build_three, state_of):
    """A target that fails once: the run goes on as if nothing had been."""

    def run(failing):
        windows = 0

        def target(positions):
            nonlocal windows
            windows += len(positions) == WINDOW
            if failing and windows == 3:
                raise OSError("the other node does not answer")
            return spring_forces(positions)

        simulation = build_three(target=target)
        if failing:
            with pytest.raises(TargetError, match="the other node does not answer"):
                simulation.step(40)
            failing = False
        simulation.step(40 - simulation.currentStep)
        return state_of(simulation)

    assert run(True).equals(run(False))


# The target fails at a later site


def failing_from(row, how):
    """Target whose batches fail from ``row`` on, and a count of how often that was so."""
    failures = []

    def target(positions):
        # The batch is tried first, then state after state.
        if len(positions) == WINDOW:
            target.single = 0
            failures.append(how)
            if how == "error":
                raise RuntimeError("not in this window")
            forces = spring_forces(positions)
            forces[row:] = np.nan if how == "nan" else np.inf
            return forces
        if len(positions) == 1:
            target.single += 1
            if target.single > row:
                raise RuntimeError("not in this window")
        return spring_forces(positions)

    target.single = -np.inf  # before the first window nothing fails
    return target, failures


@pytest.mark.parametrize("scheme", ["middle", "aboba"])
@pytest.mark.parametrize("how", ["nan", "inf", "error"])
@pytest.mark.parametrize("row", [1, 2, 4])
def test_failure_at_a_later_site_ends_the_window(build_three, state_of, row, how, scheme):
    """The steps up to that site are those that would have been committed without the failure.

    Bit for bit: whether a site fails depends on the noise of the steps before it, so what becomes
    of that noise must not depend on the failure.
    """
    target, failures = failing_from(row, how)
    simulations = [build_three(target=each, scheme=scheme) for each in (spring_forces, target)]
    sound, failing = simulations
    for step in range(row):
        for simulation in simulations:
            simulation.step(1)
        assert state_of(failing).equals(state_of(sound))
        if step == 0:
            assert sound.integrator.statistics.steps > row  # the seed is such
            assert failing.integrator.statistics.steps == row
            assert failing.integrator.statistics.accepted == row
    failing.step(30)
    assert len(failures) > 30 // row


@pytest.mark.parametrize("how", ["nan", "error"])
def test_failures_at_later_sites_without_noise(build_cold, state_of, how):
    target, failures = failing_from(1, how)
    start = {"positions": THREE_POSITIONS, "velocities": THREE_VELOCITIES}
    states = []
    for plain in (False, True):
        simulation = build_cold(
            system_of_three(springs()), plain=plain, **start, draft=soft_draft(), target=target
        )
        simulation.step(30)
        states.append(state_of(simulation))
    assert_close(*states)
    assert len(failures) == 30


@pytest.mark.parametrize("target", [behind_wall, error_behind_wall])
def test_draft_that_runs_into_the_wall(build_cold, state_of, target):
    """The draft drives atoms to where the target does not exist; the target keeps them away."""
    draft = system_of_three(external_force("-4000*x", 3))
    start = TOWARDS_WALL + np.outer([1, 1, 1], [0.15, 0.0, 0.0])
    outside = 0

    def counted(positions):
        nonlocal outside
        outside += (positions[..., 0] > 0.5).any()
        return target(positions)

    states = []
    for plain in (False, True):
        simulation = build_cold(
            walled_system(),
            plain=plain,
            positions=start,
            velocities=THREE_VELOCITIES,
            draft=draft,
            target=counted,
            windowLength=64,
        )
        simulation.step(40)
        states.append(state_of(simulation))
    assert outside > 0
    np.testing.assert_allclose(states[0].positions, states[1].positions, rtol=0, atol=1e-9)
    assert states[0][2:] == states[1][2:]


# Interruptions


@pytest.fixture
def spring_states(build_three, state_of):
    """Function: the states after 0 to n steps of an undisturbed run."""

    def run(n):
        simulation = build_three(target=spring_forces)
        states = [state_of(simulation)]
        for _ in range(n):
            simulation.step(1)
            states.append(state_of(simulation))
        return states

    return run


@pytest.mark.parametrize("window", [1, 2, 3])
def test_interrupted_in_the_target(build_three, state_of, spring_states, window):
    windows = 0

    def target(positions):
        nonlocal windows
        windows += len(positions) == WINDOW
        if len(positions) == WINDOW and windows == window:
            raise KeyboardInterrupt
        return spring_forces(positions)

    expected = spring_states(40)
    simulation = build_three(target=target)
    with pytest.raises(KeyboardInterrupt):
        simulation.step(40)
    state = state_of(simulation)
    assert state.step < 40
    assert (state.step == 0) == (window == 1)
    assert state.equals(expected[state.step])
    simulation.step(40 - state.step)
    assert state_of(simulation).equals(expected[40])


def test_interrupted_while_forces_are_compared(build_three, state_of, spring_states):
    """Before the first step the Context is moved about to learn its forces."""
    interrupted = False

    def target(positions):
        nonlocal interrupted
        if not interrupted:
            interrupted = True
            raise KeyboardInterrupt
        return spring_forces(positions)

    simulation = build_three(target=target)
    before = state_of(simulation)
    with pytest.raises(KeyboardInterrupt):
        simulation.step(40)
    assert state_of(simulation).equals(before)
    simulation.step(40)
    assert state_of(simulation).equals(spring_states(40)[40])


def test_interrupted_anywhere_in_a_round(simulate, state_of):
    """At every line of a few rounds.

    The draft is equal to the target, so that the run does not depend on where windows begin: what
    is seen is a step that is lost or done twice, or the noise of one step used for another.
    """
    modules = (sampler, verifier, correctors, lessons, nativeengine, window)
    files = {module.__file__ for module in modules}
    functions = ("_round", "_keep", "verify", "commit", "draft", "next", "close_round", "of")
    place = ""

    def interrupt_at(line):
        count = 0

        def in_frame(frame, event, _):
            nonlocal count, place
            if event == "line":
                count += 1
                if count == line:
                    place = f"interrupted in {frame.f_code.co_name}, line {frame.f_lineno}"
                    raise KeyboardInterrupt
            return in_frame

        def trace(frame, event, _):
            code = frame.f_code
            return in_frame if code.co_filename in files and code.co_name in functions else None

        return trace

    system, draft = (system_of_three(springs()) for _ in range(2))
    integrator = lsd(300, 1, 0.002, draft, windowLength=3, randomNumberSeed=3, target=spring_forces)
    simulation = simulate(system, integrator)

    def restart():
        simulation.context.setPositions(THREE_POSITIONS)
        simulation.context.setVelocities(THREE_VELOCITIES)
        simulation.context.setTime(0)
        simulation.context.setStepCount(0)
        integrator.setGlobalVariableByName(NOISE_STEP, 0)

    restart()
    expected = [state_of(simulation)]
    for _ in range(12):
        simulation.step(1)
        expected.append(state_of(simulation))

    def assert_as_expected():
        state = state_of(simulation)
        wanted = expected[state.step]
        np.testing.assert_allclose(state.positions, wanted.positions, 0, 1e-9, err_msg=place)
        np.testing.assert_allclose(state.velocities, wanted.velocities, 0, 1e-6, err_msg=place)
        assert abs(state.time - wanted.time) < 1e-12

    for line in range(1, 1000):
        restart()
        before = sys.gettrace()
        sys.settrace(interrupt_at(line))
        try:
            simulation.step(7)
        except KeyboardInterrupt:
            interrupted = True
        else:
            interrupted = False
        finally:
            sys.settrace(before)
        if not interrupted:
            break
        assert simulation.currentStep < 7
        assert_as_expected()
        simulation.step(12 - simulation.currentStep)
        assert_as_expected()
    assert 50 < line < 999
