"""Is a batched target what it must be? Checked in units of noise and kT, never of a total."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from ..core.clock import Times
from ..core.schemes import MOLAR_GAS_CONSTANT, Middle, Scheme, reciprocal
from .base import Array, BatchedTarget, Evaluation, checked, perturb

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
GRADIENT_TRIES = 8  # steps and states, until one agrees
# Integrals of a function over the four intervals between five points, exact for cubics.
QUADRATURE = (
    np.array([[9, 19, -5, 1, 0], [-1, 13, 13, -1, 0], [0, -1, 13, 13, -1], [0, 1, -5, 19, 9]])
    / 24.0
)


class TargetMismatchError(ValueError):
    """A target disagrees with itself or with what it stands in for."""


class NotFiniteError(TargetMismatchError):
    """A target gives NaN or infinity close to the positions given."""


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
    time: float = 0.0,
    step_count: int = 0,
) -> list[Check]:
    """Check a target at states near ``positions``.

    Row i of a batch equals that state alone, also in another order; the input is not changed;
    results are finite and of the right shapes; forces are minus the gradient of the energy; and
    they agree with ``reference``. Jumps of the energy, as at a cutoff, are no fault: what counts is
    whether the forces are the gradient on most pieces of a line.

    Parameters
    ----------
    positions : (N, 3) nm
    masses : (N,) amu
    box : (3, 3) nm, optional
    scheme : schemes.Scheme, optional
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
    time, step_count : float (ps), int
        Of all states, for a target whose forces depend on them.

    Returns
    -------
    list of Check

    Raises
    ------
    TargetMismatchError
        Which check failed, by how much, and what to do. Whatever the target raises is let through.
    """
    if batch < 2:
        raise ValueError(f"batch is {batch}; it takes 2 states to see whether they interact")
    scheme = Middle(300.0, 1.0, 0.001) if scheme is None else scheme
    when = time, step_count
    examination = _Examination(target, np.array(masses, dtype=np.float64), box, scheme, when)
    states = perturb(np.array(positions, dtype=np.float64), batch, displacement)
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
        examination.gradient(states, values, directions)
    return examination.checks


class _Examination:
    def __init__(
        self,
        target: BatchedTarget,
        masses: Array,
        box: ArrayLike | None,
        scheme: Scheme,
        when: tuple[float, int],
    ) -> None:
        self.when = when
        self.target, self.energies = target, target.gives_energies
        self.box = None if box is None else np.array(box, dtype=np.float64)
        inverse_masses = reciprocal(masses.reshape(-1, 1))
        zero = np.zeros_like(inverse_masses)
        # Noise shift per force, (N, 1) mol nm/kJ; zero where an atom does not move, less along
        # constraints.
        free = dataclasses.replace(scheme, projection=None)
        shift = free.kick_shift(zero, zero, zero, inverse_masses, zero)
        self.shift_per_force = shift * reciprocal(scheme.noise_scale(inverse_masses))
        self.kT = MOLAR_GAS_CONSTANT * scheme.temperature
        self.checks: list[Check] = []

    def evaluate(self, states: Array) -> Evaluation:
        given = states.copy()
        box = None if self.box is None else self.box.copy()
        times = Times.same(len(states), *self.when)
        energies, forces = checked(*self.target.evaluate_at(given, box, times), states)
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
                raise NotFiniteError(
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

    def gradient(self, states: Array, values: Evaluation, directions: int) -> None:
        rng = np.random.default_rng(0)
        mobile = self.shift_per_force[:, 0] > 0
        shift_per_force = self.shift_per_force[mobile]
        random = rng.standard_normal((directions, *states[0].shape))
        tries = [(row, step) for step in GRADIENT_STEPS for row in range(len(states))]
        for direction in range(directions):
            tried = []
            for row, step in tries[:GRADIENT_TRIES]:
                energy, force = values[0][row], values[1][row]
                way = np.where(mobile[:, None], random[direction] if direction else force, 0.0)
                length = np.abs(way).max()
                if length == 0:
                    continue
                displaced = way / length * step
                error = self._gradient_error(states[row], energy, force, displaced)
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
            if not tried:
                continue
            self._note(
                "forces and the numerical gradient of the energy",
                *min(tried)[1:],
                "kJ/mol along a step",
                "forces must be minus the gradient of the energy: check units, signs, and terms "
                "that only one of the two has; if a model predicts forces by themselves, and that "
                "is meant, set conservative = False on the target and pass it as target=",
            )

    def _gradient_error(self, state: Array, energy: float, force: Array, displaced: Array) -> float:
        """What the energy changes by over a displacement, and the force does not say, in kJ/mol.

        The median of four pieces of a line through ``state``: a jump spoils one of them.
        """
        around = np.multiply.outer([-2.0, -1.0, 1.0, 2.0], displaced)
        energies, forces = self.evaluate(state + around)
        slopes = np.sum(np.insert(forces, 2, force, axis=0) * displaced, axis=(1, 2))
        changes = np.diff(np.insert(energies, 2, energy))
        return abs(float(np.median(changes + QUADRATURE @ slopes)))

    def _note(self, name: str, worst: float, allowed: float, unit: str, advice: str) -> None:
        check = Check(name, worst, allowed, unit)
        if not worst <= allowed:
            raise TargetMismatchError(f"{check}; {advice}")
        self.checks.append(check)


def _joined(parts: list[Evaluation]) -> Evaluation:
    energies, forces = zip(*parts, strict=True)
    return np.concatenate(energies), np.concatenate(forces)
