"""Barostats: their moves at the steps and with the energies of a plain run.

Without noise and friction, and with one seed for the moves, a run is that of a VerletIntegrator,
box included. (Not LangevinMiddleIntegrator's: it draws its noise from the barostats' generator.)
"""

import itertools
from functools import partial

import numpy as np
import openmm
import pytest
from openmm import app, unit
from particles import COLD, ROUNDING, SEED, Cycling, always, lsd, planted

from openmm_lsd.commands import Case, benchmark, estimate
from openmm_lsd.integrator.barostat import BarostatMoves

EDGE = 2.0  # nm
COUNT = 27
CUBE = EDGE * np.eye(3)
TRICLINIC = np.array([[2.0, 0.0, 0.0], [0.6, 2.1, 0.0], [-0.4, 0.5, 2.2]])


def lattice():
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    return (grid + 0.3) * EDGE / 3 + 0.02 * np.random.default_rng(2).standard_normal((COUNT, 3))


def fluid(well, *forces, box=CUBE):
    """27 particles of a soft fluid, of which the first 20 are 10 diatomic molecules."""
    system = openmm.System()
    nonbonded = openmm.CustomNonbondedForce("well*((0.5/r)^6 - 0.6*(0.5/r)^3)")
    nonbonded.addGlobalParameter("well", well)
    nonbonded.setNonbondedMethod(openmm.CustomNonbondedForce.CutoffPeriodic)
    nonbonded.setCutoffDistance(0.9)
    nonbonded.setUseSwitchingFunction(True)
    nonbonded.setSwitchingDistance(0.7)
    bonds = openmm.HarmonicBondForce()
    for index in range(COUNT):
        system.addParticle(12.0 + index % 3)
        nonbonded.addParticle([])
    for index in range(0, 20, 2):
        bonds.addBond(index, index + 1, 0.66, 2000.0 * well)
        nonbonded.addExclusion(index, index + 1)
    system.setDefaultPeriodicBoxVectors(*box)
    for force in (nonbonded, bonds, *forces):
        system.addForce(force)
    return system


def seeded(barostat, frequency):
    barostat.setFrequency(frequency)
    barostat.setRandomNumberSeed(SEED)  # OpenMM has one generator, and the integrator has this seed
    return barostat


def isotropic(frequency=5, pressure=200.0):
    return seeded(openmm.MonteCarloBarostat(pressure, 300.0), frequency)


BAROSTATS = {
    "MonteCarloBarostat": lambda: isotropic(),
    "every step": lambda: isotropic(1),
    "every 40 steps": lambda: isotropic(40),
    "never": lambda: isotropic(0),
    "MonteCarloAnisotropicBarostat": lambda: seeded(
        openmm.MonteCarloAnisotropicBarostat(openmm.Vec3(100, 200, 300), 300.0, True, False, True),
        4,
    ),
    "MonteCarloAnisotropicBarostat without an axis": lambda: seeded(
        openmm.MonteCarloAnisotropicBarostat(openmm.Vec3(1, 1, 1), 300.0, False, False, False), 4
    ),
    "MonteCarloMembraneBarostat": lambda: seeded(
        openmm.MonteCarloMembraneBarostat(
            200.0,
            10.0,
            300.0,
            openmm.MonteCarloMembraneBarostat.XYAnisotropic,
            openmm.MonteCarloMembraneBarostat.ZFree,
        ),
        6,
    ),
    "MonteCarloFlexibleBarostat": lambda: seeded(
        openmm.MonteCarloFlexibleBarostat(200.0, 300.0), 7
    ),
}


def test_every_barostat_is_tried():
    barostats = {name for name in dir(openmm) if "Barostat" in name}
    assert barostats == {*BAROSTATS, "RPMDMonteCarloBarostat"} - {
        name for name in BAROSTATS if not name.startswith("MonteCarlo") or " " in name
    }


def history(simulation, pattern):
    """Positions, velocities and box after each entry of ``pattern`` steps."""
    rows = []
    for steps in pattern:
        simulation.step(steps)
        state = simulation.context.getState(positions=True, velocities=True)
        rows.append(
            [
                state.getPositions(asNumpy=True)._value,
                state.getVelocities(asNumpy=True)._value,
                state.getPeriodicBoxVectors(asNumpy=True)._value,
            ]
        )
    return rows


