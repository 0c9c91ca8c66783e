"""Structures from files and from ase.Atoms: nothing that they say is lost."""

import logging
from pathlib import Path

import numpy as np
import openmm
import pytest
from openmm import app, unit
from particles import REFERENCE

from openmm_lsd import LSDIntegrator, pdbnames, structures, systems
from openmm_lsd.contexts.checks import cm_removal_frequency, masses_of
from openmm_lsd.drafts.molgraph import graph_of_positions
from openmm_lsd.structures import read_structure

ROOT = Path(__file__).resolve().parent.parent
STEM = ROOT / "systems/alanine_dipeptide/alanine_dipeptide"
EV = (1.602176634e-19 * unit.joule * unit.AVOGADRO_CONSTANT_NA).value_in_unit(
    unit.kilojoule_per_mole
)


def nanometres(positions):
    return np.array(positions.value_in_unit(unit.nanometer))


def atom_line(serial, name, residue, number, x, *, element="", alternate=" ", icode=" "):
    return (
        f"HETATM{serial:5d} {name:<4}{alternate}{residue} A{number:4d}{icode}   "
        f"{x:8.3f}{0.0:8.3f}{0.0:8.3f}  1.00  0.00          {element:>2}"
    )


def pdb(tmp_path, *lines):
    file = tmp_path / "x.pdb"
    file.write_text("\n".join([*lines, "END"]) + "\n")
    return file


# PDB files


def test_atoms_of_the_same_name_are_all_read(tmp_path):
    """OpenMM keeps one of each name: of 40 carbon atoms one."""
    lines = [atom_line(1, " CA ", "ALA", 1, 0.0, element="C")]
    lines += [atom_line(2 + i, " C", "LIG", 2, 1.5 * i, element="C") for i in range(40)]
    lines += [atom_line(42 + i, "Cu", "LIG", 2, 1.5 * i, element="CU") for i in range(3)]
    lines += ["CONECT    2    3"]
    structure = read_structure(pdb(tmp_path, *lines))
    assert structure.atoms == 44
    assert app.PDBFile(str(tmp_path / "x.pdb")).topology.getNumAtoms() == 3
    atoms = list(structure.topology.atoms())
    assert [atom.element.symbol for atom in atoms] == 41 * ["C"] + 3 * ["Cu"]
    assert len({atom.name for atom in atoms[1:]}) == 43
    assert atoms[0].name == "CA" and [r.name for r in structure.topology.residues()] == [
        "ALA",
        "LIG",
    ]
    np.testing.assert_allclose(
        nanometres(structure.positions)[:, 0],
        0.15 * np.array([0, *range(40), *range(3)]),
        atol=1e-9,
    )
    assert [(a.index, b.index) for a, b in structure.topology.bonds()] == [(1, 2)]


def test_more_atoms_than_names_in_a_residue(tmp_path):
    count = 36**2 + 10
    lines = [atom_line(i + 1, "Cu", "MOL", 1, i % 900, element="Cu") for i in range(count)]
    topology = read_structure(pdb(tmp_path, *lines)).topology
    assert topology.getNumAtoms() == count and topology.getNumResidues() == 2


def test_alternate_locations_and_models_count_once(tmp_path, caplog):
    lines = [
        atom_line(1, " C1 ", "LIG", 1, 0.0, element="C"),
        atom_line(2, " C2 ", "LIG", 1, 1.5, element="C", alternate="A"),
        atom_line(3, " C2 ", "LIG", 1, 1.7, element="C", alternate="B"),
    ]
    structure = read_structure(pdb(tmp_path, *lines))
    assert structure.atoms == 2 and nanometres(structure.positions)[1, 0] == pytest.approx(0.15)
    models = ["MODEL     1", *lines[:2], "ENDMDL", "MODEL     2", *lines[:2], "ENDMDL"]
    assert read_structure(pdb(tmp_path, *models)).atoms == 2
    assert "holds several models; the first is used" in caplog.text


def test_names_that_repeat_without_elements_are_an_error(tmp_path):
    lines = [atom_line(1, " C", "LIG", 1, 0.0), atom_line(2, " C", "LIG", 1, 1.5)]
    with pytest.raises(ValueError, match=r"LIG 1 has several atoms named C, and columns 77 and 78"):
        read_structure(pdb(tmp_path, *lines))


