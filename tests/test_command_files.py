"""The command line reads all that its files say, by one rule, and writes whole molecules."""

from pathlib import Path

import mdtraj
import numpy as np
import openmm
import pytest
import torch
from openmm import app, unit
from test_commands import command
from test_periodicity import Anywhere, InBox
from test_structures import STEM, inpcrd_with, prmtop_with

from openmm_lsd import cli, systems
from openmm_lsd.commands import caseoptions
from openmm_lsd.commands.wholemolecules import WholeMolecules
from openmm_lsd.contexts.checks import default_box, masses_of
from openmm_lsd.structures import read_structure

ROOT = STEM.parent.parent.parent
WATER = ROOT / "systems/amoeba_water/amoeba_water.pdb"
SPRINGS = """
import numpy as np
from openmm_lsd.targets import BatchedTarget


class Springs(BatchedTarget):
    def evaluate(self, positions, box=None):
        self.start = getattr(self, "start", positions[0].copy())
        shifts = positions - self.start
        return 2000.0 * (shifts**2).sum(axis=(1, 2)), -4000.0 * shifts
"""
# Flexible water, as a network would give it: OpenMM does not know the bonds.
WATERS = """
from openmm import app
from openmm_lsd.targets import ContextTarget


def waters(pdb):
    topology = app.PDBFile(pdb).topology
    field = app.ForceField("tip3p.xml")
    return ContextTarget(
        field.createSystem(
            topology, nonbondedMethod=app.CutoffPeriodic, nonbondedCutoff=0.6, rigidWater=False
        ),
        platforms={"Reference": {}},
    )
"""
RUN = ("--steps", 20, "--equilibration", 10, "--report-interval", 5, "--window", 4)


def velocities_at_rest():
    """Of a molecule that does not move as a whole: that motion is removed."""
    masses = masses_of(app.AmberPrmtopFile(f"{STEM}.prmtop").createSystem())
    velocities = np.random.default_rng(1).normal(0.0, 0.5, (22, 3))
    return velocities - masses @ velocities / masses.sum()


VELOCITIES = velocities_at_rest()


def case_of(*arguments):
    return caseoptions.case_of(cli.parse([str(each) for each in arguments]))


@pytest.fixture
def springs(tmp_path):
    file = tmp_path / "springs.py"
    file.write_text(SPRINGS)
    return f"python:{file}:Springs()"


@pytest.fixture
def serialized(tmp_path):
    """Function: the file of alanine dipeptide's System."""

    def write(box=None, hydrogen_mass=None, name="system.xml"):
        prmtop = app.AmberPrmtopFile(f"{STEM}.prmtop", periodicBoxVectors=box)
        system = prmtop.createSystem(
            nonbondedMethod=app.NoCutoff if box is None else app.PME, hydrogenMass=hydrogen_mass
        )
        file = tmp_path / name
        file.write_text(openmm.XmlSerializer.serialize(system))
        return file

    return write


def heavy_hydrogens():
    prmtop = app.AmberPrmtopFile(f"{STEM}.prmtop")
    return masses_of(prmtop.createSystem(hydrogenMass=3.024 * unit.dalton))


TARGETS = ("model.pt", "python", "force field", "ase")


def target_of(name, springs):
    if name == "ase":
        pytest.importorskip("ase")
        return "ase:ase.calculators.lj:LennardJones(sigma=2.0)"
    return {"model.pt": f"{STEM}.pt", "python": springs, "force field": "amber14-all.xml"}[name]


# Masses


@pytest.mark.parametrize("draft", ["auto", "prmtop", "amber14-all.xml"])
@pytest.mark.parametrize("target", TARGETS)
def test_masses_of_a_prmtop_depend_on_neither_draft_nor_target(tmp_path, springs, target, draft):
    masses = heavy_hydrogens()
    prmtop = prmtop_with(tmp_path, masses=masses)
    case = case_of(
        *("run", "--topology", prmtop, "--coordinates", f"{STEM}.inpcrd"),
        *(
            "--target",
            target_of(target, springs),
            "--draft",
            prmtop if draft == "prmtop" else draft,
        ),
    )
    np.testing.assert_allclose(masses_of(case.target), masses, atol=1e-6)
    if case.draft != "auto":
        np.testing.assert_allclose(masses_of(case.draft), masses, atol=1e-6)
    assert "18 masses are not those of the elements (from x.prmtop)" in case.description()


