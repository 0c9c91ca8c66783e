"""The examples of docs/examples run, with few steps, and write what they say."""

import runpy
import sys

import mdtraj
import numpy as np
import pytest
from openmm import app
from pages import ROOT

EXAMPLES = ROOT / "docs" / "examples"
SYSTEMS = ROOT / "systems"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Function: name, arguments -> what the example prints; in a temporary directory."""
    minimize = app.Simulation.minimizeEnergy
    monkeypatch.setattr(
        app.Simulation, "minimizeEnergy", lambda self, **_: minimize(self, maxIterations=10)
    )
    monkeypatch.chdir(tmp_path)

    def call(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return call


def frames(file, molecule="alanine_dipeptide"):
    return mdtraj.load(file, top=str(SYSTEMS / molecule / f"{molecule}.pdb"))


def lines(file):
    with open(file) as rows:
        return len(rows.readlines())


def test_peptide(run):
    assert "steps per round" in run("peptide.py", "--steps", 30)
    assert len(frames("peptide.dcd")) == 30
    assert lines("peptide.csv") == lines("lsd.csv") == 31


def test_ligand(run):
    assert "learning" in run("ligand_prmtop.py", "--steps", 20, "--learning")
    assert len(frames("ligand.dcd", "ibuprofen")) == 20
    assert mdtraj.load("final.pdb").n_atoms == 33


def test_gfn2(run):
    pytest.importorskip("tblite")
    assert "steps per round" in run("gfn2_ase.py", "--steps", 16)
    assert len(frames("gfn2.dcd")) == 16 and lines("gfn2.csv") == 17


def test_crystal(run):
    pytest.importorskip("chgnet")
    ase_io = pytest.importorskip("ase.io")
    told = run("crystal.py", "--steps", 16, "--repeat", 1, "--pressure", 1)
    assert "steps per round" in told
    assert lines("crystal.csv") == 17
    start, end = ase_io.read(EXAMPLES / "NaCl.cif"), ase_io.read("crystal.cif")
    assert end.get_chemical_symbols() == start.get_chemical_symbols()
    moved = (end.get_scaled_positions() - start.get_scaled_positions() + 0.5) % 1.0 - 0.5
    assert 0 < np.abs(moved).max() < 0.1  # it is still the crystal


def test_torch_module(run):
    assert "cos(phi - phi0)" in run("torch_module.py", "--steps", 20)
    bonds = mdtraj.compute_distances(frames("biased.dcd"), [[4, 6]])
    assert bonds.shape == (20, 1) and np.all(np.abs(bonds - 0.134) < 0.02)


def test_restart_goes_on_to_the_last_bit(run, tmp_path, monkeypatch):
    assert "stopped at step 20" in run("restart.py", "--steps", 20)
    assert "going on from step 20" in run("restart.py", "--steps", 20)
    parts = frames("run.dcd")
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    assert "stopped at step 40" in run("restart.py", "--steps", 40)
    whole = frames("run.dcd")
    assert len(parts) == len(whole) == 4
    np.testing.assert_array_equal(parts.xyz, whole.xyz)


def of_solution(file, molecule):
    stem = SYSTEMS / f"{molecule}_water" / f"{molecule}_water"
    return mdtraj.load(file, top=f"{stem}.prmtop")


def test_ml_mm_torchforce(run):
    assert "differ on 22 atoms" in run("ml_mm_torchforce.py", "--steps", 20)
    assert len(of_solution("solution.dcd", "alanine_dipeptide")) == 20
    assert lines("solution.csv") == 21


def test_qm_mm(run):
    pytest.importorskip("tblite")
    assert "differ on 22 atoms" in run("qm_mm_xtb.py", "--steps", 16)
    assert len(of_solution("qmmm.dcd", "alanine_dipeptide")) == 16


def test_ml_mm_openmmml(run, tmp_path):
    """With a small MACE model that nobody has trained."""
    pytest.importorskip("mace")
    from test_target_openmmml import build_mace, saved

    model = saved(build_mace(), tmp_path)
    assert "differ on 33 atoms" in run("ml_mm_openmmml.py", "--model", model, "--steps", 8)
    assert len(of_solution("ligand.dcd", "ibuprofen")) == 8
