"""The command line on mixed systems: --ml-atoms, and what validate says of them."""

import copy

import numpy as np
import openmm
import pytest
import torch
from openmm import unit
from pages import ROOT
from test_commands import SMALL, AcceptsAll, command
from test_mixed_systems import box_of, python_force

from openmm_lsd import LSDIntegrator, systems
from openmm_lsd.commands import Case, validate
from openmm_lsd.commands import case as case_module
from openmm_lsd.commands.mlatoms import embed_target
from openmm_lsd.core.noise import NoiseOfRest
from openmm_lsd.drafts.nativeengine import NativeSubsetEngine

SYSTEMS = ROOT / "systems"
BOX = SYSTEMS / "alanine_dipeptide_water" / "alanine_dipeptide_water"
NETWORK = SYSTEMS / "alanine_dipeptide" / "alanine_dipeptide.pt"
FILES = [
    *("--topology", f"{BOX}.prmtop", "--coordinates", f"{BOX}.inpcrd"),
    *("--target", NETWORK, "--platform", "CPU", "--seed", 1),
]
QUICK = ["--no-minimize", "--equilibration", 0]
ML_ATOMS = ["--ml-atoms", "not water", "--environment", f"{BOX}.prmtop"]


@pytest.mark.parametrize("draft", ["auto", f"{BOX}.prmtop"])
def test_run(tmp_path, capsys, draft):
    status = command(
        *(
            "run",
            *FILES,
            *ML_ATOMS,
            "--draft",
            draft,
            "--steps",
            12,
            "--output-dir",
            tmp_path,
            *QUICK,
        ),
    )
    output = capsys.readouterr()
    assert status == 0, output.err
    assert "2272 atoms" in output.out
    assert (tmp_path / "trajectory.dcd").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ml-atoms", "not water"], "give the force field of all other atoms as --environment"),
        (["--environment", "amber14-all.xml"], "--environment goes with --ml-atoms"),
        (["--ml-atoms", "resname XYZ", *ML_ATOMS[2:]], "names none of the atoms"),
        (["--ml-atoms", "resname (", *ML_ATOMS[2:]], "cannot be understood"),
        (["--ml-atoms", "water", *ML_ATOMS[2:]], "does not take the 2250 atoms"),
    ],
)
def test_wrong_options(tmp_path, capsys, arguments, words):
    status = command("run", *FILES, *arguments, "--steps", 10, "--output-dir", tmp_path)
    assert status != 0
    assert words in capsys.readouterr().err


class InSinglePrecision(torch.nn.Module):
    """As of a CUDA platform; on a CPU OpenMM gives it doubles."""

    def __init__(self):
        super().__init__()
        self.weights = torch.nn.Linear(3, 1)

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        return self.weights(positions).sum()


def test_a_model_in_single_precision_is_taken(tmp_path):
    torch.jit.script(InSinglePrecision()).save(tmp_path / "model.pt")
    water = systems.load(SYSTEMS / "alanine_dipeptide_water")
    system = embed_target(
        str(tmp_path / "model.pt"),
        water.draft,
        water.topology,
        "not water",
        positions=water.positions,
    )
    assert system.getForces()[-1].getName() == "TorchForce"


def test_ml_atoms_of_a_shipped_system(capsys):
    directory = SYSTEMS / "alanine_dipeptide_water"
    assert command("estimate", "--system", directory, "--ml-atoms", "not water") != 0
    assert "--system cannot be combined with --ml-atoms" in capsys.readouterr().err


SHIPPED = ["alanine_dipeptide_water", "ibuprofen_water"]


@pytest.mark.parametrize("name", SHIPPED)
def test_the_molecule_of_a_shipped_box_stays_whole(name):
    """OpenMM's minimiser would take a network to where it knows nothing."""
    case = Case.of(systems.load(SYSTEMS / name), platform="CPU", seed=1)
    run = case.lsd(16)
    run.equilibrate(case, 100)
    slow = run.integrator.subset
    bonds = [(a.index, b.index) for a, b in case.topology.bonds() if a.index in slow]
    first, second = run.state[0][np.array(bonds)].transpose(1, 0, 2)
    lengths = np.linalg.norm(first - second, axis=1)
    assert lengths.max() < 0.18
    assert run.integrator.statistics.steps_per_round > 4


@pytest.fixture
def case():
    """Springs between three atoms of a dipeptide in 40 waters, drafted without them."""
    topology, positions, cheap = box_of("dipeptide", None)
    target = copy.deepcopy(cheap)
    target.addForce(python_force([4, 8, 14]))
    return Case(
        topology,
        unit.Quantity(np.array(positions), unit.nanometer),
        cheap,
        target,
        friction=20.0,
        seed=3,
        platform="Reference",
    )


FEW = {**SMALL, "runs": 100, "path_steps": 600, "long_steps": 1200, "equilibration": 400}


def test_right_sampler_is_validated(case):
    result = validate(case, **FEW)
    assert result.passed, str(result)


class AcceptsAllOfSubset(NativeSubsetEngine):
    reduced_engine = AcceptsAll


class HalfTheNoise(NoiseOfRest):
    def __call__(self, step, count):
        return [0.7 * row for row in super().__call__(step, count)]


class NoiseOfTheRestIsLost(NativeSubsetEngine):
    """Half of it."""

    noise_of_rest = HalfTheNoise


@pytest.mark.parametrize("engine", [AcceptsAllOfSubset, NoiseOfTheRestIsLost])
def test_wrong_samplers_are_caught(case, monkeypatch, engine):
    kind = type("Planted", (LSDIntegrator,), {"_subset_engine": engine})
    monkeypatch.setattr(case_module, "LSDIntegrator", kind)
    result = validate(case, **FEW)
    assert not result.passed
    assert "THE DISTRIBUTION IS WRONG" in str(result)


def test_masses_of_the_case(case):
    assert isinstance(case.target, openmm.System) and case.atoms == 142


@pytest.mark.parametrize("engine", ["host", "context"])
def test_engine(tmp_path, monkeypatch, engine):
    seen = []
    step = LSDIntegrator.step

    def watched(integrator, steps):
        step(integrator, steps)
        seen.append(integrator.probe().sampler.engine.name)

    monkeypatch.setattr(LSDIntegrator, "step", watched)
    options = ["--engine", engine, "--steps", 3, "--output-dir", tmp_path, *QUICK]
    assert command("run", *FILES, *ML_ATOMS, *options) == 0
    assert set(seen) == {engine}
