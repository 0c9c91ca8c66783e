"""The tables of docs/materials.md and docs/drafts.md, from docs/benchmarks/pairings.json.

python benchmarks/pairings.py copper32 --outfile docs/benchmarks/pairings.json
python benchmarks/pairings_table.py
"""

import argparse
import json
from collections import defaultdict

import numpy as np
from results import ROOT, markdown, put

COUNTS = ROOT / "docs/benchmarks/pairings.json"
# target, system and time step; cheap potential
SYSTEMS = {
    "gfn": ("GFN2-xTB, alanine dipeptide, 1 fs", "GFN1-xTB"),
    "copper32": ("7net-0, copper, 32 atoms, 5 fs", "EMT"),
    "copper108": ("7net-0, copper, 108 atoms, 5 fs", "EMT"),
    "silicon64": ("7net-0, silicon, 64 atoms, 2 fs", ""),
    "salt64": ("7net-0, NaCl, 64 atoms, 2 fs", ""),
    "urea32": ("7net-0, urea, 32 atoms, 1 fs", ""),
    "ensemble": ("two CHGNets, silicon, 8 atoms, 2 fs", "one of the two"),
    "silicon8": ("7net-l3i5, silicon, 8 atoms, 2 fs", "7net-0"),
    "metal32": ("EMT, copper, 32 atoms, 5 fs", ""),
    "metal108": ("EMT, copper, 108 atoms, 5 fs", ""),
}
PAGES = {
    "materials": [name for name in SYSTEMS if name not in ("gfn", "ensemble")],
    "drafts": ["gfn", "copper32", "copper108", "silicon8", "ensemble"],
}
DRAFTS = {
    "auto": '`"auto"`',
    "draft": "cheap potential",
    "draft, learning": "the same, learning",
}
WAYS = [way for draft in DRAFTS for way in (draft, f"{draft}, published rule")]
HEADS = (
    *("target and system", "conditions", "K"),
    *(head for name in DRAFTS.values() for head in (name, "published rule")),
)


def table(counts, pairings):
    """Markdown; a row for each system, its temperature, pressure and window."""
    found = defaultdict(list)
    for each in counts:
        case = each["temperature"], each["pressure"] or 0, -each["K"]
        found[each["pairing"], case, each["way"]].append(each["steps per round"])
    lines = [HEADS]
    for pairing in pairings:
        name, cheap = SYSTEMS[pairing]
        for case in sorted({case for other, case, _ in list(found) if other == pairing}):
            temperature, pressure, window = case
            where = f"{temperature:g} K" + (f", {pressure:g} bar" if pressure else "")
            cells = {way: told(found[pairing, case, way]) for way in WAYS}
            if cheap and cells["draft"]:
                cells["draft"] = f"{cheap}: {cells['draft']}"
            lines.append([name, where, str(-window), *cells.values()])
    used = [column for column in range(len(HEADS)) if any(line[column] for line in lines[1:])]
    return markdown([[line[i] for i in used] for line in lines])


def told(counts):
    """The mean, and its standard error if there are three seeds."""
    if not len(counts):
        return ""
    if len(counts) < 3:
        return f"{np.mean(counts):.1f} ({len(counts)} seed{'s' * (len(counts) > 1)})"
    return f"{np.mean(counts):.1f} ± {np.std(counts, ddof=1) / np.sqrt(len(counts)):.1f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="only whether it is up to date")
    args = parser.parse_args()
    counts = json.loads(COUNTS.read_text())
    for page, pairings in PAGES.items():
        found = table(counts, pairings)
        put(ROOT / f"docs/{page}.md", "benchmarks/pairings_table.py", found, args.check)


if __name__ == "__main__":
    main()
