"""Reporters: the same files as a plain run writes, at no cost that it would not have.

Without noise the frames are those of LangevinMiddleIntegrator, to the precision of each format.
"""

import io
import itertools

import mdtraj
import mdtraj.reporters
import numpy as np
import openmm
import pytest
import restarting
from openmm import app, unit
from particles import COLD, ON_DEVICE, PLATFORM, POSITIONS, VELOCITIES, lsd, system_of
from restarting import COUNT, build, digest
from test_barostat import TRICLINIC

from openmm_lsd import LSDReporter, Statistics, batched
from openmm_lsd.core.statistics import TIMES_MEASURED
from openmm_lsd.drafts.nativeengine import NativeEngine

STEPS = 60
ATOMS = [0, 1, 2, 5, 9]


def cold_simulation(plain, box):
    systems = [
        restarting.molecules(stiffness, well) for stiffness, well in ((3e5, 2.0), (2.3e5, 0.0))
    ]
    topology = restarting.topology()
    for system in systems:
        system.setDefaultPeriodicBoxVectors(*box)
    topology.setPeriodicBoxVectors(box * unit.nanometer)
    integrator = (
        openmm.LangevinMiddleIntegrator(0, 1, 0.001) if plain else lsd(COLD, draft=systems[1])
    )
    simulation = app.Simulation(topology, systems[0], integrator, PLATFORM)
    velocities = np.random.default_rng(1).normal([5.0, -6.0, 0.0], 0.5, (COUNT, 3))
    simulation.context.setPositions(restarting.start())
    simulation.context.setVelocities(velocities)
    return simulation


REPORTERS = {
    "DCD": (lambda file: app.DCDReporter(file, 7), "dcd"),
    "DCD, wrapped": (lambda file: app.DCDReporter(file, 7, enforcePeriodicBox=True), "dcd"),
    "DCD, as they are": (lambda file: app.DCDReporter(file, 7, enforcePeriodicBox=False), "dcd"),
    "XTC": (lambda file: app.XTCReporter(file, 11), "xtc"),
    "PDB": (lambda file: app.PDBReporter(file, 13), "pdb"),
    "mdtraj HDF5": (
        lambda file: mdtraj.reporters.HDF5Reporter(file, 9, atomSubset=ATOMS, velocities=True),
        "h5",
    ),
    "mdtraj NetCDF": (
        lambda file: mdtraj.reporters.NetCDFReporter(file, 6, atomSubset=ATOMS),
        "nc",
    ),
    "mdtraj DCD": (lambda file: mdtraj.reporters.DCDReporter(file, 1, atomSubset=ATOMS), "dcd"),
}


def load(file, kind, topology):
    if kind == "dcd":
        with mdtraj.formats.DCDTrajectoryFile(file) as trajectory:
            return trajectory.read()[:2]
    if kind == "h5":
        trajectory = mdtraj.load(file)
        return trajectory.xyz, trajectory.time, trajectory.unitcell_vectors
    subset = None if kind in ("xtc", "pdb") else ATOMS
    top = mdtraj.Topology.from_openmm(topology)
    if kind == "nc":
        trajectory = mdtraj.load(file, top=top.subset(subset))
    else:
        trajectory = mdtraj.load(file, top=top) if kind == "xtc" else mdtraj.load(file)
    return trajectory.xyz, trajectory.time, trajectory.unitcell_vectors


@pytest.mark.parametrize("box", [restarting.BOX, TRICLINIC], ids=["rectangular", "triclinic"])
def test_same_files_as_a_plain_run(tmp_path, box):
    """All reporters at once, with intervals that divide neither each other nor the window."""
    tables = []
    for run in ("plain", "lsd"):
        simulation = cold_simulation(run == "plain", box)
        directory = tmp_path / run
        directory.mkdir()
        for name, (make, kind) in REPORTERS.items():
            simulation.reporters.append(make(str(directory / f"{name}.{kind}")))
        tables.append(io.StringIO())
        simulation.reporters.append(
            app.StateDataReporter(
                tables[-1],
                4,
                step=True,
                time=True,
                potentialEnergy=True,
                kineticEnergy=True,
                temperature=True,
                volume=True,
                density=True,
            )
        )
        simulation.step(STEPS)
        for reporter in simulation.reporters:
            if hasattr(reporter, "close"):
                reporter.close()
        simulation.reporters.clear()
    for name, (_, kind) in REPORTERS.items():
        files = [str(tmp_path / run / f"{name}.{kind}") for run in ("plain", "lsd")]
        for expected, got in zip(
            *(load(file, kind, simulation.topology) for file in files), strict=True
        ):
            assert len(expected) >= STEPS // 13, name
            tolerance = 2.1e-3 if kind in ("pdb", "xtc") else 2e-6
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=tolerance, err_msg=name)
    headers = [table.getvalue().split("\n")[0] for table in tables]
    rows = [np.genfromtxt(io.StringIO(t.getvalue()), delimiter=",", skip_header=1) for t in tables]
    assert headers[0] == headers[1]
    np.testing.assert_array_equal(rows[1][:, 0], range(4, STEPS + 1, 4))
    np.testing.assert_allclose(rows[1], rows[0], rtol=1e-7, atol=1e-5 if ON_DEVICE else 1e-6)