def test_a_reader_that_loses_atoms_is_an_error(tmp_path, monkeypatch):
    """Planted: names that repeat are left as they are."""
    lines = [atom_line(i + 1, "Cu", "MOL", 1, i, element="Cu") for i in range(4)]
    monkeypatch.setattr(pdbnames, "_rename", lambda *_: None)
    with pytest.raises(ValueError, match=r"has 4 atoms and is read as 1"):
        read_structure(pdb(tmp_path, *lines))


def test_unknown_elements_are_named(tmp_path):
    lines = [atom_line(i + 1, name, "LIG", 1, i) for i, name in enumerate((" QX1", " C1 ", "XX  "))]
    structure = read_structure(pdb(tmp_path, *lines))
    words = r"atoms of unknown element: QX1 of residue LIG 1 \(index 0\), XX .*index 2"
    for particles in (structure, structure.topology):
        with pytest.raises(ValueError, match=words):
            systems.with_target(particles, _Nothing())


def test_extra_points_of_a_prmtop_are_no_fixed_atoms():
    topology = app.Topology()
    residue = topology.addResidue("WAT", topology.addChain())
    topology.addAtom("O", app.element.oxygen, residue)
    topology.addAtom("EPW", None, residue)
    positions = np.zeros((2, 3)) * unit.nanometer
    for masses, words in (([16.0, 0.0], "EPW of residue WAT .*virtual"), ([16.0, 3.0], None)):
        structure = structures.Structure(topology, positions, masses=np.array(masses))
        if words is None:
            assert masses_of(systems.with_target(structure, _Nothing())).tolist() == masses
            continue
        with pytest.raises(ValueError, match=words):
            systems.with_target(structure, _Nothing())


class _Nothing(systems.BatchedTarget):
    def evaluate(self, positions, box=None):
        return np.zeros(len(positions)), np.zeros_like(positions)


def test_the_box_of_what_is_no_crystal_is_none(tmp_path):
    atom = atom_line(1, " C1 ", "LIG", 1, 0.0, element="C")
    for edge, periodic in ((1.0, False), (12.0, True)):
        record = f"CRYST1{edge:9.3f}{edge:9.3f}{edge:9.3f}  90.00  90.00  90.00 P 1           1"
        structure = read_structure(pdb(tmp_path, record, atom))
        assert (structure.topology.getPeriodicBoxVectors() is not None) is periodic
        assert structure.sources.get("box") == ("x.pdb" if periodic else None)


# Amber files


def prmtop_with(tmp_path, *, box=None, masses=None):
    """That of alanine dipeptide, with a box in angstrom or other masses."""
    lines = Path(f"{STEM}.prmtop").read_text().splitlines()
    if masses is not None:
        begin = lines.index(next(line for line in lines if line.startswith("%FLAG MASS"))) + 2
        end = next(i for i in range(begin, len(lines)) if lines[i].startswith("%"))
        rows = [masses[i : i + 5] for i in range(0, len(masses), 5)]
        lines[begin:end] = ["".join(f"{mass:16.8E}" for mass in row) for row in rows]
    if box is not None:
        at = lines.index(next(line for line in lines if line.startswith("%FLAG POINTERS"))) + 2
        pointers = [int(word) for line in lines[at : at + 4] for word in line.split()]
        pointers[27] = 1
        rows = [pointers[i : i + 10] for i in range(0, len(pointers), 10)]
        lines[at : at + len(rows)] = ["".join(f"{word:8d}" for word in row) for row in rows]
        lines += ["%FLAG BOX_DIMENSIONS", "%FORMAT(5E16.8)"]
        lines += ["".join(f"{value:16.8E}" for value in (90.0, box, box, box))]
    file = tmp_path / "x.prmtop"
    file.write_text("\n".join(lines) + "\n")
    return file


