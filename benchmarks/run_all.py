"""All numbers of the documentation again, in one run on one machine.

    python benchmarks/run_all.py                       # hours: everything
    python benchmarks/run_all.py measurements drafts   # what these pages name
    python benchmarks/run_all.py --list

The pages are the list: every line of them that begins with ``python benchmarks/``, ``python
systems/make/`` or ``openmm-lsd benchmark`` and names no file of the user's is run. What each prints
goes to build/run_all/, and docs/benchmarks/run_all.json says when, where, from which commit, and
how long each took. A run that was stopped continues where it was (``--again`` runs all of them
again). Tables and figures are made at the end; what a page shows as printed, after
``<!-- results: COMMAND -->``, is put there at once.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from datetime import datetime, timezone

from results import ROOT, changing, put

from openmm_lsd.commands.machine import machine

RECORD = ROOT / "docs/benchmarks/run_all.json"
LOGS = ROOT / "build/run_all"
RUN = re.compile(
    r"    ((?:[A-Z_]+=\S+ )*"
    r"(?:python (?:benchmarks|systems/make)/|openmm-lsd (?:benchmark|validate) ).*)"
)
# They need a card, another environment, or a file of the user's.
LEFT_OUT = ("gpu_benchmark", "pairings.py copper", "run_all", "_table", "X.", "POSCAR")
AT_LAST = (
    "python benchmarks/page_tables.py",
    "python benchmarks/pairings_table.py",
    "python benchmarks/readme_table.py",
    "python benchmarks/make_figures.py",
)
# OpenMM prefers OpenCL as soon as there is one, so all others do not see it.
WITH_OPENCL = ("OpenCL", "transfers.py", "precision.py")
# The commands whose results the README's table is made of.
README_TABLE = [
    f"openmm-lsd benchmark --system systems/{system} --timestep {timestep} --also-auto --estimate "
    f"--warm-up 2000 --json > docs/benchmarks/benchmark_{system}_{name}.json"
    for system in ("alanine_dipeptide", "ibuprofen")
    for timestep, name in ((1, "1fs"), (0.5, "05fs"))
]


def commands_of(pages):
    """In the order of the pages, each once."""
    found = [] if pages and "README" not in pages else list(README_TABLE)
    for page in sorted((ROOT / "docs").glob("*.md")):
        if pages and page.stem not in pages:
            continue
        for line in page.read_text().split("\n"):
            match = RUN.fullmatch(line.split("  #")[0].rstrip())
            if match and not any(words in match[1] for words in LEFT_OUT):
                kept = (each for each in README_TABLE if each.startswith(match[1]))
                found.append(next(kept, match[1]))
    return list(dict.fromkeys(found))


def run(command, log):
    """Seconds and exit status; what is printed goes to ``log``, and errors to a file beside it.

    A file that the command writes to (``> FILE``) is left as it was if the command fails.
    """
    command, _, outfile = command.partition(" > ")
    environment = dict(os.environ)
    if not any(word in command for word in WITH_OPENCL):
        environment["OCL_ICD_VENDORS"] = "/nonexistent"
    begin = time.perf_counter()
    with log.open("w") as output, log.with_suffix(".err").open("w") as errors:
        status = subprocess.run(
            command, shell=True, cwd=ROOT, stdout=output, stderr=errors, env=environment
        ).returncode
    if outfile and status == 0:
        shutil.copyfile(log, ROOT / outfile)
    return time.perf_counter() - begin, status


def show(command, text):
    """In the pages that show what the command prints; OpenMM's DCD reader announces itself."""
    text = "\n".join(line for line in text.split("\n") if not line.startswith("dcdplugin)"))
    for page in (ROOT / "docs").glob("*.md"):
        if f"<!-- results: {command} -->" in page.read_text():
            put(page, command, f"```text\n{text.rstrip()}\n```", check=False)


def commit():
    words = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def was_run(command):
    """Whether it was; another run_all.py, of other pages, may have done it in the meantime."""
    with changing(RECORD) as known:
        return known.get(command, {}).get("status") == 0


def record(command, **facts):
    with changing(RECORD) as known:
        known[command] = facts


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pages", nargs="*", help="names in docs/, or README; default: all")
    parser.add_argument("--list", action="store_true", help="print the commands")
    parser.add_argument("--again", action="store_true", help="also what was run before")
    args = parser.parse_args()
    names = {page.stem for page in (ROOT / "docs").glob("*.md")} | {"README"}
    for page in args.pages:
        if page not in names:
            parser.error(f"there is no page {page!r}; there are {', '.join(sorted(names))}")
    commands = commands_of(args.pages)
    if args.list:
        print("\n".join(commands))
        return
    LOGS.mkdir(parents=True, exist_ok=True)
    failed = 0
    for number, command in enumerate(commands):
        if was_run(command) and not args.again:
            continue
        words = re.sub(r"[^\w.]+", "_", command.split(" ", 1)[1])[:100]
        print(f"{number + 1} of {len(commands)}: {command}", flush=True)
        log = LOGS / f"{number + 1:02d}_{words}.txt"
        seconds, status = run(command, log)
        failed += status != 0
        if status == 0:
            show(command, log.read_text())
        record(
            command,
            date=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M"),
            commit=commit(),
            machine=machine(),
            seconds=round(seconds),
            status=status,
        )
        print(f"    {seconds:.0f} s, status {status}", flush=True)
    for command in AT_LAST:
        print(command, flush=True)
        failed += subprocess.run(command, shell=True, cwd=ROOT).returncode != 0
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
