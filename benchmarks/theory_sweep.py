"""The published rule's steps per round against friction and time step: theory over measurement.

    python benchmarks/theory_sweep.py systems/alanine_dipeptide --figure docs/figures/theory.png

The theory knows the structure function of the discrepancy along one trajectory, and nothing else;
the measurement runs the sampler with one constant offset per window.
"""

import argparse
from pathlib import Path

import numpy as np
from openmm import unit
from results import save

from openmm_lsd import SpeculativeSampler, systems, theory
from openmm_lsd.contexts.checks import cm_removal_frequency, masses_of
from openmm_lsd.contexts.forcecontext import fastest_context
from openmm_lsd.core.schemes import SCHEMES
from openmm_lsd.drafts.draft import Draft
from openmm_lsd.targets import SystemTarget

FINEST = 0.125  # fs, of the trajectory on which the discrepancy is followed


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("system", type=Path)
    parser.add_argument("--scheme", choices=sorted(SCHEMES), default="middle")
    parser.add_argument("--frictions", type=float, nargs="+", default=[1, 5, 20, 100], help="1/ps")
    parser.add_argument("--timesteps", type=float, nargs="+", default=[0.125, 0.25, 0.5], help="fs")
    parser.add_argument("--window", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=200, help="of each measurement")
    parser.add_argument("--path-steps", type=int, default=2000, help="of the trajectory")
    parser.add_argument("--equilibration", type=int, default=1000, help="steps of 1 fs")
    parser.add_argument("--outfile", type=Path, help="results as JSON")
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    lags = {h: round(h / FINEST) for h in args.timesteps}
    if any(abs(lag * FINEST - h) > 1e-9 for h, lag in lags.items()):
        parser.error(f"time steps must be multiples of {FINEST} fs")
    study = Study(args)
    structure = study.structure_function(max(lags.values()) * args.window)
    rows = []
    print(f"{'fs':>6s}{'1/ps':>8s}{'measured':>10s}{'error':>8s}{'theory':>8s}")
    for step_size in args.timesteps:
        for friction in args.frictions:
            scheme = SCHEMES[args.scheme](300.0, friction, 1e-3 * step_size)
            at_steps = structure[:: lags[step_size]]
            predicted = theory.constant_offset_steps(at_steps, scheme, args.window)
            measured, error = study.measure(scheme)
            print(
                f"{step_size:6g}{friction:8g}{measured:10.2f}{error:8.2f}{predicted:8.2f}",
                flush=True,
            )
            rows.append(
                {
                    "timestep, fs": step_size,
                    "friction, 1/ps": friction,
                    "measured": measured,
                    "error": error,
                    "theory": predicted,
                }
            )
    if args.outfile:
        document = {"system": args.system.name, "scheme": args.scheme}
        save(args.outfile, document | {"window": args.window, "rows": rows})
    if args.figure:
        draw(rows, args).savefig(args.figure, dpi=150)


class Study:
    """One molecule, its target and its draft, and where trajectories start."""

    def __init__(self, args):
        self.args = args
        molecule = systems.load(args.system, constraints=None, rigidWater=False)
        positions = molecule.positions.value_in_unit(unit.nanometer)
        positions = np.array(positions, dtype=float)
        self.masses = masses_of(molecule.target)
        self.removal = cm_removal_frequency(molecule.target)
        self.draft = Draft(fastest_context(molecule.draft, positions))
        self.target = SystemTarget(molecule.target, positions)
        self.target.prepare(positions, args.window)
        scheme = SCHEMES[args.scheme](300.0, 1.0, 1e-3)
        sampler = self.sampler(scheme, "per-step", 16)
        velocities = np.random.default_rng(1).standard_normal(positions.shape)
        sampler.set_state(positions, velocities * scheme.thermal_speed(1 / self.masses[:, None]))
        self.start = sampler.advance(args.equilibration)

    def sampler(self, scheme, correction, window, callbacks=()):
        return SpeculativeSampler.of_forces(
            scheme,
            self.masses,
            self.draft,
            lambda states: self.target.evaluate(states)[1],
            window,
            7,
            correction=correction,
            cm_removal_frequency=self.removal,
            round_callbacks=callbacks,
        )

    def structure_function(self, lags):
        """At multiples of the finest time step, along a trajectory with friction 1/ps."""
        scheme = SCHEMES[self.args.scheme](300.0, 1.0, 1e-3 * FINEST)
        sampler = self.sampler(scheme, "per-step", 16)
        sampler.set_state(*self.start)
        sites = np.stack([scheme.site(*sampler.advance(1)) for _ in range(self.args.path_steps)])
        discrepancies = [
            self.target.evaluate(part)[1] - np.stack([self.draft(site) for site in part])
            for part in np.array_split(sites, max(1, len(sites) // self.args.window))
        ]
        return theory.structure_function(np.concatenate(discrepancies), self.masses, lags)

    def measure(self, scheme):
        """Steps per round of the published rule, and the standard error."""
        committed = []
        callbacks = [lambda became: committed.append(became.committed)]
        sampler = self.sampler(scheme, "constant", self.args.window, callbacks)
        sampler.set_state(*self.start)
        while len(committed) < self.args.rounds:
            sampler.advance(1)
        return float(np.mean(committed)), float(np.std(committed) / np.sqrt(len(committed)))


def draw(rows, args):
    """Steps per round against friction, a series for every time step."""
    from openmm_lsd.plots import sweep

    series = {}
    for step_size in args.timesteps:
        ours = [row for row in rows if row["timestep, fs"] == step_size]
        columns = ([row[name] for row in ours] for name in ("measured", "error", "theory"))
        series[f"{step_size:g} fs"] = tuple(columns)
    return sweep(
        args.frictions, series, "friction (1/ps)", f"steps per round, one offset, K = {args.window}"
    )


if __name__ == "__main__":
    main()
