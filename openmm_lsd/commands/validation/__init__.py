"""Does LSD sample the right distribution? LSD against plain dynamics of the target, in three ways.

Short: thousands of runs of a few steps from one state, against the plain scheme, by two-sample
tests. Exact: the noise that drove every committed step is worked out from the path and must be
N(0, I). Long: kinetic energies, dihedral distributions and velocity autocorrelation functions
against plain dynamics by OpenMM, in pairs of runs from the same states, so that no run has to be
longer than the slowest motion.
"""

from .result import Validation
from .validate import validate
from .verdict import Check

__all__ = ["Check", "Validation", "validate"]