@pytest.mark.parametrize("target", TARGETS)
def test_masses_are_otherwise_those_of_the_elements(springs, target):
    case = case_of("run", "--topology", f"{STEM}.pdb", "--target", target_of(target, springs))
    expected = [atom.element.mass._value for atom in case.topology.atoms()]
    np.testing.assert_allclose(masses_of(case.target), expected, atol=0.01)
    assert "; masses of the elements; no periodic box; no constraints" in case.description()
    assert case.description().startswith("22 atoms (C6 H12 N2 O2)")


def test_masses_of_a_serialized_system(tmp_path, serialized, capsys):
    heavy = serialized(hydrogen_mass=3.024 * unit.dalton)
    case = case_of("run", "--topology", f"{STEM}.pdb", "--target", heavy)
    np.testing.assert_allclose(masses_of(case.target), heavy_hydrogens(), atol=1e-6)
    assert f"not those of the elements (from {heavy})" in case.description()
    files = ("--topology", f"{STEM}.prmtop", "--coordinates", f"{STEM}.inpcrd")
    assert command("run", *files, "--target", heavy) == 2
    message = capsys.readouterr().err
    assert "masses of 18 atoms differ between alanine_dipeptide.prmtop and the System" in message
    assert str(heavy) in message and "12.0108 and 5.96262 amu" in message


def test_a_draft_of_other_masses_is_an_error_at_once(serialized, capsys):
    files = ("--topology", f"{STEM}.pdb", "--target", f"{STEM}.pt")
    assert command("run", *files, "--draft", serialized(hydrogen_mass=3.024 * unit.dalton)) == 2
    assert "18 particles differ" in capsys.readouterr().err


def test_atoms_of_unknown_element(tmp_path, springs, serialized, capsys):
    """They would have no mass, and not move; a System says what mass they have."""
    lines = Path(f"{STEM}.pdb").read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if " CH3 ACE" in line)
    lines[at] = lines[at].replace(" CH3 ACE", " QX3 ACE")[:76] + "  "
    file = tmp_path / "x.pdb"
    file.write_text("\n".join(lines) + "\n")
    for target in (
        springs,
        f"{STEM}.pt",
        "openmmml:ani2x",
        "ase:ase.calculators.lj:LennardJones()",
    ):
        assert command("run", "--topology", file, "--target", target) == 2
        assert "atoms of unknown element: QX3 of residue ACE 1" in capsys.readouterr().err
    case = case_of("run", "--topology", file, "--target", serialized())
    assert masses_of(case.target)[0] == pytest.approx(12.01, abs=0.01)
    assert "?" in case.description()


def test_mass_zero_that_is_said(tmp_path, springs):
    masses = heavy_hydrogens()
    masses[3] = 0.0
    prmtop = prmtop_with(tmp_path, masses=masses)
    files = ("--topology", prmtop, "--coordinates", f"{STEM}.inpcrd")
    case = case_of("run", *files, "--target", springs)
    assert masses_of(case.target)[3] == 0
    assert "17 masses are not those of the elements (from x.prmtop), fixed: 1" in (
        case.description()
    )


# Box


def with_cell(tmp_path, edge):
    """Alanine dipeptide with a CRYST1 record, edges in angstrom."""
    record = f"CRYST1{edge:9.3f}{edge:9.3f}{edge:9.3f}  90.00  90.00  90.00 P 1           1\n"
    file = tmp_path / "cell.pdb"
    file.write_text(record + Path(f"{STEM}.pdb").read_text())
    return file


@pytest.mark.parametrize("draft", ["auto", "prmtop", "amber14-all.xml"])
@pytest.mark.parametrize("target", ["python", "force field", "serialized"])
def test_the_box_depends_on_neither_draft_nor_target(tmp_path, springs, serialized, target, draft):
    """The restart file has the box after a run, the prmtop that before."""
    files = prmtop_with(tmp_path, box=40.0), inpcrd_with(tmp_path, box=30.0)
    spec = (
        serialized(box=4.0 * np.eye(3) * unit.nanometer)
        if target == "serialized"
        else target_of(target, springs)
    )
    case = case_of(
        *("run", "--topology", files[0], "--coordinates", files[1], "--target", spec),
        *("--draft", files[0] if draft == "prmtop" else draft),
    )
    assert case.is_periodic
    np.testing.assert_allclose(default_box(case.target), 3.0 * np.eye(3))
    if case.draft != "auto":
        assert case.draft.usesPeriodicBoundaryConditions()
        np.testing.assert_allclose(default_box(case.draft), 3.0 * np.eye(3))
    assert "periodic box 3 x 3 x 3 nm (from x.rst7)" in case.description()


