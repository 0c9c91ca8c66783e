"""Bad input is named before the first step; a target that fails costs no committed state."""

import sys

import numpy as np
import openmm
import pytest
import torch
from openmm import app, unit
from openmmtorch import TorchForce

import openmm_lsd.sampler
from openmm_lsd import LSDIntegrator, TargetError, TargetMismatchError

MASSES = [12.0, 16.0, 14.0]
POSITIONS = np.array([[0.0, 0.0, 0.0], [0.2, 0.0, 0.0], [0.0, 0.2, 0.1]])
VELOCITIES = np.random.default_rng(1).normal(0.0, 0.4, (3, 3))
STIFFNESS = 2000.0
COLD = 1e-20  # K: the noise moves an atom by less than 1e-13 nm
WINDOW = 16


def springs(stiffness=STIFFNESS):
    """A spring from each atom to its place in POSITIONS."""
    force = openmm.CustomExternalForce("0.5*k*((x-x0)^2+(y-y0)^2+(z-z0)^2)")
    for name in ("k", "x0", "y0", "z0"):
        force.addPerParticleParameter(name)
    for index, position in enumerate(POSITIONS):
        force.addParticle(index, [stiffness, *position])
    return force


def spring_forces(positions):
    return -STIFFNESS * (positions - POSITIONS)


def system_of(*forces, masses=MASSES):
    system = openmm.System()
    for mass in masses:
        system.addParticle(mass)
    for force in forces:
        system.addForce(force)
    return system


def periodic_system_of(*forces):
    bond = openmm.HarmonicBondForce()
    bond.setUsesPeriodicBoundaryConditions(True)
    return system_of(bond, springs(), *forces)


def with_constraint():
    system = system_of(springs())
    system.addConstraint(0, 1, 0.2)
    return system


def with_virtual_site():
    system = system_of(springs(), masses=[12.0, 16.0, 0.0])
    system.setVirtualSite(2, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5))
    return system


def lsd(target=None, temperature=300.0, **keywords):
    """With a draft that is 30 % too soft."""
    draft = system_of(springs(0.7 * STIFFNESS))
    keywords = {"randomNumberSeed": 3, "draftPlatform": "Reference", **keywords}
    return LSDIntegrator(temperature, 1.0, 0.001, draft, target=target, **keywords)


@pytest.fixture
def refused(state_of):
    """Function: step() raises an error that says ``words``, twice, and changes nothing."""

    def check(simulation, kind, *words):
        before = state_of(simulation)
        for _ in range(2):
            with pytest.raises(kind) as caught:
                simulation.step(5)
            for word in words:
                assert word in str(caught.value)
            assert state_of(simulation).equals(before)
        assert simulation.integrator.statistics.steps == before.step

    return check


# Arguments


BAD_NUMBERS = [0, -1.5, float("nan"), float("inf"), -float("inf")]
NUMBERS = {  # argument: place, setter, getter, unit, words
    "temperature": (0, "Temperature", unit.kelvin, "temperature"),
    "friction": (1, "Friction", unit.picosecond**-1, "friction"),
    "step size": (2, "StepSize", unit.picosecond, "stepSize"),
}


@pytest.mark.parametrize("value", BAD_NUMBERS)
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_must_be_positive_and_finite(name, value):
    place, suffix, in_unit, word = NUMBERS[name]
    integrator = lsd()
    before = getattr(integrator, f"get{suffix}")()
    for given in (value, value * in_unit):
        arguments = [300.0, 1.0, 0.001]
        arguments[place] = given
        with pytest.raises(ValueError, match=f"{word}.*must be positive"):
            LSDIntegrator(*arguments, system_of())
        with pytest.raises(ValueError, match=f"{word}.*must be positive"):
            getattr(integrator, f"set{suffix}")(given)
    assert getattr(integrator, f"get{suffix}")() == before


@pytest.mark.parametrize("value", [0, -3, 2.5, float("nan"), "16", None])
def test_window_must_be_a_positive_integer(value):
    with pytest.raises((ValueError, TypeError), match="windowLength") as caught:
        lsd(windowLength=value)
    assert str(value) in str(caught.value)


@pytest.mark.parametrize(
    "draft", [None, openmm.HarmonicBondForce(), "system.xml", 3, app.Topology()], ids=repr
)
def test_draft_must_be_a_system(draft):
    with pytest.raises(TypeError, match=f"draft is a {type(draft).__name__}.*openmm.System"):
        LSDIntegrator(300, 1, 0.001, draft)


