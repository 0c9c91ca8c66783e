"""Microseconds per drafted step: the valence draft natively, the same in OpenMM's Custom forces,
and the system's force field.

python benchmarks/draft_cost.py systems/alanine_dipeptide systems/ibuprofen
"""

import argparse
import time
from pathlib import Path

import numpy as np
import openmm
from openmm import unit

from openmm_lsd import systems
from openmm_lsd.contexts.checks import masses_of
from openmm_lsd.core.corrections import Corrections
from openmm_lsd.core.jacobian import MOST_NEIGHBOURS, LocalJacobian, Secant
from openmm_lsd.core.schemes import Middle
from openmm_lsd.core.window import Draws, State
from openmm_lsd.drafts.draft import DraftSpec
from openmm_lsd.drafts.nativeengine import NativeEngine
from openmm_lsd.drafts.valence import ANGLE, ATOMS_OF_KIND, DISTANCE, OUT_OF_PLANE, TORSION

# Of vectors to the first, third and fourth atom from the second.
TRIPLE_PRODUCT = " + ".join(
    f"({x}{{0}}-{x}{{1}})*(({y}{{2}}-{y}{{1}})*({z}{{3}}-{z}{{1}})"
    f"-({z}{{2}}-{z}{{1}})*({y}{{3}}-{y}{{1}}))"
    for x, y, z in ("xyz", "yzx", "zxy")
)


def microseconds(draft, positions, masses, window):
    """Shortest of many windows, as other programs can only make them longer."""
    zeros = np.zeros((window, *positions.shape))
    neighbours = np.zeros((len(positions), MOST_NEIGHBOURS), dtype=np.int32)
    jacobian = LocalJacobian(neighbours, np.zeros((*neighbours.shape, 3, 3)))
    corrections = Corrections(zeros, zeros, jacobian, Secant(zeros, zeros))
    engine = NativeEngine(Middle(300.0, 1.0, 0.001), masses, draft)
    state, draws = State(positions, zeros[0], 0), Draws(zeros, zeros[:, 0, 0], zeros[:, 0, 0] > 0)
    times = []
    for _ in range(300):
        begin = time.perf_counter()
        engine.draft(state, corrections, draws)
        times.append(time.perf_counter() - begin)
    return 1e6 * min(times) / window


def in_custom_forces(terms):
    """The terms of a valence draft as CustomCompoundBondForces, one for each kind of product."""
    forces = {}
    for factors, parameter in zip(terms.factors, terms.classes, strict=True):
        used = [q for q in factors if q >= 0]
        atoms, pieces = [], []
        for q in used:
            kind = terms.kinds[q]
            own = terms.atoms[q][: ATOMS_OF_KIND[kind]].tolist()
            atoms += [atom for atom in own if atom not in atoms]
            numbers = [atoms.index(atom) + 1 for atom in own]
            pieces.append(
                {
                    DISTANCE: "distance(p{0},p{1})",
                    ANGLE: "angle(p{0},p{1},p{2})",
                    TORSION: "cos(dihedral(p{0},p{1},p{2},p{3}))*sin(angle(p{0},p{1},p{2}))"
                    "*sin(angle(p{1},p{2},p{3}))",
                    OUT_OF_PLANE: f"({TRIPLE_PRODUCT})"
                    "/(distance(p{0},p{1})*distance(p{2},p{1})*distance(p{3},p{1}))",
                }[kind].format(*numbers)
            )
        key = (len(atoms), *pieces)
        if key not in forces:
            product = "*".join(f"({piece}-r{f})" for f, piece in enumerate(pieces))
            force = openmm.CustomCompoundBondForce(len(atoms), f"theta*{product}")
            for name in ("theta", *(f"r{f}" for f in range(len(pieces)))):
                force.addPerBondParameter(name)
            forces[key] = force
        references = [float(terms.references[q]) for q in used]
        forces[key].addBond(atoms, [0.01 * (1 + parameter % 7), *references])
    return forces.values()


def compare(directory, windows):
    """Print the costs of one system's drafts."""
    molecule = systems.load(directory, constraints=None, rigidWater=False)
    positions = np.array(molecule.positions.value_in_unit(unit.nanometer))
    masses = masses_of(molecule.draft)
    vectors = molecule.topology.getPeriodicBoxVectors()
    box = None if vectors is None else np.array(vectors.value_in_unit(unit.nanometer))
    choices = {
        "auto": DraftSpec(None, None, molecule.topology, learning=True),
        "force field": DraftSpec(molecule.draft, None, None, learning=False),
    }
    for name in ("auto", "Custom forces", "force field"):
        choice = choices[name]
        draft = choice.build(positions, masses, box)
        draft.set_environment(box, {})
        if name == "auto":
            terms = draft._terms
            print(
                f"{directory.name}: {len(masses)} atoms, {len(terms.classes)} terms, "
                f"{terms.parameters} parameters"
            )
            system = openmm.System()
            for mass in masses:
                system.addParticle(mass)
            for force in in_custom_forces(terms):
                system.addForce(force)
            choices["Custom forces"] = DraftSpec(system, None, None, learning=False)
        costs = (f"{microseconds(draft, positions, masses, k):.2f} (K = {k})" for k in windows)
        print(f"{name:13s} us per drafted step: {', '.join(costs)}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("systems", type=Path, nargs="+", help="directories, see systems.load")
    parser.add_argument("--windows", type=int, nargs="+", default=[1, 16, 64])
    args = parser.parse_args()
    for directory in args.systems:
        compare(directory, args.windows)


if __name__ == "__main__":
    main()
