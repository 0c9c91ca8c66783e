"""Drafts that are any potential: the same steps as a System of the same forces, the exact law, and
what happens where one fails.
"""

import copy
import functools
import json
import os
import pickle
import signal
from types import SimpleNamespace

import numpy as np
import openmm
import pytest
import torch
from ensembles import Case, Z, reference_of, score_of
from openmm import app
from pages import ROOT
from particles import (
    COLD,
    LENGTH,
    PAIRS,
    PLATFORM,
    POSITIONS,
    REFERENCE,
    SEED,
    VELOCITIES,
    Bonds,
    draft_system,
    harmonic_bonds,
    lsd,
    planted,
    system_of,
    target_system,
    torch_force,
)
from test_commands import command
from test_law_of_simulations import ORIGIN, forces_with_site
from test_law_of_simulations import target_system as system_with
from test_mixed_systems import box_of, chain_forces, python_force

from openmm_lsd import LSDIntegrator, TargetError, batched
from openmm_lsd.cli import parse
from openmm_lsd.commands.caseoptions import case_of
from openmm_lsd.commands.estimate import compare_drafts
from openmm_lsd.core.subset import SubsetEngine
from openmm_lsd.drafts.nativeengine import NativeEngine, NativeSubsetEngine
from openmm_lsd.integrator.restart import RestartError
from openmm_lsd.targets import (
    ASETarget,
    BatchedTarget,
    ContextTarget,
    ModuleTarget,
    TorchSimTarget,
)
from openmm_lsd.targets.base import ANGSTROM_PER_NM, KJ_PER_MOL_PER_EV

ase = pytest.importorskip("ase")
from ase.calculators.calculator import Calculator, all_changes  # noqa: E402

FIRST, SECOND = np.array(PAIRS).T


def bond_forces(positions, constant=2000.0):
    """Forces of ``particles.harmonic_bonds`` (B, 4, 3), by NumPy."""
    apart = positions[:, SECOND] - positions[:, FIRST]
    length = np.linalg.norm(apart, axis=-1, keepdims=True)
    pull = constant * (length - LENGTH) / length * apart
    forces = np.zeros_like(positions)
    for pair, (i, j) in enumerate(PAIRS):
        forces[:, i] += pull[:, pair]
        forces[:, j] -= pull[:, pair]
    return forces


class BondModule(torch.nn.Module):
    """Their energy; takes a batch. In double precision, as its buffer is."""

    def __init__(self):
        super().__init__()
        self.register_buffer("length", torch.tensor(LENGTH, dtype=torch.float64))

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        apart = positions[..., SECOND, :] - positions[..., FIRST, :]
        return 1000.0 * ((apart.norm(dim=-1) - self.length) ** 2).sum(-1)