def inpcrd_with(tmp_path, *, box=None, velocities=None):
    lines = Path(f"{STEM}.inpcrd").read_text().rstrip().splitlines()
    if velocities is not None:
        flat = (np.asarray(velocities) * 10 / 20.455).ravel()  # Amber's unit of time
        lines += ["".join(f"{v:12.7f}" for v in flat[i : i + 6]) for i in range(0, len(flat), 6)]
    if box is not None:
        lines += ["".join(f"{value:12.7f}" for value in (box, box, box, 90, 90, 90))]
    file = tmp_path / "x.rst7"
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.mark.parametrize(
    ("in_prmtop", "in_coordinates", "expected", "source"),
    [
        (None, None, None, None),
        (40.0, None, 4.0, "x.prmtop"),
        (None, 30.0, 3.0, "x.rst7"),
        (40.0, 30.0, 3.0, "x.rst7"),
    ],
)
def test_the_box_is_that_of_the_coordinates(tmp_path, in_prmtop, in_coordinates, expected, source):
    files = prmtop_with(tmp_path, box=in_prmtop), inpcrd_with(tmp_path, box=in_coordinates)
    structure = read_structure(*files)
    vectors = structure.topology.getPeriodicBoxVectors()
    assert (None if vectors is None else vectors[0][0]._value) == expected
    assert structure.sources.get("box") == source


def test_the_box_of_a_pdb_file_of_coordinates(tmp_path):
    file = tmp_path / "x.pdb"
    record = "CRYST1   35.000   35.000   35.000  90.00  90.00  90.00 P 1           1\n"
    file.write_text(record + Path(f"{STEM}.pdb").read_text())
    structure = read_structure(prmtop_with(tmp_path, box=40.0), file)
    assert structure.topology.getPeriodicBoxVectors()[2][2]._value == pytest.approx(3.5)
    assert structure.sources["box"] == "x.pdb" and structure.sources["masses"] == "x.prmtop"


def test_masses_and_velocities(tmp_path):
    masses = np.linspace(1.0, 30.0, 22)
    velocities = np.random.default_rng(1).normal(0.0, 0.4, (22, 3))
    files = prmtop_with(tmp_path, masses=masses), inpcrd_with(tmp_path, velocities=velocities)
    structure = read_structure(*files)
    np.testing.assert_allclose(structure.masses, masses, rtol=1e-7)
    np.testing.assert_allclose(
        structure.velocities.value_in_unit(unit.nanometer / unit.picosecond), velocities, atol=2e-6
    )
    assert read_structure(
        files[0], inpcrd_with(tmp_path, velocities=0 * velocities)
    ).velocities is (None)


def test_atoms_that_the_coordinates_fix(tmp_path):
    """The masses are those of the prmtop all the same."""
    ase, io = pytest.importorskip("ase"), pytest.importorskip("ase.io")
    from ase.constraints import FixAtoms

    pdb = app.PDBFile(f"{STEM}.pdb")
    numbers = [atom.element.atomic_number for atom in pdb.topology.atoms()]
    atoms = ase.Atoms(numbers, 10 * nanometres(pdb.positions), constraint=FixAtoms([3, 7]))
    io.write(tmp_path / "x.extxyz", atoms)
    masses = np.linspace(1.0, 30.0, 22)
    structure = read_structure(prmtop_with(tmp_path, masses=masses), tmp_path / "x.extxyz")
    masses[[3, 7]] = 0.0
    np.testing.assert_allclose(structure.masses, masses, rtol=1e-7)


def test_files_of_different_atoms(tmp_path):
    lines = Path(f"{STEM}.pdb").read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("HETATM"))
    other = tmp_path / "other.pdb"
    swapped = [*lines[:first], lines[first + 1], lines[first], *lines[first + 2 :]]
    other.write_text("\n".join(swapped) + "\n")
    with pytest.raises(ValueError, match=r"atom 0 is carbon in .*prmtop and hydrogen in .*other"):
        read_structure(f"{STEM}.prmtop", other)
    del swapped[first]
    other.write_text("\n".join(swapped) + "\n")
    with pytest.raises(ValueError, match=r"has 22 atoms and .* has 21"):
        read_structure(f"{STEM}.prmtop", other)


# Serialized Systems


