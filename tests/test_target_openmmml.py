"""OpenMM-ML's Systems: the batch against OpenMM's Context of the very System, state after state.

The MACE and ANI models have random weights; it is the plumbing that is tested.
"""

import logging
import subprocess
import sys

import numpy as np
import openmm
import pytest
import torch
from openmm import app, unit

from openmm_lsd import LSDIntegrator
from openmm_lsd.integrator import targetcheck
from openmm_lsd.targets import neighbours as module
from openmm_lsd.targets.models import ANITarget, MACETarget
from openmm_lsd.targets.neighbours import find_pairs
from openmm_lsd.targets.openmmml import as_openmmml_force

ELEMENTS = "CCOHHHHHH"  # ethanol
NUMBERS = [6, 6, 8, 1, 1, 1, 1, 1, 1]
ETHANOL = 0.1 * np.array(
    [
        [1.17, -0.40, 0.00],
        [0.00, 0.56, 0.00],
        [-1.20, -0.22, 0.00],
        [-1.94, 0.40, 0.00],
        [2.12, 0.16, 0.00],
        [1.14, -1.04, 0.89],
        [1.14, -1.04, -0.89],
        [0.06, 1.20, 0.89],
        [0.06, 1.20, -0.89],
    ]
)
# Narrower than twice the cutoff of 0.4 nm: atoms see several images of one another.
RECTANGULAR = np.diag([0.65, 0.70, 0.9])
TRICLINIC = np.array([[0.7, 0.0, 0.0], [0.2, 0.72, 0.0], [-0.25, 0.3, 0.8]])
BOXES = {"vacuum": None, "rectangular": RECTANGULAR, "triclinic": TRICLINIC}


def states(count, spread=0.004, seed=3):
    """States near ethanol's geometry, not centred, as far apart as those of a window."""
    rng = np.random.default_rng(seed)
    return ETHANOL + [0.3, -0.2, 0.5] + spread * rng.standard_normal((count, 9, 3))


def unlike_states(count):
    """As states, but some turned and moved: they cannot share one search for neighbours."""
    positions = states(count)
    positions[1::3] = positions[1::3, :, ::-1] + 0.4
    positions[2::3] = -positions[2::3] - 1.7
    return positions


def topology(box=None, elements=ELEMENTS):
    result = app.Topology()
    residue = result.addResidue("ETH", result.addChain())
    for index, symbol in enumerate(elements):
        result.addAtom(f"{symbol}{index}", app.Element.getBySymbol(symbol), residue)
    if box is not None:
        result.setPeriodicBoxVectors(box * unit.nanometer)
    return result


