"""ASETarget with real calculators: GFN2-xTB (tblite), EMT and Lennard-Jones (ASE's own)."""

import sys

import numpy as np
import pytest
from law import make_sampler
from openmm import unit

from openmm_lsd.core.schemes import SCHEMES

pytest.importorskip("ase")

from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import CalculationFailed, InputError
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones

from openmm_lsd.targets.ase import ASETarget

ELECTRONVOLT = (1.602176634e-19 * unit.joule * unit.AVOGADRO_CONSTANT_NA).value_in_unit(
    unit.kilojoule_per_mole
)
TEMPERATURE, FRICTION, STEP_SIZE = 300.0, 1.0, 0.001  # K, 1/ps, ps


def gfn2(**settings):
    return pytest.importorskip("tblite.ase").TBLite(method="GFN2-xTB", verbosity=0, **settings)


def methanol(restart=False, **settings):
    return ASETarget(gfn2(**settings), molecule("CH3OH").numbers, restart=restart)


def copper():
    return ASETarget(EMT(), np.full(4, 29))


def argon():
    return ASETarget(LennardJones(sigma=3.4, epsilon=0.0104, rc=6.0), [18, 18, 18])


COPPER_BOX = np.array([[0.75, 0.0, 0.0], [0.1, 0.8, 0.0], [-0.2, 0.15, 0.7]])
COPPER_SITES = np.array([[0.0, 0.0, 0.0], [0.25, 0.0, 0.0], [0.0, 0.26, 0.0], [0.1, 0.1, 0.2]])
ARGON_SITES = np.array([[0.0, 0.0, 0.0], [0.4, 0.0, 0.0], [0.1, 0.35, 0.1]])
CASES = {
    "GFN2-xTB": (methanol, molecule("CH3OH").positions / 10, None),
    "EMT": (copper, COPPER_SITES, None),
    "EMT, periodic": (copper, COPPER_SITES, COPPER_BOX),
    "Lennard-Jones": (argon, ARGON_SITES, None),
}
every_case = pytest.mark.parametrize("case", CASES)


def states_near(positions, count, displacement=0.005):
    noise = np.random.default_rng(3).standard_normal((count, *positions.shape))
    return positions + displacement * noise


@every_case
def test_a_row_is_that_state_alone(case):
    make, positions, box = CASES[case]
    target = make()
    states = states_near(positions, 5)
    before = states.copy()
    energies, forces = target.evaluate(states, box)
    assert energies.shape == (5,) and forces.shape == states.shape
    assert energies.dtype == forces.dtype == np.float64
    assert np.isfinite(energies).all() and np.isfinite(forces).all()
    np.testing.assert_array_equal(states, before)
    order = [3, 0, 4, 2, 1]
    shuffled = target.evaluate(states[order], box)
    np.testing.assert_array_equal(shuffled[0], energies[order])
    np.testing.assert_array_equal(shuffled[1], forces[order])
    for row in range(5):
        alone = make().evaluate(states[row : row + 1], box)
        np.testing.assert_array_equal(alone[0][0], energies[row])
        np.testing.assert_array_equal(alone[1][0], forces[row])


@every_case
def test_forces_are_minus_the_gradient(case):
    """Along random directions; a force with the wrong unit or sign misses by far more."""
    make, positions, box = CASES[case]
    target = make()
    state = states_near(positions, 1)[0]
    directions = np.random.default_rng(4).standard_normal((3, *positions.shape))
    step = 1e-4
    ends = [state + sign * step * direction for direction in directions for sign in (1, -1)]
    energies, _ = target.evaluate(np.array(ends), box)
    slopes = (energies[::2] - energies[1::2]) / (2 * step)
    (force,) = target.evaluate(state[None], box)[1]
    wanted = -(directions * force).sum(axis=(1, 2))
    np.testing.assert_allclose(slopes, wanted, rtol=0, atol=1e-3 * np.linalg.norm(force))


