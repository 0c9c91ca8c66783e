"""What the documentation shows runs as printed, with fewer steps; its commands have the options."""

import argparse
import ast
import importlib
import logging
import re
import runpy
import subprocess
import sys
from operator import attrgetter
from pathlib import Path

import pytest
from pages import PAGES, ROOT, blocks, commands, run_page

import openmm_lsd
from openmm_lsd import targets
from openmm_lsd.cli import main

PACKAGE = Path(openmm_lsd.__file__).parent  # need not be beside the tests
WITH_COMMANDS = [page for page in PAGES if [*commands(page)]]
WITH_CODE = [page for page in PAGES if any(block.language == "python" for block in blocks(page))]


def test_the_readme_runs_as_printed():
    """In a process of its own: nothing has been imported before."""
    command = [sys.executable, "tests/pages.py", "README.md"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert WITH_CODE[0].name == "README.md" and "steps per round" in result.stdout
    files = ast.literal_eval(result.stdout.splitlines()[-1])
    assert files["trajectory.dcd"] > 2 * 22 * 12


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


def modules():
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        yield importlib.import_module(".".join(parts))


def is_there(name):
    """Whether a name stands for an object of a module, or an attribute of one of its classes."""
    *path, last = name.split(".")
    for module in modules():
        owners = [module, *(each for each in vars(module).values() if isinstance(each, type))]
        if path:
            is_path = module.__name__ == ".".join(["openmm_lsd", *path])
            named = getattr(module, path[0], None) if len(path) == 1 else None
            owners = [module] * is_path + [named] * (named is not None)
        if any(
            last in dir(owner) or last in getattr(owner, "__annotations__", ()) for owner in owners
        ):
            return True
    return False


def names_of_architecture():
    text = (ROOT / "docs" / "architecture.md").read_text()
    return sorted(set(re.findall(r"`([\w./*]+)`", text)))


@pytest.mark.parametrize("name", names_of_architecture())
def test_names_of_the_architecture_page_exist(name):
    """Modules and files, tests, and objects."""
    if name.startswith("native/") and not (PACKAGE / "native").is_dir():
        pytest.skip("openmm_lsd was installed from a wheel, which has no C++ sources")
    files = [ROOT / name, PACKAGE.parent / name, PACKAGE / name, PACKAGE / f"{name}.py"]
    files += [*PACKAGE.glob(f"*/{name}.py"), *(ROOT / "tests").glob(f"{name}.py")]
    assert any(file.exists() for file in files) or is_there(name)


def test_a_name_that_is_nowhere_is_found():
    assert is_there("roll_out") and is_there("targets.system.FORMS")
    assert not is_there("roll_over") and not is_there("targets.system.FORM")
