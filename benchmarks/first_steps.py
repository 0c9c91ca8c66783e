"""LSD with windowLength='auto' from its very first step, against plain dynamics beside it.

What a user gets who changes the integrator in a script and nothing else: the window is searched
for, and the draft learns, inside the time that is counted; what is not counted is the first step,
in which the target is prepared. Both run on the platform where plain dynamics is fastest, in blocks
that alternate. The last column is the whole run.

    python benchmarks/first_steps.py --outfile docs/benchmarks/first_steps.json
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from results import save

from openmm_lsd import systems
from openmm_lsd.commands import Case
from openmm_lsd.commands.timing import fastest_plain, seconds_per_step, settings_of

SYSTEMS = Path(__file__).resolve().parent.parent / "systems"
# System, time step in fs, draft, steps.
CASES = [
    ("alanine_dipeptide", 1.0, "auto", 10_000),
    ("alanine_dipeptide", 0.5, "auto", 10_000),
    ("ibuprofen", 1.0, "auto", 10_000),
    ("ibuprofen", 0.5, "auto", 10_000),
    ("ibuprofen", 1.0, "force field", 10_000),
    ("ibuprofen", 2.0, "force field", 10_000),
    ("amoeba_water", 1.0, "auto", 1000),
]
BLOCK = 100
EQUILIBRATION = 300


def first_steps(name, timestep, draft, steps):
    """Seconds per step of plain dynamics and of LSD in every block, and how LSD ran."""
    molecule = systems.load(SYSTEMS / name)
    case = Case.of(molecule, step_size=1e-3 * timestep, seed=1)
    scout = case.plain()
    scout.equilibrate(case, EQUILIBRATION)
    state = scout.state
    plain = fastest_plain(case, state, 20, lambda line: None)
    case = dataclasses.replace(case, platform=plain.platform)
    lsd = case.lsd("auto", "auto" if draft == "auto" else molecule.draft)
    for run in (plain, lsd):
        run.set_state(*state)
        run.step(1)
    seconds = [
        [seconds_per_step(run, BLOCK) for run in (plain, lsd)] for _ in range(steps // BLOCK)
    ]
    return settings_of(plain), np.transpose(seconds), lsd.integrator.statistics


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", help="cases whose label contains this: 'ibuprofen, 1 fs'")
    parser.add_argument("--steps", type=int, help="instead of the case's own number")
    parser.add_argument("--outfile", type=Path)
    args = parser.parse_args()
    rows = []
    print(
        f"{'':44s}{'plain':>9s}   times as fast as plain in the steps\n{'':44s}{'ms/step':>9s}"
        f"{'first 10 %':>12s}{'to 30 %':>9s}{'to 100 %':>10s}{'all':>7s}   steps/round"
    )
    for name, timestep, draft, steps in CASES:
        label = f"{name}, {timestep:g} fs, draft: {draft}"
        if args.only and args.only not in label:
            continue
        settings, (plain, lsd), statistics = first_steps(name, timestep, draft, args.steps or steps)
        count = len(plain)
        parts = np.split(np.arange(count), [max(1, count // 10), max(2, 3 * count // 10)])
        ratios = [plain[part].sum() / lsd[part].sum() for part in [*parts, slice(None)]]
        label += f", {count * BLOCK}"
        print(
            f"{label:44s} {1e3 * np.median(plain):8.2f}{ratios[0]:12.2f}{ratios[1]:9.2f}"
            f"{ratios[2]:10.2f}{ratios[3]:7.2f}   {statistics.steps_per_round:11.2f}",
            flush=True,
        )
        rows.append(
            {
                "system": name,
                "time step, fs": timestep,
                "draft": draft,
                "plain": settings,
                "plain, ms per step": (1e3 * plain).round(4).tolist(),
                "LSD, ms per step": (1e3 * lsd).round(4).tolist(),
                "ratios": ratios,
                "LSD": str(statistics),
            }
        )
    if args.outfile:
        save(args.outfile, {"block": BLOCK, "rows": rows})


if __name__ == "__main__":
    main()
