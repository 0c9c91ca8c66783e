"""Plain LangevinMiddleIntegrator against LSDIntegrator on a PDB, a prmtop or systems/NAME.

    python scripts/benchmark.py --system systems/alanine_dipeptide
    python scripts/benchmark.py --topology X.prmtop --coordinates X.inpcrd --target X.pt

The options are those of ``openmm-lsd benchmark``, and so is what is printed.
"""

import sys

from openmm_lsd.cli import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