class BondCalculator(Calculator):
    """The same for ASE."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        forces = bond_forces(atoms.positions[None] / ANGSTROM_PER_NM)[0]
        self.results = {"energy": 0.0, "forces": forces / KJ_PER_MOL_PER_EV / ANGSTROM_PER_NM}


def torch_sim_target():
    models = pytest.importorskip("torch_sim.models.interface")

    class Bonds(models.ModelInterface):
        _device, _dtype = torch.device("cpu"), torch.float64
        _compute_forces, _compute_stress, _memory_scales_with = True, False, "n_atoms"

        def forward(self, state):
            positions = (
                state.positions if hasattr(state, "positions") else state["positions"]
            ).numpy()
            forces = bond_forces(positions.reshape(-1, 4, 3) / ANGSTROM_PER_NM)
            forces = torch.tensor(forces.reshape(-1, 3) / KJ_PER_MOL_PER_EV / ANGSTROM_PER_NM)
            return {"energy": torch.zeros(len(forces) // 4).double(), "forces": forces}

    return TorchSimTarget(Bonds(), [6, 8, 1, 7])


def system_of_python():
    """A System whose force cannot be pickled."""
    force = openmm.PythonForce(
        lambda state: (0.0, bond_forces(state.getPositions(asNumpy=True)._value[None])[0])
    )
    return system_of(force)


KINDS = {
    "function": lambda: bond_forces,
    "BatchedTarget": lambda: ContextTarget(draft_system(), platforms={"Reference": {}}),
    "module": BondModule,
    "ModuleTarget": lambda: ModuleTarget(BondModule(), dtype=torch.float64),
    "ASE": lambda: ASETarget(BondCalculator(), [6, 8, 1, 7]),
    "TorchSim": torch_sim_target,
    "PythonForce": system_of_python,
}


def slow_system():
    """A TorchForce alone: nothing that a draft System could share with it."""
    return system_of(torch_force(Bonds))


def run_of(draft, system=None, learning=False, **keywords):
    """A Simulation with this draft."""
    platform = "Reference" if isinstance(draft, openmm.System) else None
    integrator = lsd(draft=draft, draftPlatform=platform, learning=learning, **keywords)
    topology = app.Topology()
    residue = topology.addResidue("X", topology.addChain())
    system = system or slow_system()
    for symbol in ("C", "O", "H", "N", *[None] * 4)[: system.getNumParticles()]:
        topology.addAtom("X", symbol and app.Element.getBySymbol(symbol), residue)
    simulation = app.Simulation(topology, system, integrator, PLATFORM)
    count = system.getNumParticles()
    simulation.context.setPositions(POSITIONS[:count])
    simulation.context.setVelocities(VELOCITIES[:count])
    return simulation


def at_a_new_window(draft):
    """A Simulation whose next step drafts one."""
    simulation = run_of(draft)
    simulation.step(16)
    simulation.integrator.step(len(simulation.integrator.probe().sampler._queue))
    return simulation


def state_of(simulation):
    state = simulation.context.getState(positions=True, velocities=True)
    velocities = state.getVelocities(asNumpy=True)._value
    return np.stack([state.getPositions(asNumpy=True)._value, velocities])


@functools.cache
def path_of_system(learning):
    simulation = run_of(draft_system(), learning=learning)
    simulation.step(60)
    statistics = simulation.integrator.statistics
    return state_of(simulation), statistics.rounds, statistics.rejected


@pytest.mark.parametrize("learning", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_path_as_with_a_system(kind, learning):
    expected, rounds, rejected = path_of_system(learning)
    simulation = run_of(KINDS[kind](), learning=learning)
    simulation.step(60)
    statistics = simulation.integrator.statistics
    np.testing.assert_allclose(state_of(simulation), expected, atol=1e-8)
    assert (statistics.rounds, statistics.rejected) == (rounds, rejected)
    assert rejected > 0 or learning


@pytest.mark.parametrize("learning", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_continues_the_run(kind, learning):
    simulation = run_of(KINDS[kind](), learning=learning)
    simulation.step(33)
    checkpoint = simulation.context.createCheckpoint()
    simulation.step(40)
    for other in (simulation, run_of(KINDS[kind](), learning=learning)):
        other.context.loadCheckpoint(checkpoint)
        other.step(40)
        np.testing.assert_array_equal(state_of(other), state_of(simulation))


OTHERS = {
    "forces": functools.partial(bond_forces, constant=2100.0),
    "nothing": lambda positions: np.zeros_like(positions),
    "an error": lambda positions: 1 / 0,
}


@pytest.mark.parametrize("learning", [False, True])
@pytest.mark.parametrize("other", OTHERS)
def test_a_checkpoint_of_another_potential_is_refused(other, learning):
    """The classes are the same; forces of the same to single precision are taken for the same."""
    simulation = run_of(bond_forces, learning=learning)
    simulation.step(20)
    checkpoint = simulation.context.createCheckpoint()
    another = run_of(OTHERS[other], learning=learning)
    before = state_of(another)
    with pytest.raises(RestartError, match="another draft: at the same state"):
        another.context.loadCheckpoint(checkpoint)
    np.testing.assert_array_equal(state_of(another), before)
    same = run_of(lambda x: bond_forces(x.astype(np.float32)), learning=learning)
    same.context.loadCheckpoint(checkpoint)
    same.step(20)


def test_a_draft_that_is_trained_between_checkpoints():
    """Each is of the forces of its time; also one of which no step was done since it was loaded."""
    constant = [2000.0]

    def trained(positions):
        return bond_forces(positions, constant[0])

    simulation = run_of(trained)
    checkpoints = []
    for constant[0] in (2000.0, 2100.0):
        simulation.step(10)
        checkpoints += [simulation.context.createCheckpoint()]
        simulation.context.loadCheckpoint(checkpoints[-1])
        checkpoints += [simulation.context.createCheckpoint()]
    for index, checkpoint in enumerate(checkpoints):
        for each in (2000.0, 2100.0):
            other = run_of(functools.partial(bond_forces, constant=each))
            if each == (2000.0, 2100.0)[index // 2]:
                other.context.loadCheckpoint(checkpoint)
                continue
            with pytest.raises(RestartError, match="forces that differ by more than half"):
                other.context.loadCheckpoint(checkpoint)


def test_a_draft_that_changes_its_argument_continues():
    def in_angstrom(positions):
        positions *= 10.0
        return bond_forces(positions / 10.0)

    checkpoint = at_a_new_window(in_angstrom).context.createCheckpoint()
    run_of(in_angstrom).context.loadCheckpoint(checkpoint)


def test_functions_in_a_draft_system_are_told_apart():
    """Which cannot be pickled, so OpenMM has no more than the name of their class."""

    def system(constant):
        force = openmm.PythonForce(
            lambda state: (
                0.0,
                bond_forces(state.getPositions(asNumpy=True)._value[None], constant)[0],
            )
        )
        return system_of(force)

    simulation = run_of(system(2000.0))
    simulation.step(10)
    checkpoint = simulation.context.createCheckpoint()
    run_of(system(2000.0)).context.loadCheckpoint(checkpoint)
    with pytest.raises(RestartError, match="forces that differ by more than half"):
        run_of(system(2100.0)).context.loadCheckpoint(checkpoint)


@pytest.mark.parametrize("learning", [False, True])
def test_parameters_are_those_of_the_own_context(learning):
    """Also where the potential is another Simulation's, or was asked about a checkpoint."""

    def simulation_at(value, potential):
        simulation = run_of(potential, slow_in(value), learning=learning)
        simulation.step(10)
        return simulation

    def slow_in(value):
        force = openmm.CustomBondForce(f"stiff*(r-{LENGTH})^2")
        force.addGlobalParameter("stiff", value)
        for pair in PAIRS:
            force.addBond(*pair)
        return system_of(force, torch_force(Bonds))

    shared = Stiff()
    both = [simulation_at(value, shared) for value in (100.0, 900.0)]
    alone = [simulation_at(value, Stiff()) for value in (100.0, 900.0)]
    foreign = run_of(Stiff(), slow_in(500.0), learning=learning, randomNumberSeed=9)
    foreign.step(1)
    checkpoint = foreign.context.createCheckpoint()
    for _ in range(3):
        for simulation in (*both, *alone):
            simulation.step(7)
            with pytest.raises(RestartError, match="randomNumberSeed"):
                simulation.context.loadCheckpoint(checkpoint)
    for ours, theirs in zip(both, alone, strict=True):
        np.testing.assert_array_equal(state_of(ours), state_of(theirs))