@pytest.fixture
def build_fluid(simulate):
    def make(barostat, *, plain, box=CUBE, **keywords):
        draft = fluid(0.8, box=box) if keywords.get("draft") is None else keywords.pop("draft")
        settings = {"temperature": COLD, "friction": 1e-9, "draft": draft, **keywords}
        integrator = openmm.VerletIntegrator(0.001) if plain else lsd(**settings)
        velocities = np.random.default_rng(3).normal(0.0, 0.5, (COUNT, 3))
        return simulate(fluid(1.0, barostat, box=box), integrator, lattice(), velocities)

    return make


PATTERN = [3, 1, 1, 7, 20, 1, 30, 17]


def assert_same(ours, plain, tolerance=1e-8 * ROUNDING):
    for row, (expected, got) in enumerate(zip(plain, ours, strict=True)):
        for what, a, b, scale in zip(("x", "v", "box"), expected, got, (1, 1e3, 1), strict=True):
            difference = np.abs(a - b).max()
            assert difference < scale * tolerance, f"{what} after {PATTERN[: row + 1]}"


@pytest.mark.parametrize("box", [CUBE, TRICLINIC], ids=["rectangular", "triclinic"])
@pytest.mark.parametrize("name", BAROSTATS)
def test_moves_are_those_of_a_plain_run(build_fluid, name, box):
    plain = history(build_fluid(BAROSTATS[name](), plain=True, box=box), PATTERN)
    simulation = build_fluid(BAROSTATS[name](), plain=False, box=box)
    ours = history(simulation, PATTERN)
    assert_same(ours, plain)
    boxes = {row[2].tobytes() for row in ours}
    statistics = simulation.integrator.statistics
    if name == "never" or "without" in name:
        assert len(boxes) == 1 and statistics.shortened_windows == 0
    else:
        assert len(boxes) > 2 and statistics.shortened_windows > 0
    assert statistics.steps >= sum(PATTERN)


