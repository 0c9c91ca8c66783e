"""Odd and bad input by the thousand: a clear error that changes nothing, or a right run.

Every step of the state machine is judged on its own: given the state before it and the target's
forces there, which another Context is asked for, the new velocities say what the noise was and the
new positions follow from it, at any temperature and to the last digits. Near zero temperature
whole calls of ``step`` are compared with LangevinMiddleIntegrator, too.

    HYPOTHESIS_PROFILE=long pytest tests/test_fuzz.py     # some ten minutes
"""

import copy
import io
import math
import os
import pickle
import re
from typing import ClassVar

import numpy as np
import openmm
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from openmm import app, unit
from particles import REFERENCE, THREE_MASSES, THREE_POSITIONS, THREE_VELOCITIES, system_of

from openmm_lsd import LSDIntegrator
from openmm_lsd.core.errors import TargetError
from openmm_lsd.core.schemes import MOLAR_GAS_CONSTANT
from openmm_lsd.integrator.restart import RestartError
from openmm_lsd.targets import batched

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
COMMON = settings(
    deadline=None,
    database=None,
    derandomize=not LONG,
    print_blob=False,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink],
)
ARGUMENTS = settings(COMMON, max_examples=10_000 if LONG else 600)
RUNS = settings(COMMON, max_examples=1500 if LONG else 80)
EDITS = settings(COMMON, max_examples=2000 if LONG else 60, stateful_step_count=40)

COLD = 1e-14  # K: the noise moves an atom by less than 1e-10 nm in a call of step()
MASSES = np.array(THREE_MASSES)[:, None]
CM_REMOVAL = 2
KELVIN, PER_PS, PS = unit.kelvin, unit.picosecond**-1, unit.picosecond


# A System with all that can be edited


def springs(stiffness):
    """Group 0: springs to anchors in the nearest image, with a parameter of the Context."""
    force = openmm.CustomExternalForce("0.5*strength*k*periodicdistance(x,y,z,x0,y0,z0)^2")
    force.addGlobalParameter("strength", 1.0)
    for name in ("k", "x0", "y0", "z0"):
        force.addPerParticleParameter(name)
    for index, anchor in enumerate(THREE_POSITIONS):
        force.addParticle(index, [stiffness, *anchor])
    return force


def bond(stiffness):
    """Group 1."""
    force = openmm.HarmonicBondForce()
    force.addBond(0, 1, 0.2, stiffness)
    force.setUsesPeriodicBoundaryConditions(True)
    force.setForceGroup(1)
    return force


class Push:
    """Group 2: a constant force on all atoms, in Python, which fails when it is told to."""

    def __init__(self, takes_batches):
        self.failures = []
        function = self._states
        if takes_batches:
            function.__func__.__qualname__ = "Push._states"
        self.force = openmm.PythonForce(
            batched(function) if takes_batches else self._state, {"push": 0.0}
        )
        self.force.setForceGroup(2)

    def _states(self, positions, box, parameters):
        if self.failures:
            raise self.failures.pop()
        push = parameters["push"]
        return -push * positions.sum(axis=(1, 2)), np.full(positions.shape, push)

    def _state(self, state):
        positions = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
        energies, forces = self._states(positions[None], None, state.getParameters())
        return float(energies[0]), forces[0]


def target_of_three(push):
    return system_of(
        springs(2000.0),
        bond(5000.0),
        push.force,
        openmm.CMMotionRemover(CM_REMOVAL),
        masses=THREE_MASSES,
    )


def draft_of_three(softness=1.0):
    return system_of(springs(2000.0 * softness), bond(5000.0 * softness), masses=THREE_MASSES)


def simulation_of(system, integrator):
    topology = app.Topology()
    residue = topology.addResidue("X", topology.addChain())
    for index in range(3):
        topology.addAtom(f"C{index}", app.element.carbon, residue)
    simulation = app.Simulation(topology, system, integrator, REFERENCE)
    simulation.context.setPositions(THREE_POSITIONS)
    simulation.context.setVelocities(THREE_VELOCITIES)
    return simulation


# What is right


