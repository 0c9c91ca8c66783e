"""Steps per round where a molecule's bonds are not all: a metal, and a proton between two bases.

Copper (32 atoms, effective medium theory, 5 fs): the draft that makes itself has contacts there.
Protonated ammonia dimer (GFN2-xTB, 0.5 fs): the bond that the proton forms is added during the run.
Both against a draft without that.

    pip install ase tblite
    python benchmarks/unusual_drafts.py
"""

import argparse
import dataclasses
from pathlib import Path

import ase.build
import numpy as np
from ase import Atoms
from ase.calculators.emt import EMT
from results import save

from openmm_lsd import SpeculativeSampler
from openmm_lsd.core.schemes import MOLAR_GAS_CONSTANT, Middle
from openmm_lsd.drafts.autodraft import auto_draft
from openmm_lsd.drafts.bonds import BondMonitor
from openmm_lsd.drafts.draft import LearningDraft
from openmm_lsd.drafts.molgraph import graph_of_positions
from openmm_lsd.targets import ASETarget


def zero(positions):
    """No draft at all: ballistic motion, and what the corrections know."""
    return np.zeros_like(positions)


def automatic(atoms, *, watching=True):
    """The draft of 'auto'; with ``watching`` off its bonds stay as they are at the start."""
    positions, box = in_nm(atoms)
    bonds = BondMonitor(graph_of_positions(atoms.numbers, positions, box), positions, box)
    start = auto_draft(bonds.graph_at(positions, box), positions, box)
    draft = LearningDraft(start, atoms.get_masses(), None, bonds if watching else None)
    draft.set_environment(box, {})
    return draft


def in_nm(atoms):
    box = 0.1 * np.array(atoms.cell[:]) if atoms.pbc.any() else None
    return 0.1 * atoms.positions, box


def measure(name, atoms, calculator, drafts, step_size, args):
    positions, box = in_nm(atoms)
    masses = atoms.get_masses()
    target = ASETarget(calculator, atoms.numbers)
    scale = np.sqrt(MOLAR_GAS_CONSTANT * args.temperature / masses)[:, None]
    found = {}
    for draft_name, make in drafts.items():
        counts = found[draft_name] = []
        for seed in args.seeds:
            sampler = SpeculativeSampler.of_forces(
                Middle(args.temperature, 1.0, step_size),
                masses,
                make(),
                lambda states: target.evaluate(states, box)[1],
                args.window,
                seed,
            )
            noise = np.random.default_rng(seed).standard_normal(positions.shape)
            sampler.set_state(positions, scale * noise)
            sampler.advance(args.steps)
            before = dataclasses.replace(sampler.statistics)
            sampler.advance(args.steps)
            counts.append(sampler.statistics.since(before).steps_per_round)
        numbers = ", ".join(f"{count:.2f}" for count in counts)
        print(f"{name}, {draft_name}: {numbers} steps per round", flush=True)
    return {"system": name, "steps per round": found}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=400, help="not counted, then counted")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument("--temperature", type=float, default=300.0, help="kelvin")
    parser.add_argument("--outfile", type=Path)
    args = parser.parse_args()
    copper = ase.build.bulk("Cu", cubic=True).repeat(2)
    drafts = {"no draft": lambda: zero, "auto": lambda: automatic(copper)}
    rows = [measure("copper, 5 fs", copper, EMT(), drafts, 0.005, args)]

    from tblite.ase import TBLite

    angles = np.radians([0.0, 120.0, 240.0])
    hydrogens = np.stack([0.96 * np.cos(angles), 0.96 * np.sin(angles), 0 * angles], axis=1)
    along = np.array([[0.0, 0.0, 1.0]])
    left = [0.0 * along, hydrogens - 0.37 * along]
    right = [2.7 * along, hydrogens + 3.07 * along]
    dimer = Atoms("NH3NH3H", np.concatenate([*left, *right, 1.15 * along]))
    drafts = {
        "bonds of the start": lambda: automatic(dimer, watching=False),
        "auto": lambda: automatic(dimer),
    }
    calculator = TBLite(method="GFN2-xTB", verbosity=0, charge=1)
    rows.append(measure("N2H7+, 0.5 fs", dimer, calculator, drafts, 0.0005, args))
    if args.outfile is not None:
        save(args.outfile, {"window": args.window, "steps": args.steps, "rows": rows})


if __name__ == "__main__":
    main()
