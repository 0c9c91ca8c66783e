"""Is a batched target what it must be? Checked in units of noise and kT, never of a total."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from ..rollout import reciprocal
from ..schemes import MOLAR_GAS_CONSTANT, Middle, Scheme
from .base import Array, BatchedTarget, Evaluation, checked, perturbed

# A force may be wrong by what shifts a step by this many standard deviations of its noise, per
# component, or by rounding in single precision; an energy by this many kT
# or, near zero temperature, kJ/mol.
SHIFT_TOLERANCE = 0.01
SINGLE_PRECISION_TOLERANCE = 1e-4  # of the root mean square force
ENERGY_TOLERANCE, ENERGY_ROUNDING = 0.1, 0.02
# The numerical gradient carries the rounding of energies and the curvature of the potential.
GRADIENT_SHIFT_TOLERANCE = 0.25
GRADIENT_FORCE_TOLERANCE = 2e-3  # of the force, where the noise is next to nothing
# nm, the largest displacement of an atom. Where pairs cross a cutoff the energy jumps, which one
# displacement may meet and another not; forces that are wrong are wrong for all of them.
GRADIENT_STEPS = (5e-4, 2.5e-4, 1e-3, 1.25e-4)


class TargetMismatchError(ValueError):
    """A target disagrees with itself or with what it stands in for."""


@dataclasses.dataclass(frozen=True)
class Check:
    """What one check of ``validate_target`` found: ``worst`` may be up to ``allowed``."""

    name: str
    worst: float
    allowed: float
    unit: str

    def __str__(self) -> str:
        return f"{self.name}: {self.worst:.3g} of {self.allowed:.3g} {self.unit}"


def validate_target(
    target: BatchedTarget,
    positions: ArrayLike,
    masses: ArrayLike,
    *,
    box: ArrayLike | None = None,
    scheme: Scheme | None = None,
    reference: Callable[[Array], ArrayLike] | None = None,
    batch: int = 4,
    displacement: float = 0.001,
    directions: int = 3,
    rows: bool = True,
) -> list[Check]:
    """Check a target at states near ``positions``.

    Row i of a batch equals that state alone, also in another order; the input is not changed;
    results are finite and of the right shapes; forces are minus the gradient of the energy; and
    they agree with ``reference``.

    Parameters
    ----------
    positions : (N, 3) nm
    masses : (N,) amu
    box : (3, 3) nm, optional
    scheme : schemes.Middle or schemes.ABOBA, optional
        Whose noise the errors of forces are measured by, and whose kT those of energies; default
        Middle at 300 K, 1/ps, 1 fs.
    reference : callable, optional
        Forces (B, N, 3) in kJ/mol/nm that the target must have, at positions (B, N, 3) in nm.
    batch : int
        Number of states, at least 2.
    displacement : float
        How far atoms of different states are apart, in nm.
    directions : int
        Along how many the energy is differentiated; 0: not at all.
    rows : bool
        Whether to compare rows of the batch with states alone and in another order.

    Returns
    -------
    list of Check

    Raises
    ------
    TargetMismatchError
        Which check failed, by how much, and what to do. Whatever the target raises is let through.
    """
    if batch < 2:
        raise ValueError(f"batch is {batch}; it takes 2 states to see whether they disturb another")
    scheme = Middle(300.0, 1.0, 0.001) if scheme is None else scheme
    examination = _Examination(target, np.array(masses, dtype=np.float64), box, scheme)
    states = perturbed(np.array(positions, dtype=np.float64), batch, displacement)
    values = examination.evaluate(states)
    if rows:
        examination.rows(states, values)
    if reference is not None:
        expected = np.asarray(reference(states), dtype=np.float64)
        examination.forces(
            "forces of the target and of the Context",
            values[1],
            expected,
            "the target must compute what the Context's System computes: the same atoms in the "
            "same order, nm and kJ/mol, and every force of that System",
        )
    if target.gives_energies and target.conservative and directions:
        examination.gradient(states[0], values[1][0], directions)
    return examination.checks


class _Examination:
    def __init__(
        self,
        target: BatchedTarget,
        masses: Array,
        box: ArrayLike | None,
        scheme: Scheme,
    ) -> None:
        self.target, self.energies = target, target.gives_energies
        self.box = None if box is None else np.array(box, dtype=np.float64)
        inverse_masses = reciprocal(masses.reshape(-1, 1))
        zero = np.zeros_like(inverse_masses)
        # Noise shift per force, (N, 1) mol nm/kJ; zero where an atom does not move.
        self.shift_per_force = scheme.kick_shift(zero, zero, inverse_masses, zero) * reciprocal(
            scheme.noise_scale(inverse_masses)
        )
        self.kT = MOLAR_GAS_CONSTANT * scheme.temperature
        self.checks: list[Check] = []

    def evaluate(self, states: Array) -> Evaluation:
        given = states.copy()
        box = None if self.box is None else self.box.copy()
        energies, forces = checked(*self.target.evaluate(given, box), states)
        if not np.array_equal(given, states):
            raise TargetMismatchError(
                "the target changes the positions that it is given; let it work on a copy"
            )
        if box is not None and self.box is not None and not np.array_equal(box, self.box):
            raise TargetMismatchError(
                "the target changes the box that it is given; let it work on a copy"
            )
        for name, array in (("energy", energies), ("force", forces)):
            if (self.energies or name == "force") and not np.isfinite(array).all():
                row, *atom = np.argwhere(~np.isfinite(array))[0][:2]
                where = f" on atom {atom[0]}" if atom else ""
                value = array[(row, *atom)]
                raise TargetMismatchError(
                    f"the target's {name}{where} is {value} at state {row} of {len(states)}, close "
                    "to the positions given; is the structure sound, and its atoms in order?"
                )
        return energies, forces

    def rows(self, states: Array, values: Evaluation) -> None:
        advice = (
            "every row of a batch must depend on that row alone; check the model's batching "
            "(neighbour lists, normalisation over the batch), or evaluate state by state"
        )
        alone = [self.evaluate(state[None]) for state in states]
        self.both("rows of a batch and states alone", values, _joined(alone), advice)
        order = np.roll(np.arange(len(states)), 1)[::-1]
        shuffled = self.evaluate(states[order])
        back = np.argsort(order)
        self.both("batches in two orders", values, (shuffled[0][back], shuffled[1][back]), advice)

    def both(self, name: str, values: Evaluation, expected: Evaluation, advice: str) -> None:
        self.forces(f"forces of {name}", values[1], expected[1], advice)
        if self.energies:
            worst = float(np.abs(values[0] - expected[0]).max())
            allowed = max(ENERGY_TOLERANCE * self.kT, ENERGY_ROUNDING)
            self._note(f"energies of {name}", worst, allowed, "kJ/mol", advice)

    def forces(self, name: str, forces: Array, expected: Array, advice: str) -> None:
        rounding = SINGLE_PRECISION_TOLERANCE * np.sqrt(np.mean(expected**2)) + 1e-6
        with np.errstate(divide="ignore"):  # an atom that does not move may have any force
            tolerance = np.maximum(SHIFT_TOLERANCE / self.shift_per_force, rounding)
        excess = np.abs(forces - expected) / tolerance
        # NaN anywhere is as wrong as can be.
        excess = np.where(np.isnan(excess), np.inf, excess)
        state, atom, _ = np.unravel_index(np.argmax(excess), excess.shape)
        at_worst = (
            f"atom {atom} of state {state}: {forces[state, atom]} and {expected[state, atom]} "
            f"kJ/mol/nm; {advice}"
        )
        self._note(
            name,
            SHIFT_TOLERANCE * float(excess.max()),
            SHIFT_TOLERANCE,
            "standard deviations of a step's noise",
            at_worst,
        )

    def gradient(self, state: Array, force: Array, directions: int) -> None:
        rng = np.random.default_rng(0)
        mobile = self.shift_per_force[:, 0] > 0
        shift_per_force = self.shift_per_force[mobile]
        ways = [force, *rng.standard_normal((directions - 1, *force.shape))]
        for way in ways:
            way = np.where(mobile[:, None], way, 0.0)
            length = np.abs(way).max()
            if length == 0:
                continue
            tried = []
            for step in GRADIENT_STEPS:
                displaced = way / length * step
                error = self._gradient_error(state, force, displaced)
                # The least noise shift of a force error dF with sum(dF displaced) = error.
                allowed = max(
                    GRADIENT_SHIFT_TOLERANCE * np.linalg.norm(displaced[mobile] / shift_per_force),
                    GRADIENT_FORCE_TOLERANCE
                    * np.linalg.norm(force[mobile])
                    * np.linalg.norm(displaced[mobile]),
                )
                tried.append((error - allowed, error, float(allowed)))
                if error <= allowed:
                    break
            self._note(
                "forces and the numerical gradient of the energy",
                *min(tried)[1:],
                "kJ/mol along a step",
                "forces must be minus the gradient of the energy: check units, signs, and terms "
                "that only one of the two has; if a model predicts forces by themselves, and that "
                "is meant, set conservative = False on the target and pass it as target=",
            )

    def _gradient_error(self, state: Array, force: Array, displaced: Array) -> float:
        """Energy difference along a displacement, less the work of the force, in kJ/mol."""
        energy = self.evaluate(state + np.multiply.outer([-2.0, -1.0, 1.0, 2.0], displaced))[0]
        energy = energy - energy[0]
        slope = (energy[0] - 8 * energy[1] + 8 * energy[2] - energy[3]) / 12
        return abs(float(slope + np.sum(force * displaced)))

    def _note(self, name: str, worst: float, allowed: float, unit: str, advice: str) -> None:
        check = Check(name, worst, allowed, unit)
        if not worst <= allowed:
            raise TargetMismatchError(f"{check}; {advice}")
        self.checks.append(check)


def _joined(parts: list[Evaluation]) -> Evaluation:
    energies, forces = zip(*parts, strict=True)
    return np.concatenate(energies), np.concatenate(forces)
