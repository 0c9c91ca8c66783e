"""The command line and what is behind it. No timings are tested."""

import copy
import dataclasses
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mdtraj
import numpy as np
import openmm
import pytest
from openmm import app
from scipy import stats

from openmm_lsd import LSDIntegrator, Statistics, cli, systems
from openmm_lsd.commands import Case, benchmark, estimate, timing, validate
from openmm_lsd.commands import case as case_module
from openmm_lsd.commands import output as output_module
from openmm_lsd.commands import simulate as simulate_module
from openmm_lsd.commands.estimate import Estimate, WindowEstimate, smooth
from openmm_lsd.commands.forms import FORMS
from openmm_lsd.commands.progress import progress_line
from openmm_lsd.commands.validation import geometry, longruns
from openmm_lsd.commands.validation.geometry import dihedral_quadruples
from openmm_lsd.core.engine import NumpyEngine
from openmm_lsd.drafts.nativeengine import NativeEngine

ROOT = Path(__file__).resolve().parent.parent
STEM = ROOT / "systems/alanine_dipeptide/alanine_dipeptide"
FILES = ("--topology", f"{STEM}.prmtop", "--coordinates", f"{STEM}.inpcrd")
# A slow potential that is not slow: Amber with other bonds.
STIFFER = """
import openmm
from openmm import app
from openmm_lsd.targets import ContextTarget


def target(prmtop, factor):
    system = app.AmberPrmtopFile(prmtop).createSystem(nonbondedMethod=app.NoCutoff)
    bonds = system.getForce(0)
    for index in range(bonds.getNumBonds()):
        a, b, length, k = bonds.getBondParameters(index)
        bonds.setBondParameters(index, a, b, length, factor * k)
    return ContextTarget(system)
"""


@pytest.fixture
def potential(tmp_path):
    """--target of a potential in the user's own file."""
    file = tmp_path / "potential.py"
    file.write_text(STIFFER)
    return "--target", f"python:{file}:target(prmtop='{STEM}.prmtop', factor=1.1)"


@pytest.fixture
def case():
    """Alanine dipeptide by Amber with stiffer bonds, drafted by Amber."""
    molecule = systems.load(STEM.parent)
    target = copy.deepcopy(molecule.draft)
    bonds = target.getForce(0)
    for index in range(bonds.getNumBonds()):
        a, b, length, k = bonds.getBondParameters(index)
        bonds.setBondParameters(index, a, b, 1.01 * length, 1.1 * k)
    return Case(
        molecule.topology, molecule.positions, molecule.draft, target, seed=3, platform="Reference"
    )


def command(*arguments):
    """Exit status."""
    try:
        return cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code


def files_of(directory):
    names = ("trajectory.dcd", "log.csv")
    return {name: (directory / name).read_bytes() for name in names}


def without_date(content):
    """A DCD file holds the time at which it was made."""
    return content[:184] + content[264:]


RUN = ("--steps", 120, "--equilibration", 20, "--report-interval", 10, "--checkpoint-interval", 30)


