"""LSDIntegrator against LangevinMiddleIntegrator on the same TorchForce, in one process.

Both sides at their best: the plain run on the platform and the number of torch threads that are
fastest for it, LSD with the window that is fastest for it. Blocks of steps alternate, so that the
ratio does not depend on how busy the machine is. LSD runs twice: with draft='auto' and
windowLength='auto', where nothing is tuned by hand, after --warm-up steps in which the draft learns
and the window is found; and with the system's force field and the best of --windows. The last row
is the published rule on that force field: one constant offset for the whole window.

    python scripts/benchmark.py systems/alanine_dipeptide --timestep 1 0.5 --seconds 50
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path

import numpy as np
import openmm
import torch
from openmm import unit

import openmm_lsd
from openmm_lsd import LSDIntegrator, SpeculativeSampler, systems
from openmm_lsd.checks import cm_removal_frequency, masses_of
from openmm_lsd.contexts import fastest_context
from openmm_lsd.draft import Draft
from openmm_lsd.schemes import SCHEMES, Middle
from openmm_lsd.targets import SystemTarget

SECONDS_PER_DAY = 86400.0


class Plain:
    """LangevinMiddleIntegrator with the TorchForce of the System."""

    name = "plain"

    def __init__(self, system, args, step_size, platform_name, threads):
        self.threads = threads
        self.settings = f"{platform_name}, {threads} torch threads"
        self.integrator = openmm.LangevinMiddleIntegrator(
            args.temperature, args.friction, step_size
        )
        self.integrator.setRandomNumberSeed(args.seed)
        self.context = openmm.Context(
            system, self.integrator, openmm.Platform.getPlatform(platform_name)
        )

    def set_state(self, positions, velocities):
        self.context.setPositions(positions)
        self.context.setVelocities(velocities)

    def advance(self, steps):
        torch.set_num_threads(self.threads)
        self.integrator.step(steps)


class Speculative(Plain):
    """LSDIntegrator, stepped ten steps at a time as Simulation.step does."""

    def __init__(self, molecule, draft, args, step_size, window, threads):
        self.threads = threads
        self.name = "LSD, all auto" if draft == "auto" else "LSD, force field"
        self._settings = f"K = {window}"
        self.integrator = LSDIntegrator(
            args.temperature,
            args.friction,
            step_size,
            draft,
            windowLength=window,
            scheme=args.scheme,
            randomNumberSeed=args.seed,
            topology=molecule.topology,
        )
        self.context = openmm.Context(
            molecule.target, self.integrator, openmm.Platform.getPlatform("Reference")
        )

    def advance(self, steps):
        torch.set_num_threads(self.threads)
        for done in range(0, steps, 10):
            self.integrator.step(min(10, steps - done))

    @property
    def settings(self):
        tuner = self.integrator._binding and self.integrator._binding.tuner
        return f"K = {tuner.window} now" if tuner else self._settings

    @property
    def statistics(self):
        return self.integrator.statistics


class ConstantOffset:
    """The published rule, on the same draft and the same batched target."""

    name = "constant offset"

    def __init__(self, system, draft, args, step_size, window, threads, positions):
        self.threads = threads
        self.settings = f"K = {window}"
        scheme = SCHEMES[args.scheme](args.temperature, args.friction, step_size)
        target = SystemTarget(system, positions)
        target.prepare(positions, window)
        self.sampler = SpeculativeSampler(
            scheme,
            masses_of(system),
            Draft(fastest_context(draft, positions)),
            lambda states: target.evaluate(states)[1],
            window,
            args.seed,
            correction="constant",
            cm_removal_frequency=cm_removal_frequency(system),
        )

    def set_state(self, positions, velocities):
        self.sampler.set_state(positions, velocities)

    def advance(self, steps):
        torch.set_num_threads(self.threads)
        self.sampler.advance(steps)

    @property
    def statistics(self):
        return self.sampler.statistics


def equilibrated(molecule, args, step_size, threads):
    """Positions and velocities after minimisation and some LSD steps, nm and nm/ps."""
    runner = Speculative(molecule, molecule.draft, args, step_size, 16, threads)
    runner.context.setPositions(molecule.positions)
    openmm.LocalEnergyMinimizer.minimize(runner.context, maxIterations=200)
    runner.context.setVelocitiesToTemperature(args.temperature, args.seed)
    runner.advance(args.equilibration)
    state = runner.context.getState(positions=True, velocities=True)
    return tuple(
        array.value_in_unit_system(unit.md_unit_system)
        for array in (state.getPositions(asNumpy=True), state.getVelocities(asNumpy=True))
    )


def fastest(candidates, state, steps, trials=5):
    """The candidate with the shortest median time per step, measured in turns."""
    times = {runner: [] for runner in candidates}
    for runner in candidates:
        runner.set_state(*state)
        runner.advance(steps)
    for _ in range(trials):
        for runner in candidates:
            begin = time.perf_counter()
            runner.advance(steps)
            times[runner].append((time.perf_counter() - begin) / steps)
    medians = {runner: float(np.median(times[runner])) for runner in candidates}
    for runner, seconds in medians.items():
        print(f"  {runner.name:16s} {runner.settings}: {1e3 * seconds:.2f} ms per step", flush=True)
    return min(medians, key=medians.__getitem__)


def benchmark(molecule, args, step_size):
    cores = torch.get_num_threads()
    state = equilibrated(molecule, args, step_size, cores)
    print("choosing the fastest settings of each side:")
    plain = fastest(
        [
            Plain(molecule.target, args, step_size, name, threads)
            for name in ("Reference", "CPU")
            for threads in sorted({1, cores})
        ],
        state,
        args.block // 2,
    )
    speculative = fastest(
        [
            Speculative(molecule, molecule.draft, args, step_size, window, cores)
            for window in args.windows
        ],
        state,
        args.block,
    )
    window = speculative.integrator._window
    automatic = Speculative(molecule, "auto", args, step_size, "auto", cores)
    automatic.set_state(*state)
    automatic.advance(args.warm_up)
    offset = ConstantOffset(
        molecule.target, molecule.draft, args, step_size, window, cores, state[0]
    )
    runners = [plain, automatic, speculative, offset]
    for runner in runners:
        runner.set_state(*state)
        runner.advance(args.block // 4)
    before = {runner.name: runner.statistics for runner in runners[1:]}
    before = {name: openmm_lsd.Statistics(**vars(value)) for name, value in before.items()}
    times = {runner.name: [] for runner in runners}
    begin = time.perf_counter()
    while time.perf_counter() - begin < args.seconds or len(times["plain"]) < 5:
        for runner in runners:
            # The published rule needs about as many rounds as steps; a shorter block will do.
            steps = args.block if runner is not offset else max(10, args.block // 5)
            start = time.perf_counter()
            runner.advance(steps)
            times[runner.name].append((time.perf_counter() - start) / steps)
    return report(runners, times, before, step_size)


def report(runners, times, before, step_size):
    plain_times = np.array(times["plain"])
    rows = []
    for runner in runners:
        seconds = np.array(times[runner.name])
        ratios = plain_times / seconds
        row = {
            "run": runner.name,
            "settings": runner.settings,
            "ns/day": float(step_size * 1e-3 * SECONDS_PER_DAY / np.median(seconds)),
            "ms per step": float(1e3 * np.median(seconds)),
            "ratio": float(np.median(ratios)),
            "ratio quartiles": [float(q) for q in np.quantile(ratios, [0.25, 0.75])],
            "blocks": len(seconds),
        }
        if runner.name in before:
            now, then = runner.statistics, before[runner.name]
            spent = openmm_lsd.Statistics(
                **{name: getattr(now, name) - getattr(then, name) for name in vars(now)}
            )
            total = spent.counted_seconds + spent.overhead_seconds
            row |= {
                "steps per round": spent.steps_per_round,
                "acceptance rate": spent.acceptance_rate,
                "target share": spent.target_seconds / total,
                "draft share": (spent.draft_seconds + spent.learning_seconds) / total,
                "overhead share": spent.overhead_seconds / total,
            }
        rows.append(row)
    print(
        f"\n{'':17s}{'settings':31s}{'ns/day':>8s}{'ms/step':>9s}{'speed-up':>10s}"
        f"{'quartiles':>14s}{'steps/round':>13s}   target/draft/overhead"
    )
    for row in rows:
        line = (
            f"{row['run']:17s}{row['settings']:31s}{row['ns/day']:8.2f}{row['ms per step']:9.2f}"
            f"{row['ratio']:10.2f}{'{:.2f} to {:.2f}'.format(*row['ratio quartiles']):>14s}"
        )
        if "steps per round" in row:
            line += f"{row['steps per round']:13.2f}   " + " / ".join(
                f"{100 * row[name]:.0f} %"
                for name in ("target share", "draft share", "overhead share")
            )
        print(line)
    print("\n" + verdict(rows))
    return rows


def verdict(rows):
    """The table in one sentence."""
    plain, speculative = rows[0], max(rows[1:3], key=lambda row: row["ratio"])
    ratio, committed = speculative["ratio"], speculative["steps per round"]
    cost = speculative["ms per step"] * committed * speculative["target share"]
    comparison = (
        f"{ratio:.2f} times as fast as" if ratio >= 1 else f"{1 / ratio:.2f} times slower than"
    )
    return (
        f"LSD is {comparison} plain dynamics here: each batch gives {committed:.2f} exact steps "
        f"and costs what {cost / plain['ms per step']:.2f} plain steps cost."
    )


def machine():
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0].split(":")[1].strip() if names else model
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "openmm": openmm.version.short_version,
        "torch": torch.__version__,
        "openmm-lsd": openmm_lsd.__version__,
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("system", type=Path, help="directory with prmtop, inpcrd and .pt")
    parser.add_argument("--timestep", type=float, nargs="+", default=[1.0], help="fs")
    parser.add_argument("--temperature", type=float, default=300.0, help="kelvin")
    parser.add_argument("--friction", type=float, default=1.0, help="1/ps")
    parser.add_argument("--scheme", choices=sorted(SCHEMES), default=Middle.name)
    parser.add_argument("--windows", type=int, nargs="+", default=[8, 12, 16, 24], help="K to try")
    parser.add_argument("--seconds", type=float, default=60.0, help="of measurement per time step")
    parser.add_argument("--block", type=int, default=100, help="steps per block")
    parser.add_argument("--warm-up", type=int, default=2000, help="steps, of 'auto'")
    parser.add_argument("--equilibration", type=int, default=500, help="steps")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--outfile", type=Path, help="results as JSON")
    args = parser.parse_args()
    molecule = systems.load(args.system)
    about = machine()
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    results = []
    for femtoseconds in args.timestep:
        print(
            f"\n{args.system.name}, {molecule.topology.getNumAtoms()} atoms, {args.temperature} K, "
            f"friction {args.friction}/ps, time step {femtoseconds} fs, scheme {args.scheme}"
        )
        rows = benchmark(molecule, args, 1e-3 * femtoseconds)
        results.append({"timestep, fs": femtoseconds, "rows": rows})
    print(
        "\nspeed-up: wall time of plain dynamics over wall time, median of alternating blocks.\n"
        "steps/round: committed steps per batched target evaluation."
    )
    if args.outfile:
        document = {"machine": about, "system": args.system.name, "results": results}
        args.outfile.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