def test_a_serialized_system_and_the_box(tmp_path, serialized, capsys, caplog):
    isolated = serialized()
    periodic = serialized(box=4.0 * np.eye(3) * unit.nanometer, name="periodic.xml")
    cell = with_cell(tmp_path, 35.0)
    case = case_of("run", "--topology", f"{STEM}.pdb", "--target", periodic)
    assert f"periodic box 4 x 4 x 4 nm (from {periodic})" in case.description()
    assert case.topology.getPeriodicBoxVectors() is not None
    case = case_of("run", "--topology", cell, "--target", periodic)
    assert "periodic box 3.5 x 3.5 x 3.5 nm (from cell.pdb)" in case.description()
    assert "3.5 x 3.5 x 3.5 nm, and the System in" in caplog.text
    assert "one of 4 x 4 x 4 nm; that of cell.pdb is used" in caplog.text
    for arguments, words in (
        ((cell, isolated), "cell.pdb has a periodic box of 3.5 x 3.5 x 3.5 nm, and the System in"),
        ((cell, periodic, "--no-box"), "--no-box, and the System in"),
    ):
        topology, target, *more = arguments
        assert command("run", "--topology", topology, "--target", target, *more) == 2
        message = capsys.readouterr().err
        assert words in message and str(target) in message
    case = case_of("run", "--topology", cell, "--target", isolated, "--no-box")
    assert not case.is_periodic and case.topology.getPeriodicBoxVectors() is None


def test_a_model_that_takes_no_box(tmp_path, caplog):
    """Draft and files of the run have none either."""
    arguments = ("run", "--topology", with_cell(tmp_path, 35.0), "--target", f"{STEM}.pt")
    case = case_of(*arguments, "--draft", "amber14-all.xml")
    assert "alanine_dipeptide.pt takes none" in caplog.text
    assert not case.is_periodic and not case.draft.usesPeriodicBoundaryConditions()
    assert case.topology.getPeriodicBoxVectors() is None


@pytest.mark.parametrize("takes_box", [True, False])
def test_a_directory_with_a_box(tmp_path, takes_box):
    """``systems.load``."""
    files = prmtop_with(tmp_path, box=40.0), inpcrd_with(tmp_path, box=30.0, velocities=VELOCITIES)
    files[1].rename(tmp_path / "x.inpcrd")
    torch.jit.script(InBox() if takes_box else Anywhere()).save(str(tmp_path / "x.pt"))
    molecule = systems.load(tmp_path)
    for system in (molecule.draft, molecule.target):
        assert system.usesPeriodicBoundaryConditions() is takes_box
        np.testing.assert_allclose(default_box(system), 3.0 * np.eye(3))
    assert (molecule.topology.getPeriodicBoxVectors() is not None) is takes_box
    ours = molecule.velocities.value_in_unit(unit.nanometer / unit.picosecond)
    np.testing.assert_allclose(ours, VELOCITIES, atol=2e-6)


def test_a_serialized_system_with_a_torch_force_runs(tmp_path):
    topology = app.PDBFile(f"{STEM}.pdb").topology
    file = tmp_path / "system.xml"
    system = systems.with_torch_force(topology, f"{STEM}.pt")
    file.write_text(openmm.XmlSerializer.serialize(system))
    output = tmp_path / "out"
    files = ("--topology", f"{STEM}.pdb", "--target", file, "--output-dir", output)
    assert command("run", *files, *RUN) == 0
    assert longest_bond(output) < 0.2


# What is written


def longest_bond(output, topology=None):
    """nm, in any file of a run, not counted across the box."""
    topology = topology or mdtraj.load(f"{STEM}.pdb").topology
    bonds = np.array([(a.index, b.index) for a, b in topology.bonds])
    assert len(bonds)
    final = app.PDBFile(str(output / "final.pdb")).getPositions(asNumpy=True)._value
    frames = mdtraj.load(str(output / "trajectory.dcd"), top=topology)
    vectors = np.array([final, *frames.xyz])
    return np.linalg.norm(vectors[:, bonds[:, 0]] - vectors[:, bonds[:, 1]], axis=-1).max()


