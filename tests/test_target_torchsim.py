"""TorchSim's Lennard-Jones as a target: units and batches, judged by OpenMM; cells, by TorchSim.

MACE through TorchSim, also in a triclinic box, is in test_target_openmmml.py.
"""

import dataclasses
import subprocess
import sys

import numpy as np
import openmm
import pytest
import torch

from openmm_lsd.targets.torchsim import TorchSimTarget

SIGMA, EPSILON, CUTOFF = 3.405, 0.0104, 8.5  # angstrom, eV, angstrom: argon
EV = 96.48533212331  # kJ/mol, CODATA 2018
ARGON = [18] * 64
RECTANGULAR = np.diag([1.9, 2.0, 2.1])
TRICLINIC = np.array([[2.0, 0.0, 0.0], [0.5, 2.1, 0.0], [-0.4, 0.6, 2.2]])
BOXES = {"vacuum": None, "rectangular": RECTANGULAR, "triclinic": TRICLINIC}


def states(count, seed=3):
    """Argon atoms (count, 64, 3) nm around the points of a lattice, many outside the boxes."""
    rng = np.random.default_rng(seed)
    lattice = np.stack(np.meshgrid(*[np.arange(4)] * 3), axis=-1).reshape(-1, 3) * 0.47
    return lattice - 0.3 + 0.04 * rng.standard_normal((count, 64, 3))


