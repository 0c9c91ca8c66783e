"""The theory of the constant-offset rule, held against the sampler."""

import numpy as np
import pytest
from law import TEMPERATURE, TodaMolecule, make_sampler

from openmm_lsd import theory
from openmm_lsd.core.schemes import ABOBA, Middle
from openmm_lsd.core.statistics import Round
from openmm_lsd.core.transport import transport

SCHEMES = [Middle, ABOBA]
ATOMS = 40
MASSES = np.linspace(1.0, 20.0, ATOMS)


class Springs:
    """Anharmonic springs to the origin; so many atoms that |delta| hardly fluctuates."""

    def __init__(self, stiffness, quartic=0.0):
        self.stiffness, self.quartic = stiffness, quartic

    def forces(self, positions):
        return -self.stiffness * positions - self.quartic * positions**3


TARGET = Springs(3e4, 3e6)
DRAFT = Springs(2.9e4)


def sampler_of(scheme, correction, window=12, seed=4, target=TARGET.forces, **options):
    sampler = make_sampler(
        scheme, MASSES, DRAFT.forces, target, window, seed, correction=correction, **options
    )
    rng = np.random.default_rng(5)
    positions = 0.009 * rng.standard_normal((ATOMS, 3))
    sampler.set_state(
        positions, scheme.thermal_speed(1 / MASSES[:, None]) * rng.normal(size=(ATOMS, 3))
    )
    return sampler


@pytest.mark.parametrize("kind", SCHEMES)
def test_noise_shifts_are_those_of_the_sampler(kind):
    scheme, sites, rounds = kind(300.0, 2.0, 0.0005), [], []

    def target(positions):
        sites.append(positions.copy())
        return TARGET.forces(positions)

    callbacks = [rounds.append]
    sampler_of(scheme, "none", window=9, target=target, round_callbacks=callbacks).advance(30)
    several = 0
    for became, positions in zip(rounds, sites, strict=True):
        residuals = TARGET.forces(positions) - DRAFT.forces(positions)
        expected = theory.noise_shifts(residuals, MASSES, scheme)
        count = len(became.noise_shifts)
        assert became.noise_shifts == pytest.approx(expected[:count], rel=1e-6)
        several += count > 2
    assert several > 1


@pytest.mark.parametrize("shift", [0.1, 1.0, 3.0])
def test_rejection_probability(shift):
    rng = np.random.default_rng(1)
    direction = np.array([0.6, 0.0, 0.8]) * shift
    rejected = sum(
        not transport(rng.standard_normal(3), direction, np.log(rng.uniform()))[1]
        for _ in range(20_000)
    )
    probability = theory.rejection_probability(shift)
    error = np.sqrt(probability * (1 - probability) / 20_000)
    assert abs(rejected / 20_000 - probability) < 4 * error


@pytest.mark.parametrize("kind", SCHEMES)
def test_shifts_from_the_structure_function(kind):
    """Mean squares over all starts of one trajectory of discrepancies."""
    rng = np.random.default_rng(2)
    path = np.cumsum(np.cumsum(rng.standard_normal((4000, 10, 3)), axis=0), axis=0)
    path -= np.linspace(0, 1, 4000)[:, None, None] * path[-1]
    masses, lags, scheme = np.linspace(1, 9, 10), 7, kind(300.0, 1.0, 0.001)
    starts = range(len(path) - lags)
    residuals = np.stack([path[k + 1 : k + 1 + lags] - path[k] for k in starts])
    direct = np.sqrt((theory.noise_shifts(residuals, masses, scheme) ** 2).mean(axis=0))
    structure = theory.structure_function(path, masses, lags)
    assert theory.constant_offset_shifts(structure, scheme) == pytest.approx(direct, rel=0.01)


