"""What the command line makes rigid, and what it says and counts."""

import io

import numpy as np
import openmm
import pytest
from openmm import app, unit
from test_command_files import ROOT, RUN, WATER, WATERS, case_of
from test_commands import command
from test_structures import STEM

from openmm_lsd import cli, systems
from openmm_lsd.commands.potentials import cutoff_of
from openmm_lsd.contexts.checks import masses_of
from openmm_lsd.contexts.constraints import constraints_of

IN_WATER = ROOT / "systems/stiff_dipeptide_water"
DIPEPTIDE = ("run", "--topology", f"{STEM}.pdb")
NETWORK = ("--target", f"{STEM}.pt")
AMBER = "amber14-all.xml"


@pytest.fixture
def network_of_water(tmp_path):
    file = tmp_path / "waters.py"
    file.write_text(WATERS)
    return ("run", "--topology", WATER, "--target", f"python:{file}:waters(pdb={str(WATER)!r})")


def test_water_is_rigid_in_a_force_field():
    case = case_of("run", "--topology", WATER, "--target", "tip3p.xml", "--draft", "tip3p.xml")
    assert case.target.getNumConstraints() == 3 * 64
    assert constraints_of(case.draft) == constraints_of(case.target)
    assert case.description().endswith("192 constraints: 64 rigid waters")
    assert case.degrees_of_freedom == 9 * 64 - 3 * 64 - 3
    flexible = case_of("run", "--topology", WATER, "--target", "tip3p.xml", "--no-rigid-water")
    assert flexible.target.getNumConstraints() == 0
    assert flexible.description().endswith("no constraints")


def test_everything_is_flexible_in_a_network(network_of_water):
    case = case_of(*network_of_water)
    assert case.target.getNumConstraints() == 0
    case = case_of(*network_of_water, "--rigid-water", "--draft", "tip3p.xml")
    assert case.target.getNumConstraints() == 3 * 64


@pytest.mark.parametrize(
    ("name", "count"), [("none", 0), ("h-bonds", 12), ("all-bonds", 21), ("h-angles", 30)]
)
def test_constraints(name, count):
    case = case_of(*DIPEPTIDE, "--target", AMBER, "--constraints", name)
    assert case.target.getNumConstraints() == count
    with_network = case_of(*DIPEPTIDE, *NETWORK, "--constraints", name, "--draft", AMBER)
    assert constraints_of(with_network.target) == constraints_of(case.target)
    assert constraints_of(with_network.draft) == constraints_of(case.target)


def test_lengths_of_a_prmtop():
    case = case_of(*DIPEPTIDE, *NETWORK, "--constraints", "h-bonds", "--draft", f"{STEM}.prmtop")
    assert case.target.getNumConstraints() == case.draft.getNumConstraints() == 12


def test_heavy_hydrogens():
    expected = app.ForceField(AMBER).createSystem(
        app.PDBFile(f"{STEM}.pdb").topology, hydrogenMass=1.5 * unit.dalton
    )
    for more in (("--target", AMBER), (*NETWORK, "--draft", AMBER)):
        case = case_of(*DIPEPTIDE, *more, "--hydrogen-mass", 1.5)
        np.testing.assert_allclose(masses_of(case.target), masses_of(expected), atol=5e-3)
    np.testing.assert_allclose(masses_of(case.draft), masses_of(case.target))
    assert "22 masses are not those of the elements" not in case.description()
    rigid = case_of(
        *("run", "--topology", WATER, "--target", "tip3p.xml", "--no-rigid-water"),
        *("--hydrogen-mass", 2),
    )
    assert masses_of(rigid.target)[:3] == pytest.approx([13.99, 2.0, 2.0], abs=0.05)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((*DIPEPTIDE, *NETWORK, "--constraints", "h-bonds"), "--constraints: the target does not"),
        ((*DIPEPTIDE, *NETWORK, "--rigid-water"), "--rigid-water: the target does not say"),
        ((*DIPEPTIDE, *NETWORK, "--hydrogen-mass", "9"), "with hydrogens of 9 amu nothing is left"),
        (
            ("run", "--system", IN_WATER, "--hydrogen-mass", "6"),
            "has a mass of -.* amu; is hydrogenMass too large",
        ),
        (
            ("run", "--topology", WATER, "--target", "tip3p.xml", "--scheme", "aboba"),
            "192 constraints, which scheme='aboba' does not support",
        ),
        (
            ("run", "--topology", WATER, "--target", "tip3p.xml", "--hydrogen-mass", "2"),
            "no bonds to hydrogen",
        ),
    ],
)
def test_what_cannot_be(arguments, words):
    with pytest.raises(ValueError, match=words):
        case_of(*arguments)


