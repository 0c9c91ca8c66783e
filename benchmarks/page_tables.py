"""The tables of the pages, from docs/benchmarks; README and pairings have scripts of their own.

    python benchmarks/page_tables.py           # all, after any of the benchmarks was run again
    python benchmarks/page_tables.py --check   # whether they are up to date

A table is a function of one JSON file or of several. Where a page has ``<!-- results:
benchmarks/page_tables.py NAME -->``, that table is put; NAME is the function's, or the file's where
one function makes a table of each.
"""

import argparse
import json

import numpy as np
from results import BENCHMARKS, ROOT, markdown, origin, put


def first_steps(document):
    lines = [
        [
            *("", "draft", "plain, ms/step"),
            *("first tenth", "to 30 %", "to the end", "all"),
        ]
    ]
    for row in document["rows"]:
        plain = row["plain, ms per step"]
        system = row["system"].replace("_", " ")
        steps = len(plain) * document["block"]
        lines.append(
            [
                f"{system}, {row['time step, fs']:g} fs, {steps} steps",
                row["draft"],
                f"{np.median(plain):.2f}",
                *(f"{ratio:.2f}" for ratio in row["ratios"]),
            ]
        )
    return lines, [document]


def simulated_device(document):
    lines = [
        [
            *("device, ms per state", "plain, ms/step", "LSD, ms/step", "steps per round"),
            *("host, ms per round", "speed-up", "speed-up with GFN2-xTB"),
        ]
    ]
    for row, ratio in zip(document["rows"], document["GFN2-xTB"]["ratios"], strict=True):
        lsd = row["LSD"]
        lines.append(
            [
                f"{row['device, ms']:g}",
                f"{row['plain']['ms per step']:.2f}",
                f"{lsd['ms per step']:.2f}",
                f"{lsd['steps per round']:.2f}",
                f"{row['host, ms']:.2f}",
                f"{lsd['ratio']:.1f}",
                f"{ratio:.1f}",
            ]
        )
    return lines, [document]


def constraints_counts(document):
    counts = {row["case"]: f"{row['steps per round']:.2f}" for row in document["counts"]["result"]}
    lines = [["", "draft", "draft that learns"]]
    for case, count in counts.items():
        if not case.endswith(", learning"):
            lines.append([case, count, counts.get(f"{case}, learning", "")])
    return lines, [document["counts"]]


def constraints_cost(document):
    part = document["cost"]
    lines = [["waters", "both projections, µs per water", "drafted step, µs: rigid", "flexible"]]
    for row in part["result"]:
        both = row["velocities, us per water"] + row["positions, us per water"]
        steps = (f"{row[f'drafted step, us, {kind}']:.0f}" for kind in ("rigid", "flexible"))
        lines.append([str(row["waters"]), f"{both:.2f}", *steps])
    return lines, [part]


def constraints_amoeba(document):
    part = document["amoeba"]
    lines = [["", "times as fast as plain dynamics", "ms per step", "steps per round"]]
    for row in part["result"]["rows"]:
        count = f"{row['steps per round']:.1f}" if "steps per round" in row else ""
        name = {"LSD": 'LSD, `windowLength="auto"`'}.get(row["run"], row["run"])
        lines.append([name, f"{row['ratio']:.2f}", f"{row['ms per step']:.1f}", count])
    return lines, [part]


def constraints_ensemble(document):
    lines = [
        [
            "",
            "kinetic energy per degree of freedom, in kT/2",
            "second half of the run less first half",
            "worst relative error of a constraint",
        ]
    ]
    parts = [part for name, part in document.items() if name.startswith("ensemble")]
    for part in parts:
        result = part["result"]
        for run in ("plain", "LSD"):
            energy = with_error(
                result[run]["kinetic energy over its expectation"], result[run]["error"]
            )
            lines.append(
                [
                    f"{run}, {result['friction, 1/ps']:g}/ps",
                    energy,
                    f"{result[run]['second half less first half']:+.4f}",
                    f"{result[run]['worst relative error of a constraint']:.1e}",
                ]
            )
    return lines, parts


