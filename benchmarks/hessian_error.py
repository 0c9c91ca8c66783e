"""How well a draft that has learned for so many steps knows the target's Hessian.

    python benchmarks/hessian_error.py systems/alanine_dipeptide --gfn2 --record alanine.npz
    python benchmarks/hessian_error.py systems/ibuprofen --record ibuprofen.npz

What a rejection costs in the next round is the error of the draft's Hessian (docs/drafts.md), so
terms, weights and ridge are chosen by it. Records committed steps, and Hessians (by differences) at
some of the last thousand; shows the steps to a Learner; prints |H - H_draft| / |H|, in
mass-weighted coordinates, in percent. --record keeps the steps for the next call.
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
from openmm import unit
from results import save
from steps_per_round import gfn2_target, system_target

from openmm_lsd import SpeculativeSampler, systems
from openmm_lsd.contexts.checks import masses_of
from openmm_lsd.core.schemes import MOLAR_GAS_CONSTANT, Middle
from openmm_lsd.drafts.autodraft import STAGES, auto_draft, torsions_of
from openmm_lsd.drafts.draft import LearningDraft
from openmm_lsd.drafts.molgraph import graph_of_topology, with_missing_bonds
from openmm_lsd.drafts.nativeengine import NativeEngine
from openmm_lsd.drafts.valence import ANGLE, DISTANCE, TORSION

TESTED = 1000  # steps at the end, among which the Hessians are
HESSIANS = 8
DISPLACEMENT = 1e-4  # nm


def hessian(forces, positions):
    """(3 N, 3 N) in kJ/mol/nm^2."""
    size = positions.size
    states = positions + DISPLACEMENT * np.eye(size).reshape(size, *positions.shape)
    back = 2 * positions - states
    change = forces(back).reshape(size, -1) - forces(states).reshape(size, -1)
    matrix = change / (2 * DISPLACEMENT)
    return 0.5 * (matrix + matrix.T)


class RecordingDraft(LearningDraft):
    """Keeps the sites (N, 3) that it is shown, and the target's forces there."""

    def __init__(self, start, masses):
        super().__init__(start, masses)
        self.sites, self.target_forces = [], []

    def learn(self, step, sites, discrepancies):
        self.sites.extend(sites)
        self.target_forces.extend(
            change + self(site) for change, site in zip(discrepancies, sites, strict=True)
        )
        return super().learn(step, sites, discrepancies)


def record(start, positions, masses, box, target, args):
    """Force sites (B, N, 3) of committed steps, target forces there, and Hessians at some."""
    draft = RecordingDraft(start, masses)
    draft.set_environment(box, {})
    scheme = Middle(args.temperature, args.friction, 1e-3 * args.timestep)
    sampler = SpeculativeSampler.of_forces(
        scheme, masses, draft, target, 24, args.seed, engine=NativeEngine
    )
    speeds = np.sqrt(MOLAR_GAS_CONSTANT * args.temperature / masses)[:, None]
    rng = np.random.default_rng(args.seed)
    sampler.set_state(positions, speeds * rng.standard_normal(positions.shape))
    sampler.advance(args.steps + TESTED + 64)  # the last round is not shown
    sites, forces = np.array(draft.sites), np.array(draft.target_forces)
    tested = args.steps + np.linspace(0, TESTED - 1, HESSIANS).astype(int)
    hessians = np.array([hessian(target, sites[row]) for row in tested])
    return {"sites": sites, "forces": forces, "tested": tested, "hessians": hessians}


def box_of(molecule):
    vectors = molecule.topology.getPeriodicBoxVectors()
    return None if vectors is None else np.array(vectors.value_in_unit(unit.nanometer))


# Terms that were looked at and are not in STAGES


def local_cubic_terms(graph, number):
    """q^2 q' for all bonds and angles that share an atom, torsions with one of them squared."""
    bonds = [(number(DISTANCE, i, j), {i, j}) for i, j in graph.bonds.tolist()]
    angles = [
        (number(ANGLE, i, j, k), {i, j, k})
        for j, around in enumerate(graph.neighbours)
        for i, k in itertools.combinations(around, 2)
    ]
    products = []
    for (p, first), (q, second) in itertools.permutations(bonds + angles, 2):
        if first & second:
            products.append((p, p, q))
    for torsion in torsions_of(graph):
        t = number(TORSION, *torsion)
        products += [(t, q, q) for q, atoms in bonds + angles if atoms <= set(torsion)]
    return products


def torsion_terms(graph, number):
    """Torsions times bonds along them, also squared."""
    products = []
    for atoms in torsions_of(graph):
        t = number(TORSION, *atoms)
        for n in range(3):
            bond = number(DISTANCE, *atoms[n : n + 2])
            products += [(t, bond), (t, bond, bond)]
    return products


def bond_pair_terms(graph, number):
    """Outer bonds of a torsion, times it and its square."""
    products = []
    for i, j, k, m in torsions_of(graph):
        t, first, last = (
            number(TORSION, i, j, k, m),
            number(DISTANCE, i, j),
            number(DISTANCE, k, m),
        )
        products += [(t, first, last), (t, t, first, last)]
    return products


def bond_square_terms(graph, number):
    """Squares of two bonds of an atom, and the square of one times the other."""
    products = []
    for j, around in enumerate(graph.neighbours):
        bonds = [number(DISTANCE, i, j) for i in around]
        products += [(p, p, q, q) for p, q in itertools.combinations(bonds, 2)]
        products += [(p, p, q) for p, q in itertools.permutations(bonds, 2)]
    return products