def test_a_system_with_a_torch_force_is_read(tmp_path):
    """openmmtorch's own reader ends the process."""
    from openmmtorch import TorchForce

    structure = read_structure(f"{STEM}.pdb")
    system = systems.with_torch_force(structure, f"{STEM}.pt")
    force = TorchForce.cast(system.getForce(0))
    force.setForceGroup(3)
    force.setProperty("CUDAGraphWarmupSteps", "7")
    file = tmp_path / "system.xml"
    file.write_text(openmm.XmlSerializer.serialize(system))
    again = systems.read_system(file)
    assert again.getNumForces() == 2 and np.array_equal(masses_of(again), masses_of(system))
    torch_force = again.getForces()[-1]
    assert torch_force.getForceGroup() == 3
    forces = []
    for each in (system, again):
        context = openmm.Context(each, openmm.VerletIntegrator(0.001), REFERENCE)
        context.setPositions(structure.positions)
        forces.append(context.getState(forces=True).getForces(asNumpy=True)._value)
    np.testing.assert_array_equal(*forces)


def test_what_a_torch_force_holds_besides(tmp_path):
    import torch
    from openmmtorch import TorchForce
    from particles import BondsInBox, scripted, system_of

    force = TorchForce(scripted(BondsInBox))
    force.setUsesPeriodicBoundaryConditions(True)
    force.addGlobalParameter("scale", 1.25)
    force.addEnergyParameterDerivative("scale")
    file = tmp_path / "system.xml"
    file.write_text(openmm.XmlSerializer.serialize(system_of(force)))
    system = systems.read_system(file)
    again = TorchForce.cast(system.getForce(0))
    assert again.usesPeriodicBoundaryConditions() and not again.getOutputsForces()
    assert again.getGlobalParameterName(0) == "scale"
    assert again.getGlobalParameterDefaultValue(0) == 1.25
    assert again.getEnergyParameterDerivativeName(0) == "scale"
    assert torch.jit.script(BondsInBox()).code == again.getModule().code


def test_what_is_no_system(tmp_path):
    file = tmp_path / "x.xml"
    for content, words in (
        ("<State/>", "the XML of a State, not of an OpenMM System"),
        ("rubbish", "is not XML"),
        ("<System><Forces><Force type='Nonesuch'/></Forces></System>", "cannot be read"),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match=words):
            systems.read_system(file)
    with pytest.raises(FileNotFoundError, match=r"no file .*nonesuch\.xml"):
        systems.read_system(tmp_path / "nonesuch.xml")


# ASE


def copper(cubic=False):
    build = pytest.importorskip("ase.build")
    atoms = build.bulk("Cu", cubic=cubic) * ((2, 2, 2) if cubic else (3, 3, 3))
    atoms.rattle(0.1, seed=2)
    return atoms


def emt():
    from ase.calculators.emt import EMT

    return EMT()


def forces_by_openmm(molecule):
    context = openmm.Context(molecule.target, openmm.VerletIntegrator(0.001), REFERENCE)
    context.setPositions(molecule.positions)
    state = context.getState(forces=True, energy=True)
    return state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value


def left_handed(atoms):
    atoms.set_cell(atoms.cell.array[[1, 0, 2]])
    return atoms


def isolated(atoms):
    atoms.pbc = False
    return atoms


@pytest.mark.parametrize("change", [lambda atoms: atoms, left_handed, isolated])
@pytest.mark.parametrize("cubic", [True, False])
def test_energy_and_forces_of_atoms_are_those_of_ase(cubic, change):
    atoms = change(copper(cubic))
    molecule = systems.from_ase(atoms, emt())
    energy, forces = forces_by_openmm(molecule)
    atoms.calc = emt()
    assert energy == pytest.approx(EV * atoms.get_potential_energy(), abs=1e-4)
    lengths = np.linalg.norm(forces, axis=1)
    expected = 10 * EV * np.linalg.norm(atoms.get_forces(), axis=1)
    np.testing.assert_allclose(lengths, expected, atol=1e-3 * expected.max())
    assert molecule.target.usesPeriodicBoundaryConditions() is bool(atoms.pbc.all())
    assert (molecule.topology.getPeriodicBoxVectors() is not None) is bool(atoms.pbc.all())
    distances = atoms.get_all_distances() / 10
    positions = nanometres(molecule.positions)
    ours = np.linalg.norm(positions[:, None] - positions, axis=-1)
    np.testing.assert_allclose(ours, distances, atol=1e-12)
    volume = np.linalg.det(positions[1:4] - positions[0])
    assert volume == pytest.approx(np.linalg.det(atoms.positions[1:4] - atoms.positions[0]) / 1e3)


