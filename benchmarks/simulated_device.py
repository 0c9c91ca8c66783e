"""LSD where a batch costs little more than one state: wall time on a device that is simulated.

The target is a force field (alanine dipeptide by Amber, stiffer, longer and more polar), whose
forces are handed out only after the time that a batch would take on the device. All else is real:
drafting, learning, transport, bookkeeping, OpenMM, Python; so is plain dynamics beside it, which
waits for one state at each step. No GPU is measured here, only what the host adds to one.

    python benchmarks/simulated_device.py --outfile docs/benchmarks/simulated_device.json

With --gfn2 also for forces of GFN2-xTB, which take too long to be handed out in time: its rounds
are run as they are, and their time is what the host took in them (all but the target, learning in
full) and what the device would take.

    pip install "openmm-lsd[ase]" tblite
    python benchmarks/simulated_device.py --gfn2 1000 --outfile simulated_device.json
"""

import argparse
import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openmm
from gfn2_ray import gfn2_factory
from openmm import app
from results import save
from water_boxes import perturb

from openmm_lsd import systems
from openmm_lsd.commands import Case
from openmm_lsd.commands.benchmark import Kind, Way, time_in_turns
from openmm_lsd.contexts.forcecontext import ForceContext
from openmm_lsd.targets import BatchedTarget

SYSTEM = Path(__file__).resolve().parent.parent / "systems/alanine_dipeptide"
SPIN = 2e-4  # s, at the end of a wait: sleep comes back too late


class Device(BatchedTarget):
    """Energies and forces of a System's force field, after ``seconds`` for one state.

    Two threads compute them, so that they are there in time.
    """

    def __init__(self, system, seconds, per_state):
        reference = openmm.Platform.getPlatform("Reference")
        self._contexts = [ForceContext(system, reference) for _ in range(2)]
        self._beside = ThreadPoolExecutor(1)
        self._seconds, self._per_state = seconds, per_state

    def _forces(self, positions):
        if len(positions) == 1:
            return self._contexts[0].evaluate(np.ascontiguousarray(positions))
        halves = np.array_split(positions, 2)
        other = self._beside.submit(self._contexts[1].evaluate, halves[1])
        return map(
            np.concatenate, zip(self._contexts[0].evaluate(halves[0]), other.result(), strict=True)
        )

    def evaluate(self, positions, box=None):
        ready = time.perf_counter()
        ready += self._seconds * (1.0 + self._per_state * (len(positions) - 1))
        energies, forces = self._forces(positions)
        time.sleep(max(0.0, ready - time.perf_counter() - SPIN))
        while time.perf_counter() < ready:
            pass
        return energies, forces


class Computed(BatchedTarget):
    """A target that takes a hundred times as long as the device: nothing is learned beside it."""

    keeps_cores_busy = True

    def __init__(self, target):
        self._target = target

    def evaluate(self, positions, box=None):
        return self._target.evaluate(positions, box)


def gfn2_row(case, state, warm_up, steps, window):
    """Counts and host time of LSD with GFN2-xTB; the device's time is not in it."""
    target = Computed(gfn2_factory(case.topology, 0.0)())
    case = dataclasses.replace(case, target=systems.with_target(case.target, target))
    run = case.lsd(window)
    run.set_state(*state)  # the force field's: minimising, GFN2-xTB may fail
    run.step(warm_up)
    before = dataclasses.replace(run.integrator.statistics)
    run.step(steps)
    counts = run.integrator.statistics.since(before)
    host = counts.draft_seconds + counts.learning_seconds + counts.overhead_seconds
    return {
        "window": window,
        "steps": counts.steps,
        "steps per round": counts.steps_per_round,
        "host, ms": 1e3 * host / counts.rounds,
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--milliseconds", type=float, nargs="+", default=[0.5, 1, 2, 5, 10, 20])
    parser.add_argument("--per-state", type=float, default=0.01, help="that each further one adds")
    parser.add_argument("--timestep", type=float, default=1.0, help="fs")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each latency")
    parser.add_argument("--warm-up", type=int, default=2000, help="steps in which LSD learns")
    parser.add_argument("--gfn2", type=int, default=0, help="steps with forces of GFN2-xTB")
    parser.add_argument("--gfn2-window", type=int, default=64, help="its K")
    parser.add_argument("--outfile", type=Path)
    args = parser.parse_args()
    molecule = systems.load(SYSTEM)
    prmtop = app.AmberPrmtopFile(str(SYSTEM / "alanine_dipeptide.prmtop"))
    target = perturb(prmtop.createSystem(nonbondedMethod=app.NoCutoff))
    rows = []
    print(
        f"alanine dipeptide, {args.timestep:g} fs, draft and window 'auto'; a batch of B takes "
        f"(1 + {args.per_state:g} (B - 1)) times what one state takes\n"
        "device, ms   plain, ms/step   LSD, ms/step   K    steps/round   host, ms/round   speed-up"
    )
    for milliseconds in args.milliseconds:
        device = Device(target, 1e-3 * milliseconds, args.per_state)
        case = Case(
            molecule.topology,
            molecule.positions,
            "auto",
            systems.with_target(molecule.draft, device),
            step_size=1e-3 * args.timestep,
            platform="Reference",
            seed=1,
        )
        run = case.lsd("auto")
        run.equilibrate(case, args.warm_up)
        ways = [Way("plain", Kind.PLAIN, case.plain()), Way("LSD", Kind.LSD, run)]
        block = int(np.clip(round(500 / milliseconds), 100, 1000))  # as `openmm-lsd benchmark`
        plain, lsd = time_in_turns(case, ways, run.state, args.seconds, block, lambda line: None)
        spent = lsd.spent
        host = lsd.ms_per_step * spent.steps_per_round * (1 - spent.shares["target"])
        print(
            f"{milliseconds:10g}   {plain.ms_per_step:14.2f}   {lsd.ms_per_step:12.2f}   "
            f"{spent.window:2d}   {spent.steps_per_round:11.2f}   {host:14.2f}   {lsd.ratio:8.2f}",
            flush=True,
        )
        rows.append((milliseconds, plain, lsd, host))
    document = {
        "per state": args.per_state,
        "rows": [
            {"device, ms": ms, "plain": plain.as_dict(), "LSD": lsd.as_dict(), "host, ms": host}
            for ms, plain, lsd, host in rows
        ],
    }
    if args.gfn2:
        result = gfn2_row(case, run.state, args.warm_up, args.gfn2, args.gfn2_window)
        print(
            f"GFN2-xTB: {result['steps']} steps, K = {result['window']}, "
            f"{result['steps per round']:.2f} steps per round, {result['host, ms']:.2f} ms of the "
            "host per round"
        )
        result["ratios"] = []
        for milliseconds, plain, *_ in rows:
            batch = milliseconds * (1.0 + args.per_state * (result["window"] - 1))
            ms_per_step = (batch + result["host, ms"]) / result["steps per round"]
            result["ratios"].append(plain.ms_per_step / ms_per_step)
            print(f"{milliseconds:10g} ms per state: {result['ratios'][-1]:.2f} times plain")
        document["GFN2-xTB"] = result
    if args.outfile:
        save(args.outfile, document)


if __name__ == "__main__":
    main()