MORE = {
    "bond-pair": bond_pair_terms,
    "bond-square": bond_square_terms,
    "torsion-bond": torsion_terms,
    "local-cubic": local_cubic_terms,
}


# Errors


def errors_by_place(graph, masses, positions, exact, ours):
    """Relative errors of parts of the Hessian, by name."""
    scale = 1.0 / np.sqrt(masses).repeat(3)
    exact, ours = (scale[:, None] * matrix * scale for matrix in (exact, ours))
    wrong = ours - exact
    result = {"all": np.linalg.norm(wrong) / np.linalg.norm(exact)}
    distance = bond_distances(graph).repeat(3, axis=0).repeat(3, axis=1)
    for bonds in range(4):
        part = distance == bonds
        result[f"{bonds} bonds"] = np.linalg.norm(wrong[part]) / np.linalg.norm(exact[part])
    sums = np.zeros((2, 2))
    for h in np.flatnonzero(graph.elements == 1):
        if len(graph.neighbours[h]) == 1:
            d = positions[h] - positions[graph.neighbours[h][0]]
            frame = np.linalg.qr(np.column_stack([d, np.eye(3)[:, np.argsort(np.abs(d))[:2]]]))[0]
            blocks = [
                frame.T @ m[3 * h : 3 * h + 3, 3 * h : 3 * h + 3] @ frame for m in (wrong, exact)
            ]
            sums[0] += [block[0, 0] ** 2 for block in blocks]
            sums[1] += [np.square(block[1:, 1:]).sum() for block in blocks]
    for name, (ours_, theirs) in zip(("along X-H", "across X-H"), sums, strict=True):
        result[name] = np.sqrt(ours_ / theirs) if theirs else 0.0
    return result


def bond_distances(graph):
    """Number of bonds between all pairs of atoms; 99: not connected."""
    count = len(graph.elements)
    result = np.full((count, count), 99)
    for atom in range(count):
        result[atom, atom], front, bonds = 0, [atom], 0
        while front:
            bonds += 1
            front = [j for i in front for j in graph.neighbours[i] if result[atom, j] == 99]
            result[atom, front] = bonds
    return result


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("system", type=Path, help="directory, see systems.load")
    parser.add_argument("--gfn2", action="store_true", help="GFN2-xTB instead of its target")
    parser.add_argument("--record", type=Path, help="file of the steps, made if it is not there")
    parser.add_argument("--steps", type=int, default=2000, help="learned from")
    parser.add_argument("--looks", type=int, nargs="+", default=[16, 64, 256, 1024, 2000])
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 300.0], help="of changes")
    parser.add_argument("--more", nargs="*", default=[], choices=MORE, help="terms, added at last")
    parser.add_argument("--timestep", type=float, default=1.0, help="fs")
    parser.add_argument("--temperature", type=float, default=300.0, help="kelvin")
    parser.add_argument("--friction", type=float, default=1.0, help="1/ps")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--outfile", type=Path)
    args = parser.parse_args()

    molecule = systems.load(args.system, constraints=None, rigidWater=False)
    positions = np.array(molecule.positions.value_in_unit(unit.nanometer))
    masses, box = masses_of(molecule.target), box_of(molecule)
    graph = with_missing_bonds(graph_of_topology(molecule.topology), positions, box)
    if args.record is not None and args.record.exists():
        run = dict(np.load(args.record))
    else:
        target = (
            gfn2_target(molecule.topology)
            if args.gfn2
            else system_target(molecule, positions, 2 * positions.size)
        )
        run = record(auto_draft(graph, positions, box), positions, masses, box, target, args)
        if args.record is not None:
            np.savez(args.record, **run)

    stages = {"first": STAGES[:1], "all": STAGES}
    for name in args.more:
        stages[f"all, {name}"] = (*STAGES, MORE[name])
    rows = []
    for name, makers in stages.items():
        for weight in args.weights:
            start = auto_draft(graph, positions, box, stages=makers)
            draft = LearningDraft(start, masses, weight_of_differences=weight)
            draft.set_environment(box, {})

            def look(draft=draft):
                each = []
                for row, exact in zip(run["tested"], run["hessians"], strict=True):
                    site = run["sites"][row]
                    ours = hessian(lambda states: np.array([draft(s) for s in states]), site)
                    each.append(errors_by_place(graph, masses, site, exact, ours))
                return {key: 100 * np.mean([one[key] for one in each]) for key in each[0]}

            print(f"{name}: {start.stages} parameters, weight of differences {weight:g}")
            errors = {0: look()}
            print(f"  steps {'0':>6s}  {text(errors[0])}", flush=True)
            for row in range(max(args.looks)):
                site = run["sites"][row]
                draft.learn(row, site[None], (run["forces"][row] - draft(site))[None])
                if row + 1 in args.looks:
                    errors[row + 1] = look()
                    print(f"  steps {row + 1:6d}  {text(errors[row + 1])}", flush=True)
            after = {str(steps): each["all"] for steps, each in errors.items()}
            rows.append({"stages": name, "weight": weight, "percent after steps": after})
    if args.outfile is not None:
        save(args.outfile, {"system": args.system.name, "rows": rows})


def text(errors):
    return ", ".join(f"{name} {value:.2f}" for name, value in errors.items())


if __name__ == "__main__":
    main()
