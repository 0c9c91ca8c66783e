"""Seconds and megabytes from `pip install` to the first steps, in a fresh environment.

Runs the first commands of README, "Install in your own environment", on a clean clone of the last
commit, in a temporary folder and without pip's cache. Then a script of its own: alanine dipeptide
with Amber as the potential, which needs no torch; plain steps are faster there, and LSD finds that
out. Its seconds count from the start of the interpreter. Needs the standard library only.

    python3 benchmarks/first_install.py
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """
import json, sys, time
begin, stem = float(sys.argv[1]), sys.argv[2]
seconds = {}

def done(what):
    seconds[what] = time.time() - begin

from openmm import app, unit
done("import openmm")
from openmm_lsd import LSDIntegrator
done("import openmm_lsd")
prmtop = app.AmberPrmtopFile(stem + ".prmtop")
inpcrd = app.AmberInpcrdFile(stem + ".inpcrd")
system = prmtop.createSystem()
integrator = LSDIntegrator(
    300 * unit.kelvin, 1 / unit.picosecond, 1 * unit.femtosecond, "auto", topology=prmtop.topology
)
simulation = app.Simulation(prmtop.topology, system, integrator)
simulation.context.setPositions(inpcrd.positions)
done("System and Context")
simulation.minimizeEnergy()
simulation.context.setVelocitiesToTemperature(300 * unit.kelvin)
done("minimizeEnergy")
for last in (1, 100, 1000):
    simulation.step(last - simulation.currentStep)
    done(f"step {last}")
assert "torch" not in sys.modules
print(json.dumps([seconds, str(integrator.statistics)]))
"""


def documented_commands():
    """The lines of README that install the base: what it is built with, and the package."""
    section = (ROOT / "README.md").read_text().split("## Install in your own environment")[1]
    return [line.split("#")[0].strip() for line in re.findall(r"^    (pip .+)", section, re.M)][:2]


def megabytes(folder):
    return int(subprocess.check_output(["du", "-sm", folder], text=True).split()[0])


def timed(command, **keywords):
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **keywords)
    return time.perf_counter() - begin


def row(what, seconds, size=""):
    print(f"{what:84s}{seconds:8.2f}{size:>8}", flush=True)


def install(work, environment):
    folder, clone = work / "environment", work / "clone"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    seconds = timed([sys.executable, "-m", "venv", folder])
    row("python3 -m venv", seconds, megabytes(folder))
    total = 0.0
    for command in documented_commands():
        seconds = timed(["bash", "-c", command], cwd=clone, env=environment)
        row(command, seconds, megabytes(folder))
        total += seconds
    return total


def first_steps(work, environment):
    file = work / "first_steps.py"
    file.write_text(SCRIPT)
    stem = ROOT / "systems" / "alanine_dipeptide" / "alanine_dipeptide"
    for run in ("first", "second"):
        command = ["python", file, str(time.time()), stem]
        output = subprocess.check_output(command, cwd=work, env=environment, text=True)
        seconds, statistics = json.loads(output.splitlines()[-1])
        print(f"\nalanine dipeptide with Amber, {run} run, seconds since it was started")
        for what, value in seconds.items():
            row(what, value)
        print(statistics)
        yield seconds["step 1"]


def main():
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    with tempfile.TemporaryDirectory(prefix="first_install.") as name:
        work = Path(name)
        path = f"{work / 'environment' / 'bin'}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "PIP_NO_CACHE_DIR": "1", "PIP_QUIET": "1"}
        load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
        python = sys.version.split()[0]
        print(f"Python {python}, {cores} cores, {load:.1f} processes ran before\n")
        print(f"{'':84s}{'seconds':>8s}{'MB':>8s}")
        total = install(work, environment)
        first, _ = first_steps(work, environment)
        print(f"\nfrom pip install to the first committed step: {total + first:.0f} seconds")


if __name__ == "__main__":
    main()