class Recorder:
    """A reporter that keeps positions and velocities."""

    def __init__(self, interval):
        self.interval, self.rows = interval, {}

    def describeNextReport(self, simulation):  # noqa: N802 (OpenMM's name)
        steps = self.interval - simulation.currentStep % self.interval
        return {"steps": steps, "periodic": None, "include": ["positions", "velocities"]}

    def report(self, simulation, state):
        arrays = (state.getPositions(asNumpy=True), state.getVelocities(asNumpy=True))
        self.rows[simulation.currentStep] = [np.array(each._value) for each in arrays]


def test_only_committed_states_are_seen():
    """Whatever the interval, the states are those of a run of single steps."""
    single = build("learning")
    expected = {}
    for step in range(1, 80):
        single.step(1)
        state = single.context.getState(positions=True, velocities=True)
        expected[step] = [
            state.getPositions(asNumpy=True)._value,
            state.getVelocities(asNumpy=True)._value,
        ]
    simulation = build("learning")
    recorders = [Recorder(interval) for interval in (1, 5, 16, 17)]
    simulation.reporters.extend(recorders)
    simulation.step(79)
    for recorder in recorders:
        assert list(recorder.rows) == list(range(recorder.interval, 80, recorder.interval))
        for step, row in recorder.rows.items():
            assert all(map(np.array_equal, row, expected[step]))


# What reports cost


@pytest.fixture
def counting(simulate):
    """Function: () -> Simulation of a PythonForce, and the list of its calls' batch sizes."""

    def make():
        calls = []

        @batched
        def spring(positions, box, parameters):
            calls.append(len(positions))
            displacements = positions - POSITIONS
            return 250.0 * (displacements**2).sum(axis=(1, 2)), -500.0 * displacements

        system = system_of(openmm.PythonForce(spring))
        return simulate(system, lsd(randomNumberSeed=3), POSITIONS, VELOCITIES), calls

    return make


def reports(simulation, calls, *reporters):
    """Calls of the target and rounds in 100 steps, and the final state."""
    simulation.step(1)
    simulation.reporters.extend(reporters)
    calls.clear()
    before = simulation.integrator.statistics.rounds
    simulation.step(100)
    return len(calls), simulation.integrator.statistics.rounds - before, digest(simulation.context)


def test_reports_without_energy_cost_nothing(counting, tmp_path):
    simulation, calls = counting()
    silent = reports(simulation, calls)
    assert silent[0] == silent[1]
    simulation, calls = counting()
    table = io.StringIO()
    assert silent == reports(
        simulation,
        calls,
        app.DCDReporter(str(tmp_path / "out.dcd"), 3),
        app.XTCReporter(str(tmp_path / "out.xtc"), 7),
        app.CheckpointReporter(str(tmp_path / "out.chk"), 9),
        app.CheckpointReporter(str(tmp_path / "out.xml"), 9, writeState=True),
        app.StateDataReporter(table, 5, step=True, time=True, speed=True, volume=True),
        LSDReporter(table, 5),
    )


def test_reports_of_energies_cost_one_evaluation_each(counting):
    simulation, calls = counting()
    silent = reports(simulation, calls)
    simulation, calls = counting()
    table = io.StringIO()
    energies = [app.StateDataReporter(table, 10, potentialEnergy=True, temperature=True)] * 2
    evaluations, rounds, state = reports(simulation, calls, *energies)
    assert (rounds, state) == silent[1:]
    assert evaluations == silent[0] + 10


def test_a_window_that_is_discarded_would_be_seen(counting, monkeypatch):
    """As if every report started the window afresh."""
    simulation, calls = counting()
    silent = reports(simulation, calls)
    simulation, calls = counting()

    class Rude(Recorder):
        def report(self, simulation, state):
            simulation.context.setPositions(state.getPositions())
            simulation.context.setVelocities(1.0000001 * state.getVelocities(asNumpy=True))

    assert reports(simulation, calls, Rude(10))[1:] != silent[1:]


# LSDReporter


def table_of(text):
    lines = text.strip().split("\n")
    assert lines[0].startswith('#"Step","Time (ps)"')
    names = lines[0][1:].replace('"', "").split(",")
    return [dict(zip(names, line.split(","), strict=True)) for line in lines[1:]]