@pytest.mark.parametrize("cell", [None, 1.2])
def test_an_isolated_molecule_is_never_wrapped(tmp_path, cell):
    """Nor moved: it starts far from where any box would be."""
    pdb = app.PDBFile(f"{STEM}.pdb")
    if cell is not None:
        pdb.topology.setUnitCellDimensions(3 * [cell])
    start = pdb.getPositions(asNumpy=True)._value - 5.3
    file = tmp_path / "far.pdb"
    with open(file, "w") as opened:
        app.PDBFile.writeFile(pdb.topology, start * unit.nanometer, opened)
    output = tmp_path / "out"
    files = ("--topology", file, "--target", f"{STEM}.pt", "--output-dir", output)
    assert command("run", *files, *RUN, "--timestep", 0.5) == 0
    assert longest_bond(output) < 0.2
    assert "CRYST1" not in (output / "final.pdb").read_text()
    frames = mdtraj.load(str(output / "trajectory.dcd"), top=f"{STEM}.pdb")
    assert len(frames) == 4 and frames.unitcell_lengths is None
    final = app.PDBFile(str(output / "final.pdb")).getPositions(asNumpy=True)._value
    for positions in (final, *frames.xyz):
        np.testing.assert_allclose(positions.mean(axis=0), start.mean(axis=0), atol=0.1)


@pytest.fixture
def water(tmp_path):
    """Arguments, and the topology: molecules across the sides of the box, and some boxes away."""
    pdb = app.PDBFile(str(WATER))
    box = default_box_of(pdb.topology)
    positions = pdb.getPositions(asNumpy=True)._value + 0.5 * box
    positions[:9] += 2 * box  # three molecules
    file = tmp_path / "water.pdb"
    with open(file, "w") as opened:
        app.PDBFile.writeFile(pdb.topology, positions * unit.nanometer, opened)
    module = tmp_path / "waters.py"
    module.write_text(WATERS)
    files = ("--topology", file, "--target", f"python:{module}:waters(pdb='{file}')")
    return (*files, *RUN, "--no-minimize", "--platform", "Reference"), mdtraj.load(str(file))


def default_box_of(topology):
    return np.diag(topology.getPeriodicBoxVectors().value_in_unit(unit.nanometer))


@pytest.mark.parametrize("planted", [False, True])
def test_periodic_runs_are_wrapped_by_molecules(tmp_path, water, monkeypatch, planted):
    """OpenMM knows of no bonds here, and its own wrapping, which is planted, tears molecules."""
    arguments, start = water
    if planted:
        wrapped = WholeMolecules.frame

        def torn(self, state):
            frame = wrapped(self, state)
            box = np.diag([vector[i]._value for i, vector in enumerate(frame.box)])
            return frame._replace(positions=frame.positions % np.diag(box))

        monkeypatch.setattr(WholeMolecules, "frame", torn)
    output = tmp_path / "out"
    assert command("run", *arguments, "--output-dir", output) == 0
    longest = longest_bond(output, start.topology)
    assert longest > 1.0 if planted else longest < 0.15
    final = mdtraj.load(str(output / "final.pdb"))
    frames = mdtraj.load(str(output / "trajectory.dcd"), top=start.topology)
    for each in (final, frames):
        np.testing.assert_allclose(each.unitcell_lengths, start.unitcell_lengths[0, 0], rtol=1e-4)
        centres = each.xyz.reshape(len(each), -1, 3, 3).mean(axis=2)
        if not planted:
            assert (centres > -1e-3).all() and (centres < each.unitcell_lengths[0] + 1e-3).all()


