"""Microseconds per drafted step: the valence draft and the system's force field, natively.

python scripts/draft_cost.py systems/alanine_dipeptide
"""

import argparse
import time
from pathlib import Path

import numpy as np
from openmm import unit

from openmm_lsd import systems
from openmm_lsd.checks import masses_of
from openmm_lsd.draft import DraftChoice
from openmm_lsd.schemes import Middle


def microseconds(draft, positions, masses, window):
    """Shortest of many windows, as other programs can only make them longer."""
    zeros = np.zeros((window, *positions.shape))
    arguments = (Middle(300.0, 1.0, 0.001), masses[:, None], positions, zeros[0], zeros, zeros)
    times = []
    for _ in range(300):
        begin = time.perf_counter()
        draft.rollout(*arguments, np.zeros(window, dtype=bool))
        times.append(time.perf_counter() - begin)
    return 1e6 * min(times) / window


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("system", type=Path, help="directory, see systems.load")
    parser.add_argument("--windows", type=int, nargs="+", default=[1, 16, 64])
    args = parser.parse_args()
    molecule = systems.load(args.system)
    positions = np.array(molecule.positions.value_in_unit(unit.nanometer))
    masses = masses_of(molecule.draft)
    vectors = molecule.topology.getPeriodicBoxVectors()
    box = None if vectors is None else np.array(vectors.value_in_unit(unit.nanometer))
    choices = {
        "auto": DraftChoice(None, None, molecule.topology, learning=True),
        "force field": DraftChoice(molecule.draft, None, None, learning=False),
    }
    for name, choice in choices.items():
        draft = choice.make(positions, masses, box)
        draft.set_environment(box, {})
        costs = (f"{microseconds(draft, positions, masses, k):.1f} (K = {k})" for k in args.windows)
        print(f"{name:12s} us per drafted step: {', '.join(costs)}", flush=True)


if __name__ == "__main__":
    main()
