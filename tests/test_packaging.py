"""What may import what, and what happens where a package is missing. Each in a fresh process."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PURE = [
    "beside",
    "clock",
    "corrections",
    "correctors",
    "engine",
    "errors",
    "jumps",
    "lessons",
    "noise",
    "sampler",
    "schemes",
    "statistics",
    "transport",
    "tuning",
    "verifier",
    "window",
    "learning",
    "jacobian",
    "prediction",
    "valence",
]


def run_python(code):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("name", PURE)
def test_the_pure_core_knows_neither_openmm_nor_torch(name):
    tree = ast.parse((ROOT / "openmm_lsd" / f"{name}.py").read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add("." * node.level + (node.module or ""))
    allowed = {f".{other}" for other in PURE} | {"numpy", "numpy.typing", "__future__"}
    allowed |= {"scipy.linalg.lapack", "threadpoolctl"}  # solvers, and the threads of theirs
    foreign = {name for name in imported - allowed if name not in sys.stdlib_module_names}
    assert {name.split(".")[0] for name in foreign} <= sys.stdlib_module_names, foreign


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
