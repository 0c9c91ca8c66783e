"""A long run that must not grow and must not slow down: reporters, checkpoints, edits.

    python benchmarks/soak.py                   # half an hour of alanine dipeptide
    python benchmarks/soak.py --minutes 600     # over night

Prints what it measures in every interval and a verdict; the exit status is 1 if it is bad.

Memory: a robust line through the resident memory of the second half, which may make one step. It
grows if the line rises by more than --growth per hour, and in the time of the fit by more than
--resolution and than four times the scatter around it.

Speed: the medians of the first and the last third of the intervals, after a warm-up of a fifth.
Wall time depends on who else uses the machine, so it may fall by --tolerance, and by three standard
errors of the difference. The acceptance rate of drafted steps does not depend on the clock, and
hardly on the window: it may fall by 0.05. Steps per round are judged if --window is a number.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from openmm import app, unit

from openmm_lsd import LSDIntegrator, systems

ROOT = Path(__file__).resolve().parent.parent
MEGABYTE = 1e6
TEMPERATURE = 300 * unit.kelvin
FIRST_BLOCK = 20  # steps


class Interval(NamedTuple):
    """What was measured in one interval."""

    end: float  # seconds since the start
    steps_per_second: float
    steps_per_round: float
    acceptance_rate: float
    memory: float  # MB, resident


def resident_memory():
    """Of this process, MB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / MEGABYTE


def robust_line(times, values):
    """Slope, largest step and scatter of values that rise steadily and make one step.

    The slope is the median of the slopes of all pairs on the same side of the step (Theil-Sen):
    a larger window, or a scratch buffer that is made once, is no leak.
    """
    side = np.zeros(len(values), dtype=int)
    cuts = range(3, len(values) - 2)
    if cuts:
        misfits = [
            sum(np.abs(part - np.median(part)).sum() for part in np.split(values, [cut]))
            for cut in cuts
        ]
        side[cuts[int(np.argmin(misfits))] :] = 1
    first, second = np.triu_indices(len(times), k=1)
    same = side[first] == side[second]
    first, second = first[same], second[same]
    slope = float(np.median((values[second] - values[first]) / (times[second] - times[first])))
    rest = values - slope * times
    levels = [float(np.median(rest[side == each])) for each in range(1 + side.max())]
    scatter = 1.4826 * float(np.median(np.abs(rest - np.array(levels)[side])))
    return slope, levels[-1] - levels[0], scatter


class Soak:
    """A Simulation, what is done to it now and then, and what is measured."""

    def __init__(self, args, directory):
        self.args, self.directory = args, Path(directory)
        molecule = systems.load(args.system)
        self.integrator = LSDIntegrator(
            TEMPERATURE,
            1 / unit.picosecond,
            args.timestep * unit.femtosecond,
            "auto" if args.draft == "auto" else molecule.draft,
            windowLength=args.window,
            randomNumberSeed=args.seed,
            topology=molecule.topology,
        )
        self.simulation = app.Simulation(molecule.topology, molecule.target, self.integrator)
        self.simulation.context.setPositions(molecule.positions)
        self.simulation.minimizeEnergy(maxIterations=100)
        self.simulation.context.setVelocitiesToTemperature(TEMPERATURE)
        self.rng = np.random.default_rng(args.seed)
        self.edits = {self.new_velocities: 0, self.checkpoint: 0, self.state: 0}
        self.ballast = []
        self.add_reporters()

    def add_reporters(self):
        columns = ("step", "time", "potentialEnergy", "kineticEnergy", "temperature", "speed")
        self.simulation.reporters = [
            app.StateDataReporter(
                str(self.directory / "log.csv"), 20, **dict.fromkeys(columns, True)
            ),
            app.DCDReporter(str(self.directory / "trajectory.dcd"), 50),
            app.CheckpointReporter(str(self.directory / "run.chk"), 100),
        ]

    def new_velocities(self):
        self.simulation.context.setVelocitiesToTemperature(TEMPERATURE)

    def checkpoint(self):
        """There and back again."""
        file = str(self.directory / "own.chk")
        self.simulation.saveCheckpoint(file)
        self.simulation.step(7)
        self.simulation.loadCheckpoint(file)

    def state(self):
        """Likewise."""
        file = str(self.directory / "own.xml")
        self.simulation.saveState(file)
        self.simulation.step(7)
        self.simulation.loadState(file)

    def interval(self, seconds):
        """Run for so long, with one edit at some time."""
        before, begin = self.integrator.statistics, time.perf_counter()
        block, edit_at = FIRST_BLOCK, self.rng.uniform(0.2, 0.8) * seconds
        while (spent := time.perf_counter() - begin) < seconds:
            if spent > edit_at:
                edit = list(self.edits)[self.rng.integers(len(self.edits))]
                edit()
                self.edits[edit] += 1
                edit_at = np.inf
            begin_block = time.perf_counter()
            self.simulation.step(block)
            taken = time.perf_counter() - begin_block
            if self.args.slow_down:
                time.sleep(self.args.slow_down * taken * (begin_block - self.begin) / self.total)
            if taken < 0.05 * seconds:
                block += FIRST_BLOCK
        if self.args.leak:
            self.ballast.append(np.ones(int(1000 * self.args.leak / 8)))
        now, end = self.integrator.statistics, time.perf_counter()
        steps, rounds, accepted, rejected = (
            getattr(now, name) - getattr(before, name)
            for name in ("steps", "rounds", "accepted", "rejected")
        )
        return Interval(
            end - self.begin,
            steps / (end - begin),
            steps / max(1, rounds),
            accepted / (accepted + rejected) if accepted + rejected else np.nan,
            resident_memory(),
        )

    def run(self):
        """All intervals."""
        self.total = 60 * self.args.minutes
        seconds = self.args.interval or self.total / 60
        self.simulation.step(1)  # what is chosen at the first step takes its time
        self.begin = time.perf_counter()
        rows = []
        print("minutes    steps/s  steps/round  acceptance      MB", flush=True)
        while not rows or rows[-1].end < self.total:
            rows.append(self.interval(seconds))
            row = rows[-1]
            print(
                f"{row.end / 60:7.2f} {row.steps_per_second:10.1f} {row.steps_per_round:12.2f} "
                f"{row.acceptance_rate:11.3f} {row.memory:7.1f}",
                flush=True,
            )
        return rows