def plain_discrepancies(scheme, steps):
    """Along a plain trajectory of the target, at the force sites."""
    positions, velocities = sampler_of(scheme, "none").state[:2]
    rng, scale = np.random.default_rng(6), scheme.noise_scale(1 / MASSES[:, None])
    rows = []
    for _ in range(steps):
        site = scheme.site(positions, velocities)
        forces = TARGET.forces(site)
        rows.append(forces - DRAFT.forces(site))
        kick = scale * rng.standard_normal(positions.shape)
        positions, velocities = scheme.step(positions, velocities, forces / MASSES[:, None], kick)
    return np.array(rows)[steps // 5 :]


def measured_and_predicted(scheme, theorys_scheme=None, steps=4000):
    sampler = sampler_of(scheme, "constant")
    sampler.advance(steps)
    structure = theory.structure_function(plain_discrepancies(scheme, steps), MASSES, 12)
    predicted = theory.constant_offset_steps(structure, theorys_scheme or scheme, 12)
    return sampler.statistics.steps_per_round, predicted


@pytest.mark.parametrize("kind", SCHEMES)
@pytest.mark.parametrize(
    ("friction", "step_size"), [(1.0, 0.001), (1.0, 0.0005), (20.0, 0.0005), (50.0, 0.001)]
)
def test_steps_per_round_of_the_constant_offset(kind, friction, step_size):
    measured, predicted = measured_and_predicted(kind(300.0, friction, step_size))
    assert 1.3 < measured < 11.5
    # Rounds differ by about as much as they commit; a thousand of them agree to 5 %.
    assert predicted == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("friction", [0.25, 4.0])
def test_a_wrong_friction_is_caught(friction):
    wrong = Middle(300.0, friction, 0.001)
    measured, predicted = measured_and_predicted(Middle(300.0, 1.0, 0.001), wrong)
    assert abs(predicted / measured - 1) > 0.2


def test_expected_steps():
    assert theory.expected_steps([0.0, 0.0, 0.0], 4) == 4.0
    assert theory.expected_steps([1.0, 0.0, 0.0], 4) == 1.0
    assert theory.expected_steps([0.5, 0.5], 3) == pytest.approx(1.75)
    with pytest.raises(ValueError, match="too few for a window of 5"):
        theory.expected_steps([0.5], 5)
    assert theory.expected_steps(np.full((2, 3), 0.5), 2) == pytest.approx([1.5, 1.5])


def test_reach_of_rounds():
    rounds = [
        Round(0, 4, [], 4, 2, True, [1.0, 2.0]),
        Round(2, 4, [1, 1], 4, 1, True, [3.0]),
    ]
    expected = [theory.rejection_probability([1.0, 3.0]).mean(), theory.rejection_probability(2.0)]
    assert theory.rejection_by_site(rounds) == pytest.approx(expected)


def test_reach_predicts_what_is_committed():
    molecule = TodaMolecule(stiffness=0.5 / 0.02**2, coupling=0.2 / 0.02**2)
    soft = TodaMolecule(stiffness=0.45 / 0.02**2, coupling=0.2 / 0.02**2)
    scheme, rounds = Middle(TEMPERATURE, 10.0, 0.02), []
    callbacks = [rounds.append]
    sampler = make_sampler(
        scheme, molecule.masses, soft.forces, molecule.forces, 6, 3, round_callbacks=callbacks
    )
    starts = molecule.starts(1, np.random.default_rng(3))
    sampler.set_state(starts[0][0], starts[1][0])
    sampler.advance(6000)
    predicted = theory.expected_steps(theory.rejection_by_site(rounds), 6)
    assert predicted == pytest.approx(sampler.statistics.steps_per_round, rel=0.05)


def test_too_few_discrepancies():
    with pytest.raises(ValueError, match="3 discrepancies are too few for 3 lags"):
        theory.structure_function(np.zeros((3, 2, 3)), [1.0, 1.0], 3)


def test_speed_up():
    assert theory.speed_up(5.0, 4.0, 8.0, 2.0) == 2.0
