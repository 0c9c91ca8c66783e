"""Where windows are drafted: on the host or in a Context, against plain steps of the cheap forces.

    pip install parmed        # it makes the boxes: alanine dipeptide in rigid water, PME
    python benchmarks/engines.py --platform CPU --atoms 2300 9000 20000 50000 --outfile FILE

Per round of K steps: the time of drafting, in units of K steps of LangevinMiddleIntegrator with the
same cheap forces on the same platform; and the rest (noise, transfers, commit, bookkeeping) in
milliseconds, without the slow force, which is free here.
"""

import argparse
from pathlib import Path
from time import perf_counter

import numpy as np
import openmm
from mixed import ATOMS, in_water
from openmm import app
from results import save

from openmm_lsd import LSDIntegrator, batched

MOLECULE = "alanine_dipeptide"


@batched
def free(positions, box, parameters):
    return np.zeros(len(positions)), np.zeros_like(positions)


def simulation_of(topology, positions, system, integrator, platform):
    simulation = app.Simulation(topology, system, integrator, platform)
    simulation.context.setPositions(positions)
    simulation.context.setVelocitiesToTemperature(300, 1)
    return simulation


class Box:
    """A box of water with a molecule in it, run plainly and by each engine, in turns."""

    def __init__(self, atoms, window, platform, engines):
        topology, positions, field = in_water(MOLECULE, atoms, picoseconds=min(5.0, 10_000 / atoms))
        target = openmm.XmlSerializer.clone(field)
        slow = openmm.PythonForce(free)
        slow.setParticles(list(range(ATOMS[MOLECULE])))
        target.addForce(slow)
        self.atoms, self.window = topology.getNumAtoms(), window
        plain = openmm.LangevinMiddleIntegrator(300, 1, 0.001)
        self.plain = simulation_of(topology, positions, field, plain, platform)
        self.plain.step(4 * window)
        self.runs = {}
        for engine in engines:
            integrator = LSDIntegrator(
                300,
                1,
                0.001,
                "auto",
                windowLength=window,
                topology=topology,
                draftPlatform=platform,
                engine=engine,
            )
            self.runs[engine] = simulation_of(topology, positions, target, integrator, platform)
            self.runs[engine].step(4 * window)
        self.plain_seconds = []
        self.drafts = {each: [] for each in engines}
        self.rests = {each: [] for each in engines}

    def take_turn(self, rounds):
        start = perf_counter()
        self.plain.integrator.step(rounds * self.window)
        self.plain.context.getState(positions=True)
        self.plain_seconds.append((perf_counter() - start) / rounds)
        for engine, run in self.runs.items():
            before, start = run.integrator.statistics, perf_counter()
            run.integrator.probe().sampler.advance(rounds * self.window)  # nothing is shown
            elapsed = perf_counter() - start
            spent = run.integrator.statistics.since(before)
            self.drafts[engine].append(spent.draft_seconds / spent.rounds)
            rest = elapsed - spent.draft_seconds - spent.target_seconds
            self.rests[engine].append(rest / spent.rounds)

    def row(self):
        per_window = float(np.median(self.plain_seconds))
        return {
            "atoms": self.atoms,
            "plain, ms per window": 1e3 * per_window,
            "engines": {
                engine: {
                    "draft, times plain": float(np.median(self.drafts[engine])) / per_window,
                    "rest, ms": 1e3 * float(np.median(self.rests[engine])),
                    "steps per round": run.integrator.statistics.steps_per_round,
                }
                for engine, run in self.runs.items()
            },
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--platform", default="CPU")
    parser.add_argument("--precision", help="of a device: single, mixed or double")
    parser.add_argument("--atoms", type=int, nargs="+", default=[2300, 9000, 20_000, 50_000])
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument("--engines", nargs="+", default=["host", "context"])
    parser.add_argument(
        "--rounds", type=int, default=16, help="per turn, after which a state is read"
    )
    parser.add_argument("--seconds", type=float, default=100.0, help="per box")
    parser.add_argument("--outfile", type=Path)
    args = parser.parse_args()
    platform = openmm.Platform.getPlatform(args.platform)
    if args.precision:
        platform.setPropertyDefaultValue("Precision", args.precision)
    boxes = [Box(atoms, args.window, platform, args.engines) for atoms in args.atoms]
    begin, turns = perf_counter(), 0
    while turns < 3 or perf_counter() - begin < args.seconds * len(boxes):
        for box in boxes:  # in turns: what else the machine does meets all of them
            box.take_turn(args.rounds)
        turns += 1
    rows = [box.row() for box in boxes]
    print(f"{args.platform}, K = {args.window}, {turns} turns of {args.rounds} rounds")
    print(" atoms   plain, ms/window   draft (times plain), rest")
    for row in rows:
        told = "   ".join(
            f"{name}: {each['draft, times plain']:.2f}, {each['rest, ms']:.2f} ms"
            for name, each in row["engines"].items()
        )
        print(f"{row['atoms']:6d}{row['plain, ms per window']:18.1f}   {told}")
    if args.outfile is not None:
        name = args.platform + (f" {args.precision}" if args.precision else "")
        if len(args.engines) == 1:
            name += f", {args.engines[0]}"
        save(args.outfile, {"window": args.window, "rows": rows}, name)


if __name__ == "__main__":
    main()
