"""draft='auto' through the integrator: no force field is needed, for whatever molecule."""

import copy
import dataclasses
import pickle

import numpy as np
import openmm
import pytest
from openmm import app, unit

from openmm_lsd import LSDIntegrator
from openmm_lsd.targets import ASETarget, BatchedTarget

REFERENCE = openmm.Platform.getPlatform("Reference")
NM = unit.nanometer

# Atomic numbers, positions in angstrom and total charge; one charged, one with a ring.
SMALL_MOLECULES = {
    "ethanol": (
        [6, 6, 8, 1, 1, 1, 1, 1, 1],
        [
            *([1.17, -0.40, 0.0], [0.0, 0.56, 0.0], [-1.20, -0.22, 0.0], [-1.94, 0.40, 0.0]),
            *([2.12, 0.16, 0.0], [1.14, -1.04, 0.89], [1.14, -1.04, -0.89]),
            *([0.06, 1.20, 0.89], [0.06, 1.20, -0.89]),
        ],
        0,
    ),
    "methylammonium": (
        [6, 7, 1, 1, 1, 1, 1, 1],
        [
            *([-0.80, 0.0, 0.0], [0.71, 0.0, 0.0], [-1.14, 1.02, 0.0], [-1.14, -0.51, 0.88]),
            *([-1.14, -0.51, -0.88], [1.08, -0.96, 0.0], [1.08, 0.48, 0.84], [1.08, 0.48, -0.84]),
        ],
        1,
    ),
    "cyclopropane": (
        [6, 6, 6, 1, 1, 1, 1, 1, 1],
        [
            *([0.87, 0.0, 0.0], [-0.435, 0.753, 0.0], [-0.435, -0.753, 0.0]),
            *([1.46, 0.0, 0.91], [1.46, 0.0, -0.91], [-0.73, 1.264, 0.91], [-0.73, 1.264, -0.91]),
            *([-0.73, -1.264, 0.91], [-0.73, -1.264, -0.91]),
        ],
        0,
    ),
}


def system_without_forces(numbers):
    system = openmm.System()
    for number in numbers:
        system.addParticle(app.Element.getByAtomicNumber(number).mass)
    return system


def auto(step_size=0.001, **keywords):
    keywords = {"randomNumberSeed": 1, "windowLength": 16, **keywords}
    return LSDIntegrator(300, 1, step_size, "auto", **keywords)


def context_of(system, integrator, positions, seed=2):
    context = openmm.Context(system, integrator, REFERENCE)
    context.setPositions(positions)
    context.setVelocitiesToTemperature(300, seed)
    return context


def steps_per_round(integrator, steps):
    before = integrator.statistics
    integrator.step(steps)
    after = integrator.statistics
    return (after.steps - before.steps) / (after.rounds - before.rounds)


@pytest.fixture(scope="module")
def alanine():
    stem = "systems/alanine_dipeptide/alanine_dipeptide"
    prmtop = app.AmberPrmtopFile(f"{stem}.prmtop")
    return prmtop, app.AmberInpcrdFile(f"{stem}.inpcrd").positions


@pytest.mark.parametrize("name", SMALL_MOLECULES)
def test_a_molecule_never_seen_before(name):
    """Positions, elements and the target: nothing else."""
    tblite = pytest.importorskip("tblite.ase")
    numbers, positions, charge = SMALL_MOLECULES[name]
    calculator = tblite.TBLite(method="GFN2-xTB", verbosity=0, charge=charge)
    integrator = auto(target=ASETarget(calculator, numbers))
    context = context_of(system_without_forces(numbers), integrator, 0.1 * np.array(positions))
    integrator.step(150)
    assert steps_per_round(integrator, 250) > 4.5
    end = context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(NM)
    distances = np.linalg.norm(end[:, None] - end, axis=2)
    assert distances.max() < 0.6  # it has not come apart


@pytest.mark.parametrize("given", [True, False], ids=["topology", "no topology"])
@pytest.mark.parametrize("scheme", ["middle", "aboba"])
def test_alanine_dipeptide(alanine, given, scheme):
    prmtop, positions = alanine
    integrator = auto(topology=prmtop.topology if given else None, scheme=scheme)
    context = context_of(prmtop.createSystem(), integrator, positions)
    openmm.LocalEnergyMinimizer.minimize(context)
    integrator.step(300)
    assert steps_per_round(integrator, 300) > 5.0


def test_a_draft_system_that_learns(alanine):
    prmtop, positions = alanine
    target = prmtop.createSystem()
    for force in target.getForces():
        if isinstance(force, openmm.HarmonicBondForce):
            for index in range(force.getNumBonds()):
                i, j, length, constant = force.getBondParameters(index)
                force.setBondParameters(index, i, j, length, 1.4 * constant)
    results = []
    for learning in (True, False):
        integrator = LSDIntegrator(
            *(300, 1, 0.001, prmtop.createSystem()),
            randomNumberSeed=1,
            learning=learning,
            windowLength=16,
        )
        # The Context is kept: the integrator lives in it.
        context = context_of(target, integrator, positions)
        integrator.step(300)
        results.append(steps_per_round(integrator, 300))
        del context
    assert results[0] > results[1] + 2


