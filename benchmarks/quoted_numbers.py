"""Do the sentences of the pages quote what was measured? Prints those that do not; exits with 1.

    python benchmarks/quoted_numbers.py

Tables are made from docs/benchmarks by page_tables.py. A number that a sentence or another page
repeats is computed here from the same files, and must stand on its page in these words.
"""

import json
import sys
from collections import defaultdict

import numpy as np
from page_tables import late_steps_per_round, with_error
from results import BENCHMARKS, ROOT

WALL_TIMES = [
    f"benchmark_{system}_{step}"
    for system in ("alanine_dipeptide", "ibuprofen")
    for step in ("1fs", "05fs")
]
CRYSTALS = ("copper32", "copper108", "silicon64", "salt64", "silicon8", "metal32", "metal108")


def load(name):
    return json.loads((BENCHMARKS / f"{name}.json").read_text())


def between(values, digits=0):
    """Such as "9 to 14"."""
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def errors_of_predictions(name):
    """In percent, lowest and highest, of the run of this name in the four benchmarks."""
    errors = []
    for each in map(load, WALL_TIMES):
        case = each["benchmark"]
        measured = next(row["ratio"] for row in case["rows"] if row["run"] == name)
        windows = case["estimates"][name]["windows"]
        errors.append(100 * (max(each["speed_up"] for each in windows) / measured - 1))
    return round(min(errors)), round(max(errors))


def counts_of_crystals():
    """Mean steps per round of our rule and of the published one, in windows of 16, all and of
    copper at 300 K: on drafts that are built, or have learned."""
    found = defaultdict(list)
    for each in load("pairings"):
        case = tuple(each[key] for key in ("pairing", "temperature", "pressure", "K", "way"))
        found[case].append(each["steps per round"])
    ours, published, cold_copper = [], [], []
    for (name, temperature, pressure, window, way), counts in found.items():
        if name not in CRYSTALS or window != 16 or way in ("draft", "draft, published rule"):
            continue
        mean = np.mean(counts)
        (published if way.endswith("published rule") else ours).append(mean)
        is_copper = name.startswith(("copper", "metal"))
        if way == "auto" and is_copper and temperature == 300 and not pressure:
            cold_copper.append(mean)
    return ours, published, cold_copper


def of_speed():
    """Wall times, batches and predictions."""
    low, high = errors_of_predictions("LSD, auto draft")
    yield "does_it_pay", f"between {-low} % below and {high} % above the measured speed-up"
    yield "measurements", f"between {-low} % below and {high} % above the measured speed-up"
    low, high = errors_of_predictions("LSD")
    yield "measurements", f"between {-low} % below and {high} % above it for the force field"
    waits = load("mixed")["waits"]["rows"]
    excess = max(row["predicted"] / row["LSD"]["ratio"] for row in waits)
    yield "does_it_pay", f"it was up to {100 * (excess - 1):.0f} % above"
    first = waits[0]
    yield (
        "solution",
        f"take {first['plain']['ms per step'] - first['wait, ms']:.0f} ms of a plain step there. "
        f"At {first['wait, ms']} ms, LSD (K = {first['LSD']['window']}) spends "
        f"{100 * first['LSD']['draft share']:.0f} % of its time on drafting",
    )
    yield "solution", f"and {100 * first['LSD']['target share']:.0f} % on the target"
    windows = [
        row["window"]
        for each in map(load, WALL_TIMES)
        for row in each["benchmark"]["rows"]
        if row["run"].startswith("LSD")
    ]
    yield "guide", f'`"auto"` settled on {between(windows)}'
    slowest = max(
        sum(row["LSD, ms per step"]) / sum(row["plain, ms per step"])
        for row in load("first_steps")["rows"]
        if row["system"] != "amoeba_water"
    )
    for page in ("README", "does_it_pay"):
        yield page, f"at most {slowest:.2f} times as long as plain dynamics"
    card = load("gpu_h200")["systems"]
    gains, per_step, batches = [], [], []
    for name in ("alanine_dipeptide", "ibuprofen"):
        run = next(row for row in card[name]["rows"] if row["run"] == "LSD, auto draft, K auto")
        costs = card[name]["batch costs, ms"]["graph"]
        gains.append(run["ratio"])
        per_step += [
            row["ratio"] / row["steps per round"]
            for row in card[name]["rows"]
            if row["run"].startswith("LSD, auto draft")
        ]
        batches.append(costs["16"] / costs["1"])
    yield "README", f"{gains[0]:.1f} times (alanine dipeptide) and {gains[1]:.1f} times (ibuprofen)"
    yield "gpu", f"a batch of 16 costs {between(batches, 1)} times one state"
    yield "gpu", f"the speed-up is {between(per_step, 1)} times the steps per round"
    waters = card["amoeba_water"]
    costs = waters["batch costs, ms"]["1 Context"]
    yield "gpu", f"a batch of 16 costs {costs['16'] / costs['1']:.0f} times one state"
    plain_steps = next(row for row in waters["rows"] if row["run"] == "LSD, auto draft, K auto")
    yield "gpu", f"here at {plain_steps['ratio']:.2f} of that speed"