class Shown:
    """All that a Context shows."""

    def __init__(self, simulation):
        state = simulation.context.getState(positions=True, velocities=True, parameters=True)
        self.positions = np.array(state.getPositions(asNumpy=True)._value)
        self.velocities = np.array(state.getVelocities(asNumpy=True)._value)
        self.box = np.array(state.getPeriodicBoxVectors(asNumpy=True)._value)
        self.parameters = dict(state.getParameters())
        self.time = state.getTime()._value
        self.step = simulation.currentStep

    def assert_same(self, other):
        for name in ("positions", "velocities", "box"):
            np.testing.assert_array_equal(getattr(self, name), getattr(other, name), name)
        assert (self.time, self.step) == (other.time, other.step)
        np.testing.assert_equal(self.parameters, other.parameters)

    def put_into(self, simulation):
        context = simulation.context
        context.setPeriodicBoxVectors(*self.box)
        context.setPositions(self.positions)
        context.setVelocities(self.velocities)
        context.setTime(self.time)
        context.setStepCount(self.step)
        for name, value in self.parameters.items():
            context.setParameter(name, value)


class Judge:
    """Knows the scheme and, by a Context of its own, the target's forces; shares no code."""

    def __init__(self, scheme="middle", temperature=COLD, friction=1.0, step_size=0.001):
        self.scheme, self.temperature = scheme, temperature
        self.friction, self.step_size = friction, step_size
        self.groups = {0, 1, 2}
        integrator = openmm.LangevinMiddleIntegrator(0, friction, step_size)
        self.simulation = simulation_of(target_of_three(Push(False)), integrator)
        self.shown = Shown(self.simulation)

    def set(self, shown):
        """Stand where the other stands now."""
        self.shown = shown
        shown.put_into(self.simulation)

    def tell_integrator(self):
        self.simulation.integrator.setFriction(self.friction)
        self.simulation.integrator.setStepSize(self.step_size)
        self.simulation.integrator.setIntegrationForceGroups(self.groups)

    def forces(self, positions):
        context = self.simulation.context
        context.setPositions(positions)
        return context.getState(forces=True, groups=self.groups).getForces(asNumpy=True)._value

    def noise(self, after):
        """The noise of the step that led to ``after``, whose positions must be the scheme's."""
        before, h = self.shown, self.step_size
        a = np.exp(-self.friction * h)
        x, v = before.positions, before.velocities
        if before.step % CM_REMOVAL == 0:
            v = v - (MASSES * v).sum(axis=0) / MASSES.sum()
        if self.scheme == "middle":
            half = v + h * self.forces(x) / MASSES
            mean = a * half
            expected = x + 0.5 * h * (half + after.velocities)
        else:
            middle = x + 0.5 * h * v
            mean = a * v + 0.5 * (1 + a) * h * self.forces(middle) / MASSES
            expected = middle + 0.5 * h * after.velocities
        scale = 1 + max(np.abs(each).max() for each in (x, expected, h * v, h * after.velocities))
        np.testing.assert_allclose(after.positions, expected, rtol=0, atol=1e-13 * scale)
        assert (after.time, after.step) == (before.time + h, before.step + 1)
        variance = -MOLAR_GAS_CONSTANT * self.temperature * np.expm1(-2 * self.friction * h)
        self.set(after)
        return (after.velocities - mean) / np.sqrt(variance / MASSES)

    def compare_with_plain(self, after):
        """Whole calls of step(), near zero temperature."""
        n = after.step - self.shown.step
        self.simulation.step(n)
        plain = Shown(self.simulation)
        np.testing.assert_allclose(after.positions, plain.positions, rtol=0, atol=1e-9)
        np.testing.assert_allclose(after.velocities, plain.velocities, rtol=0, atol=1e-6)
        assert (after.time, after.step) == (plain.time, plain.step)
        self.set(after)


def assert_clear(error, *words):
    """An error that a user can act on, not one from the depths."""
    kinds = (TypeError, ValueError, TargetError, openmm.OpenMMException)
    assert isinstance(error, kinds), repr(error)
    text = str(error)
    assert not re.search(r"object of type|argument \d|wrong number|broadcast|ambiguous", text), text
    assert any(word in text for word in words), (words, text)


