"""Pictures of how the speculation goes, and of LSD over plain dynamics.

Every function returns a new ``matplotlib.figure.Figure`` and writes no file; pyplot and its global
state are not used. Save a picture with ``figure.savefig("picture.png", dpi=200)``; all are made to
be read at a width of 800 pixels. Needs matplotlib: ``pip install "openmm-lsd[plots]"``.
"""

from .ensembles import autocorrelation, dihedrals, kinetic_energy, ramachandran
from .rounds import noise_shifts, steps_per_round, timeline
from .speed import speed_up, sweep, time_breakdown
from .style import INSTALL

__all__ = [
    "INSTALL",
    "autocorrelation",
    "dihedrals",
    "kinetic_energy",
    "noise_shifts",
    "ramachandran",
    "speed_up",
    "steps_per_round",
    "sweep",
    "time_breakdown",
    "timeline",
]