@pytest.mark.parametrize("scheme", ["baoab", "Middle", "", None, 1])
def test_scheme_must_be_known(scheme):
    with pytest.raises(ValueError, match=r"scheme is .*'aboba'.*'middle'") as caught:
        lsd(scheme=scheme)
    assert repr(scheme) in str(caught.value)


@pytest.mark.parametrize("target", [3, "model.pt", system_of()], ids=["3", "str", "System"])
def test_target_must_be_callable(target):
    with pytest.raises(TypeError, match=f"target is a {type(target).__name__}.*callable"):
        lsd(target)


def test_draft_platform_must_exist():
    with pytest.raises(openmm.OpenMMException, match="Nonesuch"):
        lsd(draftPlatform="Nonesuch")
    with pytest.raises(TypeError, match=r"draftPlatform is a int.*openmm\.Platform"):
        lsd(draftPlatform=3)


def test_unknown_arguments_are_not_swallowed():
    with pytest.raises(TypeError, match="windowlength"):
        lsd(windowlength=8)


# Systems


BAROSTATS = {
    "MonteCarloBarostat": lambda: openmm.MonteCarloBarostat(1.0, 300.0),
    "MonteCarloAnisotropicBarostat": lambda: openmm.MonteCarloAnisotropicBarostat(
        openmm.Vec3(1, 1, 1), 300.0
    ),
    "MonteCarloMembraneBarostat": lambda: openmm.MonteCarloMembraneBarostat(
        1.0,
        0.0,
        300.0,
        openmm.MonteCarloMembraneBarostat.XYIsotropic,
        openmm.MonteCarloMembraneBarostat.ZFree,
    ),
    "MonteCarloFlexibleBarostat": lambda: openmm.MonteCarloFlexibleBarostat(1.0, 300.0),
}
UNSUPPORTED = {
    "constraints": (with_constraint, "1 constraint", "constraints=None"),
    "virtual site": (with_virtual_site, "particle 2", "virtual site", "without virtual sites"),
    "AndersenThermostat": (
        lambda: system_of(springs(), openmm.AndersenThermostat(300.0, 1.0)),
        "AndersenThermostat",
        "remove it",
    ),
    **{
        name: (
            lambda barostat=barostat: periodic_system_of(barostat()),
            "barostat",
            name,
            "remove it",
        )
        for name, barostat in BAROSTATS.items()
    },
}


def test_every_barostat_is_tried():
    barostats = {name for name in dir(openmm) if "Barostat" in name}
    assert barostats == {*BAROSTATS, "RPMDMonteCarloBarostat"}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_in_the_draft(name):
    system, *words = UNSUPPORTED[name]
    with pytest.raises(ValueError) as caught:
        LSDIntegrator(300, 1, 0.001, system())
    for word in ("draft", *words):
        assert word in str(caught.value)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_in_the_target(simulate, refused, name):
    system, *words = UNSUPPORTED[name]
    refused(simulate(system(), lsd(), POSITIONS, VELOCITIES), ValueError, "target", *words)


def add_barostat(system):
    system.addForce(openmm.MonteCarloBarostat(1, 300))


def add_thermostat(system):
    system.addForce(openmm.AndersenThermostat(300, 1))


def add_constraint(system):
    system.addConstraint(0, 1, 0.2)


def change_mass(system):
    system.setParticleMass(1, 15.0)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (add_barostat, "barostat"),
        (add_thermostat, "AndersenThermostat"),
        (add_constraint, "constraint"),
        (change_mass, "masses"),
    ],
)
def test_system_that_becomes_unfit_between_steps(simulate, state_of, change, word):
    simulation = simulate(periodic_system_of(), lsd(), POSITIONS, VELOCITIES)
    simulation.step(3)
    change(simulation.system)
    simulation.context.reinitialize(preserveState=True)
    before = state_of(simulation)
    assert before.step == 3
    for _ in range(2):
        with pytest.raises(ValueError, match=word):
            simulation.step(5)
        assert state_of(simulation).equals(before)


def test_particle_counts_differ(simulate, refused):
    target = system_of(masses=[*MASSES, 1.0])
    positions = np.vstack([POSITIONS, [[0.3, 0.3, 0.3]]])
    words = ("4 particles", "draft System 3", "same Topology")
    refused(simulate(target, lsd(), positions, positions), ValueError, *words)


def test_masses_differ(simulate, refused):
    target = system_of(springs(), masses=[12.0, 15.0, 13.0])
    simulation = simulate(target, lsd(), POSITIONS, VELOCITIES)
    words = ("2 particles", "particle 1", "15.0 amu in the target", "16.0 amu in the draft")
    refused(simulation, ValueError, *words)