@every_case
def test_units(case):
    """Against ASE's own call; the electronvolt from the charge of the electron."""
    make, positions, box = CASES[case]
    target = make()
    energies, forces = target.evaluate(positions[None], box)
    numbers = target._atoms.numbers
    atoms = Atoms(
        numbers, 10 * positions, cell=None if box is None else 10 * box, pbc=box is not None
    )
    atoms.calc = make()._calculator
    energy = atoms.get_potential_energy() * ELECTRONVOLT
    np.testing.assert_allclose(energies, energy, rtol=1e-7)
    np.testing.assert_allclose(forces[0], atoms.get_forces() * ELECTRONVOLT * 10, rtol=1e-6)


def test_box():
    """A crystal's energy per atom, and copies moved by box vectors; one target, many boxes."""
    crystal = bulk("Cu", cubic=True)
    target = ASETarget(EMT(), crystal.numbers)
    positions, box = crystal.positions / 10, crystal.cell.array / 10
    crystal.calc = EMT()
    energy = crystal.get_potential_energy() * ELECTRONVOLT
    state = states_near(positions, 1)
    moved = state + np.arange(4)[:, None] * box[0] - 2 * box[1]
    for _ in range(2):
        np.testing.assert_allclose(target.evaluate(positions[None], box)[0], energy, rtol=1e-6)
        alone = target.evaluate(state)
        inside, shifted = target.evaluate(state, box), target.evaluate(moved, box)
        wide = target.evaluate(state, 5 * box)
        np.testing.assert_allclose(shifted[1], inside[1], rtol=0, atol=1e-6)
        np.testing.assert_allclose(wide[1], alone[1], rtol=0, atol=1e-6)
        assert np.abs(inside[1] - alone[1]).max() > 100


def test_charge_of_the_atoms():
    """Atoms bring their charges; numbers alone are neutral."""
    pytest.importorskip("tblite")
    anion = Atoms("OH", [[0, 0, 0], [0, 0, 0.96]], charges=[-1, 0])
    positions = anion.positions[None] / 10
    by_atoms = ASETarget(gfn2(), anion).evaluate(positions)
    by_parameter = ASETarget(gfn2(charge=-1), [8, 1]).evaluate(positions)
    np.testing.assert_allclose(by_atoms[0], by_parameter[0], rtol=0, atol=1e-4)
    neutral = ASETarget(gfn2(multiplicity=2), [8, 1]).evaluate(positions)
    assert abs(neutral[0] - by_atoms[0]) > 100


# What one state leaves behind


def noise_shift(force_error, masses):
    scheme = SCHEMES["middle"](TEMPERATURE, FRICTION, STEP_SIZE)
    inverse = 1 / np.asarray(masses)[:, None]
    zero = np.zeros_like(force_error)
    shift = scheme.kick_shift(zero, zero, zero, force_error * inverse, zero)
    return np.abs(shift / scheme.noise_scale(inverse)).max()


def test_restart_from_the_last_density():
    """It does make a difference, and one far below the noise."""
    _, positions, _ = CASES["GFN2-xTB"]
    states = states_near(positions, 6, 0.002)
    _, afresh = methanol().evaluate(states)
    _, restarted = methanol(restart=True).evaluate(states)
    _, converged = methanol(accuracy=1e-3).evaluate(states)
    masses = molecule("CH3OH").get_masses()
    np.testing.assert_array_equal(restarted[0], afresh[0])
    assert not np.array_equal(restarted, afresh)
    assert noise_shift(restarted[1:] - converged[1:], masses) < 0.03
    assert noise_shift(afresh - converged, masses) < 0.03


def coincident(state):
    state[1] = state[0]


def scattered(state):
    state += 0.4 * np.random.default_rng(1).standard_normal(state.shape)


def undefined(state):
    state[2] = np.nan