class Stiff(BatchedTarget):
    """Bonds as stiff as the Context says."""

    constant = 0.0

    def set_parameters(self, parameters):
        self.constant = 2000.0 + 2 * parameters.get("stiff", self.constant)

    def evaluate(self, positions, box=None):
        return np.zeros(len(positions)), bond_forces(positions, self.constant)


def test_copies():
    """A copy, a pickle and a State travel with the draft."""
    integrator = lsd(draft=bond_forces, draftPlatform=None)
    for other in (copy.deepcopy(integrator), pickle.loads(pickle.dumps(integrator))):
        simulation = run_of(draft_system())
        system = simulation.system
        context = openmm.Context(system, other, PLATFORM)
        context.setState(simulation.context.getState(positions=True, velocities=True))
        other.step(20)
        assert context.getStepCount() == 20


# The law


def three_springs(stiffness, length):
    """A chain of three particles in a trap."""
    bonds = openmm.CustomBondForce(f"{stiffness}*(r-{length})^2*(1+10*(r-{length}))")
    bonds.addBond(0, 1, [])
    bonds.addBond(1, 2, [])
    trap = openmm.CustomExternalForce("40*(x^2+1.2*y^2+0.8*z^2)")
    for index in range(3):
        trap.addParticle(index, [])
    return system_of(bonds, trap, masses=[12.0, 14.0, 16.0])


