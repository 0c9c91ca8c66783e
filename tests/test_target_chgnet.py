"""CHGNet with the weights of its package: judged by its own ASE calculator, and run."""

import numpy as np
import openmm
import pytest
from openmm import app, unit
from test_commands import command

from openmm_lsd import LSDIntegrator, systems
from openmm_lsd.targets import ASETarget, CHGNetTarget, validate_target

pytest.importorskip("chgnet")
build = pytest.importorskip("ase.build")

TRICLINIC = np.array([[0.6, 0.0, 0.0], [0.1, 0.58, 0.0], [-0.05, 0.12, 0.62]])


@pytest.fixture(scope="module")
def salt():
    """Atomic numbers, positions in nm and box of NaCl, 8 atoms."""
    atoms = build.bulk("NaCl", "rocksalt", a=5.69, cubic=True)
    return atoms.numbers, 0.1 * atoms.positions, 0.1 * np.array(atoms.cell)


def states_of(positions, count=3):
    return positions + 0.005 * np.random.default_rng(1).standard_normal((count, *positions.shape))


@pytest.mark.parametrize("shape", ["cubic", "triclinic"])
def test_energies_and_forces(salt, shape):
    from chgnet.model.dynamics import CHGNetCalculator

    numbers, positions, box = salt
    if shape == "triclinic":
        positions, box = positions @ np.linalg.inv(box) @ TRICLINIC, TRICLINIC
    states = states_of(positions)
    theirs = ASETarget(CHGNetCalculator(use_device="cpu", verbose=False), numbers)
    expected = theirs.evaluate(states, box)
    energies, forces = CHGNetTarget("0.3.0", numbers).evaluate(states, box)
    np.testing.assert_allclose(energies, expected[0], atol=0.01)
    np.testing.assert_allclose(forces, expected[1], atol=0.02)
    assert np.abs(forces).max() > 50


def test_rows(salt):
    numbers, positions, box = salt
    target = CHGNetTarget("0.3.0", numbers)
    states = states_of(positions, 4)
    states[2, 0] = np.nan
    energies, forces = target.evaluate(states, box)
    assert np.isnan(energies[2]) and np.isnan(forces[2]).all()
    for row in (0, 1, 3):
        alone = target.evaluate(states[row : row + 1], box)
        np.testing.assert_allclose(forces[row], alone[1][0], atol=0.02)
    moved = target.evaluate(states + box[1] - box[0], box)[1]
    np.testing.assert_allclose(moved[0], forces[0], atol=0.02)
    masses = np.array([app.Element.getByAtomicNumber(int(n)).mass._value for n in numbers])
    validate_target(target, positions, masses, box=box)


def test_errors(salt):
    numbers, positions, box = salt
    target = CHGNetTarget("0.3.0", numbers)
    with pytest.raises(ValueError, match="no periodic box"):
        target.evaluate(positions[None])
    with pytest.raises(ValueError, match=r"expected \(B, 8, 3\)"):
        target.evaluate(positions[None, :5], box)
    with pytest.raises(ValueError, match=r"(?i)unknown"):
        CHGNetTarget("9.9.9", numbers)
    with pytest.raises(ValueError, match="atomic_numbers"):
        CHGNetTarget("0.3.0", [])


def test_a_crystal_runs(salt):
    numbers, positions, box = salt
    topology = app.Topology()
    residue = topology.addResidue("X", topology.addChain())
    for number in numbers:
        element = app.Element.getByAtomicNumber(int(number))
        topology.addAtom(element.symbol, element, residue)
    topology.setPeriodicBoxVectors(box * unit.nanometer)
    system = systems.with_target(topology, CHGNetTarget("0.3.0", numbers))
    integrator = LSDIntegrator(300, 1, 0.002, "auto", windowLength=8, randomNumberSeed=1)
    platform = openmm.Platform.getPlatform("Reference")
    simulation = app.Simulation(topology, system, integrator, platform)
    simulation.context.setPositions(positions)
    simulation.context.setVelocitiesToTemperature(300, 1)
    simulation.step(60)
    assert integrator.statistics.steps_per_round > 2.5
    state = simulation.context.getState(energy=True, positions=True)
    assert np.isfinite(state.getPotentialEnergy()._value)
    moved = state.getPositions(asNumpy=True)._value - positions
    assert 1e-3 < np.abs(moved).max() < 0.1


def test_on_the_command_line(salt, tmp_path):
    build.bulk("NaCl", "rocksalt", a=5.69, cubic=True).write(tmp_path / "salt.cif")
    status = command(
        *("run", "--topology", tmp_path / "salt.cif", "--target", "chgnet:0.3.0", "--steps", 10),
        *("--timestep", 2, "--window", 4, "--platform", "Reference", "--no-minimize"),
        *("--equilibration", 20),
        *("--output-dir", tmp_path / "out"),
    )
    assert status == 0
