"""Charges, magnetic moments and the total charge that a file says reach the calculator."""

import logging

import numpy as np
import openmm
import pytest
import torch
from ase import Atoms, io
from ase.calculators.calculator import Calculator, all_changes
from openmm import app, unit
from particles import REFERENCE

from openmm_lsd import systems
from openmm_lsd.cli import parse
from openmm_lsd.commands.caseoptions import case_of
from openmm_lsd.commands.mlatoms import embed_target
from openmm_lsd.structures import charges_in_words, read_structure, structure_of_atoms
from openmm_lsd.targets import BatchedTarget


class Ions(Calculator):
    """A spring between the first two atoms; as stiff as charges, moments and info make it."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        charges, moments = atoms.get_initial_charges(), atoms.get_initial_magnetic_moments()
        stiffness = 20.0 + charges[0] + 3 * moments[1] + 5 * atoms.info.get("charge", 0)
        apart = atoms.positions[1] - atoms.positions[0]
        length = np.linalg.norm(apart)
        forces = np.zeros_like(atoms.positions)
        forces[1] = -stiffness * (length - 1.1) * apart / length
        forces[0] = -forces[1]
        self.results = {"energy": 0.5 * stiffness * (length - 1.1) ** 2, "forces": forces}


class Trap(BatchedTarget):
    """Of the origin."""

    def evaluate(self, positions, box=None):
        return 0.5 * (positions**2).sum((1, 2)), -positions


def ion(**said):
    atoms = Atoms("N2", positions=[[0, 0, 0], [1.15, 0, 0]])
    if "charges" in said:
        atoms.set_initial_charges(said["charges"])
    if "moments" in said:
        atoms.set_initial_magnetic_moments(said["moments"])
    atoms.info.update(said.get("info", {}))
    return atoms


SAID = [
    {"charges": [1.0, 0.0]},
    {"moments": [0.0, 2.0]},
    {"info": {"charge": -1}},
    {"charges": [1.0, 0.0], "moments": [0.0, 2.0], "info": {"charge": 1, "spin": 2}},
]


def forces_of(system, positions):
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), REFERENCE)
    context.setPositions(positions)
    forces = context.getState(forces=True).getForces(asNumpy=True)
    return forces.value_in_unit(unit.kilojoule_per_mole / unit.nanometer)


def case_from(file, *arguments):
    return case_of(parse(["run", "--topology", str(file), *map(str, arguments)]))


def write(tmp_path, atoms):
    file = tmp_path / "ion.extxyz"
    io.write(file, atoms)
    return file


@pytest.mark.parametrize("said", SAID)
def test_the_command_line_runs_the_ion_of_the_file(tmp_path, said):
    """As systems.from_ase, and ASE itself; as the target and as the draft."""
    file = write(tmp_path, ion(**said))
    named = "ase:test_charges:Ions()"
    case = case_from(file, "--target", named, "--draft", named)
    read = io.read(file)
    read.calc = Ions()
    expected = read.get_forces() * 964.853321
    neutral = Atoms(read.numbers, positions=read.positions, calculator=Ions())
    assert abs(expected - 964.853321 * neutral.get_forces()).max() > 1.0
    for system in (case.target, systems.from_ase(read).target):
        np.testing.assert_allclose(forces_of(system, case.positions), expected, rtol=1e-6)
    drafted = case.draft.evaluate(np.array([case.positions.value_in_unit(unit.nanometer)]))[1]
    np.testing.assert_allclose(drafted[0], expected, rtol=1e-6)


def test_charges_of_either_file(tmp_path):
    """Those of the coordinates, or of the topology if these say none."""
    neutral, file = tmp_path / "neutral.xyz", write(tmp_path, ion(charges=[1.0, 0.0]))
    io.write(neutral, ion())
    assert charges_in_words(read_structure(neutral).species) == ""
    for both in ((neutral, file), (file, file), (file, neutral)):
        assert charges_in_words(read_structure(*both).species) == "charges that sum to 1"


def test_targets_that_are_not_told_are_named(tmp_path, caplog):
    file = write(tmp_path, ion(**SAID[-1]))
    with caplog.at_level(logging.WARNING):
        case_from(file, "--target", "python:test_charges:Trap()")
    assert (
        "the structure says charges that sum to 1, magnetic moments, charge 1, spin 2, which "
        "python:test_charges:Trap() is not told" in caplog.text
    )
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        case_from(write(tmp_path, ion()), "--target", "python:test_charges:Trap()")
    assert not caplog.text


def test_a_torchscript_model_is_not_told(tmp_path, caplog):
    class Still(torch.nn.Module):
        def forward(self, positions: torch.Tensor) -> torch.Tensor:
            return (0.0 * positions).sum()

    torch.jit.script(Still()).save(tmp_path / "model.pt")
    model = tmp_path / "model.pt"
    case_from(write(tmp_path, ion(**SAID[0])), "--target", model, "--draft", model)
    assert caplog.text.count(f"charges that sum to 1, which {model} is not told") == 2


@pytest.mark.parametrize("words", ["one", [1, 2]])
def test_a_charge_that_is_no_number(tmp_path, words):
    atoms = ion()
    atoms.info["charge"] = words
    with pytest.raises(ValueError, match=r"says charge = .*, not a number"):
        case_from(write(tmp_path, atoms), "--target", "python:test_charges:Trap()")


def test_vectors_of_moments_are_turned(tmp_path):
    """With the structure, into OpenMM's form of the cell."""
    cell = [[0.0, 8.0, 0.0], [8.0, 0.0, 0.0], [0.0, 0.0, 8.0]]
    atoms = Atoms("N2", positions=[[0, 0, 0], [0, 1.15, 0]], cell=cell, pbc=True)
    atoms.set_initial_magnetic_moments([[0, 1.0, 0], [0, 2.0, 0]])
    structure = structure_of_atoms(atoms)
    along = structure.positions[1].value_in_unit(unit.angstrom) / 1.15
    moments = structure.species.get_initial_magnetic_moments()
    np.testing.assert_allclose(moments, [along, 2 * along], atol=1e-12)
    assert abs(along[1]) < 1e-12