def with_error(value, error, digits=4):
    return f"{value:.{digits}f}({10**digits * error:.0f})"


def engines(document):
    lines = [
        [
            *("platform", "atoms", "16 plain steps, ms"),
            *("host: draft", "rest", "context: draft", "rest"),
        ]
    ]
    used = []
    for platform, both in document.items():
        if ", " in platform:  # one engine alone, shown beside the other
            continue
        alone = document.get(f"{platform}, host", both)
        used += [both, alone]
        name = platform.replace(" mixed", ", mixed precision")
        for row, other in zip(both["rows"], alone["rows"], strict=True):
            host, context = other["engines"]["host"], row["engines"]["context"]
            lines.append(
                [
                    name,
                    str(row["atoms"]),
                    f"{other['plain, ms per window']:.0f}",
                    f"{host['draft, times plain']:.2f}",
                    f"{host['rest, ms']:.1f}",
                    f"{context['draft, times plain']:.2f}",
                    f"{context['rest, ms']:.1f}",
                ]
            )
    return lines, used


def mixed_waits(document):
    lines = [["slow force, ms", "plain, ms/step", "LSD, ms/step", "times plain", "predicted"]]
    for row in document["waits"]["rows"]:
        lines.append(
            [
                f"{row['wait, ms']}",
                f"{row['plain']['ms per step']:.1f}",
                f"{row['LSD']['ms per step']:.1f}",
                f"{row['LSD']['ratio']:.2f}",
                f"{row['predicted']:.2f}",
            ]
        )
    return lines, [document["waits"]]


NETWORKS = {
    "alanine_dipeptide": "alanine dipeptide by its network",
    "ibuprofen": "ibuprofen by its network",
}


def mixed_counts(document):
    """A row for each molecule, a column for each size; vacuum is the smallest."""
    cells = {}
    for row in document["counts"]["rows"]:
        counts = row["steps per round"]
        error = np.std(counts, ddof=1) / np.sqrt(len(counts))
        vacuum = row["atoms"] == row["subset"]
        size = 0 if vacuum else round(row["atoms"], -2)
        cells[row["molecule"], size] = with_error(np.mean(counts), error, 2)
    sizes = sorted({size for _, size in cells})
    lines = [["", *("vacuum" if size == 0 else f"{size} atoms" for size in sizes)]]
    for molecule, name in NETWORKS.items():
        lines.append([name, *(cells.get((molecule, size), "") for size in sizes)])
    return lines, [document["counts"]]


def mixed_batch(document):
    rows = document["batch"]["rows"]
    sizes = sorted({round(row["atoms"], -2) for row in rows})
    lines = [["", *(head for size in sizes for head in (f"{size} atoms", "alone"))]]
    for molecule in NETWORKS:
        cells = {}
        for row in rows:
            if row["molecule"] == molecule:
                both = (row["in the box, ms"], row["alone, ms"])
                cells[round(row["atoms"], -2)] = [f"{np.median(ms):.1f}" for ms in both]
        name = molecule.replace("_", " ")
        lines.append([name, *(cell for size in sizes for cell in cells[size])])
    return lines, [document["batch"]]


def mixed_host(document):
    lines = [["atoms", "flexible", "rigid water"]]
    rows = document["host"]["rows"]
    for atoms in sorted({row["atoms"] for row in rows}):
        milliseconds = {row["rigid"]: row["host, ms"] for row in rows if row["atoms"] == atoms}
        # Without water rigid and flexible are the same.
        rigid = f"{milliseconds[True]:.1f}" if atoms > 22 else ""
        lines.append([str(atoms), f"{milliseconds[False]:.1f}", rigid])
    return lines, [document["host"]]


def transfers(document):
    rows = document["single"]["rows"]
    return [TRANSFER_HEADS, *transfer_lines(rows, TRANSFERS)], [document["single"]]


def transfers_of_engines(document):
    rows = document["single"]["rows"]
    return [TRANSFER_HEADS, *transfer_lines(rows, TRANSFERS_OF_ENGINES)], [document["single"]]