def context_evaluations(system, positions):
    platform = openmm.Platform.getPlatform("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    energies, forces = [], []
    for state in positions:
        context.setPositions(state)
        result = context.getState(energy=True, forces=True)
        energies.append(result.getPotentialEnergy()._value)
        forces.append(result.getForces(asNumpy=True)._value)
    return np.array(energies), np.array(forces)


def part_of(system):
    parts = [as_openmmml_force(force) for force in system.getForces()]
    (part,) = [part for part in parts if part is not None]
    return part


def assert_agree(result, expected, energy, force):
    """Within ``energy`` in kJ/mol and ``force`` times the root mean square force."""
    np.testing.assert_allclose(result[0], expected[0], rtol=0, atol=energy)
    tolerance = force * np.sqrt(np.mean(expected[1] ** 2))
    np.testing.assert_allclose(result[1], expected[1], rtol=0, atol=tolerance)


def assert_forces_are_minus_the_gradient(target, box, accuracy):
    positions, step = states(1), 1e-5
    _, forces = target.evaluate(positions, box)
    scale = np.sqrt(np.mean(forces**2))
    moved = np.repeat(positions, 54, axis=0)
    for entry in range(27):
        moved[2 * entry].flat[entry] += step
        moved[2 * entry + 1].flat[entry] -= step
    energies, _ = target.evaluate(moved, box)
    slopes = (energies[::2] - energies[1::2]) / (2 * step)
    np.testing.assert_allclose(forces.reshape(-1), -slopes, rtol=0, atol=accuracy * scale)


# MACE


def build_mace(dtype=torch.float64, **options):
    """A small MACE for H, C and O with random weights."""
    pytest.importorskip("mace")
    from e3nn import o3
    from mace import modules

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    torch.manual_seed(11)
    block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    try:
        return modules.ScaleShiftMACE(
            r_max=4.0,
            num_bessel=4,
            num_polynomial_cutoff=5,
            max_ell=2,
            interaction_cls=block,
            interaction_cls_first=block,
            num_interactions=2,
            num_elements=3,
            hidden_irreps=o3.Irreps("8x0e+8x1o"),
            MLP_irreps=o3.Irreps("8x0e"),
            gate=torch.nn.functional.silu,
            atomic_energies=np.array([-13.6, -1030.0, -2040.0]),
            avg_num_neighbors=8.0,
            atomic_numbers=[1, 6, 8],
            correlation=2,
            radial_type="bessel",
            atomic_inter_scale=1.0,
            atomic_inter_shift=0.0,
            **options,
        )
    finally:
        torch.set_default_dtype(before)


@pytest.fixture(scope="session")
def mace_model():
    return build_mace()


def saved(model, folder):
    torch.save(model, folder / "mace.model")
    return str(folder / "mace.model")


@pytest.fixture(scope="session")
def mace_potential(mace_model, tmp_path_factory):
    openmmml = pytest.importorskip("openmmml")
    path = saved(mace_model, tmp_path_factory.mktemp("mace"))
    return openmmml.MLPotential("mace", modelPath=path)


@pytest.mark.parametrize("make_states", [states, unlike_states])
@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
def test_mace_agrees_with_the_context(mace_potential, box, make_states):
    system = mace_potential.createSystem(topology(box))
    target = part_of(system)
    assert isinstance(target, MACETarget)
    assert target.periodic == (box is not None)
    positions = make_states(7)
    result, expected = target.evaluate(positions, box), context_evaluations(system, positions)
    assert np.sqrt(np.mean(expected[1] ** 2)) > 10.0  # kJ/mol/nm
    assert_agree(result, expected, energy=1e-7, force=1e-9)
    assert result[0].dtype == result[1].dtype == np.float64


@pytest.mark.parametrize("box", [None, TRICLINIC], ids=["vacuum", "triclinic"])
def test_mace_rows_do_not_depend_on_the_batch(mace_potential, box):
    target = part_of(mace_potential.createSystem(topology(box)))
    positions = unlike_states(6)
    energies, forces = target.evaluate(positions, box)
    order = np.array([3, 0, 5, 4, 1, 2])
    shuffled = target.evaluate(positions[order], box)
    assert_agree(shuffled, (energies[order], forces[order]), energy=1e-8, force=1e-10)
    for row in range(6):
        alone = target.evaluate(positions[row : row + 1], box)
        assert_agree(
            alone, (energies[row : row + 1], forces[row : row + 1]), energy=1e-8, force=1e-10
        )


@pytest.mark.parametrize("box", [None, RECTANGULAR], ids=["vacuum", "rectangular"])
def test_mace_is_called_once_and_given_all_states(mace_potential, box):
    target = part_of(mace_potential.createSystem(topology(box)))
    graphs = []
    target._model.register_forward_pre_hook(lambda _, inputs: graphs.append(inputs[0]))
    target.evaluate(states(5), box)
    (graph,) = graphs
    assert graph["ptr"].tolist() == [0, 9, 18, 27, 36, 45]
    state_of_edge = graph["edge_index"] // 9
    assert torch.equal(state_of_edge[0], state_of_edge[1])
    assert set(state_of_edge[0].tolist()) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("searches, make_states", [(1, states), (3, unlike_states)])
def test_states_of_a_window_share_one_search(mace_potential, monkeypatch, searches, make_states):
    target = part_of(mace_potential.createSystem(topology(TRICLINIC)))
    search, calls = module._pairs_of_one, []

    def counted(*arguments):
        calls.append(arguments)
        return search(*arguments)

    monkeypatch.setattr(module, "_pairs_of_one", counted)
    target.evaluate(make_states(9), TRICLINIC)
    assert len(calls) == searches


@pytest.mark.parametrize("box", [None, TRICLINIC], ids=["vacuum", "triclinic"])
def test_mace_forces_are_minus_the_gradient(mace_model, box):
    target = MACETarget(mace_model, NUMBERS, periodic=box is not None)
    assert_forces_are_minus_the_gradient(target, box, accuracy=1e-6)


@pytest.mark.parametrize("kind", ["interaction_energy", "energy"])
@pytest.mark.parametrize(
    "precision, energy, force", [("single", 3e-2, 2e-5), ("double", 2e-6, 1e-9)]
)
def test_mace_options_of_createsystem(mace_potential, kind, precision, energy, force):
    system = mace_potential.createSystem(topology(), precision=precision, returnEnergyType=kind)
    positions = states(4)
    expected = context_evaluations(system, positions)
    assert (expected[0] < -1e5).all() == (kind == "energy")
    assert_agree(part_of(system).evaluate(positions), expected, energy=energy, force=force)


def test_mace_charge_and_multiplicity(tmp_path):
    openmmml = pytest.importorskip("openmmml")
    spec = {"type": "continuous", "per": "graph", "in_dim": 1, "emb_dim": 4}
    model = build_mace(embedding_specs={"total_charge": spec, "total_spin": spec})
    potential = openmmml.MLPotential("mace", modelPath=saved(model, tmp_path))
    positions = states(4)
    seen = []
    for charge, multiplicity in [(0, 1), (-1, 1), (-1, 2)]:
        system = potential.createSystem(topology(), charge=charge, multiplicity=multiplicity)
        expected = context_evaluations(system, positions)
        assert_agree(part_of(system).evaluate(positions), expected, energy=1e-7, force=1e-9)
        seen.append(expected[0][0])
    assert np.ptp(seen) > 1e-3 and len(set(seen)) == 3


def mixed_system(potential, atoms, box, **options):
    """The model on some atoms of two ethanols whose other forces are none."""
    both = topology(box, 2 * ELEMENTS)
    conventional = openmm.System()
    for atom in both.atoms():
        conventional.addParticle(atom.element.mass)
    if box is not None:
        conventional.setDefaultPeriodicBoxVectors(*box)
    return potential.createMixedSystem(both, conventional, atoms, **options)


@pytest.mark.parametrize("box", [None, TRICLINIC], ids=["vacuum", "triclinic"])
def test_mace_on_some_of_the_atoms(mace_potential, box):
    atoms = [13, 2, 0, 11, 1, 9, 5]
    system = mixed_system(mace_potential, atoms, box, forceGroup=3)
    target = part_of(system)
    assert target.atoms.tolist() == atoms
    positions = np.concatenate([states(4), states(4, seed=9) + 0.25], axis=1)
    result = target.evaluate(positions, box)
    expected = context_evaluations(system, positions)
    assert_agree(result, expected, energy=1e-7, force=1e-9)
    others = np.setdiff1d(np.arange(18), atoms)
    assert (result[1][:, others] == 0.0).all()
    assert (np.abs(result[1][:, atoms]).max(axis=2) > 0.0).all()
    with pytest.raises(ValueError, match=r"positions of 9 atoms .* acts on atom 13"):
        target.evaluate(states(1), box)


def test_mace_through_torchsim_agrees(mace_model):
    pytest.importorskip("torch_sim")
    mace = pytest.importorskip("torch_sim.models.mace")
    from openmm_lsd.targets.torchsim import TorchSimTarget

    model = mace.MaceModel(
        mace_model, device=torch.device("cpu"), dtype=torch.float64, compute_stress=False
    )
    positions = unlike_states(4)
    for box in (None, TRICLINIC):
        ours = MACETarget(mace_model, NUMBERS, periodic=box is not None, energy="energy")
        expected = ours.evaluate(positions, box)
        theirs = TorchSimTarget(model, NUMBERS).evaluate(positions, box)
        assert_agree(theirs, expected, energy=1e-6, force=1e-8)


def test_the_model_that_the_system_holds_is_left_alone(mace_potential):
    """The target works on a copy, and two targets share nothing."""
    system = mace_potential.createSystem(topology())
    before = context_evaluations(system, states(1))
    first, second = part_of(system), part_of(system)
    with torch.no_grad():
        for parameter in first._model.parameters():
            parameter.mul_(1.5)
    assert_agree(context_evaluations(system, states(1)), before, energy=1e-12, force=1e-14)
    assert_agree(second.evaluate(states(1)), before, energy=1e-7, force=1e-9)
    assert abs(first.evaluate(states(1))[0] - before[0]) > 1e-3


def test_inputs_are_not_changed(mace_model):
    positions, box = unlike_states(4), TRICLINIC.copy()
    before = positions.copy()
    positions.flags.writeable = box.flags.writeable = False
    for periodic in (True, False):
        MACETarget(mace_model, NUMBERS, periodic=periodic).evaluate(positions, box)
    assert np.array_equal(positions, before)
    assert np.array_equal(box, TRICLINIC)


def test_a_state_that_is_not_finite_costs_its_own_row_only(mace_model):
    for box in (None, TRICLINIC):
        target = MACETarget(mace_model, NUMBERS, periodic=box is not None)
        positions = states(4)
        energies, forces = target.evaluate(positions, box)
        positions[0, 3, 1] = np.nan
        result = target.evaluate(positions, box)
        assert np.isnan(result[0][0]) and np.isnan(result[1][0]).all()
        rest = result[0][1:], result[1][1:]
        assert_agree(rest, (energies[1:], forces[1:]), energy=1e-8, force=1e-10)


def test_a_batch_too_large_for_the_device_is_cut(mace_model):
    target = MACETarget(mace_model, NUMBERS)
    expected = target.evaluate(states(8))
    sizes = []

    def at_most_three(_, inputs):
        sizes.append(len(inputs[0]["ptr"]) - 1)
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("simulated")

    hook = mace_model.register_forward_pre_hook(at_most_three)
    try:
        result = target.evaluate(states(8))
    finally:
        hook.remove()
    assert sizes == [8, 4, 2, 2, 2, 2]
    assert_agree(result, expected, energy=1e-8, force=1e-10)


def test_wrong_arguments_are_errors(mace_model):
    for arguments, options, kind, words in [
        ((torch.nn.Linear(1, 1), NUMBERS), {}, TypeError, "a Linear, not a MACE model"),
        (("mace.model", NUMBERS), {}, TypeError, "a str, not a torch.nn.Module"),
        ((mace_model, [1, 6, 7, 17]), {}, ValueError, r"\[1, 6, 8\], not \[7, 17\]"),
        ((mace_model, []), {}, ValueError, r"atomic_numbers has shape \(0,\)"),
        ((mace_model, NUMBERS), {"atoms": [0, 1]}, ValueError, "must be 9 different indices"),
        ((mace_model, [1, 1]), {"atoms": [3, 3]}, ValueError, "must be 2 different indices"),
        ((mace_model, NUMBERS), {"energy": "total"}, ValueError, "allowed: 'interaction_energy'"),
    ]:
        with pytest.raises(kind, match=words):
            MACETarget(*arguments, **options)
    with pytest.raises(ValueError, match=r"positions of 8 atoms .* a model of 9 atoms"):
        MACETarget(mace_model, NUMBERS).evaluate(states(2)[:, 1:])
    with pytest.raises(ValueError, match=r"expected \(B, N, 3\)"):
        MACETarget(mace_model, NUMBERS).evaluate(ETHANOL)
    with pytest.raises(ValueError, match="periodic, but there is no box"):
        MACETarget(mace_model, NUMBERS, periodic=True).evaluate(states(2))


# ANI


def build_ani(**options):
    """An ANI with random weights in the place of the pretrained one, which would be downloaded."""
    torchani = pytest.importorskip("torchani")
    torch.manual_seed(5)
    return torchani.arch.simple_ani(
        ("H", "C", "N", "O"), lot="wb97x-631gd", ensemble_size=2, **options
    )


@pytest.fixture
def ani_potential(monkeypatch):
    torchani = pytest.importorskip("torchani")
    openmmml = pytest.importorskip("openmmml")
    monkeypatch.setattr(torchani.models, "ANI2x", build_ani)
    return openmmml.MLPotential("ani2x")


# TorchANI computes in single precision, and its energy is that of all electrons: 4e5 kJ/mol.
SINGLE = {"energy": 0.1, "force": 5e-5}


@pytest.mark.parametrize("options", [{}, {"modelIndex": 1}], ids=["ensemble", "one model"])
@pytest.mark.parametrize("make_states", [states, unlike_states])
@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
def test_ani_agrees_with_the_context(ani_potential, box, make_states, options):
    system = ani_potential.createSystem(topology(box), **options)
    target = part_of(system)
    assert isinstance(target, ANITarget)
    positions = make_states(7)
    expected = context_evaluations(system, positions)
    assert np.sqrt(np.mean(expected[1] ** 2)) > 10.0  # kJ/mol/nm
    assert_agree(target.evaluate(positions, box), expected, **SINGLE)


@pytest.mark.parametrize("box", [None, TRICLINIC], ids=["vacuum", "triclinic"])
def test_ani_rows_do_not_depend_on_the_batch(box):
    target = ANITarget(build_ani().double(), NUMBERS, periodic=box is not None)
    positions = unlike_states(6)
    energies, forces = target.evaluate(positions, box)
    order = np.array([3, 0, 5, 4, 1, 2])
    shuffled = target.evaluate(positions[order], box)
    assert_agree(shuffled, (energies[order], forces[order]), energy=1e-6, force=1e-10)
    for row in range(6):
        alone = target.evaluate(positions[row : row + 1], box)
        assert_agree(
            alone, (energies[row : row + 1], forces[row : row + 1]), energy=1e-6, force=1e-10
        )


@pytest.mark.parametrize("box", [None, TRICLINIC], ids=["vacuum", "triclinic"])
def test_ani_forces_are_minus_the_gradient(box):
    target = ANITarget(build_ani().double(), NUMBERS, periodic=box is not None)
    assert_forces_are_minus_the_gradient(target, box, accuracy=1e-5)


def test_ani_on_some_of_the_atoms(ani_potential):
    atoms = [13, 2, 0, 11, 1, 9, 5]
    system = mixed_system(ani_potential, atoms, TRICLINIC)
    positions = np.concatenate([states(4), states(4, seed=9) + 0.25], axis=1)
    result = part_of(system).evaluate(positions, TRICLINIC)
    assert_agree(result, context_evaluations(system, positions), **SINGLE)
    assert (result[1][:, np.setdiff1d(np.arange(18), atoms)] == 0.0).all()


def test_a_missing_conversion_in_openmmml_is_followed_and_said(ani_potential, caplog):
    """OpenMM-ML 1.7 and 1.8: ANI's forces are a tenth of minus the gradient of its energy."""
    system = ani_potential.createSystem(topology())
    with caplog.at_level(logging.WARNING):
        target = part_of(system)
    of_context = context_evaluations(system, states(1))[1]
    right = ANITarget(build_ani(), NUMBERS).evaluate(states(1))[1]
    ratio = np.vdot(of_context, right) / np.vdot(right, right)
    said = [record for record in caplog.records if "negative gradient" in record.getMessage()]
    assert bool(said) == (abs(ratio - 1) > 0.01)
    if said:
        assert f"{ratio:.3g} times" in said[0].getMessage()
    assert_agree(target.evaluate(states(1)), context_evaluations(system, states(1)), **SINGLE)


def test_a_batch_too_large_for_ani_is_cut():
    model, sizes = build_ani().double(), []
    target = ANITarget(model, NUMBERS)
    expected = target.evaluate(states(5))

    def at_most_two(_, inputs):
        sizes.append(len(inputs[0][1]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("simulated")

    model.register_forward_pre_hook(at_most_two)
    assert_agree(target.evaluate(states(5)), expected, energy=1e-6, force=1e-10)
    assert sizes == [5, 2, 2, 1]


def test_wrong_arguments_for_ani_are_errors():
    model = build_ani()
    for arguments, kind, words in [
        ((torch.nn.Linear(1, 1), NUMBERS), TypeError, "a Linear, not a model of TorchANI"),
        ((model, [1, 6, 17]), ValueError, r"\[1, 6, 7, 8\], not \[17\]"),
        ((build_ani(periodic_table_index=False), NUMBERS), ValueError, "periodic_table_index=True"),
    ]:
        with pytest.raises(kind, match=words):
            ANITarget(*arguments)


# Forces that are not OpenMM-ML's


def springs(state, strength=100.0):
    positions = state.getPositions(asNumpy=True)._value
    return strength * np.sum(positions**2), -2 * strength * positions


def test_other_forces_are_left_to_the_context():
    def cannot_be_pickled(state):
        return springs(state)

    assert as_openmmml_force(openmm.HarmonicBondForce()) is None
    assert as_openmmml_force(openmm.PythonForce(springs)) is None
    assert as_openmmml_force(openmm.PythonForce(cannot_be_pickled)) is None


class MentionsMACE:
    """Its pickle holds the names by which OpenMM-ML's function is found."""

    names = "openmmml.models.macepotential", "_computeMACE"

    def __init__(self):
        self.text = " ".join(self.names)

    def __call__(self, state):
        return springs(state)


def test_a_function_that_only_looks_like_openmmml():
    assert as_openmmml_force(openmm.PythonForce(MentionsMACE())) is None


def test_another_version_of_openmmml_is_left_to_the_context(mace_potential, caplog):
    from functools import partial

    from openmmml.models.macepotential import _computeMACE

    force = openmm.PythonForce(partial(_computeMACE, periodic=False, newOption=3))
    with caplog.at_level(logging.INFO):
        assert as_openmmml_force(force) is None
    assert "another version of OpenMM-ML" in caplog.text


# Neighbours


def brute_force(positions, cutoff, box):
    """(state, first, second, image) of all pairs, by trying every image within four boxes."""
    around = range(-4, 5) if box is not None else [0]
    found = set()
    for state, x in enumerate(positions):
        for image in np.stack(np.meshgrid(around, around, around), -1).reshape(-1, 3):
            shift = np.zeros(3) if box is None else image @ box
            distances = np.linalg.norm(x[None, :] + shift - x[:, None], axis=2)
            for first, second in np.argwhere(distances < cutoff):
                if first != second or image.any():
                    found.add((state, int(first), int(second), *image.tolist()))
    return found


@pytest.mark.parametrize("cutoff", [4.0, 8.5])  # angstrom; with 8.5 atoms see their own images
@pytest.mark.parametrize("make_states", [states, unlike_states])
@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
def test_pairs_are_those_of_brute_force(box, make_states, cutoff):
    positions = 10 * make_states(5)
    box = None if box is None else 10 * box
    moved, pairs = find_pairs(positions, cutoff, box)
    if box is not None:
        whole = (moved - positions) @ np.linalg.inv(box)
        np.testing.assert_allclose(whole, np.round(whole), rtol=0, atol=1e-9)
        assert (np.abs(moved @ np.linalg.inv(box) - 0.5) < 1.0).all()
    else:
        assert np.array_equal(moved, positions)
    entries = np.column_stack([*pairs[:3], pairs.image]).tolist()
    found = {tuple(entry) for entry in entries}
    assert len(found) == len(entries) > 100
    assert found == brute_force(moved, cutoff, box)
    once = pairs.once()
    half = {tuple(entry) for entry in np.column_stack([*once[:3], once.image]).tolist()}
    mirrored = {(s, j, i, -a, -b, -c) for s, i, j, a, b, c in half}
    assert half | mirrored == found
    assert not half & mirrored


# Missing packages


@pytest.mark.parametrize(
    "target, package, install",
    [(MACETarget, "mace", "mace-torch"), (ANITarget, "torchani", "torchani")],
)
def test_without_the_package_the_error_says_how_to_install_it(
    monkeypatch, target, package, install
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f'needs {package}.*pip install "{install}'):
        target(torch.nn.Linear(1, 1), NUMBERS)


def test_the_file_can_be_imported_without_the_packages():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['mace', 'torchani', 'openmmml', 'scipy']));"
        "import openmm; from openmm_lsd.targets.openmmml import as_openmmml_force as f; "
        "assert f(openmm.HarmonicBondForce()) is None; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Through LSDIntegrator


def draft_of(system):
    """Springs between neighbours in the chain, for the same particles."""
    draft = openmm.System()
    for index in range(system.getNumParticles()):
        draft.addParticle(system.getParticleMass(index))
    bonds = openmm.HarmonicBondForce()
    for i, j in [(0, 1), (1, 2), (2, 3), (0, 4), (0, 5), (0, 6), (1, 7), (1, 8)]:
        bonds.addBond(i, j, float(np.linalg.norm(ETHANOL[i] - ETHANOL[j])), 1e5)
    draft.addForce(bonds)
    return draft


def run(system, integrator, steps):
    simulation = app.Simulation(
        topology(), system, integrator, openmm.Platform.getPlatform("Reference")
    )
    simulation.context.setPositions(ETHANOL)
    simulation.context.setVelocities(np.zeros((9, 3)))
    simulation.step(steps)
    return simulation.context.getState(positions=True).getPositions(asNumpy=True)._value


def test_lsd_runs_an_openmmml_system(mace_potential):
    """Without noise, the trajectory of the plain integrator; MACE's part takes the batches."""
    batches = []
    evaluate = MACETarget.evaluate

    def watched(self, positions, box=None):
        batches.append(len(positions))
        return evaluate(self, positions, box)

    system = mace_potential.createSystem(topology())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MACETarget, "evaluate", watched)
        integrator = LSDIntegrator(1e-20, 1, 0.0005, draft_of(system), windowLength=6)
        positions = run(system, integrator, 8)
    assert 6 in batches and integrator.statistics.steps >= 8
    plain = run(
        mace_potential.createSystem(topology()),
        openmm.LangevinMiddleIntegrator(0, 1, 0.0005),
        8,
    )
    np.testing.assert_allclose(positions, plain, rtol=0, atol=1e-9)