@functools.cache
def law_case():
    positions = np.array([[0.0, 0.0, 0.0], [0.15, 0.0, 0.0], [0.2, 0.14, 0.0]])
    return Case(
        three_springs(9000.0, 0.15),
        three_springs(3000.0, 0.17),
        positions,
        0.01,
        0.01,
        [0, 1, 2],
    )


@functools.cache
def reference():
    return reference_of(law_case())


def draft_forces(positions):
    return ContextTarget(law_case().draft, platforms={"Reference": {}}).forces_at(positions)


class Moody(BatchedTarget):
    """Fails here and there: raises, gives what is not a number, or wild forces."""

    takes_box = False

    def __init__(self, inner=None, often=0.06, is_wild=True):
        self._inner = inner or ContextTarget(law_case().draft, platforms={"Reference": {}})
        self._often, self._factor, self.failed = often, 1e3 if is_wild else 1.0, 0

    def evaluate(self, positions, box=None):
        energies, forces = self._inner.evaluate(positions, box)
        mood = (1e5 * positions[0, 0, 0] + 0.9) % 1.0  # a function of the site
        self.failed += mood < 3 * self._often
        if mood < self._often:
            raise ArithmeticError("no convergence")
        if mood < 2 * self._often:
            return energies, np.full_like(forces, np.nan)
        return energies, forces * (self._factor if mood < 3 * self._often else 1.0)


@pytest.mark.parametrize("learning", [False, True])
@pytest.mark.parametrize("kind", ["sound", "fails"])
def test_law(kind, learning):
    case = law_case()
    inner = ContextTarget(case.draft, platforms={"Reference": {}})
    draft = inner if kind == "sound" else Moody(is_wild=not learning)
    case = copy.copy(case)
    case.draft, case.learning = draft, learning
    kind = planted(_correction="none") if not learning else LSDIntegrator
    statistics, z, message = score_of(case, reference(), kind, draftPlatform=None)
    assert statistics.acceptance_rate > 0.05 and statistics.rejected > 20
    assert abs(z) < Z, message
    if not isinstance(draft, ContextTarget):
        assert draft.failed > 1000


class AcceptsAll(NativeEngine):
    """The path that the draft has led, with the target's forces at its sites only."""

    def commit(self, state, window, target_forces, draws):
        always = draws._replace(log_uniforms=np.full_like(draws.log_uniforms, -np.inf))
        return super().commit(state, window, target_forces, always)


class TurnsBack(Moody):
    """Fails where a bond is long: whether it does depends on the noise of the step before."""

    def evaluate(self, positions, box=None):
        energies, forces = self._inner.evaluate(positions, box)
        self.failed += 1
        if self.failed > 1 and positions[0, 1, 0] - positions[0, 0, 0] > 0.15:
            raise ArithmeticError("not there")
        return energies, forces


@pytest.mark.parametrize(("fault", "draft"), [(AcceptsAll, TurnsBack), (None, TurnsBack)])
def test_planted_faults(fault, draft):
    case = copy.copy(law_case())
    case.draft = draft()
    kind = planted(_engine=fault or NativeEngine, _correction="none")
    _, z, message = score_of(case, reference(), kind, faulty=fault is not None, draftPlatform=None)
    assert (abs(z) > Z) == (fault is not None), message


# Failures


def as_system(function):
    """A draft System with a PythonForce of it."""

    def compute(state):
        return 0.0, function(state.getPositions(asNumpy=True)._value[None])[0]

    return system_of(openmm.PythonForce(compute))


@pytest.mark.parametrize("form", [lambda function: function, as_system], ids=["function", "System"])
def test_a_draft_that_fails_at_committed_states(form, caplog):
    """The run goes on, a step at a time there, and says so once."""

    def fails(positions):
        if failing:
            raise ArithmeticError("no convergence")
        return bond_forces(positions)

    failing = []
    simulation = run_of(form(fails))
    simulation.step(20)
    failing.append(True)
    before = simulation.integrator.statistics
    simulation.step(40)
    spent = simulation.integrator.statistics.since(before)
    assert spent.steps == spent.rounds >= 20
    warned = [each for each in caplog.records if "no convergence" in each.message]
    assert len(warned) == 1 and "windows have one step there" in warned[0].message