def memory_verdict(rows, growth, resolution):
    """Whether memory is flat, and a line that says so."""
    half = rows[len(rows) // 2 :]
    times = np.array([row.end for row in half]) / 3600
    memory = np.array([row.memory for row in half])
    slope, step, scatter = robust_line(times, memory)
    rise = slope * (times[-1] - times[0])
    allowed = max(resolution, 4 * scatter)
    flat = bool(slope <= growth or rise <= allowed)
    return flat, (
        f"memory {'is flat' if flat else 'GROWS'}: {slope:+.1f} MB per hour in the second half "
        f"(allowed {growth:g}), {rise:+.2f} MB in its {60 * (times[-1] - times[0]):.1f} minutes "
        f"(noticed from {allowed:.2f}), one step of {step:+.1f} MB; "
        f"{rows[0].memory:.0f} MB at first, {memory[-1]:.0f} at last"
    )


def verdict_on_fall(name, values, allowed):
    """Whether the last third is no lower than the first, and a line that says so."""
    values = np.array(values)[len(values) // 5 :]
    values = values[np.isfinite(values)]
    third = len(values) // 3
    if third < 2:
        return True, f"{name}: too few intervals to be judged"
    first, last = values[:third], values[-third:]
    # Of a median: 1.25 times that of a mean; the scatter itself from quartiles.
    errors = [
        1.25 * np.subtract(*np.percentile(part, [75, 25])) / 1.35 / np.sqrt(third)
        for part in (first, last)
    ]
    before, after = float(np.median(first)), float(np.median(last))
    noise = 3 * float(np.hypot(*errors))
    flat = bool(before - after <= max(allowed(before), noise))
    return flat, (
        f"{name} {'is flat' if flat else 'FALLS'}: {before:.3g} in the first third, {after:.3g} "
        f"in the last (noticed from a fall of {max(allowed(before), noise):.2g})"
    )


def verdict(rows, args):
    """Whether all is well, and lines that say so."""
    results = [
        memory_verdict(rows, args.growth, args.resolution),
        verdict_on_fall(
            "speed", [row.steps_per_second for row in rows], lambda before: args.tolerance * before
        ),
        verdict_on_fall("acceptance", [row.acceptance_rate for row in rows], lambda _: 0.05),
    ]
    if args.window != "auto":
        counts = [row.steps_per_round for row in rows]
        results.append(verdict_on_fall("steps per round", counts, lambda before: 0.1 * before))
    return all(flat for flat, _ in results), [line for _, line in results]


def window(text):
    """'auto' or a number."""
    return text if text == "auto" else int(text)


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--interval", type=float, help="seconds; default: a sixtieth of the run")
    parser.add_argument(
        "--system", type=Path, default=ROOT / "systems/alanine_dipeptide", help="see systems.load"
    )
    parser.add_argument("--draft", choices=["auto", "forcefield"], default="auto")
    parser.add_argument("--window", type=window, default="auto", help="'auto' or a number")
    parser.add_argument("--timestep", type=float, default=1.0, help="fs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--growth", type=float, default=10.0, help="allowed, MB per hour")
    parser.add_argument("--resolution", type=float, default=5.0, help="of memory, MB")
    parser.add_argument("--tolerance", type=float, default=0.15, help="allowed loss of speed")
    faults = parser.add_argument_group("planted faults, which must be found")
    faults.add_argument("--leak", type=float, default=0.0, help="kB that every interval leaks")
    faults.add_argument(
        "--slow-down", type=float, default=0.0, help="time that steps lose by the end, in parts"
    )
    args = parser.parse_args()
    if not args.minutes > 0:
        parser.error("--minutes must be positive")
    return args


def main():
    args = arguments()
    with tempfile.TemporaryDirectory() as directory:
        soak = Soak(args, directory)
        rows = soak.run()
        written = {file.name: file.stat().st_size for file in Path(directory).iterdir()}
    print(soak.integrator.statistics)
    edits = ", ".join(f"{edit.__name__} {count}" for edit, count in soak.edits.items())
    files = ", ".join(f"{name} {size / MEGABYTE:.2f} MB" for name, size in sorted(written.items()))
    print(f"edits: {edits}; files: {files}")
    good, lines = verdict(rows, args)
    print(*lines, sep="\n")
    print("verdict: " + ("sound" if good else "NOT SOUND"))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
