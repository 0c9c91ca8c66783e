"""Steps per round of drafts as they were and as they are, in one run.

    python benchmarks/draft_study.py systems/alanine_dipeptide --gfn2 --windows 16 24 --seeds 1 2
    python benchmarks/draft_study.py systems/ibuprofen --windows 24 48

``forces`` is fitted to forces, has the terms of the first stage, and corrects each step with its
own discrepancy; ``differences`` is fitted to how forces change as well, and has all terms;
``secant``, the default, lets the corrections change with the positions, too. The noise shifts are
those of steps measured 0, 1, 2, and 3 or more times before. Needs no clock: the counts do not
depend on the machine.
"""

import argparse
import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
from openmm import app, unit
from results import save
from steps_per_round import gfn2_target, system_target

from openmm_lsd import SpeculativeSampler, systems
from openmm_lsd.contexts.checks import masses_of
from openmm_lsd.contexts.forcecontext import fastest_context
from openmm_lsd.core.correctors import Following, make_corrector
from openmm_lsd.core.schemes import MOLAR_GAS_CONSTANT, SCHEMES
from openmm_lsd.drafts.autodraft import STAGES, auto_draft
from openmm_lsd.drafts.draft import LearningDraft
from openmm_lsd.drafts.estimates import native_estimates
from openmm_lsd.drafts.learning import WEIGHT_OF_DIFFERENCES
from openmm_lsd.drafts.molgraph import graph_of_topology, pairs_within, with_missing_bonds
from openmm_lsd.drafts.nativeengine import NativeEngine

VARIANTS = {  # stages of terms, weight of differences, correction
    "forces": (STAGES[:1], 0.0, "per-step"),
    "differences": (STAGES, WEIGHT_OF_DIFFERENCES, "per-step"),
    "secant": (STAGES, WEIGHT_OF_DIFFERENCES, "secant"),
}


def make_sampler(args, variant, structure, target, window, seed, base=None):
    """A sampler at the system's own structure; ``base`` is a ForceContext to learn on top of."""
    topology, positions, masses, box = structure
    stages, weight, correction = VARIANTS[variant]
    graph = with_missing_bonds(graph_of_topology(topology), positions, box)
    start = auto_draft(graph, positions, box, stages=stages)
    if base is not None:
        start = start.without_guesses()
    draft = LearningDraft(start, masses, base, weight_of_differences=weight)
    draft.set_environment(box, {})

    scheme = SCHEMES[args.scheme](args.temperature, args.friction, 1e-3 * args.timestep)
    corrector = make_corrector(correction, scheme, masses[:, None])
    if correction == "secant":
        estimates = native_estimates(masses, partial(pairs_within, box=box))
        corrector = Following(scheme, masses[:, None], *estimates)
    sampler = SpeculativeSampler.of_forces(
        scheme,
        masses,
        draft,
        target,
        window,
        seed,
        engine=NativeEngine,
        corrector=corrector,
        cm_removal_frequency=1,
    )
    speeds = np.sqrt(MOLAR_GAS_CONSTANT * args.temperature / masses)[:, None]
    rng = np.random.default_rng(seed)
    sampler.set_state(positions, speeds * rng.standard_normal(positions.shape))
    return sampler


def read_structure(args):
    """Topology, positions (N, 3), masses (N,) and box; and the target's maker."""
    if args.system.is_dir():
        molecule = systems.load(args.system, constraints=None, rigidWater=False)
        topology, masses = molecule.topology, masses_of(molecule.target)
    else:
        molecule = app.PDBFile(str(args.system))
        topology = molecule.topology
        masses = np.array([a.element.mass.value_in_unit(unit.dalton) for a in topology.atoms()])
    positions = np.array(molecule.positions.value_in_unit(unit.nanometer))
    vectors = topology.getPeriodicBoxVectors()
    box = None if vectors is None else np.array(vectors.value_in_unit(unit.nanometer))
    return molecule, (topology, positions, masses, box)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("system", type=Path, help="directory, see systems.load; or a PDB file")
    parser.add_argument("--gfn2", action="store_true", help="GFN2-xTB instead of its target")
    parser.add_argument("--charge", type=float, default=0.0, help="of the molecule, for GFN2-xTB")
    parser.add_argument("--on-force-field", action="store_true", help="learn on top of its draft")
    parser.add_argument("--drafts", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--windows", type=int, nargs="+", default=[16, 24, 48])
    parser.add_argument("--ends", type=int, nargs="+", default=[200, 1000, 4000], help="steps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--timestep", type=float, default=1.0, help="fs")
    parser.add_argument("--temperature", type=float, default=300.0, help="kelvin")
    parser.add_argument("--friction", type=float, default=1.0, help="1/ps")
    parser.add_argument("--scheme", choices=SCHEMES, default="middle")
    parser.add_argument("--outfile", type=Path)
    args = parser.parse_args()

    molecule, structure = read_structure(args)
    topology, positions, *_ = structure
    base = fastest_context(molecule.draft, positions) if args.on_force_field else None
    parts = [f"{start}-{end}" for start, end in zip([0, *args.ends], args.ends, strict=False)]
    print(
        f"{args.system.name}, target {'GFN2-xTB' if args.gfn2 else 'its own'}, {args.scheme}, "
        f"{args.timestep} fs, {args.temperature} K, {args.friction}/ps; steps {', '.join(parts)}"
    )
    for window in args.windows:
        target = (
            gfn2_target(topology, args.charge)
            if args.gfn2
            else system_target(molecule, positions, window)
        )
        for variant in args.drafts:
            late = []
            for seed in args.seeds:
                sampler = make_sampler(args, variant, structure, target, window, seed, base)
                counts = []
                for end in args.ends:
                    before = dataclasses.replace(sampler.statistics)
                    sampler.advance(end - sampler.state.step)
                    since = sampler.statistics.since(before)
                    counts.append(since.steps_per_round)
                shifts = since.noise_shifts_by_measurement
                late.append(counts[-1])
                print(
                    f"  K = {window:2d}  {variant:11s} seed {seed}: "
                    + " ".join(f"{count:5.2f}" for count in counts)
                    + "  noise shifts "
                    + " ".join("-" if shift is None else f"{shift:.2f}" for shift in shifts),
                    flush=True,
                )
            mean = len(late) / sum(1 / each for each in late)
            print(f"  K = {window:2d}  {variant:11s} mean: {mean:.2f} steps per round", flush=True)
            if args.outfile is not None:
                write(args, window, variant, late)


def write(args, window, variant, late):
    """Steps per round of the last part, a number for each seed."""
    base = ", on its force field" if args.on_force_field else ""
    friction = "" if args.friction == 1 else f"{args.friction:g}/ps"
    scheme = "" if args.scheme == "middle" else args.scheme
    found = {
        "system": args.system.stem,
        "target": "GFN2-xTB" if args.gfn2 else "its own",
        "time step, fs": args.timestep,
        "K": window,
        "counted": args.ends[-2:],
        "draft": variant + base,
        "conditions": ", ".join(filter(None, (friction, scheme))),
        "seeds": args.seeds,
        "steps per round": late,
    }
    keys = ("system", "target", "time step, fs", "K", "draft", "conditions")
    save(args.outfile, found, ", ".join(str(found[key]) for key in keys if found[key]))


if __name__ == "__main__":
    main()
