"""PDB files of small molecules for draft_study.py: a conformation of RDKit's ETKDG for each.

pip install rdkit
python benchmarks/small_molecules.py --output-dir build/molecules
"""

import argparse
from pathlib import Path

from rdkit import Chem
from rdkit.Chem import AllChem

MOLECULES = {
    "benzylammonium": "[NH3+]Cc1ccccc1",
    "methionine_amide": "CSCCC(N)C(N)=O",
    "dimethyl_phosphate": "COP(=O)([O-])OC",
    "2-butynyl_acetate": "CC#CCOC(C)=O",
}
SEED = 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output-dir", type=Path, required=True)
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for name, smiles in MOLECULES.items():
        molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
        AllChem.EmbedMolecule(molecule, randomSeed=SEED)
        AllChem.UFFOptimizeMolecule(molecule)
        Chem.MolToPDBFile(molecule, str(args.output_dir / f"{name}.pdb"))
        print(f"{name}: {molecule.GetNumAtoms()} atoms, charge {Chem.GetFormalCharge(molecule)}")


if __name__ == "__main__":
    main()