def test_a_serialized_system_says_it_by_itself(tmp_path):
    field = app.ForceField(AMBER)
    system = field.createSystem(app.PDBFile(f"{STEM}.pdb").topology, constraints=app.HBonds)
    file = tmp_path / "system.xml"
    file.write_text(openmm.XmlSerializer.serialize(system))
    for draft in (AMBER, f"{STEM}.prmtop", file):
        case = case_of(*DIPEPTIDE, "--target", file, "--draft", draft)
        assert constraints_of(case.draft) == constraints_of(system)
    with pytest.raises(ValueError, match=r"--constraints: the System in .* says by itself"):
        case_of(*DIPEPTIDE, "--target", file, "--constraints", "none")


def test_a_draft_of_other_constraints(tmp_path):
    topology = app.PDBFile(f"{STEM}.pdb").topology
    file = tmp_path / "system.xml"
    system = app.ForceField(AMBER).createSystem(topology, constraints=app.AllBonds)
    file.write_text(openmm.XmlSerializer.serialize(system))
    with pytest.raises(ValueError, match="different constraints, 21 in all"):
        case_of(*DIPEPTIDE, "--target", AMBER, "--draft", file)


def test_the_system_in_water():
    case = case_of("run", "--system", IN_WATER)
    assert case.atoms == 2299
    assert case.description().endswith("2289 constraints: 759 rigid waters and 12 others")
    assert constraints_of(case.draft) == constraints_of(case.target)
    heavy = case_of("run", "--system", IN_WATER, "--hydrogen-mass", 1.5)
    assert masses_of(heavy.target).sum() == pytest.approx(masses_of(case.target).sum())
    assert (masses_of(heavy.target) != masses_of(case.target)).sum() > 12
    flexible = case_of("run", "--system", IN_WATER, "--constraints", "none", "--no-rigid-water")
    assert flexible.target.getNumConstraints() == 0
    bonds = [
        next(force for force in system.getForces() if isinstance(force, openmm.HarmonicBondForce))
        for system in (flexible.draft, flexible.target)
    ]
    for index in range(bonds[0].getNumBonds()):
        *atoms, length, constant = bonds[0].getBondParameters(index)
        *others, longer, stiffer = bonds[1].getBondParameters(index)
        assert atoms == others
        factors = (1.02, 1.2) if atoms[0] < 22 else (1.0, 1.0)
        assert (longer / length, stiffer / constant) == pytest.approx(factors)


@pytest.mark.parametrize("freeze", [False, True])
def test_degrees_of_freedom_are_those_of_openmms_reporters(freeze):
    case = case_of("run", "--topology", WATER, "--target", "tip3p.xml", "--cutoff", 0.6)
    for index in range(6 * freeze):  # two waters
        case.target.setParticleMass(index, 0.0)
    reporter = app.StateDataReporter(io.StringIO(), 1, temperature=True)
    reporter._initializeConstants(case.plain("Reference").simulation)
    assert case.degrees_of_freedom == reporter._dof


def test_a_shipped_system_with_heavy_hydrogens():
    options = ("--hydrogen-mass", 3, "--constraints", "h-bonds")
    case = case_of("run", "--system", STEM.parent, *options)
    assert (np.abs(masses_of(case.target) - 3.0) < 1e-9).sum() == 12
    assert constraints_of(case.target) == constraints_of(case.draft)
    assert len(constraints_of(case.target)) == 12


def test_a_shipped_system_with_another_draft():
    """In the directory's own cutoff, unless another is given."""
    files = ("--draft", AMBER, "amber14/tip3p.xml")
    for more, expected in (((), 0.9), (("--cutoff", 1.1), 1.1)):
        case = case_of("run", "--system", IN_WATER, *files, *more)
        assert cutoff_of(case.draft, 0.0) == pytest.approx(expected)
    case = case_of("run", "--system", WATER.parent, "--draft", "tip3p.xml")
    assert cutoff_of(case.draft, 0.0) == pytest.approx(0.6)


def test_a_run_says_it(tmp_path, capsys):
    out = tmp_path / "out"
    command(
        *("run", "--topology", WATER, "--target", "tip3p.xml", "--draft", "tip3p.xml"),
        *("--cutoff", 0.6, "--timestep", 2, "--output-dir", out, *RUN),
    )
    assert "192 constraints: 64 rigid waters" in capsys.readouterr().out


def test_constraints_are_kept_with_a_network():
    """Of a System that a network is given to."""
    system = app.ForceField(AMBER).createSystem(
        app.PDBFile(f"{STEM}.pdb").topology, constraints=app.HBonds
    )
    made = systems.with_torch_force(system, f"{STEM}.pt")
    assert constraints_of(made) == constraints_of(system)


def test_validation_with_constraints(capsys):
    """Of the network, with rigid bonds to hydrogen."""
    status = cli.main(
        [
            *("validate", "--topology", f"{STEM}.pdb", *NETWORK, "--draft", AMBER),
            *("--constraints", "h-bonds", "--timestep", "2", "--runs", "40"),
            *("--path-steps", "100", "--long-steps", "600", "--equilibration", "200"),
            *("--seed", "1"),
        ]
    )
    out = capsys.readouterr().out
    assert status == 0, out
    assert "12 constraints" in out and "The distribution is right" in out