TRANSFER_HEADS = ["", "reads", "of these blocking", "kB read", "writes", "kB written"]
TRANSFERS = {
    "plain OpenMM, a step": "plain OpenMM, a step",
    "a drafted and evaluated state": "a state that is drafted and evaluated",
    "integrator.step(1) from the queue": (
        "`integrator.step(1)` of a step that is committed already"
    ),
    "integrator.step(10), a step of it": "`integrator.step(10)`, one of its steps",
    "plain steps of 'auto', integrator.step(10), one": (
        'the same where `windowLength="auto"` does plain steps'
    ),
}
TRANSFERS_OF_ENGINES = {
    f"mixed, {engine} engine: {what}": f"{name}, {text}"
    for what, text in (
        ("a drafted step", "a drafted step"),
        ("integrator.step(10), a step of it", "`integrator.step(10)`, one of its steps"),
    )
    for engine, name in (("host", "host"), ("context", "Context"))
}


def transfer_lines(rows, names):
    for name, text in names.items():
        row = rows[name]
        yield [
            text,
            *(f"{row[key]:.1f}" for key in ("reads", "blocking reads")),
            f"{row['bytes read'] / 1e3:.1f}",
            f"{row['writes']:.1f}",
            f"{row['bytes written'] / 1e3:.1f}",
        ]


def target_cost(document):
    lines = [["form", *(f"B = {batch}" for batch in document["batches"])]]
    for name, costs in document["ms"].items():
        lines.append([name, *(f"{cost:.1f}" for cost in costs)])
    return lines, [document]


CORRECTIONS = {"secant": "secant (default)", "per-step": "per-step"} | {
    name: name for name in ("constant", "none")
}


def steps_per_round(document):
    """A row for each run and scheme, a column for each correction."""
    lines = [["", "scheme", *CORRECTIONS.values()]]
    for case, run in document.items():
        counts = {(row["scheme"], row["correction"]): row for row in run["rows"]}
        for scheme in dict.fromkeys(row["scheme"] for row in run["rows"]):
            found = (counts[scheme, name]["steps per round"] for name in CORRECTIONS)
            name = (
                case.replace("_", " ")
                .replace("target its own", "its network")
                .replace("target ", "")
            )
            lines.append([name, scheme, *(f"{count:.2f}" for count in found)])
    return lines, document.values()


def water_boxes(document):
    schemes = list(document["rows"][0]["steps per round"])
    lines = [
        [
            *("molecules", "atoms"),
            *(f"{name}, {' / '.join(schemes)}" for name in ("force field", "constant", "auto")),
            *("draft, us per step", "learning, us per step", "peak memory, plain and LSD"),
        ]
    ]
    for row in document["rows"]:
        counts, memory = row["steps per round"], row["memory, MB"]
        lines.append(
            [
                *(str(row["molecules"]), str(row["atoms"])),
                *(
                    " / ".join(f"{counts[scheme][way]:.2f}" for scheme in schemes)
                    for way in ("per-step", "constant", "auto")
                ),
                *(f"{row[f'{part}, us per step']:.0f}" for part in ("draft", "learning")),
                f"{memory['plain']:.0f} MB, {memory['LSD']:.0f} MB",
            ]
        )
    return lines, [document]


def hessian_error(document):
    names = {"first": "terms of the first stage", "all": "terms of both stages"}
    steps = list(document["rows"][0]["percent after steps"])
    lines = [["steps", *steps]]
    for row in document["rows"]:
        errors = row["percent after steps"]
        lines.append([names[row["stages"]], *(f"{errors[step]:.1f}" for step in steps)])
    return lines, [document]


def unusual_drafts(document):
    what = {
        "no draft": "(without: no draft; auto: contacts)",
        "bonds of the start": "(without: the bonds of the start; auto: those that form, too)",
    }
    lines = [
        [f"K = {document['window']}, 300 K; after {document['steps']} steps", "without", "auto"]
    ]
    for row in document["rows"]:
        without, _ = counts = row["steps per round"]
        told = (", ".join(f"{count:.2f}" for count in counts[name]) for name in (without, "auto"))
        lines.append([f"{row['system']} {what[without]}", *told])
    return lines, [document]