def test_a_box_of_two_nanometres_is_a_box():
    """OpenMM's default, which a System may have without having been given it."""
    atoms = copper(cubic=True)
    atoms.set_cell(20 * np.eye(3))
    molecule = systems.from_ase(atoms, emt())
    assert molecule.target.usesPeriodicBoundaryConditions()


def test_masses_velocities_and_fixed_atoms():
    pytest.importorskip("ase")
    from ase import units
    from ase.constraints import FixAtoms, FixBondLength

    atoms = copper()
    atoms.set_masses(np.full(27, 65.0))
    velocities = np.random.default_rng(3).normal(0.0, 0.2, (27, 3))  # nm/ps
    atoms.set_velocities(velocities * units.nm / (1000 * units.fs))
    atoms.set_constraint(FixAtoms([0, 5]))
    molecule = systems.from_ase(atoms, emt())
    masses = masses_of(molecule.target)
    assert np.flatnonzero(masses == 0).tolist() == [0, 5] and (masses[1:5] == 65.0).all()
    # The others may move as a whole against the fixed ones.
    assert cm_removal_frequency(molecule.target) == 0
    assert cm_removal_frequency(systems.from_ase(copper(), emt()).target) == 1
    ours = molecule.velocities.value_in_unit(unit.nanometer / unit.picosecond)
    np.testing.assert_allclose(
        np.linalg.norm(ours, axis=1), np.linalg.norm(velocities, axis=1), rtol=1e-10
    )
    # turned with the positions
    np.testing.assert_allclose(
        (ours * nanometres(molecule.positions)).sum(1),
        (velocities * atoms.positions / 10).sum(1),
        atol=1e-10,
    )
    atoms.set_constraint(FixBondLength(0, 1))
    with pytest.raises(ValueError, match="FixBondLengths of ASE has no counterpart"):
        systems.from_ase(atoms, emt())


def test_atoms_that_cannot_be_run():
    atoms = copper()
    with pytest.raises(ValueError, match="have no calculator"):
        systems.from_ase(atoms)
    atoms.pbc = [True, True, False]
    with pytest.raises(ValueError, match=r"periodic in some .*\[True, True, False\]"):
        systems.from_ase(atoms, _Nothing())
    atoms.pbc, atoms.cell = True, np.zeros((3, 3))
    with pytest.raises(ValueError, match="cell without volume"):
        systems.from_ase(atoms, _Nothing())


def test_elements_beyond_the_table_of_radii():
    """Their bonds are looked for with the last radius that is known."""
    ase = pytest.importorskip("ase")
    atoms = ase.Atoms("CfCf", positions=[[0, 0, 0], [2.0, 0, 0]])
    assert systems.from_ase(atoms, _Nothing()).topology.getNumResidues() == 1
    graph = graph_of_positions([98, 98], atoms.positions / 10)
    assert graph.bonds.tolist() == [[0, 1]]
    with pytest.raises(ValueError, match="atoms of unknown element: X1 of residue MOL"):
        systems.from_ase(ase.Atoms([0], positions=[[0, 0, 0]]), _Nothing())


def test_an_ase_target_of_periodic_atoms_wants_a_box():
    from openmm_lsd.targets import ASETarget

    atoms = copper(cubic=True)
    target, positions = ASETarget(emt(), atoms), atoms.positions[None] / 10
    with pytest.raises(ValueError, match="are periodic, and it is given no box"):
        target.evaluate(positions)
    target.evaluate(positions, atoms.cell.array / 10)