def chain():
    """Two atoms of a model, and one beside."""
    topology = app.Topology()
    residue = topology.addResidue("X", topology.addChain())
    system = openmm.System()
    for name in "ABC":
        topology.addAtom(name, app.element.nitrogen, residue)
        system.addParticle(14.0)
    bond = openmm.HarmonicBondForce()
    bond.addBond(0, 1, 0.1, 1000.0)
    system.addForce(bond)
    return topology, system


def test_some_atoms_have_their_own_charges():
    topology, system = chain()
    species = Atoms("N3", charges=[7.0, 1.0, 0.0], magmoms=[0.0, 0.0, 2.0])
    positions = 0.1 * np.array([[5.0, 0, 0], [0, 0, 0], [1.15, 0, 0]])
    named = "ase:test_charges:Ions()"
    made = embed_target(named, system, topology, "name B C", species=species)
    forces = forces_of(made, positions)
    own = Ions().get_forces(
        Atoms("N2", positions=10 * positions[1:], charges=[1, 0], magmoms=[0, 2])
    )
    np.testing.assert_allclose(forces[2], own[1] * 964.853321, rtol=1e-6)


@pytest.mark.parametrize(("key", "value"), [("charge", 1), ("spin", 2)])
def test_the_charge_of_everything_is_not_that_of_some_atoms(key, value):
    topology, system = chain()
    neutral = Atoms("N3", info={"charge": 0, "spin": 1})
    embed_target("ase:test_charges:Ions()", system, topology, "name B C", species=neutral)
    species = Atoms("N3", info={key: value})
    with pytest.raises(ValueError, match=f"the {key} in the structure's file"):
        embed_target("ase:test_charges:Ions()", system, topology, "name B C", species=species)