FAILURES = {
    "too close": (coincident, InputError),
    "not converged": (scattered, CalculationFailed),
    "not finite": (undefined, ValueError),
}


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("failure", FAILURES)
def test_a_state_at_which_gfn2_fails(failure, restart):
    """The rows before it are good, and nothing of it reaches the next batch."""
    spoil, error = FAILURES[failure]
    states = states_near(CASES["GFN2-xTB"][1], 4)
    good = methanol(restart).evaluate(states)
    wild = states.copy()
    spoil(wild[2])
    target = methanol(restart)
    energies, forces = target.evaluate(wild)
    np.testing.assert_array_equal(energies[:2], good[0][:2])
    np.testing.assert_array_equal(forces[:2], good[1][:2])
    assert np.isnan(energies[2:]).all() and np.isnan(forces[2:]).all()
    after = target.evaluate(states)
    np.testing.assert_array_equal(after[0], good[0])
    np.testing.assert_array_equal(after[1], good[1])
    with pytest.raises(error):
        target.evaluate(wild[2:])
    np.testing.assert_array_equal(target.evaluate(states)[1], good[1])


def test_results_that_are_not_finite():
    """Lennard-Jones spheres on top of each other raise nothing."""
    states = states_near(ARGON_SITES, 3)
    good = argon().evaluate(states)
    states[1, 1] = states[1, 0]
    with np.errstate(all="ignore"):
        energies, forces = argon().evaluate(states)
        first = argon().evaluate(states[1:])
    np.testing.assert_array_equal(forces[0], good[1][0])
    assert np.isfinite(energies[0])
    assert not np.isfinite(forces[1]).all()
    assert np.isnan(forces[2]).all() and np.isnan(energies[2])
    assert not np.isfinite(first[1][0]).all() and np.isnan(first[1][1]).all()


def test_wild_sites_cut_windows_short():
    """A draft that throws the atoms about: the target fails within the windows, the run goes on."""
    water = molecule("H2O")
    target = ASETarget(gfn2(max_iterations=30), water.numbers)

    def draft(positions):
        return 4e6 * np.sin(1e3 * positions + np.arange(3))

    def run(window):
        sampler = make_sampler(
            SCHEMES["middle"](1e-9, FRICTION, STEP_SIZE),
            water.get_masses(),
            draft,
            lambda positions: target.evaluate(positions)[1],
            window,
            seed=1,
            correction="none",
        )
        sampler.set_state(water.positions / 10, np.zeros((3, 3)))
        return sampler.advance(4)[0], sampler.statistics

    plain, _ = run(1)
    positions, statistics = run(6)
    assert statistics.failed_sites > 0 and statistics.steps >= 4
    np.testing.assert_allclose(positions, plain, rtol=0, atol=1e-6)


# What it is made of


@pytest.mark.parametrize(
    ("calculator", "atoms", "error", "words"),
    [
        (lambda x: x, [29], TypeError, "ASE calculator"),
        (EMT, [29.0], ValueError, "integers"),
        (EMT, [[29]], ValueError, r"\(1, 1\)"),
    ],
)
def test_wrong_arguments(calculator, atoms, error, words):
    made = calculator() if calculator is EMT else calculator
    with pytest.raises(error, match=words):
        ASETarget(made, atoms)


def test_a_calculator_without_forces():
    from ase.calculators.calculator import Calculator

    class EnergyOnly(Calculator):
        implemented_properties = ["energy"]  # noqa: RUF012

    with pytest.raises(ValueError, match="EnergyOnly does not give forces"):
        ASETarget(EnergyOnly(), [29])


def test_wrong_number_of_atoms():
    with pytest.raises(ValueError, match=r"\(2, 3, 3\); expected \(B, 4, 3\)"):
        copper().evaluate(np.zeros((2, 3, 3)))


def test_ase_is_not_installed(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "ase"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ase", None)
    with pytest.raises(ImportError, match="pip install"):
        ASETarget(EMT(), [29])
