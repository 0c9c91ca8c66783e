"""What the documentation shows runs as printed, with fewer steps; its commands have the options."""

import argparse
import ast
import logging
import runpy
import subprocess
import sys
from operator import attrgetter

import pytest
from pages import PAGES, ROOT, blocks, commands, run_page

import openmm_lsd
from openmm_lsd import targets
from openmm_lsd.cli import main

WITH_COMMANDS = [page for page in PAGES if [*commands(page)]]
WITH_CODE = [page for page in PAGES if any(block.language == "python" for block in blocks(page))]


def test_the_readme_runs_as_printed():
    """In a process of its own: nothing has been imported before."""
    command = [sys.executable, "tests/pages.py", "README.md"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert WITH_CODE[0].name == "README.md" and "steps per round" in result.stdout
    files = ast.literal_eval(result.stdout.splitlines()[-1])
    assert files["out.dcd"] > 2 * 22 * 12


@pytest.mark.parametrize("page", WITH_CODE[1:], ids=attrgetter("name"))
def test_pages_run_as_printed(page):
    level = logging.getLogger("openmm_lsd").level
    try:
        names = run_page(page)
    finally:
        logging.getLogger("openmm_lsd").setLevel(level)
    if page.name in ("guide.md", "openmm.md"):
        assert names["simulation"].integrator.statistics.steps_per_round > 1
        assert "lsd.csv" in names["files"]


def test_few_blocks_are_not_run():
    skipped = [block for page in PAGES for block in blocks(page) if block.not_run]
    assert len(skipped) <= 2
    known = {"python", "bash", "text", "", "{toctree}", "{literalinclude}"}
    assert {block.language.split(" ")[0] for page in PAGES for block in blocks(page)} <= known


class ParsedError(Exception):
    """The arguments of a command are in order."""


@pytest.fixture
def parse(monkeypatch):
    """Function: words of a command; raises ParsedError, or SystemExit."""

    def parse_args(self, *arguments):
        raise ParsedError(original(self, *arguments))

    original = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(sys, "argv", [])
    for folder in ("benchmarks", "systems/make"):
        monkeypatch.syspath_prepend(ROOT / folder)
    monkeypatch.chdir(ROOT)

    def call(words):
        if words[0] == "openmm-lsd":
            main(words[1:])
        file = ROOT / words[1]
        if words[0] == "python" and "parse_args(" in file.read_text():
            sys.argv = words[1:]
            runpy.run_path(str(file), run_name="__main__")
        if len(words) == 2 and file.is_file():
            raise ParsedError

    return call


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=attrgetter("name"))
def test_commands_have_these_options(page, parse, capsys):
    for number, words in commands(page):
        try:
            parse(words)
        except ParsedError:
            continue
        except ModuleNotFoundError:  # of a package that the tests need not have
            source = (ROOT / words[1]).read_text()
            if all(f'"{word}"' in source for word in words if word.startswith("--")):
                continue
        except SystemExit:
            pass
        pytest.fail(f"{page.name}, line {number}: {' '.join(words)}: {capsys.readouterr().err}")


def test_wrong_commands_are_found(parse):
    for script in ("python benchmarks/steps_per_round.py", "openmm-lsd benchmark"):
        with pytest.raises(SystemExit):
            parse([*script.split(), "systems/alanine_dipeptide", "--nonesuch"])
    with pytest.raises(FileNotFoundError):
        parse(["python", "scripts/nonesuch.py"])


@pytest.mark.parametrize("module", [openmm_lsd, targets], ids=lambda module: module.__name__)
def test_the_reference_is_complete(module):
    text = (ROOT / "docs" / "api.rst").read_text()
    assert [n for n in module.__all__ if f".{n}\n" not in text and f"``{n}``" not in text] == []
