"""Any calculator of the Atomic Simulation Environment: GFN2-xTB, density functional codes, others.

ASE: Larsen et al., J. Phys.: Condens. Matter 29, 273002 (2017).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .base import Array, BatchedTarget, Evaluation, checked

if TYPE_CHECKING:
    import ase

logger = logging.getLogger(__name__)

INSTALL = 'pip install "openmm-lsd[ase]"'
ONE_BY_ONE = (
    "an ASE calculator takes one state; spread the states over workers with a RayTarget, or take "
    "one of openmm_lsd.targets if there is one for this potential"
)
PARTLY_PERIODIC = (
    "the Atoms are periodic in some directions only, pbc = {}; OpenMM knows three or none: set all "
    "three, with enough vacuum in the cell, or none"
)


class ASETarget(BatchedTarget):
    """Energies and forces of an ASE calculator, state after state.

    Calculators take one state at a time: a batch costs as much as its states. ``RayTarget`` runs
    several calculators side by side.

    The first state that the calculator refuses (an exception, or values that are not finite) ends
    the batch: the rows after it are NaN. If that is the first row the exception is raised.

    Parameters
    ----------
    calculator : ase.calculators.calculator.Calculator
        With the properties energy and forces. Where it has a free energy, of which its forces are
        the gradient (smeared occupations), that is the energy.
    atoms : (N,) int or ase.Atoms
        Atomic numbers; or Atoms, whose charges, magnetic moments and ``info`` count too. Cell and
        positions are those of each evaluation; Atoms that are periodic must be given a box there.
    restart : bool
        Whether the calculator may start each state from what it keeps of the state before, as
        tblite and many other codes do with the density. Then the results depend on the order of
        the states within what self-consistency leaves undetermined, and runs with the same seed
        and different numbers of workers are different trajectories of one distribution. Alanine
        dipeptide by GFN2-xTB (tblite, accuracy 1): a quarter less time, and forces that differ
        from the converged ones by a noise shift of at most 0.0064 (afresh: 0.0057).

    Raises
    ------
    ImportError
        If ASE is not installed.
    TypeError, ValueError
        If the calculator or the atomic numbers are not as above.
    """

    def __init__(
        self,
        calculator: Any,
        atoms: ase.Atoms | Sequence[int] | np.ndarray,
        *,
        restart: bool = False,
    ) -> None:
        try:
            import ase
            import ase.units
        except ImportError as error:
            raise ImportError(
                f"an ASETarget needs ASE, which cannot be imported here ({error}); install it "
                f"with: {INSTALL}"
            ) from error
        if not callable(getattr(calculator, "get_property", None)):
            raise TypeError(
                f"calculator is a {type(calculator).__name__}; it must be an ASE calculator, with "
                "the method get_property"
            )
        implemented = getattr(calculator, "implemented_properties", ())
        missing = {"energy", "forces"}.difference(implemented)
        if missing:
            raise ValueError(
                f"the calculator {type(calculator).__name__} does not give "
                f"{' and '.join(sorted(missing))}; it gives {sorted(implemented)}"
            )
        if not isinstance(atoms, ase.Atoms):
            numbers = np.asarray(atoms)
            if numbers.ndim != 1 or not np.issubdtype(numbers.dtype, np.integer):
                raise ValueError(
                    f"atomic numbers have shape {numbers.shape} and type {numbers.dtype}; expected "
                    "(N,) integers"
                )
            atoms = ase.Atoms(numbers=numbers)
        if atoms.pbc.any() and not atoms.pbc.all():
            raise ValueError(PARTLY_PERIODIC.format(atoms.pbc.tolist()))
        self._calculator = calculator
        self._atoms = atoms.copy()
        self._restart = restart
        self._energy = "free_energy" if "free_energy" in implemented else "energy"
        self._angstrom_per_nm = ase.units.nm / ase.units.Angstrom
        self._kj_per_mol = ase.units.kJ / ase.units.mol
        self._kj_per_mol_nm = self._kj_per_mol / ase.units.nm

    @property
    def one_by_one(self) -> str | None:
        """See BatchedTarget."""
        return ONE_BY_ONE

    def evaluate(self, positions: Array, box: Array | None = None) -> Evaluation:
        """See BatchedTarget; the rows after the first failing state are NaN."""
        expected = (len(self._atoms), 3)
        if positions.ndim != 3 or positions.shape[1:] != expected:
            raise ValueError(
                f"positions have shape {positions.shape}; expected (B, {expected[0]}, 3) for the "
                f"atomic numbers given"
            )
        if box is None and self._atoms.pbc.any():
            raise ValueError(
                "the Atoms of this ASETarget are periodic, and it is given no box: give the System "
                "theirs (openmm_lsd.systems.from_ase does), or for an isolated molecule Atoms with "
                "pbc=False"
            )
        energies = np.full(len(positions), np.nan)
        forces = np.full(positions.shape, np.nan)
        for row, state in enumerate(positions):
            try:
                energy, force = self._evaluate_one(state, box)
            except Exception as error:  # whatever a calculator may raise
                self._forget()
                if row == 0:
                    raise
                logger.info("state %d of %d failed: %s", row, len(positions), error)
                break
            energies[row], forces[row] = energy, force
            if not (np.isfinite(energy) and np.isfinite(force).all()):
                self._forget()
                if np.isfinite(force).all():
                    forces[row] = np.nan
                break
        return energies, forces

    def _evaluate_one(self, state: Array, box: Array | None) -> tuple[float, Array]:
        if not np.isfinite(state).all():  # some codes never return from these
            raise ValueError("the positions are not finite")
        if not self._restart:
            self._forget()
        atoms = self._atoms.copy()
        atoms.set_positions(state * self._angstrom_per_nm, apply_constraint=False)
        atoms.set_cell(None if box is None else box * self._angstrom_per_nm)
        atoms.set_pbc(box is not None)
        # Forces first: their calculation gives the energy too, the reverse need not be.
        forces = np.asarray(self._calculator.get_property("forces", atoms)) / self._kj_per_mol_nm
        energy = self._calculator.get_property(self._energy, atoms) / self._kj_per_mol
        energies, forces = checked([energy], forces[None], state[None], "the calculator")
        return float(energies[0]), forces[0]

    def _forget(self) -> None:
        """Nothing of the last state may reach the next: no result, no guess of a density.

        A calculator that was reset is told that all has changed, the elements too, at which codes
        drop what they keep; tblite's reset alone does not.
        """
        reset = getattr(self._calculator, "reset", None)
        if reset is not None:
            reset()
        else:  # of BaseCalculator, which has no reset
            self._calculator.atoms = None
            self._calculator.results = {}
