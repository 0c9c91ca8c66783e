"""What crosses between this processor and a device, counted by benchmarks/transfers.py."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from particles import PLATFORM

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "transfers.py"

pytestmark = [
    pytest.mark.skipif(PLATFORM.getName() != "OpenCL", reason="calls of OpenCL are counted"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="the counter is compiled by gcc"),
]


def test_nothing_crosses_that_nobody_needs(tmp_path, monkeypatch):
    """In mixed precision, where there is more that could."""
    monkeypatch.delenv("POCL_EXTRA_BUILD_FLAGS", raising=False)  # its steps pay for them
    file = tmp_path / "transfers.json"
    options = ["--outfile", file, "--precision", "mixed", "--steps", "60"]
    subprocess.run([sys.executable, SCRIPT, *options], check=True)
    rows = json.loads(file.read_text())["mixed"]["rows"]
    parts = 2  # a position is written, and read, as so many arrays
    # A state is shown: positions and velocities.
    queued = rows["integrator.step(1) from the queue"]
    assert queued["reads"] == 0 and queued["writes"] == parts + 1
    # The draft's site and forces, and the target's.
    state = rows["a drafted and evaluated state"]
    assert state["blocking reads"] == pytest.approx(2, abs=0.01)
    assert state["writes"] == pytest.approx(2 * parts, abs=0.01)
    plain = rows["plain steps of 'auto', integrator.step(10), one"]
    assert plain["blocking reads"] <= (parts + 1) / 10
    assert plain["writes"] == 0
    # Of the box the Context engine hands out what is shown, and OpenMM what it sorts at times.
    drafted, shown = ("a drafted step", "integrator.step(10), a step of it")
    for what, most in ((drafted, 0.2), (shown, 0.4)):
        host, context = (
            rows[f"mixed, {engine} engine: {what}"]["bytes read"] for engine in ("host", "context")
        )
        assert context < most * host