def test_cm_motion_removers_of_two_frequencies(simulate, refused):
    target = system_of(springs(), openmm.CMMotionRemover(1), openmm.CMMotionRemover(3))
    simulation = simulate(target, lsd(), POSITIONS, VELOCITIES)
    refused(simulation, ValueError, "CMMotionRemover", "[1, 3]", "keep one")


# States


def test_unbound():
    with pytest.raises(openmm.OpenMMException, match="not bound to a context"):
        lsd().step(1)


def test_positions_never_set(simulate):
    simulation = simulate(system_of(springs()), lsd())
    with pytest.raises((openmm.OpenMMException, ValueError), match="ositions"):
        simulation.step(1)
    assert simulation.currentStep == 0
    simulation.context.setPositions(POSITIONS)
    simulation.step(1)
    assert simulation.currentStep == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["positions", "velocities"])
def test_state_that_is_not_finite(simulate, refused, name, value):
    state = {"positions": POSITIONS.copy(), "velocities": VELOCITIES.copy()}
    state[name][1, 2] = value
    simulation = simulate(system_of(springs()), lsd(), **state)
    refused(simulation, ValueError, name, "not finite", "atom 1", "set ")
    simulation.context.setPositions(POSITIONS)
    simulation.context.setVelocities(VELOCITIES)
    simulation.step(5)
    assert simulation.currentStep == 5


def test_positions_that_become_not_finite_between_steps(simulate, state_of):
    simulation = simulate(system_of(springs()), lsd(), POSITIONS, VELOCITIES)
    simulation.step(5)
    positions = POSITIONS.copy()
    positions[2, 0] = np.nan
    simulation.context.setPositions(positions)
    before = state_of(simulation)
    with pytest.raises(ValueError, match=r"not finite.*atom 2"):
        simulation.step(5)
    assert state_of(simulation).equals(before)


# A target of the wrong shape


@pytest.mark.parametrize(
    "target",
    [lambda x: spring_forces(x)[0], lambda x: spring_forces(x)[:, :2], lambda x: None],
    ids=["one state", "two atoms", "None"],
)
@pytest.mark.parametrize("forces", [(), (springs,)], ids=["no forces", "forces"])
def test_target_returns_the_wrong_shape(simulate, refused, target, forces):
    system = system_of(*(force() for force in forces))
    simulation = simulate(system, lsd(target), POSITIONS, VELOCITIES)
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
        return system_of(TorchForce(torch.jit.script(module().eval())))
    force = openmm.CustomExternalForce("50*(x^2+y^2+z^2)")
    for index in range(3):
        force.addParticle(index, [])
    return system_of(force)


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
def test_target_fails_at_a_committed_state(simulate, state_of, kind, first):
    """Atom 1 runs into the wall; the Context stays at the state in which it has arrived there."""
    module, target = WALLS[kind]
    integrator = lsd(target, COLD)
    simulation = simulate(walled_system(module), integrator, TOWARDS_WALL, RUNNING)
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

    plain = openmm.LangevinMiddleIntegrator(0, 1, 0.001)
    plain = simulate(walled_system(module), plain, TOWARDS_WALL, RUNNING)
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
def test_target_fails_before_the_first_step(simulate, refused, kind):
    module, target = WALLS[kind]
    positions = TOWARDS_WALL + np.outer([0, 0, 1], [0.5, 0.0, 0.0])
    simulation = simulate(walled_system(module), lsd(target), positions, VELOCITIES)
    if "error" in kind:
        refused(simulation, TargetError, "step 0", "behind the wall")
    elif module is not None:
        refused(simulation, TargetError, "step 0", "atom 2")
    else:  # here the System's own forces are sound
        refused(simulation, TargetMismatchError, "atom 2", "nan")


def test_error_of_the_moment(simulate, state_of):
    """A target that fails once: the run goes on as if nothing had been."""

    def run(failing):
        windows = 0

        def target(positions):
            nonlocal windows
            windows += len(positions) == WINDOW
            if failing and windows == 3:
                raise OSError("the other node does not answer")
            return spring_forces(positions)

        simulation = simulate(system_of(springs()), lsd(target), POSITIONS, VELOCITIES)
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

    return target, failures