STUDIED = {
    ("GFN2-xTB", "alanine_dipeptide"): "GFN2-xTB, alanine dipeptide",
    ("its own", "alanine_dipeptide"): "ANI network of alanine dipeptide",
    ("its own", "ibuprofen"): "ibuprofen, its network",
    ("its own", "amoeba_water"): "64 AMOEBA waters",
    ("GFN2-xTB", "benzylammonium"): "GFN2-xTB, benzylammonium (+1)",
    ("GFN2-xTB", "methionine_amide"): "GFN2-xTB, methionine amide",
    ("GFN2-xTB", "dimethyl_phosphate"): "GFN2-xTB, dimethyl phosphate (-1)",
    ("GFN2-xTB", "2-butynyl_acetate"): "GFN2-xTB, 2-butynyl acetate",
}


def draft_study(document):
    """A row for each case and window; the drafts of earlier versions beside today's."""
    lines = [["target", "time step", "K", "steps counted", "without", "with"]]
    cases = {}
    for run in document.values():
        if ", on" in run["draft"]:
            continue
        case = (run["target"], run["system"], run.get("conditions", ""), run["time step, fs"])
        case += (run["K"], *run["counted"])
        cases.setdefault(case, {})[run["draft"]] = run["steps per round"]
    order = list(STUDIED)
    rows = sorted(cases, key=lambda case: (order.index(case[:2]), case[2], -case[3], case[4]))
    for case in rows:
        potential, system, conditions, step_size, window, begin, end = case
        drafts = cases[case]
        lines.append(
            [
                ", ".join(
                    filter(None, (STUDIED[potential, system], conditions.replace("aboba", "ABOBA")))
                ),
                f"{step_size:g} fs",
                str(window),
                f"{begin}-{end}",
                *(seeds_and_mean(drafts.get(name)) for name in ("forces", "secant")),
            ]
        )
    return lines, document.values()


def seeds_and_mean(counts):
    if counts is None:
        return ""
    mean = len(counts) / np.sum(1 / np.array(counts))
    return ", ".join(f"{count:.2f}" for count in counts) + f": **{mean:.2f}**"


LEARNING = {
    "learning_gfn2_1fs": "GFN2-xTB",
    "learning_gfn2_05fs": "GFN2-xTB",
    "learning_mlip_1fs": "shipped network",
    "learning_ibuprofen_1fs": "ibuprofen's network, GAFF2",
    "learning_amoeba_1fs": "64 AMOEBA waters",
}


def learning(*documents):
    """Of several files; a number for each seed, from the steps that are not left out."""
    lines = [["target", "time step", "K", "after", "amber14", "amber14, learning", "auto"]]
    for potential, document in zip(LEARNING.values(), documents, strict=True):
        cells = []
        for draft in ("system", "learning", "auto"):
            late = late_steps_per_round(document, draft)
            cells.append(", ".join(f"{count:.2f}" for count in late))
        step_size = f"{document['time step, fs']:g} fs"
        left_out = str(document["left out, steps"])
        lines.append([potential, step_size, str(document["K"]), left_out, *cells])
    return lines, documents


def late_steps_per_round(document, draft):
    """Of each seed of a learning curve, from the steps that are not left out."""
    begin = document["left out, steps"] // document["segment, steps"]
    curves = document["curves"].get(draft, [])
    return [1 / np.mean(1 / np.array(curve[begin:])) for curve in curves]


def wall_time(document):
    """Every row of a benchmark."""
    found = document["benchmark"]
    lines = [
        [
            f"{found['system'].replace('_', ' ')}, {found['timestep, fs']:g} fs",
            *("settings", "ns/day", "ms/step", "speed-up", "quartiles", "predicted"),
            *("T, K", "steps/round", "target / draft / learning / other"),
        ]
    ]
    for row in found["rows"]:
        shares, temperature = "", row["temperature, K"]
        if "target share" in row:
            parts = ("target", "draft", "learning", "overhead")
            shares = " / ".join(f"{100 * row[f'{part} share']:.0f}" for part in parts) + " %"
        windows = found["estimates"].get(row["run"], {"windows": []})["windows"]
        predicted = max((each["speed_up"] for each in windows), default=None)
        lines.append(
            [
                *(row["run"], row["settings"]),
                *(f"{row['ns/day']:.2f}", f"{row['ms per step']:.2f}", f"{row['ratio']:.2f}"),
                "{:.2f} to {:.2f}".format(*row["ratio quartiles"]),
                "" if predicted is None else f"{predicted:.2f}",
                "blew up"
                if temperature is None
                else with_error(temperature, row["temperature error, K"], 0),
                f"{row['steps per round']:.2f}" if "steps per round" in row else "",
                shares,
            ]
        )
    return lines, [document]