def test_run_writes_what_it_says(tmp_path, potential, capsys):
    output = tmp_path / "out"
    status = command(
        *("run", *FILES, "--draft", f"{STEM}.prmtop", *potential, *RUN, "--output-dir", output),
        *("--platform", "Reference", "--window", 8),
    )
    printed = capsys.readouterr()
    assert status == 0, printed.err
    assert "120 steps" not in printed.err and "step 120/120" in printed.err
    assert "ns/day" in printed.err and "steps/round" in printed.err and "left" in printed.err
    trajectory = mdtraj.load(str(output / "trajectory.dcd"), top=f"{STEM}.prmtop")
    assert len(trajectory) == 12 and np.isfinite(trajectory.xyz).all()
    log = (output / "log.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in log[1:]] == [str(n) for n in range(10, 130, 10)]
    assert "Volume" not in log[0]
    assert len((output / "lsd.csv").read_text().splitlines()) == 13
    assert mdtraj.load(str(output / "final.pdb")).n_atoms == 22
    assert json.loads((output / "run.json").read_text())["seed"] > 0
    # A second run there would overwrite the first.
    assert command("run", *FILES, *potential, "--output-dir", output) == 2
    assert "continue it with --resume" in capsys.readouterr().err


def test_longer_by_resuming(tmp_path, potential, capsys):
    for name, steps in (("whole", [120]), ("parts", [60, 120])):
        for index, number in enumerate(steps):
            words = ("--resume", "--steps", number) if index else (*FILES, *potential, *RUN)
            words += () if index else ("--seed", 5, "--window", 6, "--steps", number)
            assert command("run", *words, "--output-dir", tmp_path / name) == 0
    capsys.readouterr()
    whole, parts = files_of(tmp_path / "whole"), files_of(tmp_path / "parts")
    assert whole["log.csv"] == parts["log.csv"]
    assert without_date(whole["trajectory.dcd"]) == without_date(parts["trajectory.dcd"])


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_stopped_and_resumed(tmp_path, potential, how):
    """To the last bit after a kill; Ctrl-C may come in the middle of what the draft learns."""
    arguments = [*FILES, *potential, *RUN, "--seed", "5", "--window", "6", "--steps", "1200"]
    entry = [sys.executable, "-m", "openmm_lsd.cli", "run"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"

    def start(*words):
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
        return subprocess.Popen(
            [*entry, *map(str, words)], stderr=subprocess.PIPE, text=True, env=environment
        )

    process = start(*arguments, "--output-dir", whole)
    assert process.wait(300) == 0, process.stderr.read()
    process = start(*arguments, "--output-dir", stopped)
    log = stopped / "log.csv"
    deadline = time.monotonic() + 200
    while not (log.exists() and len(log.read_text().splitlines()) > 17):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(how)
    status = process.wait(60)
    message = process.stderr.read()
    assert status == (-9 if how == signal.SIGKILL else 130), message
    assert "Traceback" not in message
    before = log.read_text().splitlines()
    assert len(before) < 121, "it was stopped too late"
    process = start("--resume", "--output-dir", stopped)
    assert process.wait(300) == 0, process.stderr.read()
    once, again = files_of(whole), files_of(stopped)
    if how == signal.SIGKILL:
        assert once["log.csv"] == again["log.csv"]
        assert without_date(once["trajectory.dcd"]) == without_date(again["trajectory.dcd"])
        return
    rows = again["log.csv"].decode().splitlines()
    assert rows[: len(before)] == before
    assert [int(row.split(",")[0]) for row in rows[1:]] == list(range(10, 1210, 10))
    assert len(again["trajectory.dcd"]) == len(once["trajectory.dcd"])


def test_stopped_between_a_step_and_its_report(tmp_path, potential, monkeypatch):
    """The frame of that step is there, once, after the run was resumed."""
    right = app.Simulation._generate_reports

    def interrupt(simulation, reports, periodic):
        if simulation.currentStep == 60:
            raise KeyboardInterrupt
        right(simulation, reports, periodic)

    output = tmp_path / "out"
    monkeypatch.setattr(app.Simulation, "_generate_reports", interrupt)
    words = (*FILES, *potential, *RUN, "--steps", 120, "--window", 6)
    assert command("run", *words, "--output-dir", output) == 130
    monkeypatch.setattr(app.Simulation, "_generate_reports", right)
    assert command("run", "--resume", "--output-dir", output) == 0
    rows = (output / "log.csv").read_text().splitlines()[1:]
    assert [int(row.split(",")[0]) for row in rows] == list(range(10, 130, 10))
    assert len(mdtraj.load(str(output / "trajectory.dcd"), top=f"{STEM}.pdb")) == 12


@pytest.mark.parametrize("interrupted", [True, False])
def test_ctrl_c_in_python_that_openmm_has_called(monkeypatch, capsys, interrupted):
    """OpenMM turns every exception of such Python into its own."""

    def run(args):
        if interrupted:
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        raise openmm.OpenMMException("")

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(simulate_module, "main", run)
    assert cli.main(["run", *FILES, "--steps", "10"]) == (130 if interrupted else 2)
    said = "stopped" if interrupted else "error: OpenMMException"
    assert said in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["run"], "give --topology and --target, or --system"),
        (["run", "--topology", "no.pdb", "--target", "x.pt"], "there is no file no.pdb"),
        (["run", "--topology", f"{STEM}.pdb", "--target", "x.pt"], "no TorchScript file x.pt"),
        (["run", "--topology", f"{STEM}.pdb", "--target", "x.gz"], "'x.gz' is of no known form"),
        (["run", "--topology", f"{STEM}.prmtop", "--target", "x.pt"], "give --coordinates"),
        (
            ["run", "--topology", f"{STEM}.pt", "--target", "x.pt"],
            "must be a .prmtop, .parm7, .pdb",
        ),
        (["run", "--steps", "-1"], "'-1' is not a positive whole number"),
        (["run", "--steps", "many"], "'many' is not a positive whole number"),
        (["run", "--temperature", "nan"], "'nan' is not a positive number"),
        (["run", "--temperature", "0"], "'0' is not a positive number"),
        (["run", "--window", "0"], "'0' is not a positive whole number"),
        (["run", "--scheme", "verlet"], "invalid choice: 'verlet'"),
        (["run", "--colour", "red"], "unrecognized arguments: --colour red"),
        (["run", "--resume", "--output-dir", "nowhere"], "nothing to resume"),
        (["run", *FILES, "--target", "ase:nonesuch:f()"], "No module named 'nonesuch'"),
        (["run", *FILES, "--target", "ase:math:floor(open('x'))"], "must be literal"),
        (["run", *FILES, "--target", "ase:math"], "write MODULE:FUNCTION"),
        (["run", *FILES, "--target", "ase:math:nonesuch()"], "math has no function or class"),
        (["run", *FILES, "--target", "ase:math:floor('x')"], "floor('x') failed: TypeError"),
        (["run", *FILES, "--target", "ase:math:floor(2.5)"], "it must be an ASE calculator"),
        (["run", *FILES, "--target", "python:no.py:f()"], "there is no file no.py"),
        (["run", *FILES, "--target", f"{STEM}.pt", "--draft", "no.xml"], 'locate file "no.xml"'),
        (["run", *FILES, "--target", f"{STEM}.pt", "--draft", "no.prmtop"], "no file no.prmtop"),
        (["run", *FILES, "--target", f"{STEM}.pt", "--platform", "Abacus"], '"Abacus"'),
        (["run", "--system", "systems/none"], "systems/none holds 0 *.prmtop files"),
        (
            ["estimate", "--system", "x", "--target", "y"],
            "--system cannot be combined with --target",
        ),
        (["estimate", "--outfile", "/nonesuch/x.json"], "there is no directory /nonesuch"),
        (["benchmark", "--system", str(STEM.parent), "--windows", "4", "auto"], "auto alone"),
        (["benchmark", "--seconds", "inf"], "'inf' is not a positive number"),
    ],
)
def test_bad_input_is_one_line(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command(*arguments) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1 and message.startswith("openmm-lsd")


ABBREVIATED = {
    "estimate": ("--warm", "--window", "--out"),
    "benchmark": ("--warm", "--second", "--also", "--est"),
    "validate": ("--long", "--path", "--run"),
    "run": ("--equil", "--report", "--checkpoint", "--step", "--minimise"),
}


@pytest.mark.parametrize("name", ABBREVIATED)
def test_options_are_not_abbreviated(name, capsys):
    """argparse would take them, and what looks for the option's full name would not."""
    for option in ("--temp", *ABBREVIATED[name]):
        assert command(name, option, 50) == 2
        assert f"unrecognized arguments: {option} 50" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "warm_up"),
    [
        ([], 1000),
        (["--warm-up", "50"], 50),
        (["--warm-up=50"], 50),
        (["--draft", f"{STEM}.prmtop"], 100),
        (["--draft", f"{STEM}.prmtop", "--warm-up=50"], 50),
    ],
)
def test_warm_up_of_an_estimate(monkeypatch, words, warm_up):
    class FoundError(Exception):
        pass

    def found(case, **settings):
        raise FoundError(settings["warm_up"])

    monkeypatch.setattr(sys.modules["openmm_lsd.commands.estimate"], "estimate", found)
    with pytest.raises(FoundError) as caught:
        command("estimate", *FILES, "--target", f"{STEM}.pt", "--debug", *words)
    assert caught.value.args == (warm_up,)