def test_a_run_of_copper_from_atoms(state_of):
    """README's kind of script, for a crystal."""
    atoms = copper(cubic=True)
    atoms.calc = emt()
    molecule = systems.from_ase(atoms)
    integrator = LSDIntegrator(
        300, 1, 0.005, molecule.draft, topology=molecule.topology, windowLength=8
    )
    simulation = app.Simulation(molecule.topology, molecule.target, integrator, REFERENCE)
    simulation.context.setPositions(molecule.positions)
    simulation.context.setVelocitiesToTemperature(300, 1)
    simulation.step(60)
    assert integrator.statistics.steps_per_round > 2
    state = state_of(simulation)
    atoms.positions = 10 * state.positions
    energy = simulation.context.getState(energy=True).getPotentialEnergy()._value
    assert energy == pytest.approx(EV * atoms.get_potential_energy(), abs=1e-4)
    assert abs(state.positions - nanometres(molecule.positions)).max() < 0.1  # it is a solid


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("x.pdb", "proteindatabank"),
        ("x.cif", "cif"),
        ("POSCAR", "vasp"),
        ("x.extxyz", "extxyz"),
        ("x.xyz", "xyz"),
        ("x.traj", "traj"),
    ],
)
def test_what_ase_writes_is_read(tmp_path, name, form):
    io = pytest.importorskip("ase.io")
    atoms = copper()
    io.write(tmp_path / name, atoms, format=form)
    structure = read_structure(tmp_path / name)
    assert structure.atoms == 27
    assert {atom.element.symbol for atom in structure.topology.atoms()} == {"Cu"}
    vectors = structure.topology.getPeriodicBoxVectors()
    if form == "xyz":  # has no cell
        assert vectors is None
        return
    box = np.array([vector.value_in_unit(unit.nanometer) for vector in vectors])
    assert np.linalg.det(box) == pytest.approx(atoms.cell.volume / 1e3, rel=1e-4)
    again = atoms.copy()
    again.set_cell(10 * box)
    again.positions = 10 * nanometres(structure.positions)
    distances = (each.get_all_distances(mic=True) for each in (atoms, again))
    np.testing.assert_allclose(*distances, atol=3e-3)


def test_ases_pdb_file_of_a_molecule(tmp_path):
    build, io = pytest.importorskip("ase.build"), pytest.importorskip("ase.io")
    atoms = build.molecule("CH3CH2OH")
    io.write(tmp_path / "x.pdb", atoms)
    structure = read_structure(tmp_path / "x.pdb")
    assert structures.formula(structure.topology) == "C2 H6 O"
    np.testing.assert_allclose(nanometres(structure.positions), atoms.positions / 10, atol=6e-5)


def test_sites_that_are_occupied_in_part(tmp_path):
    pytest.importorskip("ase")
    file = tmp_path / "x.cif"
    file.write_text(
        "data_x\n_cell_length_a 4\n_cell_length_b 4\n_cell_length_c 4\n_cell_angle_alpha 90\n"
        "_cell_angle_beta 90\n_cell_angle_gamma 90\n_space_group_name_H-M_alt 'P 1'\nloop_\n"
        "_atom_site_label\n_atom_site_type_symbol\n_atom_site_fract_x\n_atom_site_fract_y\n"
        "_atom_site_fract_z\n_atom_site_occupancy\nCu1 Cu 0 0 0 0.5\nAu1 Au 0 0 0 0.5\n"
    )
    with pytest.raises(ValueError, match=r"x\.cif: some sites are occupied in part"):
        read_structure(file)


def test_mmcif_is_read_by_openmm(tmp_path):
    original = app.PDBFile(f"{STEM}.pdb")
    with open(tmp_path / "x.cif", "w") as file:
        app.PDBxFile.writeFile(original.topology, original.positions, file)
    structure = read_structure(tmp_path / "x.cif")
    assert [a.name for a in structure.topology.atoms()] == [
        a.name for a in original.topology.atoms()
    ]


def test_ase_is_named_where_it_is_missing(tmp_path, monkeypatch):
    file = tmp_path / "POSCAR"
    file.write_text("Cu\n")
    monkeypatch.setitem(__import__("sys").modules, "ase.io", None)
    with pytest.raises(ImportError, match=r'pip install "openmm-lsd\[ase\]"'):
        read_structure(file)


def test_rubbish_is_named(tmp_path):
    logging.getLogger("ase").setLevel(logging.ERROR)
    for name in ("x.cif", "POSCAR", "x.extxyz", "x.pdb"):
        file = tmp_path / name
        file.write_text("rubbish\nin several\nlines\n")
        with pytest.raises(ValueError, match=name):
            read_structure(file)