def test_lsd_reporter(monkeypatch):
    shifts = []
    commit = NativeEngine.commit

    def counted(self, *arguments):
        result = commit(self, *arguments)
        shifts.append((sum(result.noise_shifts), len(result.noise_shifts)))
        return result

    monkeypatch.setattr(NativeEngine, "commit", counted)
    simulation = build("learning", restarting.barostat())
    copies, text = [Statistics()], io.StringIO()
    simulation.reporters.append(LSDReporter(text, 50))
    for _ in range(4):
        simulation.step(50)
        copies.append(simulation.integrator.statistics)
    rows = table_of(text.getvalue())
    assert [row["Step"] for row in rows] == ["50", "100", "150", "200"]
    assert [float(row["Time (ps)"]) for row in rows] == pytest.approx([0.05, 0.1, 0.15, 0.2])
    for row, (before, after) in zip(rows, itertools.pairwise(copies), strict=True):
        part = after.since(before)
        value = {name: float(text) for name, text in row.items() if text}
        assert value["Steps per Round"] == pytest.approx(part.steps / part.rounds, rel=1e-3)
        assert value["Acceptance"] == pytest.approx(part.acceptance_rate, rel=1e-3)
        assert value["Mean Noise Shift"] == pytest.approx(part.mean_noise_shift, rel=1e-3)
        for times, shift in zip(TIMES_MEASURED, part.noise_shifts_by_measurement, strict=True):
            expected = None if shift is None else pytest.approx(shift, rel=1e-3)
            assert value.get(f"Noise Shift {times}") == expected
        assert value["Window Length"] == 16 and value["Failed Sites"] == 0
        assert value["Shortened Windows"] == part.shortened_windows > 0
        shares = [value[f"{name} (%)"] for name in ("Draft", "Target", "Learning", "Overhead")]
        assert sum(shares) == pytest.approx(100.0, abs=0.1) and min(shares) >= 0
        assert value["Speed (ns/day)"] > 0
        plain = part.steps * after.plain_step_seconds
        assert value["Estimated Speed-up"] == pytest.approx(plain / part.seconds, rel=1e-3)
    total, tried = np.sum(shifts, axis=0)
    assert copies[-1].mean_noise_shift == pytest.approx(total / tried) and total > 0
    assert copies[-1].noise_shifts_by_measurement[1] > 0


def test_lsd_reporter_with_tuned_windows():
    simulation = build("auto", window="auto")
    text = io.StringIO()
    simulation.reporters.append(LSDReporter(text, 100, separator=","))
    simulation.step(600)
    lengths = {int(row["Window Length"]) for row in table_of(text.getvalue())}
    assert lengths <= {1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64}


def test_lsd_reporter_of_intervals_without_a_round():
    """Steps that were committed in the round before: nothing is divided by nothing."""
    simulation = build("learning")
    simulation.step(600)
    text = io.StringIO()
    simulation.reporters.append(LSDReporter(text, 1))
    simulation.step(30)
    rows = table_of(text.getvalue())
    assert len(rows) == 30
    empty = [row for row in rows if row["Steps per Round"] == ""]
    assert empty and len(empty) < 30
    for row in empty:
        assert row["Acceptance"] == row["Target (%)"] == "" and row["Failed Sites"] == "0"
    assert "nan" not in text.getvalue() and "inf" not in text.getvalue()


def test_lsd_reporter_after_a_return(tmp_path):
    simulation = build("force field")
    text = io.StringIO()
    simulation.step(10)
    simulation.saveCheckpoint(str(tmp_path / "saved"))
    simulation.reporters.append(LSDReporter(text, 10))
    simulation.step(30)
    simulation.loadCheckpoint(str(tmp_path / "saved"))
    simulation.step(20)
    rows = table_of(text.getvalue())
    assert [row["Step"] for row in rows] == ["20", "30", "40", "20", "30"]
    assert rows[3]["Speed (ns/day)"] == "" and float(rows[4]["Speed (ns/day)"]) > 0
    assert all(float(value) >= 0 for row in rows for value in row.values() if value)


def test_lsd_reporter_writes_files(tmp_path):
    file = tmp_path / "lsd.csv"
    for append in (False, True, True):
        simulation = build("force field")
        simulation.reporters.append(LSDReporter(file, 20, append=append))
        simulation.step(40)
    lines = file.read_text().strip().split("\n")
    assert len(lines) == 7 and sum(line.startswith("#") for line in lines) == 1
    simulation = build("force field")
    simulation.reporters.append(LSDReporter(str(file), 20, separator="\t"))
    simulation.step(20)
    assert file.read_text().count("\n") == 2 and "\t" in file.read_text()


def test_lsd_reporter_refuses():
    with pytest.raises(ValueError, match="reportInterval is 0"):
        LSDReporter(io.StringIO(), 0)
    with pytest.raises(TypeError):
        LSDReporter(io.StringIO(), 2.5)
    simulation = cold_simulation(True, restarting.BOX)
    simulation.reporters.append(LSDReporter(io.StringIO(), 5))
    with pytest.raises(ValueError, match="LSDIntegrator, not with a LangevinMiddleIntegrator"):
        simulation.step(5)
    assert simulation.currentStep == 0