def test_forces_near_zero_temperature_are_the_targets():
    """Whatever the draft does."""
    moody = Moody(KINDS["BatchedTarget"](), often=0.2)
    plain = openmm.LangevinMiddleIntegrator(COLD, 1.0, 0.001)
    context = openmm.Context(slow_system(), plain, PLATFORM)
    context.setPositions(POSITIONS)
    context.setVelocities(VELOCITIES)
    simulation = run_of(moody, temperature=COLD)
    for _ in range(5):
        plain.step(10)
        simulation.step(10)
        expected = context.getState(positions=True).getPositions(asNumpy=True)._value
        np.testing.assert_allclose(state_of(simulation)[0], expected, atol=1e-6)
    assert moody.failed > 10


@pytest.mark.parametrize("where", [0, 3])
def test_interrupts_are_not_taken_for_failures(where):
    """Ctrl-C while the draft computes, also at a site where an error would only end the window."""

    def interrupted(positions):
        if armed:
            armed.append(True)
            if len(armed) == where + 2:
                os.kill(os.getpid(), signal.SIGINT)
                for _ in range(1000):
                    pass
        return bond_forces(positions)

    armed = []
    simulation = at_a_new_window(interrupted)
    armed.append(True)
    with pytest.raises(KeyboardInterrupt):
        simulation.step(1)
    armed.clear()
    assert np.isfinite(state_of(simulation)).all()
    simulation.step(20)


def test_interrupts_in_a_draft_system_are_not_taken_for_failures():
    """A PythonForce, whose interrupts OpenMM hides."""

    def interrupted(state):
        if armed:
            armed.append(True)
            if len(armed) == 5:
                os.kill(os.getpid(), signal.SIGINT)
                for _ in range(1000):
                    pass
        return 0.0, bond_forces(state.getPositions(asNumpy=True)._value[None])[0]

    armed = []
    simulation = at_a_new_window(system_of(openmm.PythonForce(interrupted)))
    armed.append(True)
    with pytest.raises(KeyboardInterrupt):
        simulation.step(1)
    armed.clear()
    simulation.step(20)


@pytest.mark.parametrize(
    ("draft", "words"),
    [
        (lambda q: q[0], "the draft fails at the starting positions: .* forces of shape"),
        (lambda q: np.nan * q, "not finite"),
        (lambda q: 1 / 0, "division by zero"),
        (lambda q: None, "fails at the starting positions"),
    ],
)
def test_a_draft_that_never_works(draft, words):
    simulation = run_of(draft)
    with pytest.raises(ValueError, match=words):
        simulation.step(1)
    assert simulation.currentStep == 0


def test_wrong_arguments():
    for draft in (None, "amber", 3, [draft_system()]):
        with pytest.raises(TypeError, match=r"draft is a .*openmm.System"):
            LSDIntegrator(300, 1, 0.001, draft)
    with pytest.raises(TypeError, match="ASETarget"):
        LSDIntegrator(300, 1, 0.001, BondCalculator())
    with pytest.raises(ValueError, match="draftPlatform is the platform of a draft System"):
        LSDIntegrator(300, 1, 0.001, bond_forces, draftPlatform="Reference")


# Boxes, times, parameters, virtual sites: a draft that is the target loses nothing


class InItsPlace(BatchedTarget):
    """The Context's own forces, with its box, parameters and times."""

    uses_times = True

    def __init__(self, system):
        self._inner = ContextTarget(system, platforms={"Reference": {}})
        self.boxes, self.times = [], []

    def evaluate(self, positions, box=None):
        raise AssertionError("times are to be told")

    def evaluate_at(self, positions, box=None, times=None):
        self.boxes.append(None if box is None else np.array(box))
        self.times += times.times.tolist()
        return self._inner.evaluate_at(positions, box, times)

    def set_parameters(self, parameters):
        self._inner.set_parameters(parameters)