@pytest.mark.parametrize("scheme", ["middle", "aboba"])
@pytest.mark.parametrize("how", ["nan", "inf", "error"])
@pytest.mark.parametrize("row", [1, 2, 4])
def test_failure_at_a_later_site_ends_the_window(simulate, state_of, row, how, scheme):
    """The steps up to that site are those that would have been committed without the failure.

    Bit for bit: whether a site fails depends on the noise of the steps before it, so what becomes
    of that noise must not depend on the failure.
    """
    target, failures = failing_from(row, how)
    simulations = [
        simulate(system_of(springs()), lsd(each, scheme=scheme), POSITIONS, VELOCITIES)
        for each in (spring_forces, target)
    ]
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
def test_failures_at_later_sites_without_noise(simulate, state_of, how):
    target, failures = failing_from(1, how)
    plain = openmm.LangevinMiddleIntegrator(0, 1, 0.001)
    states = []
    for integrator in (lsd(target, COLD), plain):
        simulation = simulate(system_of(springs()), integrator, POSITIONS, VELOCITIES)
        simulation.step(30)
        states.append(state_of(simulation))
    np.testing.assert_allclose(states[0].positions, states[1].positions, rtol=0, atol=1e-9)
    np.testing.assert_allclose(states[0].velocities, states[1].velocities, rtol=0, atol=1e-6)
    assert states[0][2:] == states[1][2:]
    assert len(failures) == 30


@pytest.mark.parametrize("target", [behind_wall, error_behind_wall])
def test_draft_that_runs_into_the_wall(simulate, state_of, target):
    """The draft drives atoms to where the target does not exist; the target keeps them away."""
    pushing = openmm.CustomExternalForce("-4000*x")
    for index in range(3):
        pushing.addParticle(index, [])
    draft = system_of(pushing)
    start = TOWARDS_WALL + np.outer([1, 1, 1], [0.15, 0.0, 0.0])
    outside = 0

    def counted(positions):
        nonlocal outside
        outside += (positions[..., 0] > 0.5).any()
        return target(positions)

    states = []
    for plain in (False, True):
        integrator = (
            openmm.LangevinMiddleIntegrator(0, 1, 0.001)
            if plain
            else LSDIntegrator(
                COLD, 1, 0.001, draft, target=counted, draftPlatform="Reference", windowLength=64
            )
        )
        simulation = simulate(walled_system(), integrator, start, VELOCITIES)
        simulation.step(40)
        states.append(state_of(simulation))
    assert outside > 0
    np.testing.assert_allclose(states[0].positions, states[1].positions, rtol=0, atol=1e-9)
    assert states[0][2:] == states[1][2:]


# Interruptions


@pytest.fixture
def spring_states(simulate, state_of):
    """Function: the states after 0 to n steps of an undisturbed run."""

    def run(n):
        simulation = simulate(system_of(springs()), lsd(spring_forces), POSITIONS, VELOCITIES)
        states = [state_of(simulation)]
        for _ in range(n):
            simulation.step(1)
            states.append(state_of(simulation))
        return states

    return run


@pytest.mark.parametrize("window", [1, 2, 3])
def test_interrupted_in_the_target(simulate, state_of, spring_states, window):
    windows = 0

    def target(positions):
        nonlocal windows
        windows += len(positions) == WINDOW
        if len(positions) == WINDOW and windows == window:
            raise KeyboardInterrupt
        return spring_forces(positions)

    expected = spring_states(40)
    simulation = simulate(system_of(springs()), lsd(target), POSITIONS, VELOCITIES)
    with pytest.raises(KeyboardInterrupt):
        simulation.step(40)
    state = state_of(simulation)
    assert state.step < 40
    assert (state.step == 0) == (window == 1)
    assert state.equals(expected[state.step])
    simulation.step(40 - state.step)
    assert state_of(simulation).equals(expected[40])


def test_interrupted_while_forces_are_compared(simulate, state_of, spring_states):
    """Before the first step the Context is moved about to learn its forces."""
    interrupted = False

    def target(positions):
        nonlocal interrupted
        if not interrupted:
            interrupted = True
            raise KeyboardInterrupt
        return spring_forces(positions)

    simulation = simulate(system_of(springs()), lsd(target), POSITIONS, VELOCITIES)
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
    file = openmm_lsd.sampler.__file__
    functions = ("_round", "_window_noise", "_cm_removals", "_verify", "_commit")
    functions += ("_next_corrections",)
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
            return in_frame if code.co_filename == file and code.co_name in functions else None

        return trace

    integrator = LSDIntegrator(
        300,
        1,
        0.002,
        system_of(springs()),
        windowLength=3,
        randomNumberSeed=3,
        draftPlatform="Reference",
        target=spring_forces,
    )
    simulation = simulate(system_of(springs()), integrator)

    def restart():
        simulation.context.setPositions(POSITIONS)
        simulation.context.setVelocities(VELOCITIES)
        simulation.context.setTime(0)
        simulation.context.setStepCount(0)
        integrator.setGlobalVariableByName("noiseStep", 0)

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