def openmm_evaluations(positions, box):
    """Energies and forces of the same potential by OpenMM, state after state."""
    force = openmm.CustomNonbondedForce("4*e*((s/r)^12-(s/r)^6)")
    force.addGlobalParameter("e", EPSILON * EV)
    force.addGlobalParameter("s", SIGMA / 10)
    method = force.CutoffNonPeriodic if box is None else force.CutoffPeriodic
    force.setNonbondedMethod(method)
    force.setCutoffDistance(CUTOFF / 10)
    system = openmm.System()
    for _ in range(positions.shape[1]):
        system.addParticle(39.948)
        force.addParticle([])
    if box is not None:
        system.setDefaultPeriodicBoxVectors(*box)
    system.addForce(force)
    platform = openmm.Platform.getPlatform("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    energies, forces = [], []
    for state in positions:
        context.setPositions(state)
        result = context.getState(energy=True, forces=True)
        energies.append(result.getPotentialEnergy()._value)
        forces.append(result.getForces(asNumpy=True)._value)
    return np.array(energies), np.array(forces)


@pytest.fixture
def argon():
    """Function: TorchSim's own Lennard-Jones model of argon, with the gradient of its energy.

    In TorchSim 0.3 the forces that it computes are twice as large, since each pair counts twice.
    """
    module = pytest.importorskip("torch_sim.models.lennard_jones")

    class Argon(module.LennardJonesModel):
        def forward(self, state):
            state.positions.requires_grad_()
            results = super().forward(state)
            (gradient,) = torch.autograd.grad(results["energy"].sum(), state.positions)
            return {"energy": results["energy"], "forces": -gradient}

    def make(**options):
        options = {"dtype": torch.float64, "cutoff": CUTOFF, **options}
        return Argon(sigma=SIGMA, epsilon=EPSILON, **options)

    return make


@pytest.fixture
def watched(argon):
    """Function: an argon model that keeps the states it was given and can change its results."""
    model_class = type(argon())

    class Watched(model_class):
        def __init__(self, after=lambda state, results: results):
            super().__init__(sigma=SIGMA, epsilon=EPSILON, cutoff=CUTOFF, dtype=torch.float32)
            self.seen, self.after = [], after

        def forward(self, state):
            self.seen.append(state)
            return self.after(state, super().forward(state))

    return Watched


@pytest.mark.parametrize("box", [None, RECTANGULAR], ids=["vacuum", "rectangular"])
def test_a_batch_agrees_with_openmm(argon, box):
    positions = states(4)
    energies, forces = TorchSimTarget(argon(), ARGON).evaluate(positions, box)
    expected_energies, expected_forces = openmm_evaluations(positions, box)
    assert np.sqrt(np.mean(expected_forces**2)) > 10.0  # kJ/mol/nm
    np.testing.assert_allclose(energies, expected_energies, rtol=0, atol=1e-7)
    np.testing.assert_allclose(forces, expected_forces, rtol=0, atol=1e-6)
    assert energies.dtype == forces.dtype == np.float64


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
def test_the_state_is_as_torchsim_makes_it(box):
    """The unchanged model, given the same states by TorchSim's own means, from ASE's Atoms.

    In TorchSim 0.3 it is wrong in a triclinic box (it transposes the cell once too often), but no
    other cell gives the same wrong numbers.
    """
    torch_sim = pytest.importorskip("torch_sim")
    ase = pytest.importorskip("ase")
    from torch_sim.models.lennard_jones import LennardJonesModel

    model = LennardJonesModel(SIGMA, EPSILON, dtype=torch.float64, cutoff=CUTOFF)
    positions = states(3)
    if box is not None:  # inside it: nothing is left to wrap
        positions = ((positions + 0.55) / 2.0) @ box
    cell = np.eye(3) if box is None else 10 * box
    atoms = [
        ase.Atoms(numbers=ARGON, positions=10 * x, cell=cell, pbc=box is not None)
        for x in positions
    ]
    expected = model(torch_sim.io.atoms_to_state(atoms, model.device, model.dtype))
    energies, forces = TorchSimTarget(model, ARGON).evaluate(positions, box)
    np.testing.assert_allclose(energies, EV * expected["energy"].numpy(), rtol=0, atol=1e-7)
    expected_forces = 10 * EV * expected["forces"].numpy().reshape(3, 64, 3)
    tolerance = 1e-9 * np.sqrt(np.mean(expected_forces**2))
    np.testing.assert_allclose(forces, expected_forces, rtol=0, atol=tolerance)


@pytest.mark.parametrize("box", [None, RECTANGULAR], ids=["vacuum", "rectangular"])
def test_rows_do_not_depend_on_the_batch(argon, box):
    positions = states(5)
    target = TorchSimTarget(argon(), ARGON)
    energies, forces = target.evaluate(positions, box)
    order = np.array([3, 0, 4, 1, 2])
    shuffled = target.evaluate(positions[order], box)
    np.testing.assert_allclose(shuffled[0], energies[order], rtol=0, atol=1e-9)
    np.testing.assert_allclose(shuffled[1], forces[order], rtol=0, atol=1e-9)
    for row in range(5):
        alone = target.evaluate(positions[row : row + 1], box)
        np.testing.assert_allclose(alone[0], energies[row : row + 1], rtol=0, atol=1e-9)
        np.testing.assert_allclose(alone[1], forces[row : row + 1], rtol=0, atol=1e-9)


def test_forces_are_minus_the_gradient(argon):
    positions, step = states(1), 1e-5
    target = TorchSimTarget(argon(), ARGON)
    _, forces = target.evaluate(positions, RECTANGULAR)
    for atom, axis in [(0, 0), (21, 1), (63, 2)]:
        moved = np.repeat(positions, 2, axis=0)
        moved[:, atom, axis] += [step, -step]
        energies, _ = target.evaluate(moved, RECTANGULAR)
        slope = (energies[0] - energies[1]) / (2 * step)
        assert abs(forces[0, atom, axis] + slope) < 1e-3


def test_inputs_are_not_changed(argon):
    positions, box = states(2), TRICLINIC.copy()
    before = positions.copy()
    positions.flags.writeable = box.flags.writeable = False
    TorchSimTarget(argon(), ARGON).evaluate(positions, box)
    assert np.array_equal(positions, before)
    assert np.array_equal(box, TRICLINIC)


def test_the_model_decides_the_precision(watched):
    model = watched()
    target = TorchSimTarget(model, ARGON, masses=np.arange(1.0, 65.0))
    energies, forces = target.evaluate(states(3), RECTANGULAR)
    (state,) = model.seen
    assert state.positions.dtype == state.cell.dtype == state.masses.dtype == torch.float32
    assert state.n_systems == 3 and state.pbc
    np.testing.assert_allclose(state.row_vector_cell[2].numpy(), 10 * RECTANGULAR, rtol=1e-6)
    assert state.masses.tolist() == [*range(1, 65)] * 3
    _, expected = openmm_evaluations(states(3), RECTANGULAR)
    tolerance = 1e-4 * np.sqrt(np.mean(expected**2))
    np.testing.assert_allclose(forces, expected, rtol=0, atol=tolerance)
    assert energies.dtype == forces.dtype == np.float64


def test_masses_are_those_of_the_elements(watched):
    model = watched()
    TorchSimTarget(model, [18, 8, 1]).evaluate(states(1)[:, :3])
    np.testing.assert_allclose(model.seen[0].masses.numpy(), [39.95, 15.999, 1.008], atol=0.01)
    assert not model.seen[0].pbc


def test_atoms_that_wandered_far_lose_no_precision(watched):
    """A single-precision model, after atoms have crossed thousands of boxes."""
    rng = np.random.default_rng(8)
    images = rng.integers(-4000, 4000, (64, 3))
    positions = states(1)
    near = TorchSimTarget(watched(), ARGON).evaluate(positions, RECTANGULAR)
    far = TorchSimTarget(watched(), ARGON).evaluate(positions + images @ RECTANGULAR, RECTANGULAR)
    np.testing.assert_allclose(far[0], near[0], rtol=0, atol=1e-3)
    np.testing.assert_allclose(far[1], near[1], rtol=0, atol=2e-2)


def test_a_state_that_is_not_finite_costs_its_own_row_only(argon):
    positions = states(4)
    target = TorchSimTarget(argon(), ARGON)
    good = target.evaluate(positions, RECTANGULAR)
    positions[2, 5, 0] = np.nan
    energies, forces = target.evaluate(positions, RECTANGULAR)
    assert np.isnan(energies[2]) and np.isnan(forces[2]).all()
    rest = [0, 1, 3]
    np.testing.assert_allclose(energies[rest], good[0][rest], rtol=0, atol=1e-9)
    np.testing.assert_allclose(forces[rest], good[1][rest], rtol=0, atol=1e-9)
    positions[:, 0] = np.inf
    assert np.isnan(target.evaluate(positions, RECTANGULAR)[0]).all()


def test_a_batch_too_large_for_the_device_is_cut(watched):
    def at_most_three(state, results):
        if state.n_systems > 3:
            raise torch.OutOfMemoryError("simulated")
        return results

    model = watched(at_most_three)
    target = TorchSimTarget(model, ARGON)
    energies, forces = target.evaluate(states(8))
    assert [state.n_systems for state in model.seen] == [8, 4, 2, 2, 2, 2]
    expected = TorchSimTarget(watched(), ARGON).evaluate(states(8))
    np.testing.assert_allclose(energies, expected[0], rtol=0, atol=1e-9)
    np.testing.assert_allclose(forces, expected[1], rtol=0, atol=1e-9)


def test_a_fault_of_the_model_is_not_hidden(watched):
    def fail(state, results):
        raise RuntimeError("the model's own")

    with pytest.raises(RuntimeError, match="the model's own"):
        TorchSimTarget(watched(fail), ARGON).evaluate(states(2))


def test_wrong_results_are_errors(watched):
    def without_forces(state, results):
        return {"energy": results["energy"]}

    def one_energy(state, results):
        return {**results, "energy": results["energy"].sum()}

    def too_few_forces(state, results):
        return {**results, "forces": results["forces"][:-1]}

    for change, words in [
        (without_forces, "returned no forces, only energy"),
        (one_energy, r"energies of shape \(\)"),
        (too_few_forces, r"forces of shape \(127, 3\)"),
    ]:
        with pytest.raises(ValueError, match=words):
            TorchSimTarget(watched(change), ARGON).evaluate(states(2))


def test_wrong_arguments_are_errors(argon):
    with pytest.raises(ValueError, match=r"computes no forces.*compute_forces=True"):
        TorchSimTarget(argon(compute_forces=False), ARGON)
    with pytest.raises(TypeError, match="is a Linear, not a torch_sim ModelInterface"):
        TorchSimTarget(torch.nn.Linear(2, 2), ARGON)
    with pytest.raises(ValueError, match=r"atomic_numbers has shape \(1, 64\)"):
        TorchSimTarget(argon(), [ARGON])
    with pytest.raises(ValueError, match=r"masses of shape \(2,\) for 64"):
        TorchSimTarget(argon(), ARGON, masses=[1.0, 2.0])
    target = TorchSimTarget(argon(), ARGON)
    for wrong in (states(2)[:, :-1], states(2)[0]):
        with pytest.raises(ValueError, match=r"expected \(B, 64, 3\)"):
            target.evaluate(wrong)


def test_the_model_is_told_charge_and_spin(watched, monkeypatch):
    """Each system and each atom; TorchSim 0.3, which is tested here, has nothing for them."""
    with pytest.raises(ValueError, match=r"cannot be told charge, spin; it takes version 0\.6"):
        TorchSimTarget(watched(), ARGON, system_extras={"charge": 1, "spin": 2})
    torch_sim = pytest.importorskip("torch_sim")

    @dataclasses.dataclass
    class LaterState:
        positions: torch.Tensor
        masses: torch.Tensor
        cell: torch.Tensor
        pbc: bool
        atomic_numbers: torch.Tensor
        system_idx: torch.Tensor
        _system_extras: dict = dataclasses.field(default_factory=dict)
        _atom_extras: dict = dataclasses.field(default_factory=dict)

    class Listens(type(watched())):
        def forward(self, state):
            self.seen.append(state)
            return {"energy": torch.zeros(2), "forces": torch.zeros_like(state.positions)}

    monkeypatch.setattr(torch_sim, "SimState", LaterState)
    moments = np.arange(64.0)
    model = Listens()
    target = TorchSimTarget(
        model,
        ARGON,
        system_extras={"charge": 1, "field": [0.0, 0.0, 0.5]},
        atom_extras={"moment": moments},
    )
    target.evaluate(states(2))
    (state,) = model.seen
    assert state._system_extras["charge"].tolist() == [1.0, 1.0]
    assert state._system_extras["field"].tolist() == 2 * [[0.0, 0.0, 0.5]]
    assert state._atom_extras["moment"].tolist() == [*moments, *moments]
    with pytest.raises(ValueError, match=r"moment has shape \(2,\); the first axis must be that"):
        TorchSimTarget(model, ARGON, atom_extras={"moment": [1.0, 2.0]})


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_sim", None)
    with pytest.raises(ImportError, match='pip install "torch-sim-atomistic'):
        TorchSimTarget(None, ARGON)


def test_the_file_can_be_imported_without_the_package():
    code = (
        "import sys; sys.modules['torch_sim'] = None; import openmm_lsd.targets.torchsim; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
