"""A batch at once, and in the parts that a target chooses for itself before the first step.

    pip install "openmm-lsd[chgnet]"
    python benchmarks/parts.py

CHGNet on 32 atoms of copper, 16 states.
"""

import argparse
import logging
from time import perf_counter

import ase.build
import numpy as np

from openmm_lsd.targets import CHGNetTarget
from openmm_lsd.targets.base import perturb


def seconds_of(target, states, box, turns):
    times = []
    for _ in range(turns):
        begin = perf_counter()
        target.evaluate(states, box)
        times.append(perf_counter() - begin)
    return float(np.median(times))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--states", type=int, default=16)
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # says what is chosen
    atoms = ase.build.bulk("Cu", cubic=True) * (2, 2, 2)
    box, positions = 0.1 * np.array(atoms.cell), 0.1 * atoms.positions
    states = perturb(positions, args.states, 0.003)
    target = CHGNetTarget("0.3.0", atoms.numbers)
    target.evaluate(states[:1], box)
    at_once = seconds_of(target, states, box, args.turns)
    target.prepare(positions, args.states, box)
    in_parts = seconds_of(target, states, box, args.turns)
    print(f"{args.states} states: {at_once:.2f} s at once, {in_parts:.2f} s in parts")


if __name__ == "__main__":
    main()