CRYSTALS = {"crystal_silicon": "silicon, 8 atoms", "crystal_NaCl": "NaCl, 8 atoms"}


def crystals(*documents):
    """Of several benchmarks; plain dynamics and the best LSD of each."""
    lines = [["system", "ns/day, plain", "ns/day, LSD", "speed-up (quartiles)", "K", "steps/round"]]
    for name, document in zip(CRYSTALS.values(), documents, strict=True):
        plain, lsd, *_ = document["benchmark"]["rows"]
        lines.append(
            [
                name,
                *(f"{row['ns/day']:.1f}" for row in (plain, lsd)),
                "{:.2f} ({:.2f} to {:.2f})".format(lsd["ratio"], *lsd["ratio quartiles"]),
                f"{lsd['window']}",
                f"{lsd['steps per round']:.1f}",
            ]
        )
    return lines, documents


ON_THE_CARD = ("alanine_dipeptide", "ibuprofen")
GPU_RUNS = {
    "LSD, auto draft, K auto": '**LSD, draft `"auto"`, window `"auto"`**',
    "LSD, auto draft, K = 16": "the same, K = 16",
    "LSD, force field (Reference), K = 16": "force field as the draft, on the host, K = 16",
    "LSD, force field (CUDA), K = 16": "force field as the draft, on the card, K = 16",
}
GPU_FORMS = {"graph": "CUDA graph", "scripted": "TorchScript as shipped"}


def gpu_runs(document):
    """A column for each molecule."""
    found = [document["systems"][name] for name in ON_THE_CARD]
    rows = [{row["run"]: row for row in each["rows"]} for each in found]
    heads = zip(ON_THE_CARD, found, strict=True)
    lines = [["", *(f"{name.replace('_', ' ')} ({each['atoms']} atoms)" for name, each in heads)]]
    plain = [row["plain"] for row in rows]
    lines.append(
        [
            "plain `LangevinMiddleIntegrator`, fastest form",
            *(
                f"{each['ms per step']:.2f} ms per step, {each['ns/day']:.0f} ns/day"
                for each in plain
            ),
        ]
    )
    for run, name in GPU_RUNS.items():
        cells = []
        for row in rows:
            quartiles = "{:.2f} to {:.2f}".format(*row[run]["ratio quartiles"])
            count = f"{row[run]['steps per round']:.1f} steps per round"
            cells.append(f"{row[run]['ratio']:.2f} ({quartiles}) times as fast; {count}")
        lines.append([name, *cells])
    parts = [each["profile"]["clock, ms per round"] for each in found]
    lines.append(
        [
            "one round, K = 16: target / draft / learning / all else",
            *(" / ".join(f"{ms:.2f}" for ms in each.values()) + " ms" for each in parts),
        ]
    )
    return lines, [document]


def gpu_batches(document, batches=("1", "4", "16", "64")):
    lines = [["ms for a batch of", *batches]]
    for system in ON_THE_CARD:
        costs = document["systems"][system]["batch costs, ms"]
        for form, name in GPU_FORMS.items():
            cells = (f"{costs[form][batch]:.2f}" for batch in batches)
            lines.append([f"{system.replace('_', ' ')}, {name}", *cells])
    return lines, [document]


