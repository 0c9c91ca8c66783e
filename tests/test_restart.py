"""Restarts to the bit: killed processes and checkpoints; and what is refused. For States see
test_states.py."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import openmm
import pytest
import restarting
from openmm import app, unit
from particles import PLATFORM, needs_bits
from restarting import COUNT, DRAFTS, barostat, build, digest

import openmm_lsd.integrator.restart
from openmm_lsd import LSDIntegrator
from openmm_lsd.drafts.molgraph import MolecularGraph
from openmm_lsd.integrator.program import NOISE_STEP
from openmm_lsd.integrator.restart import MARK, VERSION, RestartError, from_checkpoint, pack, unpack

SAVED = ["Checkpoint", "State"]


def everything(simulation):
    """What loading may change."""
    context = simulation.context
    state = context.getState(positions=True, velocities=True, parameters=True)
    return (
        digest(context),
        sorted(state.getParameters().items()),
        simulation.currentStep,
        simulation.integrator.getGlobalVariableByName(NOISE_STEP),
        simulation.integrator.getTemperature(),
    )


# Killed


def run(directory, steps, kind):
    program = [sys.executable, restarting.__file__, str(directory), str(steps), kind]
    return subprocess.Popen(program, stderr=subprocess.PIPE, text=True)


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


@needs_bits
@pytest.mark.parametrize(("kind", "kills"), [("auto", 8), ("learning", 4), ("force field", 4)])
def test_killed_again_and_again(tmp_path, kind, kills):
    """Every state that any of the processes has shown is that of a run that was never killed."""
    steps, killed = 3000, 0
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for directory in (whole, broken):
        directory.mkdir()
    first = run(whole, steps, kind)
    assert first.wait(100) == 0, first.stderr.read()
    expected = dict(line.split() for line in lines(whole / "digests"))
    assert len(expected) == steps

    rng = np.random.default_rng(1)
    shown = broken / "digests"
    while not (broken / "done").exists():
        before = len(lines(shown))
        process = run(broken, steps, kind)
        # Not before it has gone beyond its checkpoint, else nothing is ever done.
        patience = time.monotonic() + 60
        wait_for = before + int(rng.integers(10, 1.5 * steps / kills))
        while killed < kills and process.poll() is None and len(lines(shown)) < wait_for:
            assert time.monotonic() < patience
            time.sleep(0.002)
        if killed < kills and process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
            process.communicate(timeout=60)
        else:
            _, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors
    assert killed >= 2
    complete = [line.split() for line in lines(shown) if len(line.split()) == 2]
    assert {step for step, _ in complete} == set(expected)
    different = [step for step, value in complete if value != expected[step] and len(value) == 64]
    assert not different, f"steps {different[:3]} and {len(different)} in all"


def test_another_step_is_seen(tmp_path):
    """The digests of the test above differ from step to step."""
    assert run(tmp_path, 20, "force field").wait(60) == 0
    digests = [line.split()[1] for line in lines(tmp_path / "digests")]
    assert len(set(digests)) == 20


# Saved and loaded


@pytest.mark.parametrize("kind", DRAFTS)
@pytest.mark.parametrize("step", [0, 1, 37, 700])
def test_continues_to_the_bit(tmp_path, kind, step):
    """In a new Simulation, and in the same one."""
    file = str(tmp_path / "saved")
    simulation = build(kind)
    simulation.step(step)
    saved = digest(simulation.context)
    simulation.saveCheckpoint(file)
    assert digest(simulation.context) == saved
    simulation.step(90)
    expected = digest(simulation.context)
    for other in (build(kind), build(kind, window=9), simulation):
        if other is not simulation:
            other.step(11)
        other.loadCheckpoint(file)
        assert digest(other.context) == saved
        assert other.currentStep == step
        other.step(40)
        other.step(50)
        # Another window is another trajectory, of the same law.
        assert (digest(other.context) == expected) == (other.integrator._window == 16)


def test_saved_without_a_step_in_between(tmp_path):
    """Loaded, saved again, loaded."""
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    simulation = build("auto")
    simulation.step(43)
    simulation.saveCheckpoint(first)
    simulation.step(60)
    other, third = build("auto"), build("auto")
    other.loadCheckpoint(first)
    other.saveCheckpoint(second)
    third.loadCheckpoint(second)
    third.step(60)
    assert digest(third.context) == digest(simulation.context)


def test_bonds_that_have_formed(tmp_path):
    """The draft has terms that no Topology knows."""
    file = str(tmp_path / "saved")
    simulation = build("auto")
    simulation.step(600)
    draft = simulation.integrator._binding.pair.draft
    watch, terms = draft._bonds, len(draft._terms.classes)
    bonds = np.array(sorted([*watch._graph.bonds.tolist(), [0, 4]]))
    watch._graph = MolecularGraph(watch._graph.elements, bonds)
    draft._make_anew(restarting.start())
    simulation.step(200)
    assert len(draft._terms.classes) > terms
    simulation.saveCheckpoint(file)
    simulation.step(100)
    other = build("auto")
    other.loadCheckpoint(file)
    other.step(100)
    assert digest(other.context) == digest(simulation.context)
    assert other.integrator._binding.pair.draft._bonds._graph.bonds.tolist() == bonds.tolist()


def test_no_seed_given(tmp_path):
    """The random numbers go on even so."""
    file = str(tmp_path / "saved")
    simulation = build("force field", seed=None)
    simulation.step(30)
    simulation.saveCheckpoint(file)
    simulation.step(50)
    other = build("force field", seed=None)
    other.loadCheckpoint(file)
    other.step(50)
    assert digest(other.context) == digest(simulation.context)


@pytest.mark.parametrize("tuned", [1, 24])
def test_tuned_windows_go_on(tmp_path, tuned):
    simulation = build("auto", window="auto")
    simulation.step(300)
    simulation.integrator._binding.tuner.window = tuned
    simulation.saveCheckpoint(str(tmp_path / "saved"))
    other = build("auto", window="auto")
    other.loadCheckpoint(str(tmp_path / "saved"))
    other.step(1)
    assert other.integrator._binding.tuner.window == tuned
    other.step(100)
    assert other.currentStep == 401


@pytest.mark.parametrize("how", SAVED)
def test_reinitialize_preserves_the_window(how, tmp_path):
    one, other = build("auto", barostat()), build("auto", barostat())
    for simulation in (one, other):
        simulation.step(50)
    # A barostat counts its steps from the beginning of the Context, unless told otherwise.
    other.context.reinitialize(preserveState=True)
    getattr(other, f"save{how}")(str(tmp_path / "saved"))
    for simulation in (one, other):
        simulation.step(60)
    state = one.context.getState(positions=True).getPositions(asNumpy=True)._value
    again = other.context.getState(positions=True).getPositions(asNumpy=True)._value
    np.testing.assert_allclose(state, again, atol=0.2)


def test_edit_after_loading(tmp_path):
    """The run obeys: positions that were set count, not those in the record."""
    file = str(tmp_path / "saved")
    simulation = build("force field")
    simulation.step(30)
    simulation.saveCheckpoint(file)
    moved = simulation.context.getState(positions=True).getPositions(asNumpy=True)._value + 0.01
    simulation.context.setPositions(moved)
    simulation.step(20)
    other = build("force field")
    other.loadCheckpoint(file)
    other.context.setPositions(moved)
    other.step(20)
    assert digest(other.context) == digest(simulation.context)


@pytest.mark.parametrize("edit", ["positions", "temperature", "force"])
def test_saved_after_an_edit(tmp_path, edit):
    """What is in the queue belongs to the time before it."""
    file = str(tmp_path / "saved")

    def change(simulation):
        if edit == "positions":
            state = simulation.context.getState(positions=True)
            simulation.context.setPositions(state.getPositions(asNumpy=True)._value + 0.01)
        elif edit == "temperature":
            simulation.integrator.setTemperature(350)
        else:
            angles = simulation.system.getForce(1)
            angles.setAngleParameters(0, 1, 0, 2, 1.7, 250.0)
            angles.updateParametersInContext(simulation.context)

    simulation = build("learning")
    simulation.step(53)
    change(simulation)
    simulation.saveCheckpoint(file)
    simulation.step(40)
    other = build("learning")
    if edit != "positions":
        change(other)
    other.loadCheckpoint(file)
    other.step(40)
    assert digest(other.context) == digest(simulation.context)


def test_temperature_is_that_of_the_script(tmp_path):
    """As with LangevinMiddleIntegrator: neither checkpoints nor States bring another."""
    simulation = build("force field")
    simulation.step(20)
    for how in SAVED:
        getattr(simulation, f"save{how}")(str(tmp_path / how))
        other = build("force field")
        other.integrator.setTemperature(400)
        other.integrator.setFriction(5)
        getattr(other, f"load{how}")(str(tmp_path / how))
        assert other.integrator.getTemperature()._value == 400
        assert other.integrator.getFriction()._value == 5
        other.step(20)


def test_checkpoint_in_the_middle_of_a_step():
    """As a signal handler would ask for it: refused, and the run is not disturbed."""
    undisturbed = build("force field", barostat())
    undisturbed.step(60)
    simulation = build("force field", barostat())  # afterwards: OpenMM has one generator
    refusals = []

    def handle(_):
        with pytest.raises(openmm.OpenMMException, match="while step\\(\\) runs"):
            simulation.context.createCheckpoint()
        refusals.append(1)

    simulation.integrator.round_callbacks.append(handle)
    simulation.step(60)
    assert len(refusals) > 3
    assert digest(simulation.context) == digest(undisturbed.context)
    simulation.context.createCheckpoint()


def test_draft_that_cannot_be_pickled(tmp_path):
    """Its Force is a Python function that holds a lock."""
    lock = threading.Lock()

    def pull(state):
        with lock:
            positions = state.getPositions(asNumpy=True)._value
        return float((positions**2).sum()), -2.0 * positions

    draft = restarting.molecules(2.3e5, 0.0, openmm.PythonForce(pull))
    file = str(tmp_path / "saved")
    for platform in ("Reference", None):
        simulation, other = (
            build("force field", draft=draft, draftPlatform=platform) for _ in range(2)
        )
        simulation.step(37)
        simulation.saveCheckpoint(file)
        other.loadCheckpoint(file)
        for each in (simulation, other):
            each.step(20)
        if platform == "Reference":
            assert digest(other.context) == digest(simulation.context)
        assert other.currentStep == 57


def test_run_for_clock_time(tmp_path):
    file = tmp_path / "clock.chk"
    simulation = build("auto")
    simulation.runForClockTime(0.5 * unit.second, checkpointFile=str(file))
    saved, step = digest(simulation.context), simulation.currentStep
    other = build("auto")
    other.loadCheckpoint(str(file))
    assert digest(other.context) == saved and other.currentStep == step > 10
    for each in (simulation, other):
        each.step(30)
    assert digest(other.context) == digest(simulation.context)


# From and to other integrators


def plain_simulation():
    integrator = openmm.LangevinMiddleIntegrator(300, 2, 0.001)
    target = restarting.molecules(3e5, 2.0, openmm.CMMotionRemover(4))
    simulation = app.Simulation(restarting.topology(), target, integrator, PLATFORM)
    simulation.context.setPositions(restarting.start())
    return simulation


@pytest.mark.parametrize("how", SAVED)
def test_equilibrated_by_a_plain_integrator(tmp_path, caplog, how):
    file = str(tmp_path / "saved")
    plain = plain_simulation()
    plain.step(50)
    getattr(plain, f"save{how}")(file)
    simulation = build("auto")
    getattr(simulation, f"load{how}")(file)
    assert ("random numbers of its own" in caplog.text) == (how == "Checkpoint")
    assert digest(simulation.context) == digest(plain.context)
    simulation.step(20)
    assert simulation.currentStep == 70


@pytest.mark.parametrize("how", SAVED)
def test_taken_over_by_a_plain_integrator(tmp_path, how):
    file = str(tmp_path / "saved")
    simulation = build("auto")
    simulation.step(50)
    getattr(simulation, f"save{how}")(file)
    plain = plain_simulation()
    getattr(plain, f"load{how}")(file)
    assert digest(plain.context) == digest(simulation.context)
    plain.step(5)


# XML


def test_xml_of_the_integrator():
    simulation = build("learning", window=12)
    integrator = simulation.integrator
    integrator.setTemperature(310)
    integrator.setIntegrationForceGroups({0, 1})
    xml = openmm.XmlSerializer.serialize(integrator)
    again = LSDIntegrator.fromXml(xml, DRAFTS["learning"]()["draft"])
    one, other = integrator._recipe(), again._recipe()
    for recipe in (one, other):
        del recipe[0]["draft"]
    assert one == other
    plain = openmm.XmlSerializer.deserialize(xml)
    assert type(plain) is openmm.CustomIntegrator
    with pytest.raises(ValueError, match="not the XML of an LSDIntegrator"):
        LSDIntegrator.fromXml(openmm.XmlSerializer.serialize(plain), "auto")
    with pytest.raises(ValueError, match="not the XML of an LSDIntegrator"):
        LSDIntegrator.fromXml("<Integrator", "auto")


def test_xml_of_system_and_state(tmp_path):
    """A run set up from three XML files: that of a new Simulation in the same state."""
    simulation = build("auto")
    simulation.step(77)
    context = simulation.context
    state = context.getState(
        positions=True, velocities=True, parameters=True, integratorParameters=True
    )
    texts = [
        openmm.XmlSerializer.serialize(each)
        for each in (simulation.system, simulation.integrator, state)
    ]
    system, state = (openmm.XmlSerializer.deserialize(texts[i]) for i in (0, 2))
    integrator = LSDIntegrator.fromXml(texts[1], "auto", topology=restarting.topology())
    other = app.Simulation(restarting.topology(), system, integrator, PLATFORM)
    other.context.setState(state)
    assert digest(other.context) == digest(simulation.context)
    fresh = build("auto")
    fresh.context.setState(state)
    for each in (other, fresh):
        each.step(50)
    assert digest(other.context) == digest(fresh.context)


# Refused


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of the kind 'force field', step 40."""
    file = tmp_path_factory.mktemp("saved") / "checkpoint"
    simulation = build("force field")
    simulation.step(40)
    simulation.saveCheckpoint(str(file))
    return file


