"""Pictures of how the speculation goes, from a run of the shipped alanine dipeptide.

    python benchmarks/make_figures.py      # timeline, steps_per_round, noise_shifts in docs/figures

The potential is the shipped network, the draft its Amber force field. The timeline shows ten rounds
about the last that commits its whole window (with a force field few do), so that each kind of step
is seen.
"""

import argparse
from pathlib import Path

from openmm import app, unit

from openmm_lsd import LSDIntegrator, plots, systems

ROOT = Path(__file__).resolve().parent.parent


def watch(steps, window, seed):
    """The rounds of a run that is given 200 steps to settle."""
    molecule = systems.load(ROOT / "systems" / "alanine_dipeptide")
    integrator = LSDIntegrator(
        300 * unit.kelvin,
        1 / unit.picosecond,
        1 * unit.femtoseconds,
        molecule.draft,
        windowLength=window,
        randomNumberSeed=seed,
    )
    simulation = app.Simulation(molecule.topology, molecule.target, integrator)
    simulation.context.setPositions(molecule.positions)
    simulation.minimizeEnergy()
    simulation.context.setVelocitiesToTemperature(300 * unit.kelvin, seed)
    simulation.step(200)
    rounds = []
    integrator.round_callbacks.append(rounds.append)
    simulation.step(steps)
    print(integrator.statistics)
    return rounds


def excerpt(rounds, length=10):
    """That many rounds, if possible about one that commits its whole window."""
    full = [k for k, each in enumerate(rounds) if each.committed == each.drafted]
    begin = max(0, min(full[-1] - length // 2 if full else 0, len(rounds) - length))
    return rounds[begin : begin + length]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--window", type=int, default=8, help="K")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "figures", help="directory")
    args = parser.parse_args()
    rounds = watch(args.steps, args.window, args.seed)
    args.output.mkdir(parents=True, exist_ok=True)
    figures = {
        "timeline": plots.timeline(excerpt(rounds)),
        "steps_per_round": plots.steps_per_round(rounds),
        "noise_shifts": plots.noise_shifts(rounds),
    }
    for name, figure in figures.items():
        figure.savefig(args.output / f"{name}.png", dpi=200)


if __name__ == "__main__":
    main()