def batch_ratios(costs, gpu):
    """What 16 states cost, in states; and what follows from it."""
    at = [costs["batches"].index(batch) for batch in (1, 16)]

    def here(form):
        one, sixteen = (costs["ms"][form][index] for index in at)
        return sixteen / one

    def on_the_card(system, form):
        batches = gpu["systems"][system]["batch costs, ms"][form]
        return batches["16"] / batches["1"]

    def both(form):
        ratios = sorted(on_the_card(system, form) for system in ON_THE_CARD)
        return " to ".join(f"{ratio:.1f}" for ratio in ratios)

    graph, shipped = GPU_FORMS
    cores, amoeba = "2 CPU cores", "AMOEBA, 192 atoms"
    slow = (here(f"Contexts: {amoeba}"), on_the_card("amoeba_water", "1 Context"))
    rows = [
        ("small network, CUDA graph", "H200", both(graph), "yes, [measured](gpu.md)"),
        (
            *("small network, TorchScript", "H200", both(shipped)),
            "a batch costs one state: expect the steps per round",
        ),
        (
            *("ANI, 22 atoms, TorchForce", cores, f"{here('TorchForce: ANI, 22 atoms'):.1f}"),
            "yes, [measured](measurements.md#wall-time)",
        ),
        ("MACE, 22 atoms, OpenMM-ML", cores, f"{here('OpenMM-ML: MACE, 22 atoms'):.1f}", "yes"),
        (
            *("ANI as a PythonForce for one state", cores),
            f"{here('PythonForce, one state: ANI, 22 atoms'):.0f}",
            "no: make its function `batched`",
        ),
        (
            *("GFN2-xTB through ASE", "one process", f"{here('ASE: GFN2-xTB, 22 atoms'):.0f}"),
            "no: use [workers](howto.md#run-a-quantum-method)",
        ),
        ("GFN2-xTB", "W workers", "16 / W at best", "if W is 4 or more"),
        (amoeba, cores, f"{slow[0]:.0f}", "no"),
        (amoeba, "H200", f"{slow[1]:.0f}", "no"),
    ]
    return [["potential", "where", "t(16) / t(1)", "does it pay?"], *map(list, rows)], [costs, gpu]


# Page, function, and the names of the files that it needs.
TABLES = [
    ("measurements", steps_per_round, ["steps_per_round"]),
    ("measurements", water_boxes, ["water_boxes"]),
    *(
        ("measurements", wall_time, [f"benchmark_{system}_{step}"])
        for system in ("alanine_dipeptide", "ibuprofen")
        for step in ("1fs", "05fs")
    ),
    ("measurements", first_steps, ["first_steps"]),
    ("constraints", constraints_counts, ["constraints"]),
    ("constraints", constraints_cost, ["constraints"]),
    ("constraints", constraints_ensemble, ["constraints"]),
    ("constraints", constraints_amoeba, ["constraints"]),
    ("solution", engines, ["engines"]),
    ("solution", mixed_waits, ["mixed"]),
    ("solution", mixed_counts, ["mixed"]),
    ("solution", mixed_batch, ["mixed"]),
    ("solution", mixed_host, ["mixed"]),
    ("gpu", gpu_runs, ["gpu_h200"]),
    ("gpu", gpu_batches, ["gpu_h200"]),
    ("gpu", simulated_device, ["simulated_device"]),
    ("gpu", transfers, ["transfers"]),
    ("gpu", transfers_of_engines, ["transfers"]),
    ("targets", target_cost, ["target_cost"]),
    ("does_it_pay", batch_ratios, ["target_cost", "gpu_h200"]),
    ("materials", crystals, list(CRYSTALS)),
    ("drafts", hessian_error, ["hessian_error"]),
    ("drafts", unusual_drafts, ["unusual_drafts"]),
    ("drafts", draft_study, ["draft_study"]),
    ("drafts", learning, list(LEARNING)),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="only whether they are up to date")
    args = parser.parse_args()
    for page, make, names in TABLES:
        lines, documents = make(
            *(json.loads((BENCHMARKS / f"{name}.json").read_text()) for name in names)
        )
        result = "\n\n".join(filter(None, (markdown(lines), origin(*documents))))
        name = names[0] if make is wall_time else make.__name__
        put(ROOT / f"docs/{page}.md", f"benchmarks/page_tables.py {name}", result, args.check)


if __name__ == "__main__":
    main()
