"""What crosses between this processor and a device, per step: counted on OpenMM's OpenCL platform.

    python benchmarks/transfers.py [--outfile FILE]

Needs gcc and an OpenCL, that of a GPU or of a CPU (Debian's pocl-opencl-icd). Calls are counted by
opencl_calls.c, which is compiled and preloaded. Counts are the same on every machine.
"""

import argparse
import ctypes
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import openmm
from openmm import app, unit
from results import save

from openmm_lsd import LSDIntegrator, batched

SOURCE = Path(__file__).resolve().with_name("opencl_calls.c")
LIBRARY = "OPENMM_LSD_OPENCL_CALLS"  # environment variable: where it has been compiled
NAMES = ("reads", "blocking reads", "bytes read", "writes", "blocking writes", "bytes written")
WINDOW = 8


def preload():
    """Run this script again with the counter before the OpenCL library; what it returns."""
    with tempfile.TemporaryDirectory() as folder:
        library = str(Path(folder) / "opencl_calls.so")
        compiler = os.environ.get("CC", "gcc")
        subprocess.run(
            [compiler, "-O2", "-shared", "-fPIC", SOURCE, "-o", library, "-ldl"], check=True
        )
        environment = os.environ | {"LD_PRELOAD": library, LIBRARY: library}
        return subprocess.run([sys.executable, *sys.argv], env=environment).returncode


class Counter:
    """What has crossed so far."""

    def __init__(self):
        self._counts = (ctypes.c_longlong * 6).in_dll(
            ctypes.CDLL(os.environ[LIBRARY]), "opencl_calls"
        )

    def of(self, do):
        """What crosses while something is done."""
        before = np.array(self._counts)
        do()
        return np.array(self._counts) - before


def water(molecules, precision):
    """Topology, positions, and what makes a System of flexible waters whose charges are scaled."""
    field = app.ForceField("amber14/tip3pfb.xml")
    modeller = app.Modeller(app.Topology(), [] * unit.nanometer)
    modeller.addSolvent(field, numAdded=molecules)

    def make(scale=1.0):
        system = field.createSystem(
            modeller.topology,
            nonbondedMethod=app.PME,
            nonbondedCutoff=0.8 * unit.nanometer,
            rigidWater=False,
        )
        for force in system.getForces():
            if isinstance(force, openmm.NonbondedForce):
                for index in range(force.getNumParticles()):
                    charge, *others = force.getParticleParameters(index)
                    force.setParticleParameters(index, scale * charge, *others)
        return system

    openmm.Platform.getPlatform("OpenCL").setPropertyDefaultValue("Precision", precision)
    return modeller.topology, modeller.positions, make


def simulation_of(topology, positions, system, integrator):
    platform = openmm.Platform.getPlatform("OpenCL")
    simulation = app.Simulation(topology, system, integrator, platform)
    simulation.context.setPositions(positions)
    simulation.context.setVelocitiesToTemperature(300, 1)
    return simulation


def measure(args):
    """Rows of counts."""
    counter = Counter()
    topology, positions, make = water(args.molecules, args.precision)
    rows = {}

    def add(name, counts, times):
        rows[name] = dict(zip(NAMES, (counts / times).tolist(), strict=True))

    plain = simulation_of(
        topology, positions, make(), openmm.LangevinMiddleIntegrator(300, 1, 0.0005)
    )
    plain.step(30)
    add("plain OpenMM, a step", counter.of(lambda: plain.integrator.step(50)), 50)
    add("plain OpenMM, integrator.step(1)", counter.of(lambda: plain.integrator.step(1)), 1)

    integrator = LSDIntegrator(
        300, 1, 0.0005, make(), windowLength=WINDOW, randomNumberSeed=1, draftPlatform="OpenCL"
    )
    rounds = []
    integrator.round_callbacks.append(rounds.append)
    simulation = simulation_of(topology, positions, make(1.01), integrator)
    integrator.step(30)
    in_rounds, queued, drafted = [], [], 0
    for _ in range(args.steps // 3):
        had = len(rounds)
        counts = counter.of(lambda: integrator.step(1))
        if len(rounds) == had:
            queued.append(counts)
        else:
            in_rounds.append(counts)
            drafted += rounds[-1].drafted
    print(f"K = {WINDOW}, {integrator.statistics.steps_per_round:.2f} steps per round")
    shown = np.mean(queued, axis=0)  # at the end of every step()
    add("integrator.step(1) from the queue", shown, 1)
    add("a drafted and evaluated state", np.sum(in_rounds - shown, axis=0), drafted)
    add(
        "integrator.step(10), a step of it",
        counter.of(lambda: simulation.step(args.steps)),
        args.steps,
    )

    for engine in ("host", "context"):
        measure_mixed(engine, topology, positions, make(), args.steps, counter, add)

    # A draft that costs as much as the target: 'auto' does plain steps.
    automatic = LSDIntegrator(300, 1, 0.0005, make(), randomNumberSeed=1, draftPlatform="OpenCL")
    other = simulation_of(topology, positions, make(1.01), automatic)
    other.step(10)
    for _ in range(100):
        before = automatic.statistics
        counts = counter.of(lambda: automatic.step(10))
        spent = automatic.statistics.since(before)
        if spent.rounds == spent.steps == 10:
            add("plain steps of 'auto', integrator.step(10), one", counts, 10)
            break
    return rows


@batched
def springs(positions, box, parameters):
    apart = np.diff(positions, axis=1)
    forces = np.zeros_like(positions)
    forces[:, :-1] += 100.0 * apart
    forces[:, 1:] -= 100.0 * apart
    return 50.0 * (apart**2).sum(axis=(1, 2)), forces


def measure_mixed(engine, topology, positions, system, steps, counter, add):
    """Where a molecule has a slow force of its own, computed on the host."""
    slow = openmm.PythonForce(springs)
    slow.setParticles([0, 1, 2])
    system.addForce(slow)
    integrator = LSDIntegrator(
        300, 1, 0.0005, "auto", windowLength=WINDOW, randomNumberSeed=1, engine=engine
    )
    rounds = []
    integrator.round_callbacks.append(rounds.append)
    simulation = simulation_of(topology, positions, system, integrator)
    simulation.step(30)
    sampler = integrator.probe().sampler
    del rounds[:]
    counts = counter.of(lambda: sampler.advance(steps))  # nothing is shown
    add(f"mixed, {engine} engine: a drafted step", counts, sum(each.drafted for each in rounds))
    integrator.step(30)
    counts = counter.of(lambda: simulation.step(steps))
    add(f"mixed, {engine} engine: integrator.step(10), a step of it", counts, steps)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--molecules", type=int, default=216)
    parser.add_argument("--precision", default="single", choices=("single", "mixed", "double"))
    parser.add_argument("--steps", type=int, default=200, help="in each count (default: 200)")
    parser.add_argument("--outfile", type=Path)
    args = parser.parse_args()
    if LIBRARY not in os.environ:
        raise SystemExit(preload())
    rows = measure(args)
    print(
        f"{'':57s}{'reads':>8s}{'blocking':>10s}{'kB':>9s}{'writes':>9s}{'blocking':>10s}{'kB':>9s}"
    )
    for name, row in rows.items():
        reads, waits, read, writes, write_waits, written = row.values()
        print(
            f"{name:57s}{reads:8.2f}{waits:10.2f}{read / 1e3:9.2f}"
            f"{writes:9.2f}{write_waits:10.2f}{written / 1e3:9.2f}"
        )
    if args.outfile is not None:
        save(args.outfile, {"rows": rows}, args.precision)


if __name__ == "__main__":
    main()