def test_lsd_says_that_forces_are_not_the_gradient(ani_potential, caplog, monkeypatch):
    """As OpenMM-ML 1.7 and 1.8 give them for ANI; it runs them as plain OpenMM does."""
    monkeypatch.setattr(targetcheck, "FAST", np.inf)
    system = ani_potential.createSystem(topology())
    if part_of(system)._scales.force > 9 * part_of(system)._scales.energy:
        pytest.skip("this OpenMM-ML converts ANI's forces")
    positions = run(system, LSDIntegrator(1e-20, 1, 0.0005, draft_of(system), windowLength=6), 8)
    assert "minus the gradient of its energy" in caplog.text
    plain = run(
        ani_potential.createSystem(topology()),
        openmm.LangevinMiddleIntegrator(0, 1, 0.0005),
        8,
    )
    np.testing.assert_allclose(positions, plain, rtol=0, atol=1e-6)


def ethanols_with_forces():
    """Two, with bonds, charges and a cutoff."""
    both = topology(np.diag([3.0, 3.0, 3.0]), 2 * ELEMENTS)
    system = openmm.System()
    bonds, pairs = openmm.HarmonicBondForce(), openmm.NonbondedForce()
    for atom in both.atoms():
        system.addParticle(atom.element.mass)
        pairs.addParticle(0.2 if atom.index % 2 else -0.2, 0.25, 0.3)
    links = [(0, 1), (1, 2), (2, 3), (0, 4), (0, 5), (0, 6), (1, 7), (1, 8)]
    for first in (0, 9):
        for i, j in links:
            length = float(np.linalg.norm(ETHANOL[i] - ETHANOL[j]))
            bonds.addBond(first + i, first + j, length, 1e5)
    pairs.createExceptionsFromBonds(
        [(first + i, first + j) for first in (0, 9) for i, j in links], 0.8, 0.5
    )
    pairs.setNonbondedMethod(openmm.NonbondedForce.CutoffPeriodic)
    system.addForce(bonds)
    system.addForce(pairs)
    system.setDefaultPeriodicBoxVectors(*np.diag([3.0, 3.0, 3.0]))
    return both, system


