"""Platforms that are tried for speed, on a machine where one of them is broken."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from openmm_lsd.contexts import platforms
from openmm_lsd.contexts.platforms import HOSTS, note_in_use, platforms_to_try

VENDORS = "/etc/OpenCL/vendors"

needs_opencl = pytest.mark.skipif(
    not os.path.exists(f"{VENDORS}/pocl.icd") or shutil.which("gcc") is None,
    reason="needs an OpenCL, and gcc to break it",
)

# A driver whose first kernel ends the process.
BROKEN = """
#include <stdlib.h>
int clEnqueueNDRangeKernel() { abort(); }
"""

USE = """
import logging
import sys
import numpy as np
import openmm
from openmm_lsd import LSDIntegrator

logging.basicConfig()
assert openmm.Platform.getPlatformByName("OpenCL")
systems = []
for constant in (900.0, 1000.0):
    system, bonds = openmm.System(), openmm.HarmonicBondForce()
    for mass in (12.0, 16.0):
        system.addParticle(mass)
    bonds.addBond(0, 1, 0.12, constant)
    pair = openmm.CustomBondForce(f"{constant}*r^4")
    pair.addBond(0, 1)
    system.addForce(bonds)
    system.addForce(pair)
    systems.append(system)
target, draft = systems
integrator = LSDIntegrator(300, 1, 0.001, draft, windowLength=4)
context = openmm.Context(target, integrator, openmm.Platform.getPlatform("Reference"))
context.setPositions([[0, 0, 0], [0.13, 0, 0]])
integrator.step(20)
print("steps", context.getStepCount())
"""


def preload(code, folder):
    """Environment in which this C code stands before the OpenCL library, which is not hidden."""
    library = folder / "broken.so"
    source = library.with_suffix(".c")
    source.write_text(code)
    subprocess.run(["gcc", "-shared", "-fPIC", source, "-o", library], check=True)
    return os.environ | {"LD_PRELOAD": str(library), "OCL_ICD_VENDORS": VENDORS}


@needs_opencl
def test_a_platform_that_ends_the_process_is_left_alone(tmp_path):
    environment = preload(BROKEN, tmp_path)
    alone = subprocess.run(
        [sys.executable, "-c", platforms.PROBE, "OpenCL"], env=environment, capture_output=True
    )
    assert alone.returncode == -signal.SIGABRT  # it is broken
    done = subprocess.run(
        [sys.executable, "-c", USE], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "steps 20" in done.stdout
    assert done.stderr.count("OpenCL is not used") == 1 and "signal 6" in done.stderr


def plant(monkeypatch, program):
    """A platform of this name, of which another process is asked by ``program``."""
    monkeypatch.setattr(platforms, "PROBE", program)
    names = {**platforms.loaded_platforms(), "Planted": {}}
    monkeypatch.setattr(platforms, "loaded_platforms", lambda *_: names)
    platforms._works_elsewhere.cache_clear()


@pytest.mark.parametrize(
    "program, works",
    [
        ("pass", True),
        ("raise SystemExit('no driver')", False),
        ("import os; os.abort()", False),
        ("import time; time.sleep(60)", False),
    ],
)
def test_platforms_are_tried_in_another_process(monkeypatch, program, works):
    plant(monkeypatch, program)
    monkeypatch.setattr(platforms, "LONGEST_PROBE", 2.0)
    assert ("Planted" in platforms_to_try()) == works
    platforms._works_elsewhere.cache_clear()


def test_the_platform_of_a_context_is_not_tried_again(monkeypatch):
    plant(monkeypatch, "raise SystemExit(1)")
    monkeypatch.setattr(platforms, "_in_use", set())
    note_in_use("Planted")
    assert "Planted" in platforms_to_try()
    platforms._works_elsewhere.cache_clear()


def test_hosts_need_no_trial(monkeypatch):
    own = {name: {} for name in HOSTS}
    monkeypatch.setattr(platforms, "loaded_platforms", lambda *_: own)
    monkeypatch.setattr(platforms, "_works_elsewhere", None)
    assert platforms_to_try() == own