# Constructor

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**63, 10**400]),
    st.floats(),
    st.floats(0, 1e4),
    st.complex_numbers(),
    st.text(max_size=8),
    st.sampled_from(["300", "auto", "middle", "aboba", "Middle", "CPU", "Reference", "nan", "\0"]),
    st.binary(max_size=4),
    st.sampled_from([np.float32, np.float64, np.int32, np.int64, np.uint64, np.bool_]).flatmap(
        lambda kind: st.sampled_from([0, 1, 3]).map(kind)
    ),
    st.sampled_from([np.float32("nan"), np.float64("inf"), np.str_("middle"), np.str_("auto")]),
    st.lists(st.floats(0, 400), max_size=2),
    st.lists(st.floats(0, 400), max_size=2).map(np.array),
    st.floats(0, 400).map(np.array),
    st.builds(
        lambda value, in_unit: value * in_unit,
        st.one_of(st.floats(), st.floats(0, 400), st.integers(0, 400)),
        st.sampled_from(
            [KELVIN, PER_PS, PS, 1 / unit.nanosecond, unit.femtosecond, unit.nanometer, unit.mole]
        ),
    ),
    st.sampled_from(
        [{}, object(), type, openmm.System(), openmm.HarmonicBondForce(), app.Topology(), REFERENCE]
    ),
)
GOOD = {
    "temperature": 300.0,
    "frictionCoeff": 1.0,
    "stepSize": 0.001,
    "draft": "auto",
    "windowLength": 8,
    "scheme": "middle",
    "randomNumberSeed": 5,
    "draftPlatform": "Reference",
    "topology": None,
    "learning": None,
    "target": None,
}
NUMBERS = {  # argument: unit, getter, what an error says
    "temperature": (KELVIN, "getTemperature", "temperature"),
    "frictionCoeff": (PER_PS, "getFriction", "friction"),
    "stepSize": (PS, "getStepSize", "stepSize"),
}
GETTERS = (
    "getTemperature",
    "getFriction",
    "getStepSize",
    "getRandomNumberSeed",
    "getIntegrationForceGroups",
    "getConstraintTolerance",
)


def is_finite(value):
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def is_right(name, value):
    """Whether a value is one to be accepted; None: either will do."""
    if name in NUMBERS:
        if isinstance(value, unit.Quantity):
            if not value.unit.is_compatible(NUMBERS[name][0]):
                return False
            value = value.value_in_unit(NUMBERS[name][0])
        if isinstance(value, bool | np.bool_ | np.ndarray):
            return None if np.ndim(value) == 0 and value > 0 else False
        is_number = isinstance(value, int | float | np.number) and not np.iscomplexobj(value)
        return is_number and bool(value > 0) and is_finite(value)
    if name in ("windowLength", "randomNumberSeed"):
        if value is None:
            return name == "randomNumberSeed"
        if isinstance(value, str):
            return name == "windowLength" and value == "auto"
        if isinstance(value, bool | np.bool_ | np.ndarray):
            return None
        if not isinstance(value, int | np.integer):
            return False
        if name == "windowLength":
            return False if value < 1 else True if value <= 1000 else None
        return -(2**31) <= value < 2**31
    if name == "learning":
        return True if value is None or value is True else False if value is False else None
    if name == "scheme":
        return isinstance(value, str) and value in ("middle", "aboba")
    if name == "topology":
        return value is None or isinstance(value, app.Topology)
    if name == "draftPlatform":
        return (
            value is None or value in ("CPU", "Reference") or isinstance(value, openmm.Platform)
            if isinstance(value, str | openmm.Platform | None)
            else False
        )
    if name == "draft":
        return isinstance(value, openmm.System) or (isinstance(value, str) and value == "auto")
    return value is None or callable(value)


def assert_same_settings(one, other):
    for getter in GETTERS:
        assert getattr(one, getter)() == getattr(other, getter)(), getter


