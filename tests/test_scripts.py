"""The scripts run, and the shipped potential is what its README says. No timings are tested."""

import contextlib
import io
import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from openmm import app, unit

from openmm_lsd import LSDIntegrator, systems
from openmm_lsd.contexts.forcecontext import is_empty
from openmm_lsd.targets import ContextTarget, SystemTarget

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("scripts", "benchmarks", "systems/make")
ALANINE = ROOT / "systems" / "alanine_dipeptide"


def path_of(name):
    (file,) = (file for folder in FOLDERS if (file := ROOT / folder / name).exists())
    return file


def run_alone(name, *arguments):
    """In a process of its own, as from a shell; what it prints."""
    command = [sys.executable, path_of(name), *map(str, arguments)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr + result.stdout
    return result.stdout


def run_script(name, *arguments):
    """The same in this process, which has imported torch and OpenMM already."""
    file, printed = path_of(name), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(ROOT)
        patch.syspath_prepend(file.parent)
        patch.setattr(sys, "argv", [str(file), *map(str, arguments)])
        try:
            runpy.run_path(str(file), run_name="__main__")
        except SystemExit as end:
            assert not end.code, printed.getvalue()
    return printed.getvalue()


def test_steps_per_round_of_the_shipped_potential():
    """The target is 3.5 over a long run; 300 steps scatter around 4.2 and 4.7."""
    output = run_script(
        "steps_per_round.py", ALANINE, "--steps", 300, "--equilibration", 200, "--seed", 2
    )
    counts = [
        float(line.split("per-step")[1].split()[0])
        for line in output.splitlines()
        if "correction per-step" in line
    ]
    assert len(counts) == 2 and min(counts) > 3.0, output


SHORT_RUNS = ("--equilibration", 200, "--learning", 40, "--steps", 60)


def test_water_boxes():
    output = run_script("water_boxes.py", "--molecules", 216, *SHORT_RUNS)
    assert "648 atoms" in output and "peak memory" in output
    counts = [float(part.split()[-1]) for part in output.split(" steps per round")[:-1]]
    assert counts[0] > 2.2 and counts[1] < 1.3, output


@pytest.mark.parametrize(("name", "atoms"), [("alanine_dipeptide", 22), ("ibuprofen", 33)])
def test_shipped_potential_is_a_gradient_and_batches(name, atoms):
    """Forces are minus the numerical gradient; a row of a batch is that state alone."""
    file = ROOT / "systems" / name / f"{name}.pt"
    assert file.stat().st_size < 5e6
    module, molecule = torch.jit.load(str(file)), systems.load(file.parent)
    positions = np.array(molecule.positions.value_in_unit(unit.nanometer))
    assert positions.shape == (atoms, 3)
    states = positions + 0.003 * np.random.default_rng(1).standard_normal((4, *positions.shape))
    target = SystemTarget(molecule.target, positions)
    single = np.concatenate([target.evaluate(state[None])[1] for state in states])
    target.prepare(positions, 4)
    assert target.parts[0].plan(4).batching == "batch"
    scale = np.sqrt(np.mean(single**2))
    assert np.abs(target.evaluate(states)[1] - single).max() < 1e-4 * scale

    energies = module(torch.tensor(states)).numpy()
    assert np.abs(energies - [module(torch.tensor(state)).item() for state in states]).max() < 0.02
    direction = single[0] / np.linalg.norm(single[0])
    step = 2e-4
    ends = torch.tensor(np.array([states[0] + step * direction, states[0] - step * direction]))
    slope = -np.subtract(*module(ends).numpy()) / (2 * step)
    assert abs(slope / np.linalg.norm(single[0]) - 1) < 5e-3


def test_load_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"0 \*\.prmtop files"):
        systems.load(tmp_path)


def test_amoeba_water_box():
    box = systems.load(ROOT / "systems" / "amoeba_water")
    assert box.topology.getNumResidues() == 64
    assert box.draft.usesPeriodicBoundaryConditions() and box.target.getNumConstraints() == 0
    positions = np.array(box.positions.value_in_unit(unit.nanometer))
    energies, forces = ContextTarget(box.target, contexts=1).evaluate(positions[None])
    assert -64 * 50 < energies[0] < 0 and np.sqrt(np.mean(forces**2)) < 3000


def test_amoeba_through_contexts_side_by_side():
    """Six of the waters, without a box."""
    pdb = app.PDBFile(str(ROOT / "systems" / "amoeba_water" / "amoeba_water.pdb"))
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.delete(list(pdb.topology.residues())[6:])
    modeller.topology.setPeriodicBoxVectors(None)
    target, draft = (
        app.ForceField(file).createSystem(modeller.topology, constraints=None, rigidWater=False)
        for file in ("amoeba2018.xml", "tip3p.xml")
    )
    for index in reversed(range(target.getNumForces())):
        if is_empty(target.getForce(index)):
            target.removeForce(index)
    positions = np.array(modeller.positions.value_in_unit(unit.nanometer))
    states = positions + 0.003 * np.random.default_rng(1).standard_normal((3, *positions.shape))
    platforms = {"Reference": {}}
    one, two = (ContextTarget(target, platforms=platforms, contexts=n) for n in (1, 2))
    for values, expected in zip(two.evaluate(states), one.evaluate(states), strict=True):
        # Induced dipoles are iterated, from wherever the last state left them.
        np.testing.assert_allclose(values, expected, rtol=0, atol=0.05)
    integrator = LSDIntegrator(300, 1, 0.0005, draft, windowLength=8, randomNumberSeed=1)
    simulation = app.Simulation(modeller.topology, target, integrator)
    simulation.context.setPositions(modeller.positions)
    simulation.context.setVelocitiesToTemperature(300, 1)
    simulation.step(100)
    assert integrator.statistics.steps_per_round > 2


