"""Build systems/alanine_dipeptide: PDB, prmtop and inpcrd of ACE-ALA-NME with Amber ff14SB.

Heavy atoms are placed from standard bond lengths, angles and torsions (phi = -80, psi = 80
degrees), OpenMM adds the hydrogens and minimises, ParmEd writes the Amber files. The script
checks that the prmtop gives the energy and forces of the force field it came from.

    python systems/make/make_alanine_dipeptide.py
"""

from pathlib import Path

import numpy as np
import openmm
import parmed
from openmm import app, unit

OUTPUT = Path(__file__).resolve().parent.parent / "alanine_dipeptide"

# (atom, residue, bonded to, angle with, torsion with, length in A, angle and torsion in degrees)
HEAVY_ATOMS = [
    ("CH3", "ACE", None, None, None, 0.0, 0.0, 0.0),
    ("C", "ACE", 0, None, None, 1.52, 0.0, 0.0),
    ("O", "ACE", 1, 0, None, 1.23, 120.5, 0.0),
    ("N", "ALA", 1, 0, 2, 1.335, 116.6, 180.0),
    ("CA", "ALA", 3, 1, 0, 1.449, 121.9, 180.0),
    ("CB", "ALA", 4, 3, 1, 1.526, 109.5, 160.0),
    ("C", "ALA", 4, 3, 1, 1.522, 110.1, -80.0),
    ("O", "ALA", 6, 4, 3, 1.229, 120.5, -100.0),
    ("N", "NME", 6, 4, 3, 1.335, 116.6, 80.0),
    ("C", "NME", 8, 6, 4, 1.449, 121.9, 180.0),
]


def place(bonded, angle_with, torsion_with, length, angle, torsion):
    """Cartesian position of an atom from its internal coordinates (natural extension frame)."""
    axis = bonded - angle_with
    axis /= np.linalg.norm(axis)
    normal = np.cross(angle_with - torsion_with, axis)
    normal /= np.linalg.norm(normal)
    angle, torsion = np.radians([angle, torsion])
    local = np.array(
        [-np.cos(angle), np.sin(angle) * np.cos(torsion), np.sin(angle) * np.sin(torsion)]
    )
    return bonded + length * (local @ np.array([axis, np.cross(normal, axis), normal]))


def heavy_atom_model():
    topology = app.Topology()
    chain = topology.addChain()
    positions, residues = [], {}
    for name, residue, i, j, k, length, angle, torsion in HEAVY_ATOMS:
        if residue not in residues:
            residues[residue] = topology.addResidue(residue, chain)
        topology.addAtom(name, app.Element.getBySymbol(name[0]), residues[residue])
        if i is None:
            positions.append(np.zeros(3))
        elif j is None:
            positions.append(np.array([length, 0.0, 0.0]))
        else:
            third = positions[j] + np.array([0.0, 1.0, 0.0]) if k is None else positions[k]
            positions.append(place(positions[i], positions[j], third, length, angle, torsion))
    topology.createStandardBonds()
    atoms = list(topology.atoms())
    bonded = {frozenset(bond) for bond in topology.bonds()}
    for index, (_, _, i, *_rest) in enumerate(HEAVY_ATOMS):
        if i is not None and frozenset((atoms[index], atoms[i])) not in bonded:
            topology.addBond(atoms[i], atoms[index])
    return topology, np.array(positions) * unit.angstrom


def energy_and_forces(system, positions):
    context = openmm.Context(
        system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatform("Reference")
    )
    context.setPositions(positions)
    state = context.getState(energy=True, forces=True)
    return state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value


def main():
    force_field = app.ForceField("amber14-all.xml")
    modeller = app.Modeller(*heavy_atom_model())
    modeller.addHydrogens(force_field)
    system = force_field.createSystem(modeller.topology, nonbondedMethod=app.NoCutoff)
    simulation = app.Simulation(
        modeller.topology,
        system,
        openmm.VerletIntegrator(0.001),
        openmm.Platform.getPlatform("Reference"),
    )
    simulation.context.setPositions(modeller.positions)
    simulation.minimizeEnergy(tolerance=0.1)
    positions = simulation.context.getState(positions=True).getPositions(asNumpy=True)

    OUTPUT.mkdir(parents=True, exist_ok=True)
    stem = OUTPUT / "alanine_dipeptide"
    with open(stem.with_suffix(".pdb"), "w") as file:
        app.PDBFile.writeFile(modeller.topology, positions, file)
    structure = parmed.openmm.load_topology(modeller.topology, system, positions)
    structure.save(str(stem.with_suffix(".prmtop")), overwrite=True)
    structure.save(str(stem.with_suffix(".inpcrd")), overwrite=True, format="rst7")

    prmtop = app.AmberPrmtopFile(str(stem.with_suffix(".prmtop")))
    energy, forces = energy_and_forces(system, positions)
    energy_again, forces_again = energy_and_forces(prmtop.createSystem(), positions)
    difference = np.abs(forces - forces_again).max()
    print(f"{prmtop.topology.getNumAtoms()} atoms, energy {energy:.4f} kJ/mol")
    print(
        f"prmtop against force field: energy {energy_again - energy:.1e} kJ/mol, "
        f"forces {difference:.1e} kJ/mol/nm"
    )
    if abs(energy_again - energy) > 1e-2 or difference > 1.0:
        raise SystemExit("the prmtop does not reproduce the force field")


if __name__ == "__main__":
    main()
