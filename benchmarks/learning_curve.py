"""Steps per round while a draft learns, against simulated time.

    python benchmarks/learning_curve.py systems/alanine_dipeptide --gfn2 --seeds 1 2 3
    python benchmarks/learning_curve.py systems/alanine_dipeptide --gfn2 --timestep 0.5 --window 24

Drafts: ``auto`` is made from the bonds and learns, ``system`` is the system's own force field, and
``learning`` that force field with a valence force field on top that learns. Needs no clock: the
counts do not depend on the machine. --outfile keeps the numbers; a figure is made of such files:

    python benchmarks/learning_curve.py docs/benchmarks/learning_*.json \
        --figure docs/figures/learning.png
"""

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
from openmm import unit
from results import save

from openmm_lsd import SpeculativeSampler, systems
from openmm_lsd.contexts.checks import masses_of
from openmm_lsd.core.schemes import MOLAR_GAS_CONSTANT, SCHEMES
from openmm_lsd.core.statistics import TIMES_MEASURED
from openmm_lsd.drafts.draft import DraftSpec
from openmm_lsd.drafts.nativeengine import NativeEngine

DRAFTS = {"auto": (False, True), "system": (True, False), "learning": (True, True)}


def curve(args, molecule, target, draft_name, seed):
    """Steps per round in every segment of a run that starts from the system's own structure.

    Also the mean noise shifts in each, of steps measured 0, 1, 2, 3 or more times before, and the
    microseconds that drafting a step took in the last one.
    """
    positions = np.array(molecule.positions.value_in_unit(unit.nanometer))
    masses = masses_of(molecule.target)
    uses_system, learning = DRAFTS[draft_name]
    vectors = molecule.topology.getPeriodicBoxVectors()
    box = None if vectors is None else np.array(vectors.value_in_unit(unit.nanometer))
    choice = DraftSpec(molecule.draft if uses_system else None, None, molecule.topology, learning)
    draft = choice.build(positions, masses, box)
    draft.set_environment(box, {})
    sampler = SpeculativeSampler.of_forces(
        SCHEMES[args.scheme](args.temperature, args.friction, 1e-3 * args.timestep),
        masses,
        draft,
        target,
        args.window,
        seed,
        engine=NativeEngine,
        cm_removal_frequency=1,
    )
    scale = np.sqrt(MOLAR_GAS_CONSTANT * args.temperature / masses)[:, None]
    velocities = scale * np.random.default_rng(seed).standard_normal(positions.shape)
    sampler.set_state(positions, velocities)
    counts, shifts = [], []
    for _ in range(args.steps // args.segment):
        before = dataclasses.replace(sampler.statistics)
        sampler.advance(args.segment)
        last = sampler.statistics.since(before)
        counts.append(last.steps_per_round)
        shifts.append(last.noise_shifts_by_measurement)
    return counts, shifts, 1e6 * last.draft_seconds / (last.rounds * args.window)


def measure(args):
    from steps_per_round import gfn2_target, system_target

    molecule = systems.load(args.files[0], constraints=None, rigidWater=False)
    positions = np.array(molecule.positions.value_in_unit(unit.nanometer))
    if args.gfn2:
        target = gfn2_target(molecule.topology)
    else:
        target = system_target(molecule, positions, args.window)
    document = {
        "system": args.files[0].name,
        "target": "GFN2-xTB" if args.gfn2 else "its own",
        "K": args.window,
        "time step, fs": args.timestep,
        "segment, steps": args.segment,
        "left out, steps": args.after,
        "curves": {},
        "noise shifts": {},
    }
    name = ", ".join(f"{key} {value}" for key, value in list(document.items())[:4])
    print(f"{name}, {args.scheme}, {args.temperature} K, {args.friction}/ps")
    print(f"steps per round in segments of {args.segment} steps; then after {args.after} steps")
    for draft_name in args.drafts:
        curves, shifts = [], []
        for seed in args.seeds:
            counts, of_seed, microseconds = curve(args, molecule, target, draft_name, seed)
            curves.append(counts)
            shifts.append(of_seed)
            late = 1 / np.mean(1 / np.array(curves[-1][args.after // args.segment :]))
            numbers = " ".join(f"{count:5.2f}" for count in curves[-1])
            print(
                f"  {draft_name:9s} seed {seed}: {numbers}  | {late:5.2f}, "
                f"{microseconds:.1f} us per drafted step",
                flush=True,
            )
            numbers = ["-" if shift is None else f"{shift:.2f}" for shift in of_seed[-1]]
            print(f"            noise shifts by times measured, last segment: {' '.join(numbers)}")
        document["curves"][draft_name] = curves
        document["noise shifts"][draft_name] = shifts
    if args.outfile:
        save(args.outfile, document)


def figure(files, output):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    documents = [json.loads(file.read_text()) for file in files]
    panels, below = plt.figure(figsize=(4 * len(documents), 6.5), layout="constrained").subplots(
        2, len(documents), squeeze=False, sharex="col"
    )
    for axes, shift_axes, document in zip(panels, below, documents, strict=True):
        segment = document["segment, steps"] * document["time step, fs"] * 1e-3
        for draft_name, curves in document["curves"].items():
            values = np.array(curves)
            times = segment * (0.5 + np.arange(values.shape[1]))
            (line,) = axes.plot(times, values.mean(axis=0), "o-", markersize=3, label=draft_name)
            low, high = values.min(axis=0), values.max(axis=0)
            axes.fill_between(times, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        axes.set_title(
            f"{document['system']}, {document['target']}\n"
            f"{document['time step, fs']:g} fs, K = {document['K']}",
            fontsize=10,
        )
        axes.set_ylim(bottom=0)
        draw_noise_shifts(shift_axes, document["noise shifts"]["auto"], segment)
    panels[0].set_ylabel("steps per round")
    below[0].set_ylabel("mean noise shift, draft auto")
    below[0].legend(frameon=False, title="measured before")
    most = int(np.argmax([len(document["curves"]) for document in documents]))
    panels[most].legend(frameon=False, title="draft", loc="lower right")
    output.parent.mkdir(parents=True, exist_ok=True)
    panels[0].figure.savefig(output, dpi=130)


def draw_noise_shifts(axes, curves, segment):
    """Means over seeds, by how often a step had been measured; segments in ps."""
    import warnings

    values = np.array(curves, dtype=float)  # None becomes nan
    times = segment * (0.5 + np.arange(values.shape[1]))
    with warnings.catch_warnings():  # all of a column may be missing
        warnings.simplefilter("ignore", RuntimeWarning)
        means = np.nanmean(values, axis=0)
    for name, column in zip(TIMES_MEASURED, means.T, strict=True):
        axes.plot(times, column, "o-", markersize=3, label=name)
    axes.set_yscale("log")
    axes.set_xlabel("simulated time, ps")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+", help="a system's directory, or JSON files")
    parser.add_argument("--figure", type=Path, help="draw JSON files instead of measuring")
    parser.add_argument("--gfn2", action="store_true", help="GFN2-xTB instead of its target")
    parser.add_argument("--drafts", nargs="+", choices=DRAFTS, default=list(DRAFTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument("--timestep", type=float, default=1.0, help="fs")
    parser.add_argument("--temperature", type=float, default=300.0, help="kelvin")
    parser.add_argument("--friction", type=float, default=1.0, help="1/ps")
    parser.add_argument("--scheme", choices=SCHEMES, default="middle")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--segment", type=int, default=100, help="steps")
    parser.add_argument("--after", type=int, default=500, help="steps that the last figure omits")
    parser.add_argument("--outfile", type=Path)
    args = parser.parse_args()
    if args.figure:
        figure(args.files, args.figure)
    else:
        measure(args)


if __name__ == "__main__":
    main()
