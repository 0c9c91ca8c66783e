"""``python -m openmm_lsd`` is ``openmm-lsd``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