def test_what_is_bonded_to_its_own_image_is_wrapped_by_atoms():
    """A chain through the box, beside a molecule that lies across its sides."""
    topology = app.Topology()
    topology.setUnitCellDimensions([0.6, 2.0, 2.0])
    residue = topology.addResidue("MOL", topology.addChain())
    chain = [topology.addAtom(f"C{i}", app.element.carbon, residue) for i in range(4)]
    pair = [topology.addAtom(f"N{i}", app.element.nitrogen, residue) for i in range(2)]
    for i in range(4):
        topology.addBond(chain[i - 1], chain[i])
    topology.addBond(*pair)
    positions = np.zeros((6, 3))
    positions[:4, 0] = [0.0, 0.15, 0.3, 1.05]  # the last of them in the next box
    positions[4:] = [[0.1, 1.0, 1.95], [0.1, 1.0, 0.06]]
    system = openmm.System()
    for _ in positions:
        system.addParticle(12.0)
    force = openmm.CustomNonbondedForce("0*r")
    force.setNonbondedMethod(openmm.CustomNonbondedForce.CutoffPeriodic)
    force.setCutoffDistance(0.3)
    for _ in positions:
        force.addParticle([])
    system.addForce(force)
    system.setDefaultPeriodicBoxVectors(*topology.getPeriodicBoxVectors())
    platform = openmm.Platform.getPlatform("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    context.setPositions(positions)
    whole = WholeMolecules(topology, positions * unit.nanometer)
    written = whole.frame(context.getState(positions=True)).positions
    np.testing.assert_allclose(written[:4, 0], [0.0, 0.15, 0.3, 0.45], atol=1e-9)
    assert np.linalg.norm(written[5] - written[4]) == pytest.approx(0.11)


def test_the_box_of_the_last_state_is_written(tmp_path):
    """A barostat in a serialized System changes it."""
    topology = app.PDBFile(str(WATER)).topology
    system = app.ForceField("tip3p.xml").createSystem(
        topology, nonbondedMethod=app.CutoffPeriodic, nonbondedCutoff=0.5, rigidWater=False
    )
    system.addForce(openmm.MonteCarloBarostat(5000.0, 300.0, 1))
    file = tmp_path / "system.xml"
    file.write_text(openmm.XmlSerializer.serialize(system))
    output = tmp_path / "out"
    files = ("--topology", WATER, "--target", file, "--draft", "tip3p.xml", "--cutoff", 0.5)
    more = (*RUN, "--no-minimize", "--platform", "Reference", "--output-dir", output)
    assert command("run", *files, *more) == 0
    frames = mdtraj.load(str(output / "trajectory.dcd"), top=str(WATER))
    final = mdtraj.load(str(output / "final.pdb"))
    np.testing.assert_allclose(final.unitcell_lengths[0], frames.unitcell_lengths[-1], atol=1e-4)
    assert abs(final.unitcell_lengths[0] - 1.243).min() > 1e-3
    assert longest_bond(output, final.topology) < 0.15


@pytest.mark.parametrize("field", ["tip3p.xml", "tip4pew.xml"])
def test_whole_molecules_are_moved_by_box_vectors(field):
    """Triclinic; the reference is OpenMM, whose forces have the bonds here."""
    pdb = app.PDBFile(str(WATER))
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.addExtraParticles(app.ForceField(field))
    topology = modeller.topology
    edge = default_box_of(pdb.topology)[0]
    box = edge * np.array([[1.0, 0.0, 0.0], [0.3, 0.9, 0.0], [-0.4, 0.2, 0.8]])
    topology.setPeriodicBoxVectors(box * unit.nanometer)
    system = app.ForceField(field).createSystem(
        topology, nonbondedMethod=app.CutoffPeriodic, nonbondedCutoff=0.4, rigidWater=False
    )
    context = openmm.Context(
        system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatform("Reference")
    )
    size = topology.getNumAtoms() // 64
    moves = np.random.default_rng(3).integers(-3, 4, (64, 3)) @ box
    start = np.array(modeller.positions.value_in_unit(unit.nanometer))
    positions = start + moves.repeat(size, axis=0)
    context.setPositions(positions)
    expected = context.getState(positions=True, enforcePeriodicBox=True)
    whole = WholeMolecules(topology, positions * unit.nanometer)
    frame = whole.frame(context.getState(positions=True))
    np.testing.assert_allclose(
        frame.getPositions()._value, expected.getPositions(asNumpy=True)._value, atol=1e-9
    )


# Velocities


def displacement(output):
    """Of the first step, in nm/ps."""
    frames = mdtraj.load(str(output / "trajectory.dcd"), top=f"{STEM}.pdb")
    start = app.AmberInpcrdFile(f"{STEM}.inpcrd").getPositions(asNumpy=True)
    return (frames.xyz[0] - start.value_in_unit(unit.nanometer)) / 1e-4


@pytest.mark.parametrize("said", [True, False])
def test_velocities_of_a_restart_file_are_those_of_the_run(tmp_path, springs, capsys, said):
    file = inpcrd_with(tmp_path, velocities=VELOCITIES if said else None)
    output = tmp_path / "out"
    arguments = ("--topology", f"{STEM}.prmtop", "--coordinates", file, "--target", springs)
    small = ("--steps", 1, "--report-interval", 1, "--timestep", 0.1, "--friction", 0.01)
    assert command("run", *arguments, *small, "--output-dir", output, "--seed", 3) == 0
    printed = capsys.readouterr().out
    off = np.abs(displacement(output) - VELOCITIES).max()
    if said:
        assert off < 0.05  # float32, noise, and one step of the springs
        assert "velocities from x.rst7, " in printed and "the energy is not minimised" in printed
        assert "equilibrating" not in printed and "minimising" not in printed
    else:
        assert off > 0.5
        assert "minimising the energy" in printed and "for 1000 steps" in printed


def test_velocities_of_a_netcdf_file(tmp_path):
    pdb = mdtraj.load(f"{STEM}.pdb")
    pdb.unitcell_vectors = 3.0 * np.eye(3)[None]
    pdb.save(str(tmp_path / "x.ncrst"))
    structure = read_structure(f"{STEM}.prmtop", tmp_path / "x.ncrst")
    assert structure.velocities is None and structure.sources["box"] == "x.ncrst"
    np.testing.assert_allclose(
        structure.positions.value_in_unit(unit.nanometer), pdb.xyz[0], atol=1e-6
    )


def test_minimising_all_the_same(tmp_path, springs, capsys):
    file = inpcrd_with(tmp_path, velocities=VELOCITIES)
    arguments = ("--topology", f"{STEM}.prmtop", "--coordinates", file, "--target", springs)
    more = ("--minimize", "--equilibration", 3, "--steps", 2, "--output-dir", tmp_path / "out")
    assert command("run", *arguments, *more) == 0
    printed = capsys.readouterr().out
    assert "minimising the energy" in printed and "equilibrating for 3 steps" in printed
    assert "velocities drawn at the temperature" in printed


@pytest.mark.parametrize("name", ["run", "estimate", "benchmark", "validate"])
@pytest.mark.parametrize(
    ("said", "options", "minimised"),
    [
        (True, (), False),
        (False, (), True),
        (True, ("--minimize",), True),
        (False, ("--no-minimize",), False),
    ],
)
def test_every_command_begins_in_the_same_way(
    tmp_path, springs, monkeypatch, name, said, options, minimised
):
    """And steps from the velocities of the file, if it does not minimise."""
    seen = []

    class FirstStepError(Exception):
        pass

    def begin(simulation, *_):
        velocities = simulation.context.getState(velocities=True).getVelocities(asNumpy=True)
        seen.append(velocities.value_in_unit(unit.nanometer / unit.picosecond))
        raise FirstStepError

    minimise = app.Simulation.minimizeEnergy
    monkeypatch.setattr(
        app.Simulation,
        "minimizeEnergy",
        lambda self, **kw: (seen.append("minimised"), minimise(self, maxIterations=2)),
    )
    monkeypatch.setattr(app.Simulation, "step", begin)
    file = inpcrd_with(tmp_path, velocities=VELOCITIES if said else None)
    arguments = ("--topology", f"{STEM}.prmtop", "--coordinates", file, "--target", springs)
    output = ("--output-dir", tmp_path / "out") if name == "run" else ()
    with pytest.raises(FirstStepError):
        command(name, *arguments, *options, *output, "--platform", "Reference", "--debug")
    *before, velocities = seen
    assert before == ["minimised"] * minimised
    assert np.ptp(velocities) > 0
    assert (np.abs(velocities - VELOCITIES).max() < 1e-4) == (said and not minimised)


# Structures through ASE


def test_a_crystal_from_a_file_of_ase(tmp_path, capsys):
    build, io = pytest.importorskip("ase.build"), pytest.importorskip("ase.io")
    atoms = build.bulk("Cu", cubic=True) * (2, 2, 2)
    atoms.rattle(0.05, seed=1)
    io.write(tmp_path / "copper.cif", atoms)
    output = tmp_path / "out"
    files = ("--topology", tmp_path / "copper.cif", "--output-dir", output)
    target = ("--target", "ase:ase.calculators.emt:EMT()", "--platform", "Reference")
    assert command("run", *files, *target, *RUN) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("32 atoms (Cu32); masses of the elements; periodic box 0.722 x 0.722")
    final = app.PDBFile(str(output / "final.pdb"))
    assert final.topology.getNumAtoms() == 32
    assert final.topology.getPeriodicBoxVectors()[0][0]._value == pytest.approx(0.722, abs=1e-4)