def test_box_parameters_and_times():
    system = target_system()
    barostat = openmm.MonteCarloBarostat(1.0, 300.0, 7)
    system.addForce(barostat)
    draft = InItsPlace(target_system())
    simulation = run_of(draft, system)
    simulation.step(40)
    simulation.context.setParameter("scale", 1.3)
    simulation.context.setParameter("strength", 5.0)
    simulation.step(40)
    assert simulation.integrator.statistics.acceptance_rate == 1.0
    assert len({box.tobytes() for box in draft.boxes}) > 3
    assert np.ptp(np.array(draft.times)) > 0.07


def test_virtual_sites():
    draft_calls = []

    def forces(positions):
        draft_calls.append(positions.copy())
        return forces_with_site(positions)

    integrator = LSDIntegrator(
        300, 1, 0.001, forces, windowLength=8, target=forces_with_site, randomNumberSeed=SEED
    )
    context = openmm.Context(system_with("virtual site"), integrator, REFERENCE)
    context.setPositions(np.zeros((3, 3)) + ORIGIN)
    context.computeVirtualSites()
    context.setVelocitiesToTemperature(300, 1)
    integrator.step(50)
    assert integrator.statistics.acceptance_rate == 1.0
    sites = np.concatenate(draft_calls)
    context.loadCheckpoint(context.createCheckpoint())
    placed = 0.3 * sites[:, 0] + 0.7 * sites[:, 1]
    np.testing.assert_allclose(sites[:, 2], placed, atol=1e-12)


def test_a_target_that_fails_is_not_the_drafts_fault():
    simulation = run_of(bond_forces, system_of(harmonic_bonds(), openmm.PythonForce(bad)))
    with pytest.raises(TargetError, match="bad luck"):
        simulation.step(10)


def bad(state):
    raise RuntimeError("bad luck")


# On the command line


STEM = ROOT / "systems" / "alanine_dipeptide" / "alanine_dipeptide"
FILES = ("--topology", f"{STEM}.prmtop", "--coordinates", f"{STEM}.inpcrd", "--no-minimize")
MODULE = f"""
import numpy as np
import openmm
from openmm import app
from openmm_lsd.targets import ContextTarget

def force_field(scale=1.0):
    prmtop = app.AmberPrmtopFile({f"{STEM}.prmtop"!r})
    system = prmtop.createSystem(nonbondedMethod=app.NoCutoff, constraints=None)
    for force in system.getForces():
        if isinstance(force, openmm.HarmonicBondForce):
            for index in range(force.getNumBonds()):
                *pair, length, k = force.getBondParameters(index)
                force.setBondParameters(index, *pair, length, scale * k)
    return ContextTarget(system, platforms={{"Reference": {{}}}})
"""


@pytest.fixture
def spec(tmp_path):
    """Function: --target or --draft, a force field with scaled bonds."""
    file = tmp_path / "potential.py"
    file.write_text(MODULE)
    return lambda scale: f"python:{file}:force_field(scale={scale})"


def test_a_potential_by_its_name(spec, tmp_path):
    outfile = tmp_path / "estimate.json"
    status = command(
        *("estimate", *FILES, "--target", spec(1.0), "--draft", spec(1.1), "--steps", 20),
        *("--windows", 4, "--warm-up", 10, "--platform", "Reference", "--outfile", outfile),
    )
    assert status == 0
    found = json.loads(outfile.read_text())
    given, automatic = found["estimate"], found["estimate, draft auto"]
    assert given["windows"][0]["steps_per_round"] > 2
    assert given["windows"][0]["draft_seconds"] > 0
    assert given["plain_seconds"] > 0 and automatic["windows"][0]["steps_per_round"] > 1


def test_which_draft_is_better():
    def estimate(speed_up):
        return SimpleNamespace(best=SimpleNamespace(speed_up=speed_up))

    assert "Take your draft: 2.00" in compare_drafts(estimate(2.0), estimate(1.5))
    assert "Take draft='auto': 1.00" in compare_drafts(estimate(0.2), estimate(1.5))


def test_a_run_with_a_draft_by_its_name(spec, tmp_path):
    status = command(
        *("run", *FILES, "--target", spec(1.0), "--draft", spec(1.1), "--steps", 30, "--window", 8),
        *("--platform", "Reference", "--output-dir", tmp_path / "out"),
    )
    assert status == 0