@pytest.mark.parametrize("interpolate", [False, True])
@pytest.mark.parametrize("draft", ["force field", "auto"])
def test_lsd_of_a_mixed_system(mace_potential, interpolate, draft):
    """The path of plain dynamics; MACE in batches of the molecule, all else shared."""
    both, conventional = ethanols_with_forces()
    batches = []
    evaluate = MACETarget.evaluate

    def watched(self, positions, box=None):
        batches.append(positions.shape)
        return evaluate(self, positions, box)

    paths = []
    for kind in ("lsd", "plain"):
        system = mace_potential.createMixedSystem(
            both, conventional, list(range(9)), interpolate=interpolate, mlLongRange=False
        )
        own = "auto" if draft == "auto" else conventional
        integrator = openmm.LangevinMiddleIntegrator(1e-20, 1, 0.0005)
        if kind == "lsd":
            integrator = LSDIntegrator(1e-20, 1, 0.0005, own, windowLength=6)
        simulation = app.Simulation(
            both, system, integrator, openmm.Platform.getPlatform("Reference")
        )
        simulation.context.setPositions(
            np.concatenate([ETHANOL, ETHANOL + np.array([0.0, 0.4, 0.1])])
        )
        simulation.context.setVelocities(np.zeros((18, 3)))
        if interpolate:
            simulation.context.setParameter("lambda_interpolate", 0.7)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MACETarget, "evaluate", watched)
            simulation.step(8)
            if interpolate:
                simulation.context.setParameter("lambda_interpolate", 0.2)
            simulation.step(8)
        if kind == "lsd":
            np.testing.assert_array_equal(integrator.subset, np.arange(9))
            assert (6, 9, 3) in batches
        paths.append(simulation.context.getState(positions=True).getPositions(asNumpy=True)._value)
    np.testing.assert_allclose(*paths, rtol=0, atol=1e-9)