@pytest.mark.parametrize("frequency", [4, 5, 7])
@pytest.mark.parametrize("chunk", [1, 3, 35])
def test_moves_of_plain_steps(build_fluid, frequency, chunk):
    """As many as in a plain run, also where the steps come one by one."""
    simulation = build_fluid(isotropic(frequency), plain=False, windowLength="auto")
    simulation.step(1)
    always(simulation.integrator, 1)
    for done in range(1, 36, chunk):
        simulation.step(min(chunk, 36 - done))
    memory = simulation.integrator._binding._access.get_barostat_memory()
    # The number of steps since the last move, and of moves tried.
    assert memory[:2].tolist() == [36 % frequency, 36 // frequency]


def test_a_frequency_counts_at_once(build_fluid):
    """Without reinitialisation: OpenMM's barostats look at it in every step."""
    histories = []
    for plain in (True, False):
        simulation = build_fluid(isotropic(5), plain=plain, windowLength=16, draft=fluid(1.0))
        rows = history(simulation, [7])
        for frequency in (50, 3, 0, 2):
            simulation.system.getForce(2).setFrequency(frequency)
            rows += history(simulation, [4, 1, 6])
        histories.append(rows)
    assert_same(histories[1], histories[0], 1e-6)


class LateMoves(BarostatMoves):
    """A move that comes a step late."""

    @property
    def next_step(self):
        return super().next_step + 1


def test_planted_bug_is_seen(build_fluid):
    plain = history(build_fluid(isotropic(), plain=True), PATTERN)
    late = planted(_moves=LateMoves)
    ours = history(build_fluid(isotropic(), plain=False, kind=late), PATTERN)
    with pytest.raises(AssertionError, match="after"):
        assert_same(ours, plain)


def test_draft_that_builds_itself(build_fluid):
    plain = history(build_fluid(isotropic(), plain=True), PATTERN)
    ours = history(build_fluid(isotropic(), plain=False, draft="auto"), PATTERN)
    assert_same(ours, plain)


def test_windows_that_tune_themselves(build_fluid):
    """Plain steps of the Context are among them, which make the moves themselves."""
    plain = history(build_fluid(isotropic(), plain=True), PATTERN)
    simulation = build_fluid(isotropic(), plain=False, windowLength="auto")
    simulation.step(1)
    simulation.integrator._binding.take_tuner(Cycling())
    simulation.step(2)
    ours = history(simulation, PATTERN[1:])
    # The plain steps draw noise, which is nothing at this temperature, from the generator of the
    # moves; these are others then, but come at the same steps.
    assert simulation.integrator.statistics.steps >= sum(PATTERN)
    moved = [
        [(a[2] != b[2]).any() for a, b in itertools.pairwise(run)] for run in (plain[1:], ours)
    ]
    assert moved[0] == moved[1]


def test_windows_are_tuned_between_moves(build_fluid):
    """Only windows that fit in between are timed, so no other may be waited for."""
    simulation = build_fluid(isotropic(3), plain=False, windowLength="auto")
    windows = set()
    for _ in range(150):
        simulation.step(2)
        windows.add(simulation.integrator.statistics.window_length)
    assert len(windows) > 1 and max(windows) <= 3


def test_pressure_is_that_of_the_context(build_fluid):
    """Changed in mid-run: the next move obeys."""
    runs = []
    for plain in (True, False):
        simulation = build_fluid(isotropic(), plain=plain)
        rows = history(simulation, [13])
        simulation.context.setParameter(openmm.MonteCarloBarostat.Pressure(), 5000.0)
        rows += history(simulation, [40])
        runs.append(rows)
    assert_same(runs[1], runs[0])
    volumes = [np.linalg.det(row[2]) for row in runs[0]]
    assert volumes[0] > 7.97 and volumes[1] < 7.87


class FailsOnce(BarostatMoves):
    """The energy of the first move from step ``at`` on cannot be had."""

    failed = False

    def apply(self, state):
        if state.step >= self.at and not self.failed:
            self.failed = True
            raise openmm.OpenMMException("no energy")
        return super().apply(state)


@pytest.mark.parametrize("at", [5, 12])
def test_failing_energy_of_a_move(build_fluid, at):
    """The box is what it was, and the move is tried once only."""
    fails = type("Fails", (FailsOnce,), {"at": at})
    simulation = build_fluid(isotropic(), plain=False, kind=planted(_moves=fails))
    simulation.step(at)
    before = history(simulation, [0])[0]
    with pytest.raises(openmm.OpenMMException, match="no energy"):
        simulation.step(10)
    after = history(simulation, [0])[0]
    assert (after[2] == before[2]).all()
    count = simulation.context.getStepCount()
    assert count == {5: 9, 12: 14}[at]  # the fifth step begins with a move, the tenth...


class Interrupted(BarostatMoves):
    """Ctrl-C after the first move that is accepted: before anybody hears of it, or after that."""

    armed, late = True, False

    def __init__(self, access, show, moved):
        super().__init__(access, show, self._hear)
        self._hear_of_it, self._box = moved, access.get_box()

    def _hear(self):
        if not self.late:
            self._interrupt()
        self._hear_of_it()

    def _interrupt(self):
        if self.armed and not np.array_equal(self._access.get_box(), self._box):
            self.armed = False
            raise KeyboardInterrupt

    def apply(self, state):
        result = super().apply(state)
        self._interrupt()
        return result

    def count_begun(self, steps):
        super().count_begun(steps)
        self._interrupt()


@pytest.mark.parametrize(("window", "late"), [(4, False), (4, True), (1, False)])
def test_an_interrupt_does_not_leave_half_of_a_move(build_fluid, window, late):
    """The last state before it is shown, in its own box, and the run continues from there."""
    plain = build_fluid(isotropic(), plain=True)
    expected = history(plain, [1] * 40)
    kind = planted(_moves=type("Interrupted", (Interrupted,), {"late": late}))
    simulation = build_fluid(isotropic(), plain=False, kind=kind, windowLength="auto")
    simulation.step(1)
    always(simulation.integrator, window)
    with pytest.raises(KeyboardInterrupt):
        simulation.step(40)
    done = simulation.context.getStepCount()
    (state,) = history(simulation, [0])
    assert_same([state], [expected[done - 1]])
    if window == 1:  # which has begun some steps for nothing, as far as the barostat knows
        simulation.step(10)
        return
    assert done % 5 == 4  # a move is due
    without = build_fluid(isotropic(0), plain=True, box=state[2])
    for name, values in zip(("Positions", "Velocities"), state, strict=False):
        getattr(without.context, f"set{name}")(values)
    assert_same(history(simulation, [1, 1, 1]), history(without, [1, 1, 1]))
    simulation.step(20)
    assert not np.array_equal(history(simulation, [0])[0][2], state[2])


def test_interrupted_run_continues_as_if_it_had_not_been(build_fluid):
    """The steps one by one, with looks at the energy: the same run."""
    runs = []
    for pattern in ([63], [1] * 63):
        simulation = build_fluid(isotropic(), plain=False, temperature=300.0)
        for steps in pattern:
            simulation.step(steps)
            simulation.context.getState(energy=True)
        runs.append(history(simulation, [0]))
    assert_same(*runs, 1e-12)


def case_of_fluid(frequency):
    topology = app.Topology()
    residue = topology.addResidue("X", topology.addChain())
    for index in range(COUNT):
        topology.addAtom(f"X{index}", app.element.carbon, residue)
    return Case(
        topology,
        lattice() * unit.nanometer,
        fluid(0.8),
        fluid(1.0, isotropic(frequency)),
        platform="Reference",
        minimize=False,
    )


@pytest.mark.parametrize(("frequency", "windows"), [(25, [4, 8, 16, 24]), (5, [4])])
def test_an_estimate_between_moves(frequency, windows):
    """A round of a longer window is always cut short, and would be waited for in vain."""
    said = []
    found = estimate(case_of_fluid(frequency), steps=10, warm_up=10, log=said.append)
    assert [each.window for each in found.windows] == windows
    assert f"the barostat moves every {frequency} steps: no longer windows are tried" in said


def test_windows_that_have_no_room():
    for predict in (estimate, partial(benchmark, predict=True)):
        with pytest.raises(ValueError, match=r"every 5 steps, and .* window of 8; give"):
            predict(case_of_fluid(5), windows=(8, 16))
        with pytest.raises(ValueError, match="windows begin at 2 steps"):
            predict(case_of_fluid(5), windows=(1, 4))


def test_runs_of_a_command_go_on_in_the_box_of_the_other():
    first, second = case_of_fluid(5).plain(), case_of_fluid(5).plain()
    first.step(40)
    second.set_state(*first.state_in_box)
    assert abs(second.state_in_box[2] - CUBE).max() > 1e-4
    for ours, theirs in zip(second.state_in_box, first.state_in_box, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_density_of_an_ideal_gas_of_molecules(simulate):
    """p(V) = V^N exp(-P V / kT): a Gamma distribution with N + 1 degrees of freedom."""

    def gas(constant, *forces):
        system = openmm.System()
        bonds = openmm.HarmonicBondForce()
        bonds.setUsesPeriodicBoundaryConditions(True)
        for index in range(80):
            system.addParticle(12.0)
            if index % 2:
                bonds.addBond(index - 1, index, 0.2, constant)
        system.setDefaultPeriodicBoxVectors(*(3.5 * np.eye(3)))
        for force in (bonds, *forces):
            system.addForce(force)
        return system

    pressure, molecules = 40.0, 40
    integrator = lsd(300.0, 50.0, draft=gas(3000.0))
    barostat = isotropic(4, pressure)
    positions = np.random.default_rng(5).uniform(0, 3.5, (80, 3))
    positions[1::2] = positions[::2] + np.array([0.2, 0.0, 0.0])
    simulation = simulate(gas(5000.0, barostat), integrator, positions)
    simulation.context.setVelocitiesToTemperature(300, 6)
    simulation.step(2000)
    volumes = []
    for _ in range(3000):
        simulation.step(4)
        volumes.append(np.linalg.det(simulation.integrator._binding._access.get_box()))
    kt = (unit.MOLAR_GAS_CONSTANT_R * 300 * unit.kelvin).value_in_unit(unit.kilojoule_per_mole)
    bar = (1 * unit.bar * unit.nanometer**3 * unit.AVOGADRO_CONSTANT_NA).value_in_unit(
        unit.kilojoule_per_mole
    )
    scaled = np.array(volumes) * pressure * bar / kt
    blocks = scaled.reshape(30, -1).mean(axis=1)
    error = blocks.std(ddof=1) / np.sqrt(len(blocks))
    assert abs(scaled.mean() - (molecules + 1)) < 5 * error < 4.0
