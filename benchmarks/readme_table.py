"""The results table of the README, from the benchmarks in docs/benchmarks.

    openmm-lsd benchmark --system systems/alanine_dipeptide --also-auto --estimate \
        --warm-up 2000 --json > docs/benchmarks/benchmark_alanine_dipeptide_1fs.json
    python benchmarks/readme_table.py
"""

import argparse
import json

from results import BENCHMARKS, ROOT, markdown, origin, put


def table(documents):
    """Markdown; a column for every document."""
    cases = [document["benchmark"] for document in documents]
    rows = [{row["run"]: row for row in case["rows"]} for case in cases]
    heads = [
        f"{case['system'].replace('_', ' ')} ({case['atoms']} atoms), {case['timestep, fs']:g} fs"
        for case in cases
    ]
    auto, force_field = "LSD, auto draft", "LSD"
    lines = [
        ["", *heads],
        [
            "plain `LangevinMiddleIntegrator`, ns/day",
            *(f"{row['plain']['ns/day']:.1f}" for row in rows),
        ],
        ['`LSDIntegrator(..., "auto")`, ns/day', *(f"{row[auto]['ns/day']:.1f}" for row in rows)],
        ["**speed-up**", *(f"**{row[auto]['ratio']:.2f}**" for row in rows)],
        ["its quartiles, over alternating blocks", *(quartiles(row[auto]) for row in rows)],
        ["speed-up predicted by `openmm-lsd estimate`", *predictions(cases, auto)],
        ["accepted steps per batch", *(f"{row[auto]['steps per round']:.1f}" for row in rows)],
        [
            "speed-up with Amber or GAFF as the draft",
            *(f"{row[force_field]['ratio']:.2f}" for row in rows),
        ],
        [
            "speed-up of the published rule on that draft",
            *(f"{row['constant offset']['ratio']:.2f}" for row in rows),
        ],
    ]
    return markdown(lines)


def quartiles(row):
    return "{:.2f} to {:.2f}".format(*row["ratio quartiles"])


def predictions(cases, name):
    return [f"{best(case['estimates'][name])['speed_up']:.2f}" for case in cases]


def best(estimate):
    return max(estimate["windows"], key=lambda window: window["speed_up"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="only whether it is up to date")
    args = parser.parse_args()
    files = sorted(BENCHMARKS.glob("benchmark_*.json"))
    documents = [json.loads(file.read_text()) for file in files]
    documents.sort(
        key=lambda each: (each["benchmark"]["atoms"], -each["benchmark"]["timestep, fs"])
    )
    result = f"{table(documents)}\n\n{origin(*documents)}"
    put(ROOT / "README.md", "benchmarks/readme_table.py", result, args.check)


if __name__ == "__main__":
    main()