def test_info(capsys, monkeypatch):
    assert command("info", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert "Reference" in found["platforms"] and found["packages"]["numpy"]
    assert set(found["targets"]) >= {f"{prefix}:" for prefix in FORMS}
    monkeypatch.setattr("openmm_lsd.commands.info.find_spec", lambda module: None)
    assert command("info") == 0
    told = capsys.readouterr().out
    assert 'missing: pip install "openmm-lsd[torchforce]"' in told
    assert "openmm-lsd 0.2.0" in told and "python:" in told


def test_version_and_help(capsys):
    assert command("--version") == 0
    assert capsys.readouterr().out == "openmm-lsd 0.2.0\n"
    for name in ABBREVIATED:
        assert command(name, "--help") == 0
        text = capsys.readouterr().out
        assert "None" not in text and "False" not in text and "(default" not in text


def test_what_may_be_given_with_resume(tmp_path, potential, capsys):
    output = tmp_path / "out"
    words = ("run", *FILES, *potential, *RUN, "--output-dir", output, "--seed", 4, "--window", 4)
    assert command(*words, "--steps", 20) == 0
    for given in (
        ["--timestep=1"],  # the default, all the same
        ["--window", "4"],
        ["--no-minimize"],
        ["--report-interval=10"],
        ["--topology", f"{STEM}.pdb"],
    ):
        assert command("run", "--resume", "--output-dir", output, *given) == 2
        option = given[0].split("=")[0].replace("no-", "")
        assert f"with --resume {option} is that of the first run" in capsys.readouterr().err
    assert command("run", "--resume", f"--output-dir={output}", "--steps=40") == 0
    assert len((output / "log.csv").read_text().splitlines()) == 5
    assert command("run", "--resume", "--output-dir", output) == 0  # 20 steps, which there are
    assert len((output / "log.csv").read_text().splitlines()) == 5


def test_truncated_files_are_not_resumed(tmp_path, potential, capsys):
    output = tmp_path / "out"
    assert command("run", *FILES, *potential, *RUN, "--output-dir", output) == 0
    with open(output / "log.csv", "r+b") as file:
        file.truncate(50)
    capsys.readouterr()
    assert command("run", "--resume", "--output-dir", output, "--steps", 200) == 2
    assert "log.csv is shorter than it was at the checkpoint" in capsys.readouterr().err
    (output / "checkpoint.chk").write_bytes(b"rubbish")
    assert command("run", "--resume", "--output-dir", output, "--steps", 200) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert command("run", "--resume", "--output-dir", output, "--timestep", 2) == 2
    assert "--timestep is that of the first run" in capsys.readouterr().err


def test_a_missing_picture_library_is_said_before_the_run(monkeypatch, capsys):
    monkeypatch.setattr(output_module, "find_spec", lambda name: None)
    assert command("estimate", "--system", STEM.parent, "--figure", "x.png") == 2
    assert 'pip install "openmm-lsd[plots]"' in capsys.readouterr().err


def test_json_is_all_that_comes_to_standard_output(tmp_path):
    """Although the target prints what it does, in Python and in C."""
    (tmp_path / "loud.py").write_text(
        "import os\nfrom tblite.ase import TBLite\n\n\n"
        "def make():\n    print('hello')\n    os.write(1, b'hello from C\\n')\n"
        "    return TBLite(method='GFN2-xTB', verbosity=1)\n"
    )
    options = ("--windows", "4", "--steps", "8", "--warm-up", "8", "--no-minimize")
    target = f"ase:{tmp_path / 'loud.py'}:make()"
    words = ("estimate", *FILES, "--target", target, "--draft", f"{STEM}.prmtop", "--json")
    command_line = [sys.executable, "-m", "openmm_lsd.cli", *words, *options]
    result = subprocess.run(
        [*map(str, command_line), "--platform", "Reference"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["estimate"]["steps"] >= 8
    assert "hello from C\n" in result.stderr and "hello\n" in result.stderr


@pytest.mark.parametrize("command_and_option", [("estimate", "--curve"), ("validate", "--figure")])
def test_old_options_are_those_that_the_command_had(command_and_option, capsys):
    name, option = command_and_option
    assert command(name, "--system", STEM.parent, option, "x.png") == 2
    assert f"unrecognized arguments: {option}" in capsys.readouterr().err


def test_a_directory_that_cannot_be_written_is_said_before_the_run(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert command("estimate", "--system", STEM.parent, "--output-dir", tmp_path / "file") == 2
    assert "is a file" in capsys.readouterr().err
    assert command("estimate", "--system", STEM.parent, "--outfile", tmp_path) == 2
    assert "is a directory" in capsys.readouterr().err


def test_results_without_a_picture_library(tmp_path, monkeypatch, potential, capsys):
    monkeypatch.setattr(output_module, "find_spec", lambda name: None)
    options = (*FILES, *potential, "--draft", f"{STEM}.prmtop", "--platform", "Reference")
    small = ("--windows", 4, "--steps", 20, "--warm-up", 20, "--output-dir", tmp_path / "new")
    assert command("estimate", *options, *small) == 0
    assert "no pictures without matplotlib" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["estimate.json"]


def test_estimate_and_benchmark_from_the_command_line(tmp_path, potential, capfd):
    options = (*FILES, *potential, "--draft", f"{STEM}.prmtop", "--platform", "Reference")
    small = ("--windows", 4, 8, 12, "--steps", 60, "--warm-up", 40)
    assert command("estimate", *options, *small, "--json", "--output-dir", tmp_path) == 0
    streams = capfd.readouterr()
    assert "t_target(1)" in streams.err and "t_target(K)" in streams.err and "LSD " in streams.err
    files = [tmp_path / name for name in ("estimate.json", "speed_up.png")]
    assert streams.err.endswith(f"wrote {files[0]}, {files[1]}\n")
    assert json.loads(streams.out) == json.loads((tmp_path / "estimate.json").read_text())
    found = json.loads(streams.out)["estimate"]
    assert [each["window"] for each in found["windows"]] == [4, 8, 12]
    assert found["best window"] in (4, 8, 12) and found["steps"] >= 60
    assert (tmp_path / "speed_up.png").stat().st_size > 5000

    json_file, picture = tmp_path / "b.json", tmp_path / "b.png"
    results = ("--outfile", json_file, "--figure", picture)  # before 0.2
    small = ("--seconds", 1, "--warm-up", 40, "--block", 16)
    assert command("benchmark", *options, *small, *results) == 0
    printed, notes = capfd.readouterr()
    assert "note: --outfile will be removed" in notes and "note: --figure will be removed" in notes
    rows = json.loads(json_file.read_text())["benchmark"]["rows"]
    names = ["plain", "LSD", "constant offset", "MTS, 2 steps", "MTS, 4 steps"]
    assert [row["run"] for row in rows] == names
    assert all(name in printed for name in names)
    assert "constant offset: the published rule" in printed and "MTS: MTSLangevin" in printed
    assert rows[0]["ratio"] == 1.0 and rows[1]["steps per round"] >= 1.0
    assert picture.stat().st_size > 5000


def keys(document):
    """Of JSON, in their order; of a list those of each item."""
    if isinstance(document, dict):
        return [(name, keys(value)) for name, value in document.items()]
    return [keys(each) for each in document] if isinstance(document, list) else None


def test_the_shipped_system_with_everything(tmp_path, capsys):
    json_file = tmp_path / "b.json"
    small = ("--seconds", 1, "--warm-up", 40, "--block", 16, "--seed", 1, "--outfile", json_file)
    more = ("--also-auto", "--estimate")
    assert command("benchmark", "--system", STEM.parent, *small, *more) == 0
    printed = capsys.readouterr().out
    assert printed.count("predicted from") == 2 and "t_target(K)" in printed
    document = json.loads(json_file.read_text())
    rows = {row["run"]: row for row in document["benchmark"]["rows"]}
    assert set(rows) > {"plain", "LSD", "LSD, auto draft", "constant offset"}
    for name in ("LSD", "LSD, auto draft"):
        assert rows[name]["steps per round"] > rows["constant offset"]["steps per round"] >= 1
    assert document["machine"]["openmm"]
    shipped = ROOT / "docs/benchmarks/benchmark_alanine_dipeptide_1fs.json"
    assert keys(document["benchmark"]) == keys(json.loads(shipped.read_text())["benchmark"])


def test_curve_of_fixed_windows(tmp_path, potential, capsys):
    picture = tmp_path / "curve.png"
    options = (*FILES, *potential, "--draft", f"{STEM}.prmtop", "--platform", "Reference")
    small = ("--seconds", 0.5, "--warm-up", 30, "--block", 16, "--windows", 4, 8, 12)
    assert command("benchmark", *options, *small, "--curve", picture) == 2
    assert "--curve needs --windows and --estimate" in capsys.readouterr().err
    results = ("--curve", picture, "--output-dir", tmp_path / "results")
    assert command("benchmark", *options, *small, *results, "--estimate") == 0
    printed = capsys.readouterr().out
    names = {file.name for file in (tmp_path / "results").iterdir()}
    assert names == {"benchmark.json", "speed_up.png", "time_breakdown.png"}
    assert all(f"LSD, K = {window}" in printed for window in (4, 8, 12))
    assert printed.count(": predicted from") == 1 and picture.stat().st_size > 5000


def test_run_of_a_torchscript_file_from_a_pdb(tmp_path, capsys):
    options = ("--scheme", "aboba", "--steps", 20, "--report-interval", 10, "--equilibration", 0)
    for draft in (["--draft", "amber14-all.xml"], []):
        output = tmp_path / str(len(draft))
        files = ("--topology", f"{STEM}.pdb", "--target", f"{STEM}.pt", "--output-dir", output)
        assert command("run", *files, *options, *draft) == 0, capsys.readouterr().err
        assert len(mdtraj.load(str(output / "trajectory.dcd"), top=f"{STEM}.pdb")) == 2


def test_estimate_counts_what_is_committed(case):
    """Steps per round by the noise shifts, against the count of long runs."""
    found = estimate(case, steps=4000, warm_up=300, windows=(4, 8, 16))
    for each in found.windows:
        run = case.lsd(each.window)
        run.equilibrate(case, 300)
        before = run.integrator.statistics
        run.step(3000)
        counted = run.integrator.statistics.since(before).steps_per_round
        assert each.steps_per_round == pytest.approx(counted, rel=0.12)
    assert found.best.speed_up == max(each.speed_up for each in found.windows)
    assert "LSD " in found.verdict()
    never, once, *_ = found.noise_shifts
    assert 0 < once < never and f"times before: {never:.2f}, {once:.2f}" in str(found)


def test_steps_per_round_are_smoothed():
    windows = [4, 8, 12, 16, 24]
    exact = [1 + 4 * (1 - np.exp(-(k - 1) / 9)) for k in windows]
    assert smooth(windows, exact) == pytest.approx(exact, rel=1e-3)
    assert smooth(windows, windows) == pytest.approx(windows, rel=0.01)  # draft = target
    assert smooth(windows, [1.0] * 5) == pytest.approx([1.0] * 5, rel=1e-3)
    noisy = np.array(exact) * [1.1, 0.9, 1.15, 0.9, 1.05]
    assert abs(np.array(smooth(windows, noisy)) / exact - 1).max() < 0.1
    assert smooth([4, 8], [2.0, 3.0]) == [2.0, 3.0]


class RunByTheClock:
    """A run whose first steps take longer."""

    def __init__(self, seconds, slow_steps):
        self.now, self.steps = 0.0, 0
        self._seconds, self._slow_steps = seconds, slow_steps

    def step(self, count):
        slow = min(count, max(0, self._slow_steps - self.steps))
        self.now += self._seconds * (count + 4 * slow)
        self.steps += count


@pytest.mark.parametrize(("seconds", "steps"), [(1e-3, 260), (1.0, 20)])
def test_steps_are_timed_once_they_are_warm(seconds, steps, monkeypatch):
    run = RunByTheClock(seconds, 10)
    monkeypatch.setattr(timing, "perf_counter", lambda: run.now)
    found = timing.seconds_per_step_of_a_block(run, untimed=0.05, timed=0.2, least=10)
    assert found == pytest.approx(seconds)
    assert run.steps == pytest.approx(steps, abs=50 if steps > 20 else 0)


@pytest.mark.parametrize(
    ("speed_up", "words"),
    [(0.9, "LSD does not pay here"), (1.04, "gains little here: about 1.04"), (1.2, "pays here")],
)
def test_verdict_of_an_estimate(speed_up, words):
    window = WindowEstimate(8, 4.0, 1e-2, 1e-4, 1e-4, speed_up)
    assert words in Estimate("CPU", 3e-3, [window], 1.0, [], 200, 1.0).verdict()


def test_as_a_module():
    words = [sys.executable, "-m", "openmm_lsd", "--version"]
    assert subprocess.run(words, capture_output=True, text=True).stdout == "openmm-lsd 0.2.0\n"


def test_multiple_time_steps_are_those_of_the_target(case):
    """Draft plus (target - draft) is the target: with one inner step it is a plain step."""
    from openmm_lsd.commands.multipletimesteps import MultipleTimeSteps

    run, plain = MultipleTimeSteps(case, 2, np.array(case.positions._value)), case.plain()
    for each in (run, plain):
        each.simulation.context.setPositions(case.positions)
    states = [each.simulation.context.getState(forces=True, energy=True) for each in (run, plain)]
    forces = [state.getForces(asNumpy=True)._value for state in states]
    assert np.abs(forces[0] - forces[1]).max() < 1e-3
    energies = [state.getPotentialEnergy()._value for state in states]
    assert energies[0] == pytest.approx(energies[1], abs=1e-3)


def test_multiple_time_steps_that_fly_apart(case):
    """Again and again: the other rows of the table must not be lost."""
    from openmm_lsd.commands.multipletimesteps import MultipleTimeSteps

    hot = dataclasses.replace(case, step_size=0.02, platform="CPU")
    run = MultipleTimeSteps(hot, 4, np.array(case.positions._value))
    for _ in range(3):
        run.step(200)
    assert run.blew_up


def test_benchmark_verdict_and_breakdown(case):
    case = dataclasses.replace(case, draft="auto")
    result = benchmark(case, seconds=0.5, block=20, warm_up=50)
    assert [row.name for row in result.rows] == ["plain", "LSD"]
    assert "times as fast as plain dynamics" in result.verdict()
    for row in result.rows:
        parts = result.time_breakdown()[row.name]
        assert sum(parts.values()) == pytest.approx(row.ms_per_step, rel=0.01)


SMALL = {"runs": 250, "path_steps": 1000, "long_steps": 4000, "equilibration": 2000}


@pytest.mark.parametrize("scheme", ["middle", "aboba"])
def test_right_sampler_is_validated(case, scheme):
    result = validate(dataclasses.replace(case, scheme=scheme), **SMALL)
    assert [check.passed for check in result.checks] == 4 * [True], str(result)
    assert result.checks[0].tests > 500 and result.checks[3].tests > 15
    assert "The distribution is right" in str(result)


class InNumpy(NativeEngine):
    """A right one, whose ``commit`` asks ``transport``, which is planted in those below."""

    commit = NumpyEngine.commit


class AcceptsAll(InNumpy):
    """Every drafted step becomes a step of the target, with the noise that leads there."""

    @staticmethod
    def transport(noise, shift, log_uniform):
        return noise - shift, True


class NeverReflects(InNumpy):
    """Rejected steps keep their noise."""

    @staticmethod
    def transport(noise, shift, log_uniform):
        accepted = log_uniform <= float(np.vdot(noise, shift)) - 0.5 * float(np.vdot(shift, shift))
        return (noise - shift, True) if accepted else (noise, False)


@pytest.fixture
def plant(monkeypatch):
    """Function: every LSDIntegrator of the commands has this engine from now on."""

    def with_engine(engine):
        kind = type("Planted", (LSDIntegrator,), {"_engine": engine})
        monkeypatch.setattr(case_module, "LSDIntegrator", kind)

    return with_engine


@pytest.mark.parametrize("scheme", ["middle", "aboba"])
@pytest.mark.parametrize("engine", [InNumpy, AcceptsAll, NeverReflects])
def test_wrong_samplers_are_caught(case, plant, engine, scheme):
    plant(engine)
    result = validate(dataclasses.replace(case, scheme=scheme), **SMALL)
    if engine is InNumpy:  # what is caught is the transport, not that it was planted
        assert result.passed, str(result)
        return
    assert not result.passed
    assert "THE DISTRIBUTION IS WRONG" in str(result)
    assert result.lsd is None


def test_long_runs_tell_friction_and_potential_apart(case, monkeypatch):
    """Plain dynamics of something else must not pass for that of the target.

    The paths are not the same in every process (forms are chosen by timing), so the differences are
    large enough to be seen with room: p was below 4e-10 in ten runs of each, the threshold 4e-6.
    """
    plain = Case.plain
    for change in ({"friction": 100.0}, {"target": case.draft}):
        monkeypatch.setattr(
            Case, "plain", lambda self, c=change: plain(dataclasses.replace(self, **c))
        )
        result = validate(case, **{**SMALL, "runs": 50, "long_steps": 16_000})
        assert result.checks[3].passed is False, str(result)


def long_runs(case, other, steps):
    """Plain runs of ``other`` and of ``case`` in pairs."""
    quadruples, _ = dihedral_quadruples(case.topology)
    run = other.plain()
    run.equilibrate(other, 2000)
    return longruns.run_in_pairs(case, run, case.plain(), steps, quadruples, 1)


def test_wrong_temperature_is_caught_by_the_kinetic_energy(case):
    """Energy is remembered for 0.1 ps here, and blocks are seven times as long.

    In ten runs at 230 K the largest p was 2.4e-7.
    """
    case = dataclasses.replace(case, friction=10.0)
    right = dataclasses.replace(case, seed=4)
    cold = dataclasses.replace(right, temperature=230.0)
    assert longruns.kinetic_energy_check(case, *long_runs(case, right, 16_000), 1e-3).passed
    assert longruns.kinetic_energy_check(case, *long_runs(case, cold, 16_000), 1e-3).passed is False


def test_wrong_temperature_is_caught_by_the_noise(case, monkeypatch):
    """At any friction: long before energies show it."""
    lsd = Case.lsd
    cold = {"temperature": 285.0}
    monkeypatch.setattr(Case, "lsd", lambda self, *a: lsd(dataclasses.replace(self, **cold), *a))
    result = validate(dataclasses.replace(case, friction=0.1), **{**SMALL, "runs": 50})
    assert result.checks[1].passed is False, str(result)


def test_blocks_of_a_pair_can_be_exchanged(case, monkeypatch):
    """They begin alike, and the next pair goes on from either."""
    block, runs = longruns.run_block, []

    def recorded(case, run, *rest):
        begin = run.state
        result = block(case, run, *rest)
        runs.append((begin, run.state[0]))
        return result

    monkeypatch.setattr(longruns, "run_block", recorded)
    long_runs(case, dataclasses.replace(case, seed=4), 48)
    pairs = list(zip(runs[::2], runs[1::2], strict=True))
    assert len(pairs) == longruns.BLOCKS
    chosen = set()
    for (ours, _), (theirs, _) in pairs:
        assert np.array_equal(ours, theirs)
    for pair, ((begin, _), _) in itertools.pairwise(pairs):
        (which,) = (k for k in range(2) if np.array_equal(pair[k][1], begin[0]))
        chosen.add(which)
    assert chosen == {0, 1}


def energies_in_pairs(case, random, pairs=12, frames=50):
    """As of two right samplers with blocks far shorter than the memory of energies.

    Two runs of a pair begin with the same energy and forget half of it; the next pair goes on from
    either. All follow the Gamma law in equilibrium, by way of normal variables.
    """
    law = longruns.kinetic_law(case)
    decay = 0.5 ** (1.0 / frames)
    slow = random.standard_normal()
    blocks = []
    for _ in range(pairs):
        now, path = np.full(2, slow), []
        for _ in range(frames):
            now = decay * now + np.sqrt(1.0 - decay**2) * random.standard_normal(2)
            path.append(np.sqrt(0.5) * (now + random.standard_normal(2)))
        slow = random.choice(now)
        blocks.append(law.ppf(stats.norm.cdf(path)))
    return [longruns.LongRun(np.empty(0), np.empty(0), each) for each in np.moveaxis(blocks, 2, 0)]


def test_false_alarms_of_the_kinetic_energy(case):
    """Of 300 right samplers 5 % may fail at a level of 5 %, by chance 27 at most."""
    random = np.random.default_rng(1)
    alarms = sum(
        not longruns.kinetic_energy_check(case, *energies_in_pairs(case, random), 0.05).passed
        for _ in range(300)
    )
    assert alarms <= 27


def test_signs_have_the_chance_they_promise():
    """For any sizes of differences, not only of normal ones, over all choices of signs."""
    random = np.random.default_rng(2)
    choices = np.array(list(itertools.product((-1.0, 1.0), repeat=8)))
    for sizes in (random.exponential(size=8), np.ones(8), np.arange(8) // 4, np.zeros(8)):
        p = np.array([longruns.p_by_signs(signs * sizes) for signs in choices])
        assert all((p <= level).mean() <= level for level in np.unique(p))
    assert longruns.p_by_signs(np.ones(8)) == 2 / 2**8
    assert longruns.p_by_signs(np.array([1.0, -1.0])) == 1.0


def test_validate_from_the_command_line(tmp_path, potential, plant, capsys):
    report, json_file = tmp_path / "report.html", tmp_path / "validate.json"
    options = ("--draft", f"{STEM}.prmtop", "--platform", "Reference", "--seed", 2)
    small = ("--runs", 100, "--path-steps", 100, "--long-steps", 1600, "--equilibration", 2000)
    results = ("--output-dir", tmp_path)
    assert command("validate", *FILES, *potential, *options, *small, *results) == 0
    assert "The distribution is right" in capsys.readouterr().out
    page = report.read_text()
    assert page.count("data:image/png;base64") == 6 and "Ramachandran" in page
    assert "name='viewport'" in page and "prefers-color-scheme:dark" in page
    assert json.loads(json_file.read_text())["validation"]["passed"] is True
    plant(AcceptsAll)
    assert command("validate", *FILES, *potential, *options, *small, *results) == 1
    assert "THE DISTRIBUTION IS WRONG" in report.read_text()


def test_validation_refuses_a_barostat(case):
    case.target.addForce(openmm.MonteCarloBarostat(1.0, 300.0))
    with pytest.raises(ValueError, match="without a barostat"):
        validate(case, **SMALL)


def angle(a, b):
    """Between vectors (T, n, 3), in radians."""
    return np.arctan2(np.linalg.norm(np.cross(a, b), axis=-1), (a * b).sum(axis=-1))


def test_internal_coordinates():
    """Values, signs and units by the definitions, of a molecule and far from any; also of none."""
    random = np.random.default_rng(3)
    topology = systems.load(STEM.parent).topology
    quadruples, names = dihedral_quadruples(topology)
    assert "C-CA-N-C" in names and "N-C-CA-N" in names, names
    pairs = geometry.bond_pairs(topology)
    triples = geometry.angle_triples(pairs)
    assert (len(pairs), len(triples), len(quadruples)) == (21, 36, 7)
    molecule = np.array(app.PDBFile(f"{STEM}.pdb").positions._value)
    positions = np.stack([molecule, molecule + 1000.0, random.normal(size=(22, 3))])
    bonds = positions[:, pairs[:, 1]] - positions[:, pairs[:, 0]]
    assert geometry.bond_lengths(positions, pairs) == pytest.approx(
        np.linalg.norm(bonds, axis=-1), abs=1e-6
    )
    i, j, k = (positions[:, triples[:, corner]] for corner in range(3))
    assert geometry.bond_angles(positions, triples) == pytest.approx(angle(i - j, k - j), abs=1e-5)
    i, j, k, m = (positions[:, quadruples[:, corner]] for corner in range(4))
    normals = np.cross(j - i, k - j), np.cross(k - j, m - k)
    signs = np.sign((normals[0] * (m - k)).sum(axis=-1))
    expected = signs * angle(*normals)
    assert (expected[2] > 0).any() and (expected[2] < 0).any()
    found = geometry.dihedral_angles(positions, quadruples)
    assert found.dtype == np.float64 and (abs(found) <= np.pi).all()
    assert np.abs(geometry.wrapped(found - expected)).max() < 1e-5
    for values, corners in (
        (geometry.bond_lengths, 2),
        (geometry.bond_angles, 3),
        (geometry.dihedral_angles, 4),
    ):
        assert values(positions, np.empty((0, corners), dtype=int)).shape == (3, 0)


def test_progress_line():
    begin = (10.0, 100, 1e-6, Statistics())
    now = (20.0, 350, 1e-6, Statistics(rounds=50, steps=250))
    line = progress_line(begin, now, 1000)
    assert line.startswith("[########................]  35.0 %  step 350/1000")
    assert "2.16 ns/day" in line and "5.00 steps/round" in line and "0:00:26 left" in line
    assert "left" not in progress_line(now, now, 1000)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_on_a_terminal_rewrites_its_line(case, tmp_path):
    terminal = Terminal()
    simulate_module.simulate(
        case, simulate_module.Plan(60, equilibration=0), tmp_path, window=6, stream=terminal
    )
    written = terminal.getvalue()
    assert "\r[" in written and written.count("\n") == 1 and written.endswith("\n")