def test_water_box():
    pdb = app.PDBFile("systems/amoeba_water/amoeba_water.pdb")
    system = app.ForceField("tip3p.xml").createSystem(
        pdb.topology,
        nonbondedMethod=app.CutoffPeriodic,
        nonbondedCutoff=0.6,
        constraints=None,
        rigidWater=False,
    )
    integrator = auto()
    context = context_of(system, integrator, pdb.positions)
    integrator.step(100)
    assert steps_per_round(integrator, 100) > 3.5
    assert context.getState().getStepCount() == 200


def test_nothing_close_no_gain_but_the_law(caplog):
    system = openmm.System()
    force = openmm.CustomNonbondedForce("4*0.998*((0.34/r)^12-(0.34/r)^6)")
    for _ in range(8):
        system.addParticle(39.95)
        force.addParticle()
    system.addForce(force)
    integrator = auto()
    cube = 0.8 * np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    context = context_of(system, integrator, cube)
    integrator.step(50)
    assert "no bonds were found, nor atoms close to each other" in caplog.text
    assert context.getState().getStepCount() == 50


def test_checkpoints_take_the_draft_back(alanine):
    """What was learned after the checkpoint has seen the noise that is now used again."""
    prmtop, positions = alanine
    integrator = auto(topology=prmtop.topology)
    context = context_of(prmtop.createSystem(), integrator, positions)
    start = context.createCheckpoint()
    states = []
    for _ in range(2):
        context.loadCheckpoint(start)
        integrator.step(120)
        state = context.getState(positions=True, velocities=True)
        states.append([state.getPositions(asNumpy=True), state.getVelocities(asNumpy=True)])
    for first, second in zip(*states, strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("periodic", [True, False])
def test_a_draft_in_a_box(periodic):
    """Who decides whether there is one: test_periodicity.py."""
    numbers, positions, _ = SMALL_MOLECULES["cyclopropane"]
    topology = app.Topology()
    residue = topology.addResidue("MOL", topology.addChain())
    for number in numbers:
        topology.addAtom("X", app.Element.getByAtomicNumber(number), residue)
    atoms = list(topology.atoms())
    for i, j in [(0, 1), (1, 2), (0, 2), *zip([0, 0, 1, 1, 2, 2], range(3, 9), strict=True)]:
        topology.addBond(atoms[i], atoms[j])
    system = system_without_forces(numbers)
    if periodic:
        topology.setUnitCellDimensions((1.5, 1.6, 1.7))
        system.setDefaultPeriodicBoxVectors(*topology.getPeriodicBoxVectors())
    boxes = []

    class Springs(BatchedTarget):
        def evaluate(self, states, box=None):
            boxes.append(box)
            forces = -1000.0 * (states - 0.1 * np.array(positions))
            return 0.5 * np.sum(forces**2, axis=(1, 2)) / 1000.0, forces

    integrator = auto(topology=topology, target=Springs())
    context = context_of(system, integrator, 0.1 * np.array(positions))
    integrator.step(5)
    assert context.getState().getStepCount() == 5
    if periodic:
        assert all(np.allclose(np.diag(box), [1.5, 1.6, 1.7]) for box in boxes)
    else:
        assert all(box is None for box in boxes)


def test_statistics_say_what_learning_costs(alanine):
    prmtop, positions = alanine
    integrator = auto(topology=prmtop.topology)
    context = context_of(prmtop.createSystem(), integrator, positions)
    integrator.step(50)
    statistics = integrator.statistics
    assert 0 < statistics.learning_seconds < statistics.counted_seconds
    assert "learning" in str(statistics)
    assert context.getState().getStepCount() == 50


def test_copies_keep_what_was_asked_for(alanine):
    topology = alanine[0].topology
    integrator = auto(topology=topology)
    for twin in (copy.copy(integrator), copy.deepcopy(integrator)):
        assert twin._draft == integrator._draft
    twin = pickle.loads(pickle.dumps(auto()))
    assert twin._draft == auto()._draft


def test_what_cannot_be_is_an_error(alanine):
    prmtop, positions = alanine
    with pytest.raises(TypeError, match="draft is a str \\('automatic'\\); it must be 'auto',"):
        LSDIntegrator(300, 1, 0.001, "automatic")
    with pytest.raises(ValueError, match="'auto', which must learn"):
        auto(learning=False)
    with pytest.raises(TypeError, match="topology is a PDBFile"):
        auto(topology=app.PDBFile("systems/alanine_dipeptide/alanine_dipeptide.pdb"))
    integrator = auto(topology=app.Topology())
    context = context_of(prmtop.createSystem(), integrator, positions)
    with pytest.raises(ValueError, match="the topology has 0 atoms and the System 22"):
        integrator.step(1)
    assert context.getState().getStepCount() == 0
    assert dataclasses.asdict(integrator.statistics)["steps"] == 0
