"""validate_target finds every planted fault, and passes what is sound."""

import numpy as np
import pytest

from openmm_lsd.core.schemes import ABOBA, Middle
from openmm_lsd.targets import BatchedTarget, TargetMismatchError, validate_target

MASSES = np.array([1.0, 12.0, 16.0])
POSITIONS = np.array([[0.0, 0.0, 0.0], [0.1, 0.0, 0.0], [0.11, 0.125, 0.0]])
STIFFNESS = 2e5
BOX = 2.0 * np.eye(3)


class Springs(BatchedTarget):
    """Two bonds; subclasses plant faults."""

    offset = 0.0

    def evaluate(self, positions, box=None):
        energies, forces = np.full(len(positions), self.offset), np.zeros_like(positions)
        for i, j, length in ((0, 1, 0.1), (1, 2, 0.12)):
            bond = positions[:, j] - positions[:, i]
            distance = np.linalg.norm(bond, axis=1, keepdims=True)
            stretch = distance - length
            energies += 0.5 * STIFFNESS * stretch[:, 0] ** 2 - 1e6 * stretch[:, 0] ** 3
            force = (STIFFNESS * stretch - 3e6 * stretch**2) * bond / distance
            forces[:, i] += force
            forces[:, j] -= force
        return energies, forces


class InSinglePrecision(Springs):
    """A large total energy, as networks give it: single precision must pass."""

    offset = -86500.0

    def evaluate(self, positions, box=None):
        values = super().evaluate(positions.astype(np.float32).astype(np.float64), box)
        return tuple(part.astype(np.float32).astype(np.float64) for part in values)


class Leaky(Springs):
    """The last row of a batch pulls at the others."""

    def evaluate(self, positions, box=None):
        energies, forces = super().evaluate(positions, box)
        return energies, forces + 2e-3 * forces[-1:] * (len(positions) > 1)


class LeakyEnergy(Springs):
    def evaluate(self, positions, box=None):
        energies, forces = super().evaluate(positions, box)
        return energies + (0.5 if len(positions) > 1 else 0.0), forces


class OrderDependent(Springs):
    """Right for the states alone and for the first batch; remembers it."""

    seen = None

    def evaluate(self, positions, box=None):
        values = super().evaluate(positions, box)
        if len(positions) == 4:
            self.seen = values if self.seen is None else self.seen
            return self.seen
        return values


class ChangesPositions(Springs):
    def evaluate(self, positions, box=None):
        values = super().evaluate(positions, box)
        positions *= 10.0
        return values


class ChangesBox(Springs):
    def evaluate(self, positions, box=None):
        box /= 2.0
        return super().evaluate(positions, box)


class WrongSign(Springs):
    def evaluate(self, positions, box=None):
        energies, forces = super().evaluate(positions, box)
        return energies, -forces


class WrongUnit(Springs):
    def evaluate(self, positions, box=None):
        energies, forces = super().evaluate(positions, box)
        return energies / 4.184, forces


class ForceWithoutEnergy(Springs):
    def evaluate(self, positions, box=None):
        energies, forces = super().evaluate(positions, box)
        forces[:, 2] += 150.0
        return energies, forces


class NotFinite(Springs):
    def evaluate(self, positions, box=None):
        energies, forces = super().evaluate(positions, box)
        forces[-1, 0] = np.nan
        return energies, forces


class NoEnergy(Springs):
    def evaluate(self, positions, box=None):
        energies, forces = super().evaluate(positions, box)
        return np.full_like(energies, np.inf), forces


class WrongShape(Springs):
    def evaluate(self, positions, box=None):
        energies, forces = super().evaluate(positions, box)
        return energies[:, None], forces


FAULTS = {
    Leaky: "rows of a batch and states alone",
    LeakyEnergy: "energies of rows of a batch and states alone",
    OrderDependent: "batches in two orders",
    ChangesPositions: "changes the positions",
    ChangesBox: "changes the box",
    WrongSign: "numerical gradient",
    WrongUnit: "numerical gradient",
    ForceWithoutEnergy: "numerical gradient",
    NotFinite: "force on atom 0 is .*nan",
    NoEnergy: "energy is inf",
}


@pytest.mark.parametrize("kind", [Springs, InSinglePrecision])
@pytest.mark.parametrize("scheme", [None, ABOBA(300.0, 10.0, 0.002)])
def test_sound_targets_pass(kind, scheme):
    checks = validate_target(kind(), POSITIONS, MASSES, box=BOX, scheme=scheme)
    assert len(checks) == 4 + 3
    assert all(0 <= check.worst <= check.allowed for check in checks)
    assert "numerical gradient" in str(checks[-1])


@pytest.mark.parametrize("kind", FAULTS)
def test_planted_faults_are_found(kind):
    with pytest.raises(TargetMismatchError, match=FAULTS[kind]):
        validate_target(kind(), POSITIONS, MASSES, box=BOX)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"energies of shape \(4, 1\)"):
        validate_target(WrongShape(), POSITIONS, MASSES)


def test_the_reference_counts():
    sound = Springs()

    def reference(states):
        return sound.evaluate(states)[1]

    validate_target(sound, POSITIONS, MASSES, reference=reference)

    def other(states):
        forces = reference(states)
        forces[2, 1, 0] += 30.0
        return forces

    with pytest.raises(TargetMismatchError, match="atom 1 of state 2"):
        validate_target(sound, POSITIONS, MASSES, reference=other)


def test_errors_are_measured_by_the_noise_of_the_step():
    """The same force error matters less where the noise is larger."""
    quiet, loud = Middle(300.0, 1.0, 0.001), Middle(300.0, 400.0, 0.001)

    class Off(Springs):
        def evaluate(self, positions, box=None):
            energies, forces = super().evaluate(positions, box)
            return energies, forces + (2.0 if len(positions) > 1 else 0.0)

    validate_target(Off(), POSITIONS, MASSES, scheme=loud, directions=0)
    with pytest.raises(TargetMismatchError):
        validate_target(Off(), POSITIONS, MASSES, scheme=quiet, directions=0)


def test_particles_that_do_not_move_do_not_count():
    class Off(Springs):
        def evaluate(self, positions, box=None):
            energies, forces = super().evaluate(positions, box)
            forces[:, 0] += 0.05 * (len(positions) > 1)
            return energies, forces

    validate_target(Off(), POSITIONS, [0.0, 12.0, 16.0], directions=2)


def test_one_state_is_not_enough():
    with pytest.raises(ValueError, match="batch is 1"):
        validate_target(Springs(), POSITIONS, MASSES, batch=1)


def test_energy_that_jumps_at_a_cutoff():
    """Some displacements meet the jump; the force is right where they do not."""

    class Jumps(Springs):
        met = 0

        def evaluate(self, positions, box=None):
            energies, forces = super().evaluate(positions, box)
            beyond = (positions - POSITIONS).reshape(len(positions), -1).max(axis=1) > 2.6e-4
            beyond &= (positions - POSITIONS).sum(axis=(1, 2)) > 0  # on one side only
            Jumps.met += beyond.any() and not beyond.all()
            return energies + 5.0 * beyond, forces

    validate_target(Jumps(), POSITIONS, MASSES, rows=False)
    assert Jumps.met >= 3
