"""Speed-up against the number of Ray workers, for a target that takes as long as a GPU model.

The target computes a force field's forces (alanine dipeptide, bonds and angles 20 % stiffer than
in the draft) and sleeps --milliseconds per state, as a worker waits for its GPU. Everything else is
real: W Ray actors, the rounds of LSD, their coordination. Plain dynamics takes the same per step.
Before that: what a call of two workers costs when their target takes no time at all.

    pip install "openmm-lsd[ray]" matplotlib
    python benchmarks/ray_scaling.py --outfile docs/benchmarks/ray_scaling.json \
        --figure docs/figures/ray_scaling.png
"""

import argparse
import copy
import functools
import time
from pathlib import Path

import numpy as np
import openmm
from openmm import app, unit
from results import save

from openmm_lsd import SpeculativeSampler
from openmm_lsd.contexts.checks import masses_of
from openmm_lsd.contexts.forcecontext import fastest_context
from openmm_lsd.core.schemes import MOLAR_GAS_CONSTANT, Middle
from openmm_lsd.drafts.draft import Draft
from openmm_lsd.drafts.nativeengine import NativeEngine
from openmm_lsd.targets import BatchedTarget, ContextTarget

STEM = Path(__file__).resolve().parent.parent / "systems/alanine_dipeptide/alanine_dipeptide"


def systems():
    """Positions (N, 3) nm, the draft and the stiffer target."""
    prmtop = app.AmberPrmtopFile(f"{STEM}.prmtop")
    positions = app.AmberInpcrdFile(f"{STEM}.inpcrd").positions.value_in_unit(unit.nanometer)
    draft = prmtop.createSystem()
    target = copy.deepcopy(draft)
    for force in target.getForces():
        if isinstance(force, openmm.HarmonicBondForce):
            for index in range(force.getNumBonds()):
                *atoms, length, constant = force.getBondParameters(index)
                force.setBondParameters(index, *atoms, 1.02 * length, 1.2 * constant)
        elif isinstance(force, openmm.HarmonicAngleForce):
            for index in range(force.getNumAngles()):
                *atoms, angle, constant = force.getAngleParameters(index)
                force.setAngleParameters(index, *atoms, 1.02 * angle, 1.2 * constant)
    return np.array(positions), draft, target


class Sleeping(BatchedTarget):
    """Takes ``seconds`` per state."""

    def __init__(self, seconds):
        self._seconds = seconds
        platforms = {"Reference": {}}
        self._forces = ContextTarget(systems()[2], platforms=platforms, contexts=1)

    def evaluate(self, positions, box=None):
        begin = time.perf_counter()
        values = self._forces.evaluate(positions, box)
        left = self._seconds * len(positions) - (time.perf_counter() - begin)
        time.sleep(max(0.0, left))
        return values


class Instant(BatchedTarget):
    """Takes no time."""

    def evaluate(self, positions, box=None):
        return np.zeros(len(positions)), np.zeros_like(positions)


def coordination(target, window, calls=1000):
    """Milliseconds of a batch of ``window`` states: median and 90th percentile."""
    states = np.tile(systems()[0], (window, 1, 1))
    seconds = []
    for _ in range(calls + 100):
        begin = time.perf_counter()
        target.evaluate(states)
        seconds.append(time.perf_counter() - begin)
    return 1e3 * np.percentile(seconds[100:], [50, 90])


def run(target, window, steps, seed=1):
    """Seconds per step and steps per round."""
    positions, draft, _ = systems()
    masses = masses_of(draft)
    sampler = SpeculativeSampler.of_forces(
        Middle(300.0, 1.0, 0.001),
        masses,
        Draft(fastest_context(draft, positions)),
        lambda states: target.evaluate(states)[1],
        window,
        seed,
        cm_removal_frequency=1,
        engine=NativeEngine,
    )
    target.evaluate(positions[None])  # the first batch is the slowest
    scale = np.sqrt(MOLAR_GAS_CONSTANT * 300.0 / masses)[:, None]
    velocities = scale * np.random.default_rng(seed).standard_normal(positions.shape)
    sampler.set_state(positions, velocities)
    sampler.advance(window)  # the first rounds have no corrections yet
    before = (sampler.statistics.steps, sampler.statistics.rounds)
    begin = time.perf_counter()
    while sampler.statistics.steps < before[0] + steps:
        sampler.advance(1)
    seconds = time.perf_counter() - begin
    done = sampler.statistics.steps - before[0]
    return seconds / done, done / (sampler.statistics.rounds - before[1])


def figure(document, file):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    axes = plt.figure(figsize=(6, 4), layout="constrained").gca()
    windows = sorted({row["K"] for row in document["rows"]})
    for window in windows:
        rows = [row for row in document["rows"] if row["K"] == window]
        workers = [row["workers"] for row in rows]
        axes.plot(workers, [row["speed-up"] for row in rows], "o-", label=f"K = {window}")
    axes.axhline(1.0, color="gray", linewidth=1, linestyle="--")
    axes.set_xscale("log", base=2)
    ticks = sorted({row["workers"] for row in document["rows"]})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlabel("Ray workers")
    axes.set_ylabel("speed-up over plain dynamics")
    axes.set_title(f"target: {document['milliseconds per state']:g} ms per state (asleep)")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    axes.figure.savefig(file, dpi=150)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--milliseconds", type=float, default=30.0, help="per state")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--windows", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--outfile", type=Path)
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()

    import ray

    from openmm_lsd.targets.ray import RayTarget

    ray.init(num_cpus=max(args.workers), include_dashboard=False, log_to_driver=False)
    factory = functools.partial(Sleeping, 1e-3 * args.milliseconds)
    with RayTarget(Instant, 2) as target:
        median, slow = coordination(target, 16)
    print(f"two workers, K = 16, a target that takes no time: {median:.2f} ms per round ", end="")
    print(f"(median of 1000; 90th percentile {slow:.2f})")
    document = {
        "milliseconds per state": args.milliseconds,
        "coordination of two workers, ms": median,
        "rows": [],
    }
    print("   K  workers  ms/round  batch alone  coordination  steps/round  speed-up")
    for workers in args.workers:
        with RayTarget(factory, workers) as target:
            for window in args.windows:
                seconds, per_round = run(target, window, args.steps)
                alone = args.milliseconds * -(-window // workers)
                row = {
                    "K": window,
                    "workers": workers,
                    "ms per round": 1e3 * seconds * per_round,
                    "ms asleep": alone,
                    "steps per round": per_round,
                    "speed-up": 1e-3 * args.milliseconds / seconds,
                }
                document["rows"].append(row)
                print(
                    f"{window:4d}{workers:9d}{row['ms per round']:10.1f}{alone:13.0f}"
                    f"{row['ms per round'] - alone:14.1f}{per_round:13.2f}{row['speed-up']:10.2f}",
                    flush=True,
                )
    if args.outfile:
        save(args.outfile, document)
    if args.figure:
        figure(document, args.figure)


if __name__ == "__main__":
    main()
