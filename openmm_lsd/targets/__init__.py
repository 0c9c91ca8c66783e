"""Forces of a slow potential at a batch of positions, (B, N, 3) nm -> (B, N, 3) kJ/mol/nm."""

from .system import SystemTarget

__all__ = ["SystemTarget"]