@ARGUMENTS
@given(st.sampled_from(list(GOOD)), ODD)
@pytest.mark.filterwarnings("error")
def test_arguments(name, value):
    right = is_right(name, value)
    try:
        integrator = LSDIntegrator(**{**GOOD, name: value})
    except Exception as error:
        assert not right, f"{name} = {value!r} was refused: {error!r}"
        word = NUMBERS[name][2] if name in NUMBERS else name
        assert_clear(error, word, *(["Platform"] if name == "draftPlatform" else []))
        return
    assert right in (True, None), f"{name} = {value!r} was accepted"
    for argument, (in_unit, getter, _) in NUMBERS.items():
        given_value = value if argument == name else GOOD[argument]
        if isinstance(given_value, unit.Quantity):
            given_value = given_value.value_in_unit(in_unit)
        assert getattr(integrator, getter)().value_in_unit(in_unit) == float(given_value)
    if name == "randomNumberSeed":
        assert integrator.getRandomNumberSeed() == (0 if value is None else value)
    clones = [copy.copy(integrator), copy.deepcopy(integrator)]
    if name != "target":
        clones.append(pickle.loads(pickle.dumps(integrator)))
    for clone in clones:
        assert type(clone) is LSDIntegrator
        assert_same_settings(clone, integrator)
        assert clone._recipe()[0]["windowLength"] == integrator._recipe()[0]["windowLength"]
        assert clone._recipe()[0]["scheme"] == integrator._recipe()[0]["scheme"]
    plain = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(integrator))
    assert plain.getStepSize() == integrator.getStepSize()
    for variable in ("lsd_temperature", "lsd_friction"):
        values = [each.getGlobalVariableByName(variable) for each in (plain, integrator)]
        assert values[0] == values[1]
    # The setters judge as the constructor does, and leave what was there if they refuse.
    before = LSDIntegrator(**GOOD)
    if name in NUMBERS or name == "randomNumberSeed":
        setter = {"frictionCoeff": "setFriction", "randomNumberSeed": "setRandomNumberSeed"}.get(
            name, f"set{name[0].upper()}{name[1:]}"
        )
        getattr(before, setter)(value)
        assert_same_settings(before, integrator)


@ARGUMENTS
@given(
    st.sampled_from(["setTemperature", "setFriction", "setStepSize", "setRandomNumberSeed"]), ODD
)
@pytest.mark.filterwarnings("error")
def test_setters(setter, value):
    integrator, before = LSDIntegrator(**GOOD), LSDIntegrator(**GOOD)
    name = {"setTemperature": "temperature", "setFriction": "frictionCoeff"}.get(
        setter, setter[3].lower() + setter[4:]
    )
    right = is_right(name, value)
    try:
        getattr(integrator, setter)(value)
    except Exception as error:
        assert not right, f"{name} = {value!r} was refused: {error!r}"
        assert_clear(error, NUMBERS[name][2] if name in NUMBERS else name)
        assert_same_settings(integrator, before)
    else:
        assert right in (True, None), f"{name} = {value!r} was accepted"


POSITIVE = st.floats(0, exclude_min=True, allow_infinity=False)


@RUNS
@given(
    st.one_of(st.just(300.0), POSITIVE),
    st.one_of(st.just(1.0), POSITIVE),
    st.one_of(st.just(0.001), POSITIVE),
    st.sampled_from([1, 3, 8]),
    st.sampled_from(["middle", "aboba"]),
)
def test_whatever_is_accepted_runs_right(temperature, friction, step_size, window, scheme):
    """Or is refused, or leads to states that the target cannot take, which is said."""
    integrator = LSDIntegrator(
        temperature,
        friction,
        step_size,
        draft_of_three(0.7),
        windowLength=window,
        scheme=scheme,
        randomNumberSeed=3,
        draftPlatform="Reference",
    )
    simulation = simulation_of(target_of_three(Push(False)), integrator)
    judge = Judge(scheme, temperature, friction, step_size)
    for _ in range(4):
        try:
            simulation.step(1)
        except Exception as error:
            assert_clear(error, "target", "finite", "underflow", "too small", "too large")
            return
        after = Shown(simulation)
        if not (np.isfinite(after.positions).all() and np.isfinite(after.velocities).all()):
            continue  # to be said before the next step
        with np.errstate(all="ignore"):
            if np.abs(after.positions).max() > 1e6:
                return
            judge.noise(after)


# Edits of a Simulation

SMALL = st.floats(-1, 1)
VECTORS = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).normal(size=(3, 3))
)
BAD = st.sampled_from([np.nan, np.inf, -np.inf])