def of_counts():
    """Steps per round."""
    steps, study = load("steps_per_round"), load("draft_study")

    def counted(case, correction, scheme="middle"):
        case = f"{case}, 1 fs"
        found = ((row["scheme"], row["correction"], row) for row in steps[case]["rows"])
        row = next(row for *names, row in found if names == [scheme, correction])
        return row["steps per round"]

    def studied(case, window, draft):
        return study[f"{case}, 1.0, {window}, {draft}"]

    def mean(case, window, draft):
        counts = studied(case, window, draft)["steps per round"]
        return len(counts) / sum(1 / count for count in counts)

    gfn, network = "alanine_dipeptide, GFN2-xTB", "alanine_dipeptide, its own"
    waters = "amoeba_water, its own"
    for name, case, on_force_field in (
        ("GFN2-xTB | alanine dipeptide", gfn, "alanine_dipeptide, target GFN2-xTB"),
        ("ANI network | alanine dipeptide", network, "alanine_dipeptide, target its own"),
        ("AMOEBA | 64 waters", waters, "amoeba_water, target its own"),
    ):
        cells = (mean(case, 16, "secant"), counted(on_force_field, "constant"))
        yield "README", f'| {name} | `"auto"` | {cells[0]:.1f} | {cells[1]:.1f} |'
    ours, published, cold_copper = counts_of_crystals()
    yield "README", f"it accepts {between(published)}, and ours [{between(ours)}]"
    yield "does_it_pay", f"and {between(ours)} for crystals"
    yield "CHANGELOG", f"At 300 K copper accepts {between(cold_copper)} steps per batch of 16"
    boxes = [row["steps per round"]["middle"]["auto"] for row in load("water_boxes")["rows"]]
    boxes.append(mean(waters, 16, "secant"))
    yield "does_it_pay", f"{between(boxes, 1)} for boxes of water at 1 fs"
    own = "alanine_dipeptide, target its own"
    pairs = [
        (counted(own, "per-step", scheme), counted(own, "secant", scheme))
        for scheme in ("middle", "aboba")
    ]
    yield (
        "drafts",
        "{:.2f} steps per round become {:.2f} (ABOBA: {:.2f} and {:.2f})".format(
            *pairs[0], *pairs[1]
        ),
    )
    learned = [
        mean(network, window, f"{draft}, on its force field")
        for window in (16, 24)
        for draft in ("forces", "secant")
    ]
    yield (
        "drafts",
        "with learning on top {:.2f} become {:.2f} (K = 24: {:.2f} become {:.2f})".format(*learned),
    )
    curves = load("learning_gfn2_1fs")
    first = [curve[0] for curve in curves["curves"]["auto"]]
    later = late_steps_per_round(curves, "system")
    yield (
        "drafts",
        f"accepts {between(first, 1)} steps per batch with GFN2-xTB; afterwards amber14 accepts "
        f"{between(later, 1)}",
    )


def of_constraints():
    """What the runs beside plain dynamics say."""
    results = load("constraints")
    differences, errors = [], []
    for name in ("ensemble", "ensemble, 5/ps"):
        lsd, plain = (results[name]["result"][way] for way in ("LSD", "plain"))
        energy = "kinetic energy over its expectation"
        differences.append(lsd[energy] - plain[energy])
        errors.append(np.hypot(lsd["error"], plain["error"]))
    weights = 1 / np.square(errors)
    difference = 100 * np.average(differences, weights=weights)
    error = 100 / np.sqrt(weights.sum())
    side = "below" if difference < 0 else "above"
    yield (
        "constraints",
        f"kinetic energy is {with_error(abs(difference), error, 2)} % {side} that of plain",
    )
    densities = results["density"]["result"]
    lsd, plain = (
        with_error(densities[way]["density, g/cm3"], densities[way]["error"], 4)
        for way in ("LSD", "plain")
    )
    yield "constraints", f"is {lsd} g/mL with LSD and {plain} with plain dynamics"


def page_text(name):
    path = ROOT / f"{name}.md"
    return " ".join((path if path.exists() else ROOT / f"docs/{name}.md").read_text().split())


def main():
    wrong = [
        (page, sentence)
        for part in (of_speed, of_counts, of_constraints)
        for page, sentence in part()
        if " ".join(sentence.split()) not in page_text(page)
    ]
    for page, sentence in wrong:
        print(f"{page}.md does not say: {sentence}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
