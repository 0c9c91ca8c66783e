"""Langevin schemes: where a step asks for the force, the exact step, and the noise shift.

A scheme is three pure functions of arrays of shape (N, 3), written in accelerations and kicks so
that a particle of zero mass (zero acceleration, zero kick) needs no special case:

    acceleration = force / mass              nm/ps^2
    kick         = noise_scale * noise       nm/ps,   noise ~ N(0, I)

For a given state the next positions are a Gaussian of the noise whose covariance does not depend
on the force. ``kick_shift`` is the difference of the means of the target step and the draft step,
expressed as a kick: the target step driven by ``kick - kick_shift`` reaches the positions that the
draft step driven by ``kick`` reached.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .constraints import Projection

Array = NDArray[np.float64]

BOLTZMANN = 1.380649e-23  # J/K, exact in the SI
AVOGADRO = 6.02214076e23  # 1/mol, exact in the SI
MOLAR_GAS_CONSTANT = BOLTZMANN * AVOGADRO / 1000.0  # kJ/mol/K

SMALLEST = 1e-100  # of noise and step size, so that no square underflows and no quotient overflows


def reciprocal(values: Array) -> Array:
    """1 / values, and zero where values are not positive."""
    return np.divide(1.0, values, out=np.zeros_like(values), where=values > 0)


def remove_cm_motion(velocities: Array, masses: Array) -> Array:
    """Velocities minus that of the centre of mass; particles of zero mass stay as they are."""
    cm_velocity = masses[:, 0] @ velocities / masses.sum()
    if masses.all():
        return velocities - cm_velocity
    return np.where(masses > 0, velocities - cm_velocity, velocities)


@dataclass(frozen=True)
class Scheme(ABC):
    """What the schemes share.

    Parameters
    ----------
    temperature : float
        Temperature of the heat bath in kelvin.
    friction : float
        Friction coefficient in 1/ps.
    step_size : float
        Time step in ps.
    projection : constraints.Projection, optional
        Onto constraints, where the scheme knows them.

    Raises
    ------
    ValueError
        If one of the numbers is not positive and finite.
    """

    name: ClassVar[str]
    velocity_offset: ClassVar[float] = 0.0  # steps by which velocities are behind positions

    temperature: float
    friction: float
    step_size: float
    projection: Projection | None = field(default=None, repr=False, compare=False)
    decay: float = field(init=False, repr=False)  # a = exp(-friction * step_size)

    def __post_init__(self) -> None:
        for quantity, unit in (
            ("temperature", "kelvin"),
            ("friction", "1/ps"),
            ("step_size", "ps"),
        ):
            value = getattr(self, quantity)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{quantity} is {value} {unit}; it must be positive and finite")
        object.__setattr__(self, "decay", math.exp(-self.friction * self.step_size))

    def noise_scale(self, inverse_masses: Array) -> Array:
        """Standard deviation sqrt(kT (1 - a^2) / m) of the kick in nm/ps, zero for zero mass."""
        variance = -math.expm1(-2.0 * self.friction * self.step_size)
        return math.sqrt(variance) * self.thermal_speed(inverse_masses)

    def check_noise(self, inverse_masses: Array) -> None:
        """Raise ValueError if the noise cannot be told from none, or what is measured by it."""
        scale = self.noise_scale(inverse_masses)[inverse_masses > 0]
        least = min(self.step_size, scale.min(initial=np.inf))
        if not (least > SMALLEST and np.isfinite(scale).all()):
            raise ValueError(
                f"temperature, friction or step size is too small or too large in {self}: the "
                "random displacements of a step cannot be computed"
            )

    def thermal_speed(self, inverse_masses: Array) -> Array:
        """Standard deviation sqrt(kT / m) of a velocity component in nm/ps, zero for zero mass."""
        return np.sqrt(MOLAR_GAS_CONSTANT * self.temperature * inverse_masses)

    def project_forces(self, sites: Array, forces: Array, masses: Array) -> Array:
        """Forces (B, N, 3) at force sites without what acts along constraints, of which nothing
        comes; masses (N, 1)."""
        if self.projection is None:
            return forces
        result = self.projection.velocities(sites, forces * reciprocal(masses))
        result *= masses
        return result

    @abstractmethod
    def site(self, positions: Array, velocities: Array) -> Array:
        """Positions (N, 3) in nm at which the step evaluates its force."""

    @abstractmethod
    def step(
        self, positions: Array, velocities: Array, acceleration: Array, kick: Array
    ) -> tuple[Array, Array]:
        """Positions and velocities after one step.

        Parameters
        ----------
        positions, velocities : (N, 3) nm, nm/ps
        acceleration : (N, 3) nm/ps^2
            Force at ``site(positions, velocities)`` over mass.
        kick : (N, 3) nm/ps
            ``noise_scale`` times noise.
        """

    @abstractmethod
    def find_kick(
        self, before: tuple[Array, Array], acceleration: Array, after: tuple[Array, Array]
    ) -> Array:
        """The kick of a step, from positions and velocities before it and after it."""

    @abstractmethod
    def kick_shift(
        self,
        positions: Array,
        target_velocities: Array,
        draft_velocities: Array,
        target_acceleration: Array,
        draft_acceleration: Array,
    ) -> Array:
        """Mean of the target step minus mean of the draft step, as a kick (N, 3) in nm/ps.

        Both steps start from the same positions (N, 3), nm. The velocities (N, 3), nm/ps, may
        differ: after an accepted step of the Middle scheme draft and target stand at the same place
        with different ones. Accelerations in nm/ps^2. Divided by ``noise_scale`` it is the noise
        shift.
        """


class Middle(Scheme):
    """The scheme of ``openmm.LangevinMiddleIntegrator`` (LFMiddle; Zhang et al.,
    J. Phys. Chem. A 123, 6056 (2019)).

        v_half = v + h F(x) / m
        v'     = a v_half + kick
        x'     = x + (h/2) (v_half + v')

    With constraints v_half is projected onto the velocities that keep them at x, x' is moved onto
    them, and v' changes by that displacement over h.
    """

    name = "middle"
    velocity_offset = 0.5  # without friction this is the leapfrog scheme

    def site(self, positions: Array, velocities: Array) -> Array:
        return positions

    def step(
        self, positions: Array, velocities: Array, acceleration: Array, kick: Array
    ) -> tuple[Array, Array]:
        half = velocities + self.step_size * acceleration
        if self.projection is not None:
            half = self.projection.velocities(positions, half)
        new_velocities = self.decay * half + kick
        new_positions = positions + 0.5 * self.step_size * (half + new_velocities)
        if self.projection is None:
            return new_positions, new_velocities
        constrained = self.projection.positions(positions, new_positions)
        return constrained, new_velocities + (constrained - new_positions) / self.step_size

    def find_kick(
        self, before: tuple[Array, Array], acceleration: Array, after: tuple[Array, Array]
    ) -> Array:
        (positions, velocities), (new_positions, new_velocities) = before, after
        half = velocities + self.step_size * acceleration
        if self.projection is None:
            return new_velocities - self.decay * half
        half = self.projection.velocities(positions, half)
        # With what the constraints did, positions and velocities tell where the step was going.
        free = 2.0 * positions + self.step_size * (half + new_velocities) - new_positions
        free_velocities = new_velocities - (new_positions - free) / self.step_size
        return free_velocities - self.decay * half

    def kick_shift(
        self,
        positions: Array,
        target_velocities: Array,
        draft_velocities: Array,
        target_acceleration: Array,
        draft_acceleration: Array,
    ) -> Array:
        half_difference = (target_velocities - draft_velocities) + self.step_size * (
            target_acceleration - draft_acceleration
        )
        if self.projection is not None:
            half_difference = self.projection.velocities(positions, half_difference)
        return (1.0 + self.decay) * half_difference


class ABOBA(Scheme):
    """Drift, kick, bath, kick, drift, with one force (Leimkuhler and Matthews, J. Chem. Phys. 138,
    174102 (2013)).

        q  = x + (h/2) v
        v' = a v + (1 + a)/2 h F(q)/m + kick
        x' = q + (h/2) v'
    """

    name = "aboba"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.projection is not None:
            raise ValueError("this scheme does not support constraints; use 'middle'")

    def site(self, positions: Array, velocities: Array) -> Array:
        return positions + 0.5 * self.step_size * velocities

    def step(
        self, positions: Array, velocities: Array, acceleration: Array, kick: Array
    ) -> tuple[Array, Array]:
        middle = self.site(positions, velocities)
        impulse = 0.5 * (1.0 + self.decay) * self.step_size * acceleration
        new_velocities = self.decay * velocities + impulse + kick
        return middle + 0.5 * self.step_size * new_velocities, new_velocities

    def find_kick(
        self, before: tuple[Array, Array], acceleration: Array, after: tuple[Array, Array]
    ) -> Array:
        impulse = 0.5 * (1.0 + self.decay) * self.step_size * acceleration
        return after[1] - self.decay * before[1] - impulse

    def kick_shift(
        self,
        positions: Array,
        target_velocities: Array,
        draft_velocities: Array,
        target_acceleration: Array,
        draft_acceleration: Array,
    ) -> Array:
        # Positions that agree after an accepted step imply velocities that agree.
        difference = target_acceleration - draft_acceleration
        return 0.5 * (1.0 + self.decay) * self.step_size * difference


SCHEMES: dict[str, type[Scheme]] = {scheme.name: scheme for scheme in (Middle, ABOBA)}