class Editing(RuleBasedStateMachine):
    """A run with LSDIntegrator under all kinds of edits, and its judge."""

    noises: ClassVar[list] = []  # of all steps at warm temperatures

    @initialize(
        draft=st.sampled_from(["same", "soft", "soft, learning", "auto"]),
        window=st.sampled_from([1, 3, 8, 16, "auto"]),
        scheme=st.sampled_from(["middle", "middle", "aboba"]),
        seed=st.integers(0, 2**31 - 1),
        takes_batches=st.booleans(),
        temperature=st.sampled_from([COLD, 300.0]),
    )
    def begin(self, draft, window, scheme, seed, takes_batches, temperature):
        self.push = Push(takes_batches)
        self.window, self.given_seed = window, seed
        self.integrator = LSDIntegrator(
            temperature,
            1.0,
            0.001,
            "auto" if draft == "auto" else draft_of_three(1.0 if draft == "same" else 0.7),
            windowLength=window,
            scheme=scheme,
            randomNumberSeed=seed,
            draftPlatform="Reference",
            learning="learning" in draft or draft == "auto",
        )
        self.simulation = simulation_of(target_of_three(self.push), self.integrator)
        self.context = self.simulation.context
        self.judge = Judge(scheme, temperature)
        self.saved = []

    @invariant()
    def shows_what_it_should(self):
        if hasattr(self, "judge"):
            Shown(self.simulation).assert_same(self.judge.shown)

    def edited(self):
        """The edit was right, and the judge learns of it."""
        self.judge.set(Shown(self.simulation))

    def refused(self, call, *words, kinds=Exception):
        """Raises an error that says one of the words, and changes nothing."""
        before = Shown(self.simulation)
        with pytest.raises(kinds) as caught:
            call()
        Shown(self.simulation).assert_same(before)
        assert_clear(caught.value, *words)

    # Steps

    def steps(self, n):
        """Up to n steps, each or all together judged; returns the error that came, if any."""
        judge, error = self.judge, None
        if judge.temperature == COLD and judge.scheme == "middle":
            try:
                self.simulation.step(n)
            except (TargetError, KeyboardInterrupt) as caught:
                error = caught
            after = Shown(self.simulation)
            assert 0 <= after.step - judge.shown.step <= n
            assert error is not None or after.step - judge.shown.step == n
            judge.compare_with_plain(after)
            return error
        for _ in range(n):
            try:
                self.simulation.step(1)
            except (TargetError, KeyboardInterrupt) as caught:
                Shown(self.simulation).assert_same(judge.shown)
                return caught
            noise = judge.noise(Shown(self.simulation))
            if judge.temperature > COLD:
                assert (noise**2).sum() < 75, noise  # 1e-12 of chi square, 9 degrees of freedom
                self.noises.append(noise)
        return error

    @rule(n=st.integers(1, 20))
    def step(self, n):
        assert self.steps(n) is None

    @rule(n=st.sampled_from([0, -3, np.int64(0), np.int32(-1), -(10**30), False]))
    def step_by_none(self, n):
        self.simulation.step(n)
        self.integrator.step(n)

    @rule(n=st.sampled_from([2.5, "3", None, np.float64(2.2), [1], 1j, 3 * PS, np.ones(2)]))
    def step_by_nonsense(self, n):
        self.refused(lambda: self.integrator.step(n), "whole number")

    @rule(n=st.sampled_from([np.int64(3), np.uint8(2), True, np.array(2), 3.0, np.float64(2)]))
    def step_by_numpy(self, n):
        error = self.steps(1)
        assert error is None
        for _ in range(int(n)):
            self.integrator.step(np.int64(1))
            after = Shown(self.simulation)
            self.judge.noise(after)

    @rule(n=st.integers(1, 12))
    @precondition(lambda self: self.window != "auto")
    def replay(self, n):
        checkpoint = self.context.createCheckpoint()
        before = Shown(self.simulation)
        assert self.steps(n) is None
        first = Shown(self.simulation)
        noises = len(self.noises)
        self.context.loadCheckpoint(checkpoint)
        Shown(self.simulation).assert_same(before)
        self.judge.set(before)
        assert self.steps(n) is None
        del self.noises[noises:]  # they are the same
        Shown(self.simulation).assert_same(first)

    @rule(
        n=st.integers(1, 12),
        times=st.integers(1, 4),
        error=st.sampled_from([ValueError("broken"), KeyboardInterrupt(), MemoryError("full")]),
    )
    def target_fails(self, n, times, error):
        self.push.failures = [error] * times
        caught = self.steps(n)
        self.push.failures = []
        if isinstance(caught, TargetError):
            assert_clear(caught, "target")

    # Edits

    @rule(noise=VECTORS, scale=st.sampled_from([0, 0.001, 0.02]), images=VECTORS, far=SMALL)
    def positions(self, noise, scale, images, far):
        positions = self.judge.shown.positions + scale * noise
        if far > 0.7:
            positions = positions + np.rint(images) @ self.judge.shown.box
        if far > 0.99:
            positions = positions + 1000.0
        self.context.setPositions(positions)
        self.edited()

    @rule(noise=VECTORS, scale=st.sampled_from([0, 0.1, 1.0]))
    def velocities(self, noise, scale):
        self.context.setVelocities(scale * noise)
        self.edited()

    @rule(which=st.sampled_from(["Positions", "Velocities"]), value=BAD, atom=st.integers(0, 2))
    def not_finite(self, which, value, atom):
        good = getattr(self.judge.shown, which.lower())
        bad = good.copy()
        bad[atom, 1] = value
        getattr(self.context, f"set{which}")(bad)
        self.refused(lambda: self.simulation.step(3), f"atom {atom}", kinds=ValueError)
        getattr(self.context, f"set{which}")(good)

    @rule(
        which=st.sampled_from(["setPositions", "setVelocities"]),
        value=st.sampled_from(
            [[], np.zeros((2, 3)), np.zeros((4, 3)), np.zeros(9), None, "x", 1.0]
        ),
    )
    def wrong_shapes(self, which, value):
        before = Shown(self.simulation)
        with pytest.raises((openmm.OpenMMException, TypeError, ValueError, IndexError)):
            getattr(self.context, which)(value)  # OpenMM's own
        Shown(self.simulation).assert_same(before)

    @rule(temperature=st.sampled_from([0, 1, 300, 600]), seed=st.integers(0, 2**31 - 1))
    def velocities_to_temperature(self, temperature, seed):
        self.context.setVelocitiesToTemperature(temperature, seed)
        self.edited()

    @rule(strength=st.floats(0.2, 3))
    def strength(self, strength):
        self.context.setParameter("strength", strength)
        self.edited()

    @rule(push=st.floats(-50, 50))
    def pushed(self, push):
        self.context.setParameter("push", push)
        self.edited()

    @rule(name=st.sampled_from(["strength", "push"]), value=BAD)
    def parameter_not_finite(self, name, value):
        self.context.setParameter(name, value)
        if (0 if name == "strength" else 2) in self.judge.groups:
            self.refused(lambda: self.simulation.step(2), "target", kinds=TargetError)
        self.context.setParameter(name, self.judge.shown.parameters[name])

    @rule(name=st.sampled_from(["nonesuch", "", "k"]))
    def no_such_parameter(self, name):
        self.refused(lambda: self.context.setParameter(name, 1.0), "parameter")

    @rule(
        lengths=st.tuples(*[st.floats(0.9, 4)] * 3),
        tilts=st.tuples(*[st.floats(-0.4, 0.4)] * 3),
        shear=st.booleans(),
    )
    def box(self, lengths, tilts, shear):
        box = np.diag(lengths)
        if shear:
            box[1, 0], box[2, 0] = tilts[0] * lengths[0], tilts[1] * lengths[0]
            box[2, 1] = tilts[2] * lengths[1]
        self.context.setPeriodicBoxVectors(*box)
        self.edited()

    @rule(
        box=st.sampled_from(
            [
                np.zeros((3, 3)),
                -np.eye(3),
                np.ones((3, 3)),
                np.array([[1, 0, 0], [2, 1, 0], [0, 0, 1]]),
            ]
        )
    )
    def bad_box(self, box):
        self.refused(lambda: self.context.setPeriodicBoxVectors(*box), "eriodic box")

    @rule(time=st.floats(-10, 1e6), count=st.integers(-5, 10**6), how=st.integers(0, 2))
    def time(self, time, count, how):
        if how == 0:
            self.context.setTime(time)
        elif how == 1:
            self.context.setStepCount(count)
        else:
            self.simulation.currentStep = count
        self.edited()

    @rule(temperature=st.sampled_from([COLD, COLD, 300.0, 1000.0]))
    def temperature(self, temperature):
        self.integrator.setTemperature(temperature)
        self.judge.temperature = temperature

    @rule(friction=st.floats(0.05, 50))
    def friction(self, friction):
        self.integrator.setFriction(friction / PS)
        self.judge.friction = self.integrator.getFriction().value_in_unit(PER_PS)
        self.judge.tell_integrator()

    @rule(step_size=st.floats(0.2, 2))
    def step_size(self, step_size):
        self.integrator.setStepSize(step_size * unit.femtosecond)
        self.judge.step_size = self.integrator.getStepSize().value_in_unit(PS)
        self.judge.tell_integrator()

    @rule(seed=st.integers(-(2**31), 2**31 - 1))
    def seed(self, seed):
        self.integrator.setRandomNumberSeed(seed)
        self.given_seed = seed

    @rule(
        setter=st.sampled_from(["setTemperature", "setFriction", "setStepSize"]),
        value=st.sampled_from([0, -1, np.nan, np.inf]),
    )
    def bad_settings(self, setter, value):
        self.refused(lambda: getattr(self.integrator, setter)(value), "positive", kinds=ValueError)

    @rule(groups=st.sampled_from([{0, 1, 2}, {0}, {0, 1}, {2}, {0, 2, 31}]))
    def groups(self, groups):
        self.integrator.setIntegrationForceGroups(groups)
        self.judge.groups = groups
        self.judge.tell_integrator()

    def _both(self, change):
        for simulation in (self.simulation, self.judge.simulation):
            change(simulation)

    @rule(stiffness=st.floats(500, 4000), atom=st.integers(0, 2))
    def update_springs(self, stiffness, atom):
        def change(simulation):
            force = simulation.system.getForce(0)
            force.setParticleParameters(atom, atom, [stiffness, *THREE_POSITIONS[atom]])
            force.updateParametersInContext(simulation.context)

        self._both(change)

    @rule(stiffness=st.floats(500, 8000), length=st.floats(0.1, 0.3))
    def update_bond(self, stiffness, length):
        def change(simulation):
            force = simulation.system.getForce(1)
            force.setBondParameters(0, 0, 1, length, stiffness)
            force.updateParametersInContext(simulation.context)

        self._both(change)

    @rule(stiffness=st.floats(500, 4000))
    def reinitialize(self, stiffness):
        def change(simulation):
            simulation.system.getForce(1).setBondParameters(0, 0, 1, 0.2, stiffness)
            simulation.context.reinitialize(preserveState=True)

        self._both(change)

    @rule()
    def reinitialize_without_state(self):
        self._both(lambda simulation: simulation.context.reinitialize(preserveState=False))
        self.refused(lambda: self.simulation.step(2), "ositions")
        self.context.setPositions(THREE_POSITIONS)
        self.edited()

    @rule()
    @precondition(lambda self: 0 in self.judge.groups)  # a constant push has no minimum
    def minimize(self):
        self.simulation.minimizeEnergy(maxIterations=3)
        self.edited()

    @rule()
    def energies(self):
        energies = []
        for simulation in (self.simulation, self.judge.simulation):
            state = simulation.context.getState(energy=True, forces=True, groups={0, 1, 2})
            energies.append(state.getPotentialEnergy()._value)
            energies.append(state.getForces(asNumpy=True)._value)
        np.testing.assert_allclose(energies[0], energies[2], rtol=1e-9, atol=1e-6)
        np.testing.assert_allclose(energies[1], energies[3], rtol=1e-9, atol=1e-6)

    @rule(how=st.integers(0, 3))
    def copies(self, how):
        clone = (
            copy.copy,
            copy.deepcopy,
            lambda each: pickle.loads(pickle.dumps(each)),
            lambda each: openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(each)),
        )[how](self.integrator)
        assert_same_settings(clone, self.integrator) if how < 3 else None

    # Saving and loading

    @rule(kind=st.sampled_from(["Checkpoint", "State"]))
    def save(self, kind):
        file = io.BytesIO() if kind == "Checkpoint" else io.StringIO()
        getattr(self.simulation, f"save{kind}")(file)
        self.saved.append((kind, file.getvalue(), Shown(self.simulation), self.given_seed))

    def _load(self, kind, data):
        file = io.BytesIO(data) if kind == "Checkpoint" else io.StringIO(data)
        getattr(self.simulation, f"load{kind}")(file)

    @rule(data=st.data())
    @precondition(lambda self: self.saved)
    def load(self, data):
        kind, content, shown, seed = data.draw(st.sampled_from(self.saved))
        if seed != self.given_seed and kind == "Checkpoint":
            self.refused(lambda: self._load(kind, content), "randomNumberSeed", kinds=RestartError)
            return
        self._load(kind, content)
        Shown(self.simulation).assert_same(shown)
        self.edited()

    @rule(
        data=st.data(),
        how=st.sampled_from(["cut", "flip", "flip", "extend", "empty", "insert", "swap"]),
        place=st.floats(0, 1, exclude_max=True),
        byte=st.integers(1, 127),
    )
    @precondition(lambda self: self.saved)
    def load_damaged(self, data, how, place, byte):
        kind, content, *_ = data.draw(st.sampled_from(self.saved))
        raw = content if kind == "Checkpoint" else content.encode()
        at = int(place * len(raw))
        other = raw[at] ^ byte if kind == "Checkpoint" else byte
        damaged = {
            "cut": raw[:at],
            "flip": raw[:at] + bytes([other]) + raw[at + 1 :],
            "extend": raw + bytes([byte]) * (1 + at % 100),
            "empty": b"",
            "insert": raw[:at] + bytes([byte]) + raw[at:],
            "swap": raw[at:] + raw[:at],
        }[how]
        if damaged == raw:
            return
        before = Shown(self.simulation)
        try:
            self._load(kind, damaged if kind == "Checkpoint" else damaged.decode())
        except Exception as error:
            kinds = (RestartError, openmm.OpenMMException, ValueError)
            assert isinstance(error, kinds) and str(error), repr(error)
            Shown(self.simulation).assert_same(before)
            return
        # A digit of a State, which OpenMM reads as another state.
        assert kind == "State", f"a damaged checkpoint was loaded ({how})"
        after = Shown(self.simulation)
        if np.abs(after.positions).max() > 100 or np.abs(after.velocities).max() > 100:
            before.put_into(self.simulation)
        else:
            self.edited()