def refused(simulation, file, words):
    """Loading raises, changes nothing, and the run goes on as if it had not been tried."""
    before = everything(simulation)
    with pytest.raises(RestartError, match=words):
        simulation.loadCheckpoint(str(file))
    assert everything(simulation) == before


OTHERS = {
    "seed": (lambda: build("force field", seed=6), "randomNumberSeed 5, and .* has 6"),
    "no seed": (lambda: build("force field", seed=None), "randomNumberSeed 5, and .* has 0"),
    "scheme": (lambda: build("force field", scheme="aboba"), "scheme 'middle', and .* 'aboba'"),
    "draft": (
        lambda: build("force field", draft=restarting.molecules(2e5, 0.0)),
        "another draft",
    ),
    "learning": (lambda: build("learning"), "another draft"),
    "auto": (lambda: build("auto"), "another draft"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_of_another_run(saved, name):
    make, words = OTHERS[name]
    simulation, untouched = make(), make()
    for each in (simulation, untouched):
        if name != "no seed":
            each.step(7)
    refused(simulation, saved, words)
    if name != "no seed":
        for each in (simulation, untouched):
            each.step(20)
        assert digest(simulation.context) == digest(untouched.context)


def test_of_another_system(saved):
    system = restarting.molecules(3e5, 2.0)
    system.addParticle(1.0)
    system.getForce(2).addParticle([])
    context = openmm.Context(system, LSDIntegrator(300, 2, 0.001, system), PLATFORM)
    context.setPositions(np.random.default_rng(1).uniform(0, 2, (COUNT + 1, 3)))
    before = digest(context)
    with pytest.raises(RestartError, match=rf"number of particles {COUNT}, and .* has {COUNT + 1}"):
        context.loadCheckpoint(saved.read_bytes())
    assert digest(context) == before


def test_truncated_checkpoint(saved, tmp_path):
    data = saved.read_bytes()
    simulation = build("force field")
    simulation.step(3)
    mark = data.rfind(MARK)
    lengths = {0, 1, 30, 100, mark - 1, mark + 1, mark + 40, len(data) - 1}
    lengths |= set(np.random.default_rng(1).integers(0, len(data), 40).tolist())
    for length in sorted(lengths):
        (tmp_path / "part").write_bytes(data[:length])
        refused(simulation, tmp_path / "part", "was not loaded: it")
    (tmp_path / "part").write_bytes(data + b"more")
    refused(simulation, tmp_path / "part", "was not loaded")


def test_checkpoint_of_another_version(saved, tmp_path):
    """What the first release wrote, whole and with its digest."""
    data = saved.read_bytes()
    mark, end = data.rfind(MARK), len(data) - hashlib.sha256().digest_size
    old = data[:mark] + MARK.replace(str(VERSION).encode(), b"1") + data[mark + len(MARK) : end]
    (tmp_path / "old").write_bytes(old + hashlib.sha256(old).digest())
    simulation = build("force field")
    simulation.step(3)
    refused(
        simulation,
        tmp_path / "old",
        f"version 1, and this openmm-lsd reads version {VERSION}; start",
    )


def test_damaged_checkpoint(saved, tmp_path):
    """One byte is wrong, wherever."""
    data = bytearray(saved.read_bytes())
    simulation = build("force field")
    simulation.step(3)
    places = {*range(80), *np.random.default_rng(2).integers(0, len(data), 100).tolist()}
    for place in sorted(places):
        for flip in (1, 128):
            data[place] ^= flip
            (tmp_path / "damaged").write_bytes(data)
            refused(simulation, tmp_path / "damaged", "was not loaded")
            data[place] ^= flip


def test_without_the_digest_damage_is_not_seen(saved, tmp_path, monkeypatch):
    """What the tests above would say if nothing was examined."""
    data = bytearray(saved.read_bytes())
    data[200] ^= 1
    (tmp_path / "damaged").write_bytes(data)
    simulation = build("force field")
    monkeypatch.setattr(
        openmm_lsd.integrator.restart,
        "from_checkpoint",
        lambda data, lengths: from_checkpoint(data),
    )
    with pytest.raises(pytest.fail.Exception):
        refused(simulation, tmp_path / "damaged", "was not loaded")


def test_compound_integrator():
    compound = openmm.CompoundIntegrator()
    compound.addIntegrator(LSDIntegrator(300, 1, 0.001, "auto"))
    with pytest.raises(openmm.OpenMMException, match="cannot be part of a CompoundIntegrator"):
        openmm.Context(restarting.molecules(3e5, 2.0), compound, PLATFORM)


# The record


def test_record_comes_back():
    record = {
        "numbers": [1, 2.5, np.float64(np.pi), np.inf, None, True, "text"],
        "array": np.arange(6.0).reshape(2, 3),
        "inside": {"of": [np.zeros((0, 2), dtype=np.int32), {"another": np.array([True])}]},
    }
    again = unpack(pack(record))
    assert again["numbers"] == record["numbers"]
    assert np.array_equal(again["array"], record["array"])
    assert again["inside"]["of"][0].dtype == np.int32
    assert again["inside"]["of"][1]["another"].tolist() == [True]
    with pytest.raises(TypeError, match="cannot hold a PosixPath"):
        pack({"a": Path()})


def test_python_objects_are_not_unpickled(tmp_path):
    """A checkpoint from somebody else must not be able to run code."""
    evil = np.array([os.getpid], dtype=object)
    with pytest.raises(RestartError):
        unpack(pack({"a": evil}))
