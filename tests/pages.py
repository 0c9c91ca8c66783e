"""The Python blocks of a Markdown page, and a run of them as they are printed.

    python tests/pages.py README.md

A block that cannot run has a comment in the line before it: <!-- not run: reason -->
"""

import os
import re
import shlex
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from openmm import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
STEPS, ITERATIONS = 60, 10  # at most; in one call

NOT_RUN = re.compile(r"<!-- not run: (.+) -->")


class Block(NamedTuple):
    """``line`` is that of the first line of code, from 0; ``not_run`` the reason, or None."""

    language: str
    line: int
    code: str
    not_run: str | None


def blocks(page):
    """The fenced blocks of a page."""
    lines = page.read_text().split("\n")
    found, begin = [], None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if begin is None:
            begin = number
            continue
        reason = NOT_RUN.fullmatch(lines[begin - 1])
        code = "\n".join(lines[begin + 1 : number])
        language = lines[begin].removeprefix("```")
        found.append(Block(language, begin + 1, code, reason and reason[1]))
        begin = None
    assert begin is None, f"{page}: the block in line {begin} has no end"
    return found


def commands(page):
    """Command lines, indented or in bash blocks: (line number, words)."""
    lines = page.read_text().split("\n")
    candidates = [(n, line) for n, line in enumerate(lines) if line.startswith("    ")]
    for block in blocks(page):
        if block.language == "bash" and block.not_run is None:
            candidates += enumerate(block.code.split("\n"), block.line)
    for number, line in candidates:
        end = number
        while line.endswith("\\"):
            end += 1
            line = line[:-1] + lines[end]
        words = shlex.split(line, comments=True) if "'" not in line else line.split("#")[0].split()
        if words and words[0] in ("python", "bash", "openmm-lsd"):
            yield number + 1, words[: words.index(">")] if ">" in words else words


def run_page(page, steps=STEPS):
    """Run the blocks of a page one after another; returns their names.

    In a temporary directory with a link to the systems; no more than ``steps`` at a time.
    """
    step, minimize = app.Simulation.step, app.Simulation.minimizeEnergy
    replicas = app.ReplicaExchangeSampler
    visit = replicas.simulateReplica
    names, before = {"__name__": "__main__"}, Path.cwd()
    with (
        tempfile.TemporaryDirectory() as directory,
        mock.patch.object(app.Simulation, "step", lambda self, n: step(self, min(n, steps))),
        mock.patch.object(
            replicas, "simulateReplica", lambda self, index: visit(self, index, steps)
        ),
        mock.patch.object(
            app.Simulation,
            "minimizeEnergy",
            lambda self, **_: minimize(self, maxIterations=ITERATIONS),
        ),
    ):
        os.chdir(directory)
        try:
            os.symlink(ROOT / "systems", "systems")
            for block in blocks(page):
                if block.language == "python" and block.not_run is None:
                    # So that a traceback names the line of the page.
                    exec(compile("\n" * block.line + block.code, str(page), "exec"), names)
            names["files"] = {file.name: file.stat().st_size for file in Path().glob("*.*")}
        finally:
            os.chdir(before)
    return names


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(run_page(ROOT / name, steps=200)["files"])
