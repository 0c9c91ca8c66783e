"""Amber files of a small molecule from its SMILES: GAFF2 with AM1-BCC charges, minimised.

OpenBabel makes a conformer, AmberTools (in the copy that ACPYPE's package carries) the atom types,
charges and missing parameters, ParmEd the prmtop. AM1-BCC needs BLAS, ARPACK and the Fortran
runtime: on Debian ``apt install libarpack2 libgfortran5 liblapack3``.

    pip install ".[ligand]"
    python systems/make/make_ligand.py "CC(C)Cc1ccc(cc1)[C@H](C)C(=O)O" --output systems/ibuprofen
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import openmm
import parmed
from openmm import app
from parmed.openmm import OpenMMParameterSet

AMBERTOOLS = Path(importlib.util.find_spec("acpype").origin).parent / "amber_linux"


def execute(directory, *command):
    # openbabel-wheel's ``obabel`` is beside this Python.
    path = f"{AMBERTOOLS / 'bin'}{os.pathsep}{Path(sys.executable).parent}"
    environment = {**os.environ, "PATH": f"{path}{os.pathsep}{os.environ['PATH']}"}
    run = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"{' '.join(command)} failed\n{run.stdout}{run.stderr}")


def parametrise(smiles, charge, directory):
    """The molecule with GAFF2 types, AM1-BCC charges and a conformer, and its parameters."""
    execute(directory, "obabel", f"-:{smiles}", "--gen3d", "-omol2", "-O", "start.mol2")
    execute(
        directory,
        *("antechamber", "-i", "start.mol2", "-fi", "mol2", "-o", "typed.mol2", "-fo", "mol2"),
        *("-c", "bcc", "-nc", str(charge), "-at", "gaff2", "-rn", "LIG", "-dr", "no"),
    )
    execute(
        directory,
        *("parmchk2", "-i", "typed.mol2", "-f", "mol2", "-o", "missing.frcmod", "-s", "gaff2"),
    )
    parameters = parmed.amber.AmberParameterSet(
        str(AMBERTOOLS / "dat/leap/parm/gaff2.dat"), str(directory / "missing.frcmod")
    )
    molecule = parmed.load_file(str(directory / "typed.mol2"))
    excess = (sum(atom.charge for atom in molecule.atoms) - charge) / len(molecule.atoms)
    for atom in molecule.atoms:  # the file has six digits
        atom.charge -= excess
    return molecule, parameters


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("smiles")
    parser.add_argument("--charge", type=int, default=0, help="of the molecule, elementary charges")
    parser.add_argument("--output", type=Path, required=True, help="directory; its name is used")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        molecule, parameters = parametrise(args.smiles, args.charge, Path(directory))
        force_field_file = Path(directory) / "molecule.xml"
        force_field = OpenMMParameterSet.from_parameterset(parameters)
        force_field.residues[molecule.name] = molecule
        force_field.write(
            str(force_field_file), write_unused=False, improper_dihedrals_ordering="amber"
        )
        structure = molecule.to_structure()
        topology = structure.topology
        system = app.ForceField(str(force_field_file)).createSystem(
            topology, nonbondedMethod=app.NoCutoff
        )
    simulation = app.Simulation(
        topology,
        system,
        openmm.VerletIntegrator(0.001),
        openmm.Platform.getPlatform("Reference"),
    )
    simulation.context.setPositions(structure.positions)
    simulation.minimizeEnergy(tolerance=0.1)
    positions = simulation.context.getState(positions=True).getPositions(asNumpy=True)

    args.output.mkdir(parents=True, exist_ok=True)
    stem = args.output / args.output.name
    structure = parmed.openmm.load_topology(topology, system, positions)
    structure.save(str(stem.with_suffix(".prmtop")), overwrite=True)
    structure.save(str(stem.with_suffix(".inpcrd")), overwrite=True, format="rst7")
    with stem.with_suffix(".pdb").open("w") as file:
        app.PDBFile.writeFile(topology, positions, file)
    print(f"{topology.getNumAtoms()} atoms, {topology.getNumBonds()} bonds, charge {args.charge}")


if __name__ == "__main__":
    main()