def test_edits():
    Editing.noises = []
    run_state_machine_as_test(Editing, settings=EDITS)
    # The bath is right, too: mean and mean square of all noise; 5 standard errors.
    noise = np.unique(np.array(Editing.noises).round(12).reshape(-1, 9), axis=0).ravel()
    assert len(noise) > 300  # how many there are is a matter of luck
    assert abs(noise.mean()) < 5 / np.sqrt(len(noise))
    assert abs((noise**2).mean() - 1) < 5 * np.sqrt(2 / len(noise))


def update_springs(machine):
    machine.update_springs(20_000.0, 1)


def set_a_parameter(machine):
    machine.context.setParameter("push", 500.0)


def set_the_parameter_back(machine):
    machine.context.setParameter("push", 0.0)


@pytest.mark.parametrize(
    ("edit", "then"), [(update_springs, lambda _: None), (set_a_parameter, set_the_parameter_back)]
)
def test_target_fails_right_after_an_edit(edit, then):
    """What the check of the new target left undone is done at the next step."""
    machine = Editing()
    machine.begin("soft", 8, "middle", 3, False, COLD)
    machine.step(5)
    edit(machine)
    machine.push.failures = [ValueError("a hiccup")]
    with pytest.raises(TargetError, match="hiccup"):
        machine.simulation.step(5)
    then(machine)
    machine.shows_what_it_should()
    machine.step(20)