def test_learning_curve_and_draft_cost(tmp_path):
    outfile, picture = tmp_path / "curve.json", tmp_path / "curve.png"
    options = ("--drafts", "auto", "--steps", 100, "--segment", 50, "--after", 50)
    output = run_script("learning_curve.py", ALANINE, *options, "--outfile", outfile)
    assert "us per drafted step" in output
    (counts,) = json.loads(outfile.read_text())["curves"]["auto"]
    assert len(counts) == 2 and min(counts) > 1.5
    pytest.importorskip("matplotlib")
    run_script("learning_curve.py", outfile, "--figure", picture)
    assert picture.stat().st_size > 5000
    assert "force field" in run_script("draft_cost.py", ALANINE, "--windows", 8)


def test_simulated_device(tmp_path):
    outfile = tmp_path / "device.json"
    options = ("--milliseconds", 1, "--seconds", 1, "--warm-up", 200, "--outfile", outfile)
    pytest.importorskip("tblite")
    run_script("simulated_device.py", *options, "--gfn2", 40, "--gfn2-window", 8)
    found = json.loads(outfile.read_text())
    (row,) = found["rows"]
    assert row["plain"]["ms per step"] > 1.0 and row["LSD"]["steps per round"] > 1.5
    result = found["GFN2-xTB"]
    (ratio,) = result["ratios"]
    assert 1.5 < ratio < result["steps per round"] <= 8.0


def test_first_steps(tmp_path):
    outfile = tmp_path / "steps.json"
    case = "ibuprofen, 1 fs, draft: force field"
    run_script("first_steps.py", "--only", case, "--steps", 300, "--outfile", outfile)
    (row,) = json.loads(outfile.read_text())["rows"]
    assert len(row["LSD, ms per step"]) == 3 and min(row["ratios"]) > 0


def test_make_figures(tmp_path):
    pytest.importorskip("matplotlib")
    output = run_script("make_figures.py", "--steps", 60, "--output", tmp_path)
    assert "steps per round" in output
    names = {"timeline.png", "steps_per_round.png", "noise_shifts.png"}
    assert {file.name for file in tmp_path.iterdir() if file.stat().st_size > 5000} == names


@pytest.mark.parametrize("script", ["page_tables.py", "pairings_table.py", "readme_table.py"])
def test_tables_of_the_pages_are_those_of_the_benchmarks(script):
    run_alone(script, "--check")


def test_sentences_quote_what_was_measured():
    run_alone("quoted_numbers.py")


def test_benchmark_on_files(tmp_path):
    stem, outfile = ALANINE / "alanine_dipeptide", tmp_path / "benchmark.json"
    output = run_script(
        "benchmark.py",
        *("--topology", f"{stem}.prmtop", "--coordinates", f"{stem}.inpcrd"),
        *("--target", f"{stem}.pt", "--draft", f"{stem}.prmtop", "--windows", 4),
        *("--seconds", 1, "--block", 20, "--warm-up", 40, "--outfile", outfile),
    )
    assert "times as fast as plain dynamics" in output
    rows = json.loads(outfile.read_text())["benchmark"]["rows"]
    assert [row["run"] for row in rows[:2]] == ["plain", "LSD, K = 4"]


@pytest.mark.parametrize(
    ("pairing", "largest"), [("gfn", 5.0), ("copper4", 1.2), ("ensemble", 1.2)]
)
def test_a_cheap_potential_drafts_for_an_expensive_one(tmp_path, pairing, largest):
    """GFN1-xTB for GFN2-xTB, EMT for CHGNet, a member for its ensemble.

    Corrections hide how good a draft is, so its steps that were not measured before are looked at:
    without a draft they are worse, or there are none. In so few steps nothing is learned.
    """
    pytest.importorskip("tblite" if pairing == "gfn" else "chgnet")
    outfile = tmp_path / "counts.json"
    ways = ("draft", "draft, learning", "auto", "no draft")
    short = ("--window", 4, "--seeds", 1, "--warm-up", 4, "--steps", 6, "--equilibration", 20)
    run_script("pairings.py", pairing, *short, "--ways", *ways, "--outfile", outfile)
    counts = {each["way"]: each for each in json.loads(outfile.read_text())}
    shifts = {way: counts[way]["noise shift of steps not measured before"] for way in ways}
    assert 0 < shifts["draft"] < largest and 0 < shifts["draft, learning"] < largest, shifts
    assert shifts["no draft"] is None or shifts["no draft"] > largest, shifts
    assert counts["draft"]["steps per round"] >= 2 and counts["auto"]["steps per round"] >= 1
