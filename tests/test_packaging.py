"""What may import what, and what happens where a package is missing. Each in a fresh process."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

needs_sources = pytest.mark.skipif(
    not (ROOT / "openmm_lsd").is_dir(),
    reason="openmm_lsd is installed, and its sources are not beside the tests",
)


def run_python(code):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


# Files that break one rule each, with words of what is said of them.
BROKEN = {
    "core/schemes.py": ("import openmm", "core.schemes imports openmm"),
    "core/noise.py": ("from ..targets.base import BatchedTarget", "which is above it"),
    "targets/base.py": ("from .system import SystemTarget", "a circle"),
    "core/window.py": (
        "class Crowded:\n    def __init__(self):\n"
        + "".join(f"        self.a{k} = {k}\n" for k in range(16)),
        "class Crowded has 16 attributes",
    ),
    "cli.py": (
        "def meddle(find):\n    sampler = find()\n    sampler.window = 3",
        "sampler.window is assigned",
    ),
    "theory.py": ("\n" * 500, "theory.py has"),
    "systems.py": (
        "def tangled(x):\n" + "".join(f"    if x == {k}:\n        x += 1\n" for k in range(11)),
        "`tangled` is too complex",
    ),
}


@needs_sources
def test_the_package_is_built_as_it_should_be():
    from check_structure import problems

    assert list(problems()) == []


@needs_sources
@pytest.mark.parametrize("file", BROKEN)
def test_what_breaks_a_rule_is_found(file, tmp_path, monkeypatch):
    import check_structure

    package = shutil.copytree(ROOT / "openmm_lsd", tmp_path / "openmm_lsd")
    monkeypatch.setattr(check_structure, "PACKAGE", package)
    line, words = BROKEN[file]
    with (package / file).open("a") as stream:
        stream.write(f"\n{line}\n")
    assert any(words in problem for problem in check_structure.problems())


@needs_sources
@pytest.mark.parametrize(
    ("folder", "foreign"),
    [
        ("core", r"OpenMM\.h|Python\.h|openmm/.*|nanobind/.*|\.\./.*"),
        ("openmm", r"Python\.h|nanobind/.*|\.\./bindings/.*"),
    ],
)
def test_the_native_core_knows_no_openmm_and_what_is_on_openmm_no_python(folder, foreign):
    files = list((ROOT / "openmm_lsd" / "native" / folder).iterdir())
    included = [
        (file.name, name)
        for file in files
        for name in re.findall(r'#include [<"](.+)[>"]', file.read_text())
    ]
    assert len(included) > len(files) > 0
    assert not [each for each in included if re.fullmatch(foreign, each[1])]


def test_import_does_not_load_torch():
    result = run_python("import sys, openmm_lsd; assert 'torch' not in sys.modules")
    assert result.returncode == 0, result.stderr


WITHOUT_OPENMMTORCH = """
import sys
sys.modules["openmmtorch"] = None
import openmm
from openmm import app
from openmm_lsd import LSDIntegrator, systems

stem = "systems/alanine_dipeptide/alanine_dipeptide"
prmtop = app.AmberPrmtopFile(stem + ".prmtop")
system = prmtop.createSystem()
integrator = LSDIntegrator(300, 1, 0.001, prmtop.createSystem())
simulation = app.Simulation(prmtop.topology, system, integrator)
simulation.context.setPositions(app.AmberInpcrdFile(stem + ".inpcrd").positions)
simulation.step(20)
assert integrator.statistics.rejected == 0
try:
    systems.with_torch_force(system, stem + ".pt")
except ImportError as error:
    assert "pip install" in str(error) and "openmmtorch" in str(error)
else:
    raise AssertionError("no ImportError")
"""


def test_other_potentials_work_without_openmmtorch():
    result = run_python(WITHOUT_OPENMMTORCH)
    assert result.returncode == 0, result.stderr


OPENMM_BEFORE_TORCH = """
import openmm
from openmm import app
import torch
from openmmtorch import TorchForce
from openmm_lsd import LSDIntegrator

stem = "systems/alanine_dipeptide/alanine_dipeptide"
prmtop = app.AmberPrmtopFile(stem + ".prmtop")
draft = prmtop.createSystem()
target = openmm.System()
for index in range(draft.getNumParticles()):
    target.addParticle(draft.getParticleMass(index))
target.addForce(TorchForce(stem + ".pt"))
simulation = app.Simulation(prmtop.topology, target, LSDIntegrator(300, 1, 0.001, draft))
simulation.context.setPositions(app.AmberInpcrdFile(stem + ".inpcrd").positions)
simulation.step(5)
names = [openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())]
assert len(names) == len(set(names)), names
"""


def test_openmm_may_be_imported_before_torch():
    result = run_python(OPENMM_BEFORE_TORCH)
    assert result.returncode == 0, result.stderr


def test_every_form_of_the_command_line_is_documented_and_can_be_installed():
    from openmm_lsd.commands.forms import FORMS

    page, project = (ROOT / "docs" / "commands.md").read_text(), ROOT / "pyproject.toml"
    extras = re.search(r"optional-dependencies\]\n(.*?)\n\[", project.read_text(), re.DOTALL)[1]
    for form in FORMS.values():
        assert f"| `{form.usage}` |" in page
        assert form.extra is None or f"\n{form.extra} = [" in extras