def test_a_potential_of_the_same_atoms_as_the_target():
    """In a box: everything else is shared."""
    box = ROOT / "systems" / "alanine_dipeptide_water"
    prmtop = app.AmberPrmtopFile(str(box / f"{box.name}.prmtop"))
    files = "--topology", box / f"{box.name}.prmtop", "--coordinates", box / f"{box.name}.inpcrd"
    parser_arguments = [
        *map(str, files),
        *("--target", f"{STEM}.pt", "--ml-atoms", "not water", "--platform", "Reference"),
        *("--environment", str(box / f"{box.name}.prmtop")),
        *("--draft", "ase:test_potential_draft:Springs()"),
    ]
    case = case_of(parse(["run", *parser_arguments, "--steps", "1", "--output-dir", "out"]))
    run = case.lsd(8)
    run.set_state(*run.state)
    run.simulation.context.setVelocitiesToTemperature(300, 1)
    run.step(3)
    assert len(run.integrator.subset) == 22 < prmtop.topology.getNumAtoms()
    assert run.integrator.probe().sampler.engine.name == "host"


class Springs(Calculator):
    """Between neighbours in the list."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        apart = np.diff(atoms.positions, axis=0)
        forces = np.zeros_like(atoms.positions)
        forces[:-1] += 0.1 * apart
        forces[1:] -= 0.1 * apart
        self.results = {"energy": 0.05 * float((apart**2).sum()), "forces": forces}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--draft", "ase:test_potential_draft:Nothing()"], "Nothing"),
        (["--draft", "python:no.py:f()"], "no.py"),
        (["--draft", "gold.pt"], "no TorchScript file"),
        (["--draft", f"python:{__file__}:seven()", "--ml-atoms", "not water"], "--environment"),
    ],
)
def test_drafts_that_are_not_there(arguments, words, capsys):
    assert command("run", *FILES, "--target", f"{STEM}.pt", *arguments, "--steps", 1) == 2
    assert words in capsys.readouterr().err


# What a helper found


@pytest.mark.parametrize("engine", [NativeSubsetEngine, SubsetEngine])
@pytest.mark.parametrize("learning", [False, True])
def test_a_draft_that_fails_in_a_mixed_system(engine, learning):
    """The rest goes on by the shared forces of the last step that was drafted."""
    topology, positions, cheap = box_of("dipeptide", None)
    target, draft, calls = copy.deepcopy(cheap), copy.deepcopy(cheap), []

    @batched
    def fails(q, box, parameters):
        calls.append(len(q))
        if len(calls) > 10 and len(calls) % 7 == 0:
            raise ArithmeticError("no convergence")
        energies, forces = chain_forces(q)
        return 0.7 * energies, 0.7 * forces

    target.addForce(python_force([4, 8, 14]))
    draft.addForce(python_force([4, 8, 14], fails))
    plain = openmm.LangevinMiddleIntegrator(COLD, 1.0, 0.001)
    speculative = lsd(
        COLD, 1.0, 0.001, draft, planted(_subset_engine=engine), windowLength=5, learning=learning
    )
    runs = []
    for integrator in (plain, speculative):
        simulation = app.Simulation(topology, target, integrator, PLATFORM)
        simulation.context.setPositions(positions)
        simulation.context.setVelocitiesToTemperature(300, 1)
        runs.append(simulation)
    for _ in range(4):
        for simulation in runs:
            simulation.step(10)
        shown, expected = (state_of(each)[0] for each in runs)
        np.testing.assert_allclose(shown, expected, atol=1e-7)
    assert len(speculative.subset) == 3 and len(calls) > 40


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("where", [1, 4])
def test_what_is_no_error_is_no_failure(kind, where):
    """An exit in a handler of SIGTERM, for one."""

    def leaves(positions):
        if armed:
            armed.append(True)
            if len(armed) == where + 1:
                raise kind()
        return bond_forces(positions)

    armed = []
    simulation = at_a_new_window(leaves)
    armed.append(True)
    with pytest.raises(kind):
        simulation.step(1)
    armed.clear()
    simulation.step(20)
    assert np.isfinite(state_of(simulation)).all()


def test_an_array_that_is_used_again():
    """With learning on top, which asks for forces a second time."""
    again = np.empty((1, 4, 3))

    def in_place(positions):
        again[:] = bond_forces(positions)
        return again

    paths = []
    for draft in (bond_forces, in_place):
        simulation = run_of(draft, learning=True)
        simulation.step(200)
        paths.append(state_of(simulation))
    np.testing.assert_array_equal(*paths)


@pytest.mark.parametrize("size", [1e13, 1e300, np.inf])
def test_a_draft_of_huge_forces_costs_speed_only(size):
    plain = openmm.LangevinMiddleIntegrator(COLD, 1.0, 0.001)
    target = slow_system()
    target.addForce(openmm.CMMotionRemover(1))
    context = openmm.Context(target, plain, PLATFORM)
    context.setPositions(POSITIONS)
    context.setVelocities(VELOCITIES)
    calls = []

    def huge(positions):
        calls.append(1)
        return size * np.ones_like(positions) if len(calls) > 3 else bond_forces(positions)

    simulation = run_of(huge, target, temperature=COLD, windowLength=8)
    plain.step(40)
    simulation.step(40)
    expected = context.getState(positions=True).getPositions(asNumpy=True)._value
    np.testing.assert_allclose(state_of(simulation)[0], expected, atol=1e-6)


class Scaled(BatchedTarget):
    """Harmonic bonds times a parameter of the Context."""

    gives_energies = False

    takes_box = False

    def __init__(self):
        self.scale = 1.0

    def set_parameters(self, parameters):
        self.scale = parameters.get("scale", 1.0)

    def evaluate(self, positions, box=None):
        return np.full(len(positions), np.nan), self.scale * bond_forces(positions)


@pytest.mark.parametrize("role", ["target", "draft"])
def test_one_object_in_two_simulations(role):
    """Each with its own parameters."""

    def one(potential, scale):
        system = slow_system() if role == "draft" else system_of()
        named = openmm.CustomExternalForce("0*scale*x")
        named.addGlobalParameter("scale", 1.0)
        if role == "target":  # whose forces must be the Context's
            named = openmm.CustomBondForce("scale*1000*(r-0.15)^2")
            named.addGlobalParameter("scale", 1.0)
            for pair in PAIRS:
                named.addBond(*pair, [])
        system.addForce(named)
        given = {"target": potential} if role == "target" else {}
        draft = potential if role == "draft" else bond_forces
        simulation = run_of(draft, system, **given)
        simulation.context.setParameter("scale", scale)
        return simulation

    alone = []
    for scale in (1.0, 0.5):
        simulation = one(Scaled(), scale)
        for _ in range(5):
            simulation.step(7)
        alone.append(state_of(simulation))
    both = Scaled()
    together = [one(both, 1.0), one(both, 0.5)]
    for _ in range(5):
        for simulation in together:
            simulation.step(7)
    np.testing.assert_array_equal([state_of(each) for each in together], alone)


class Empty(Scaled):
    def __len__(self):
        return 0


def test_an_object_that_is_false():
    integrator = lsd(draft=Empty(), draftPlatform=None)
    assert isinstance(copy.deepcopy(integrator)._draft.potential, Empty)


def test_a_function_as_the_draft_of_some_atoms(tmp_path):
    """It gives no energies, and a draft needs none."""
    (tmp_path / "ligand.py").write_text("def pull():\n    return lambda q: -10.0 * q\n")
    box = ROOT / "systems" / "alanine_dipeptide_water"
    prmtop, inpcrd = box / f"{box.name}.prmtop", box / f"{box.name}.inpcrd"
    words = [
        *("run", "--topology", prmtop, "--coordinates", inpcrd, "--environment", prmtop),
        *("--target", f"{STEM}.pt", "--ml-atoms", "not water", "--platform", "Reference"),
        *("--draft", f"python:{tmp_path / 'ligand.py'}:pull()", "--steps", 1),
    ]
    case = case_of(parse([*map(str, words), "--output-dir", "out"]))
    assert type(case.draft.getForce(case.draft.getNumForces() - 1)).__name__ == "PythonForce"
