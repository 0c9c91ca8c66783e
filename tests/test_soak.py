"""The soak run finds what is planted in it, and nothing where nothing is."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import soak  # noqa: E402

HOUR = 3600.0


def rows(minutes=30.0, leak=0.0, step=0.0, fall=0.0, worse=0.0, seed=1):
    """60 intervals; ``leak`` in MB per hour, ``step`` in MB, ``fall`` and ``worse`` by the end."""
    rng = np.random.default_rng(seed)
    part = np.linspace(0, 1, 60)
    end = 60 * minutes * part
    memory = 720 + 2 * rng.normal(size=60) + leak * end / HOUR + step * (part > 0.8)
    speed = 150 * (1 - fall * part) * (1 + 0.1 * rng.normal(size=60))
    acceptance = 0.85 - worse * part + 0.02 * rng.normal(size=60)
    columns = (end, speed, 6 * acceptance, acceptance, memory)
    return [soak.Interval(*map(float, row)) for row in zip(*columns, strict=True)]


def judged(monkeypatch, *options, **faults):
    monkeypatch.setattr(sys, "argv", ["soak.py", *options])
    good, lines = soak.verdict(rows(**faults), soak.arguments())
    return good, " ".join(lines)


@pytest.mark.parametrize("seed", range(20))
def test_a_sound_run_is_sound(monkeypatch, seed):
    good, text = judged(monkeypatch, "--window", "8", seed=seed, step=20.0)
    assert good, text


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("fault", "word"),
    [({"leak": 60.0}, "GROWS"), ({"fall": 0.5}, "speed FALLS"), ({"worse": 0.2}, "ance FALLS")],
)
def test_faults_are_found(monkeypatch, fault, word, seed):
    good, text = judged(monkeypatch, **fault, seed=seed)
    assert not good and word in text, text


def test_planted_leak():
    """The program itself: it runs, edits, measures, and its leak of 8 MB per interval is found."""
    command = [sys.executable, "benchmarks/soak.py", "--minutes", "0.1", "--leak", "8000"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "memory GROWS" in result.stdout and "verdict: NOT SOUND" in result.stdout
    assert "steps per round" in result.stdout and "trajectory.dcd" in result.stdout
