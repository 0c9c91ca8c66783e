"""SevenNet with the weights of its package, as an ASE calculator.

sevenn needs e3nn 0.5 or later and mace-torch 0.4.4, so this runs in an environment of its own:

    pip install "openmm-lsd[sevennet]" pytest && pytest tests/test_target_sevennet.py
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import openmm
import pytest
from openmm import app, unit

from openmm_lsd import LSDIntegrator, systems
from openmm_lsd.targets import ASETarget, validate_target

try:
    calculators = pytest.importorskip("sevenn.calculator")
except ValueError as error:  # sevenn's, if another e3nn is installed
    pytest.skip(str(error), allow_module_level=True)
build = pytest.importorskip("ase.build")


@pytest.fixture(scope="module")
def silicon():
    """ase.Atoms, 8 of them, with 7net-0."""
    atoms = build.bulk("Si", cubic=True)
    atoms.calc = calculators.SevenNetCalculator("7net-0", device="cpu")
    return atoms


def test_it_is_a_sound_target(silicon):
    target = ASETarget(silicon.calc, silicon)
    rng = np.random.default_rng(1)
    positions = 0.1 * silicon.positions + 0.005 * rng.standard_normal((8, 3))
    box = 0.1 * np.array(silicon.cell)
    validate_target(target, positions, silicon.get_masses(), box=box)


def test_a_run(silicon):
    """Without a draft it would be 4 steps per round."""
    crystal = systems.from_ase(silicon)
    integrator = LSDIntegrator(
        300,
        1,
        0.002,
        "auto",
        topology=crystal.topology,
        windowLength=8,
        randomNumberSeed=1,
    )
    platform = openmm.Platform.getPlatform("Reference")
    simulation = app.Simulation(crystal.topology, crystal.target, integrator, platform)
    simulation.context.setPositions(crystal.positions)
    simulation.context.setVelocitiesToTemperature(600, 1)
    simulation.step(180)
    before = integrator.statistics
    simulation.step(80)
    assert integrator.statistics.since(before).steps_per_round > 5.5
    positions = simulation.context.getState(positions=True).getPositions(asNumpy=True)
    moved = positions.value_in_unit(unit.nanometer) - 0.1 * silicon.positions
    assert 0 < np.abs(moved).max() < 0.05


def test_a_small_network_drafts_for_a_large_one(tmp_path):
    """Its steps that were not measured before are those of a draft; see test_scripts.py."""
    outfile = tmp_path / "counts.json"
    ways = ["draft", "draft, learning", "auto", "no draft"]
    short = "--window 4 --seeds 1 --warm-up 4 --steps 6 --equilibration 20"
    script = Path(__file__).resolve().parent.parent / "benchmarks" / "pairings.py"
    command = [sys.executable, script, "silicon8", *short.split(), "--ways", *ways]
    subprocess.run([*command, "--outfile", outfile], check=True, timeout=900)
    counts = {each["way"]: each for each in json.loads(outfile.read_text())}
    shifts = {way: counts[way]["noise shift of steps not measured before"] for way in ways}
    assert 0 < shifts["draft"] < 1.5 and 0 < shifts["draft, learning"] < 1.5, shifts
    assert shifts["no draft"] > 1.5, shifts
    assert counts["draft"]["steps per round"] >= 2 and counts["auto"]["steps per round"] >= 1
