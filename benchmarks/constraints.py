"""Constraints: steps per round, what projections cost, and whether plain dynamics is kept to.

    python benchmarks/constraints.py counts     # steps per round; needs no clock
    python benchmarks/constraints.py cost       # microseconds of projections and of drafted steps
    python benchmarks/constraints.py ensemble   # kinetic energy and constraints of 216 waters, 1 ns
    python benchmarks/constraints.py density    # rigid TIP3P at 1 bar
    python benchmarks/constraints.py amoeba     # AMOEBA drafted by TIP3P, both rigid

Each with --outfile FILE adds its results to that file.
"""

import argparse
import copy
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import openmm
from openmm import app, unit
from results import save

from openmm_lsd import LSDIntegrator, systems
from openmm_lsd.commands import Case
from openmm_lsd.commands.benchmark import Kind, Way, time_in_turns
from openmm_lsd.contexts.constraints import SystemProjection, constraints_of
from openmm_lsd.contexts.forcecontext import ForceContext
from openmm_lsd.core.corrections import Corrections
from openmm_lsd.core.schemes import MOLAR_GAS_CONSTANT, Middle
from openmm_lsd.core.window import Draws, State
from openmm_lsd.drafts.draft import Draft
from openmm_lsd.drafts.nativeengine import NativeEngine

ROOT = Path(__file__).resolve().parent.parent
TEMPERATURE, FRICTION = 300.0, 1.0
POLARITY = 1.03  # the target's charges over the draft's
CPU = openmm.Platform.getPlatform("CPU")


def water_box(molecules, cutoff, method=app.PME, rigid=True, seed=1):
    """A Case of TIP3P water whose target has other charges, at ease."""
    field = app.ForceField("amber14/tip3p.xml")
    modeller = app.Modeller(app.Topology(), [] * unit.nanometer)
    modeller.addSolvent(field, numAdded=molecules)
    draft = field.createSystem(
        modeller.topology,
        nonbondedMethod=method,
        nonbondedCutoff=cutoff * unit.nanometer,
        rigidWater=rigid,
    )
    target = copy.deepcopy(draft)
    for force in target.getForces():
        if isinstance(force, openmm.NonbondedForce):
            for index in range(force.getNumParticles()):
                charge, *rest = force.getParticleParameters(index)
                force.setParticleParameters(index, POLARITY * charge, *rest)
    return Case(
        modeller.topology,
        modeller.positions,
        draft,
        target,
        step_size=0.002 if rigid else 0.001,
        platform="CPU",
        seed=seed,
    )


def steps_per_round(case, warm_up, steps, window=16, **keywords):
    """Of an LSDIntegrator whose draft is on the CPU platform, after some steps."""
    integrator = LSDIntegrator(
        case.temperature,
        case.friction,
        case.step_size,
        case.draft,
        windowLength=window,
        randomNumberSeed=case.seed,
        draftPlatform="CPU",
        topology=case.topology,
        **keywords,
    )
    simulation = app.Simulation(case.topology, case.target, integrator, CPU)
    simulation.context.setPositions(case.positions)
    simulation.minimizeEnergy(maxIterations=100)
    simulation.context.setVelocitiesToTemperature(case.temperature, 1)
    simulation.step(warm_up)
    before = integrator.statistics
    simulation.step(steps)
    spent = integrator.statistics.since(before)
    return spent.steps_per_round, spent.mean_noise_shift


def counts(args):
    rows = []

    def row(name, case, warm_up, steps, **keywords):
        committed, shift = steps_per_round(case, warm_up, steps, **keywords)
        rows.append({"case": name, "steps per round": committed, "noise shift": shift})
        print(f"{name:60s}{committed:7.2f}{shift:8.3f}", flush=True)

    print(f"{'K = 16, 300 K, 1/ps':60s}  steps per round, mean noise shift")
    row("216 rigid waters, 2 fs", water_box(216, 0.9), 500, 1000)
    row("216 flexible waters, 1 fs", water_box(216, 0.9, rigid=False), 500, 1000)
    row("2000 rigid waters, 2 fs", water_box(2000, 0.9), 200, 400)
    directory = ROOT / "systems" / "stiff_dipeptide_water"
    for step_size, hydrogen_mass in ((0.001, None), (0.002, None), (0.004, 1.5)):
        molecule = systems.load(directory, hydrogenMass=hydrogen_mass)
        for learning in (False, True):
            case = Case.of(molecule, step_size=step_size, seed=1)
            heavy = f", hydrogens of {hydrogen_mass:g} amu" if hydrogen_mass else ""
            words = ", learning" if learning else ""
            name = f"alanine dipeptide in water, {1e3 * step_size:g} fs{heavy}{words}"
            row(name, case, 500 if learning else 200, 600, learning=learning)
    return rows


def time_of(function, repeats):
    """Seconds: the median of some calls."""
    times = []
    for _ in range(repeats):
        begin = perf_counter()
        function()
        times.append(perf_counter() - begin)
    return float(np.median(times))


class NoForces:
    """A draft that costs as good as nothing: what is left is the step itself."""

    uses_times = False

    def __init__(self, particles):
        empty = openmm.System()
        for _ in range(particles):
            empty.addParticle(1.0)
        context = ForceContext(empty, openmm.Platform.getPlatform("Reference"))
        self.draft = Draft(context)


def cost(args):
    rows, window = [], 16
    print(
        "waters   velocities   positions   both, us per water   drafted step, us: rigid   flexible"
    )
    for molecules in (100, 300, 1000, 2000, 4000):
        case = water_box(molecules, 0.9)
        positions = np.array(case.positions.value_in_unit(unit.nanometer))
        rng = np.random.default_rng(1)
        projection = SystemProjection(case.target, 1e-5)
        positions = projection.positions(positions, positions)
        masses = np.array([case.target.getParticleMass(i)._value for i in range(len(positions))])
        speeds = np.sqrt(MOLAR_GAS_CONSTANT * TEMPERATURE / masses)[:, None]
        velocities = speeds * rng.standard_normal(positions.shape)
        free = positions + 0.002 * projection.velocities(positions, velocities)
        native = projection.native
        at, v, x = (np.ascontiguousarray(each[None]) for each in (positions, velocities, free))
        spent = [
            time_of(partial(native.velocities, at, v), 50),
            time_of(partial(native.positions, at, x), 50),
        ]
        draws = Draws(
            rng.standard_normal((window, *positions.shape)),
            np.zeros(window),
            np.zeros(window, dtype=bool),
        )
        nothing = Corrections(np.zeros((window, *positions.shape)))
        draft = NoForces(len(positions)).draft
        state = State(positions, projection.velocities(positions, velocities), 0)
        per_step = []
        for constraints in (projection, None):
            engine = NativeEngine(Middle(300.0, 1.0, 0.002, constraints), masses, draft)
            seconds = time_of(partial(engine.draft, state, nothing, draws), 20)
            per_step.append(1e6 * seconds / window)
        micro = [1e6 * each / molecules for each in spent]
        rows.append(
            {
                "waters": molecules,
                "velocities, us per water": micro[0],
                "positions, us per water": micro[1],
                "drafted step, us, rigid": per_step[0],
                "drafted step, us, flexible": per_step[1],
                "projections of a drafted step, us per water": (per_step[0] - per_step[1])
                / molecules,
            }
        )
        print(
            f"{molecules:6d}   {micro[0]:10.3f}   {micro[1]:9.3f}   {sum(micro):18.3f}   "
            f"{per_step[0]:23.1f}   {per_step[1]:8.1f}",
            flush=True,
        )
    return rows


class Shown:
    """Kinetic energies and the worst constraint of the states that a Simulation shows."""

    def __init__(self, case, integrator):
        self.simulation = app.Simulation(case.topology, case.target, integrator, CPU)
        lengths = constraints_of(case.target)
        self._pairs, self._lengths = np.array(list(lengths)), np.array(list(lengths.values()))
        self._masses = np.array([case.target.getParticleMass(i)._value for i in range(case.atoms)])[
            :, None
        ]
        self.worst, self.kinetic, self.potential = 0.0, [], []

    def start(self, positions, velocities):
        self.simulation.context.setPositions(positions)
        self.simulation.context.setVelocities(velocities)

    def look(self, energies):
        context = self.simulation.context
        state = context.getState(positions=True, velocities=True, energy=energies)
        x = state.getPositions(asNumpy=True)._value
        first, second = self._pairs.T
        lengths = np.linalg.norm(x[first] - x[second], axis=1)
        self.worst = max(self.worst, float(np.abs(lengths / self._lengths - 1.0).max()))
        v = state.getVelocities(asNumpy=True)._value
        self.kinetic.append(0.5 * float((self._masses * v * v).sum()))
        if energies:
            self.potential.append(state.getPotentialEnergy()._value)


def mean_and_error(values, blocks=20):
    """With the standard error from the means of blocks."""
    length = len(values) // blocks
    means = np.array(values[: blocks * length]).reshape(blocks, length).mean(axis=1)
    return float(means.mean()), float(means.std(ddof=1) / np.sqrt(blocks))


def ensemble(args):
    """Short-ranged forces, so that a nanosecond fits into half an hour."""
    case = water_box(216, 0.7, app.CutoffPeriodic)
    scout = case.plain()
    scout.equilibrate(case, 5000)
    start = scout.state
    plain = openmm.LangevinMiddleIntegrator(TEMPERATURE, args.friction, case.step_size)
    plain.setRandomNumberSeed(args.seed)
    lsd = LSDIntegrator(
        TEMPERATURE,
        args.friction,
        case.step_size,
        case.draft,
        windowLength=16,
        randomNumberSeed=args.seed,
        draftPlatform="CPU",
    )
    runs = {"plain": Shown(case, plain), "LSD": Shown(case, lsd)}
    for run in runs.values():
        run.start(*start)
        run.simulation.step(2000)
    steps = round(1e3 * args.nanoseconds / case.step_size)
    stride, singly = 10, min(args.singly, steps)
    begin = perf_counter()
    for done in range(0, steps, stride):
        for name, run in runs.items():
            if name == "LSD" and done < singly:
                for _ in range(stride):  # every state
                    run.simulation.step(1)
                    run.look(energies=False)
            else:
                run.simulation.step(stride)
                run.look(energies=False)
        if done % 50_000 == 0:
            print(f"{done} steps, {perf_counter() - begin:.0f} s", flush=True)
    thermal = 0.5 * case.degrees_of_freedom * MOLAR_GAS_CONSTANT * TEMPERATURE
    result = {
        "nanoseconds": args.nanoseconds,
        "friction, 1/ps": args.friction,
        "degrees of freedom": case.degrees_of_freedom,
    }
    for name, run in runs.items():
        mean, error = mean_and_error(np.array(run.kinetic) / thermal)
        half = len(run.kinetic) // 2
        drift = (np.mean(run.kinetic[half:]) - np.mean(run.kinetic[:half])) / thermal
        result[name] = {
            "kinetic energy over its expectation": mean,
            "error": error,
            "second half less first half": float(drift),
            "worst relative error of a constraint": run.worst,
        }
        print(
            f"{name:6s} kinetic energy {mean:.5f}({error:.5f}) of kT/2 per degree of freedom, "
            f"second half {drift:+.5f}; worst constraint {run.worst:.2e}"
        )
    result["LSD"]["steps per round"] = lsd.statistics.steps_per_round
    result["LSD"]["states looked at"] = len(runs["LSD"].kinetic)
    return result


def density(args):
    """Both integrators, with barostats of their own, from the same state."""
    result, start = {"nanoseconds": args.nanoseconds}, None
    mass = 216 * 18.01528 * 1.66053907e-3  # amu nm^-3 in g cm^-3
    for name in ("plain", "LSD"):
        case = water_box(216, 0.8)
        barostat = openmm.MonteCarloBarostat(1.0, TEMPERATURE, 25)
        barostat.setRandomNumberSeed(args.seed)
        case.target.addForce(barostat)
        plain = openmm.LangevinMiddleIntegrator(TEMPERATURE, FRICTION, case.step_size)
        plain.setRandomNumberSeed(args.seed)
        integrator = plain if name == "plain" else case.integrator(16)
        simulation = app.Simulation(case.topology, case.target, integrator, CPU)
        if start is None:
            simulation.context.setPositions(case.positions)
            simulation.minimizeEnergy(maxIterations=100)
            simulation.context.setVelocitiesToTemperature(TEMPERATURE, args.seed)
            simulation.step(20_000)
            start = simulation.context.getState(positions=True, velocities=True)
        simulation.context.setState(start)
        values = []
        for _ in range(round(1e3 * args.nanoseconds / case.step_size / 50)):
            simulation.step(50)
            volume = simulation.context.getState().getPeriodicBoxVolume()
            values.append(mass / volume.value_in_unit(unit.nanometer**3))
        mean, error = mean_and_error(values, blocks=10)
        result[name] = {"density, g/cm3": mean, "error": error}
        print(f"{name:6s} {mean:.4f}({error:.4f}) g/cm3", flush=True)
    return result


def amoeba(args):
    """64 waters, 2 fs; the draft is rigid TIP3P, whose angle is a bit narrower."""
    molecule = systems.load(ROOT / "systems" / "amoeba_water", rigidWater=True)
    case = Case.of(molecule, step_size=0.002, platform="CPU", seed=1)
    run = case.lsd("auto")
    run.equilibrate(case, args.steps)
    committed, shift = steps_per_round(case, 100, args.steps)
    print(f"K = 16: {committed:.2f} steps per round, noise shift {shift:.3f}", flush=True)
    ways = [
        Way("plain", Kind.PLAIN, case.plain()),
        Way("LSD", Kind.LSD, run),
        Way("LSD, K = 16", Kind.LSD, case.lsd(16), has_fixed_window=True),
    ]
    rows = time_in_turns(case, ways, run.state, args.seconds, 40, print)
    for row in rows:
        print(row.line(0.0))
    return {
        "steps per round, K = 16": committed,
        "noise shift": shift,
        "rows": [row.as_dict() for row in rows],
    }


PARTS = {each.__name__: each for each in (counts, cost, ensemble, density, amoeba)}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--nanoseconds", type=float, default=1.0, help="ensemble, density")
    parser.add_argument("--friction", type=float, default=FRICTION, help="1/ps; ensemble")
    parser.add_argument("--singly", type=int, default=100_000, help="steps looked at one by one")
    parser.add_argument("--steps", type=int, default=400, help="amoeba")
    parser.add_argument("--seconds", type=float, default=60.0, help="amoeba")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--outfile", type=Path)
    args = parser.parse_args()
    result = PARTS[args.part](args)
    if args.outfile:
        usual = args.part != "ensemble" or args.friction == FRICTION
        name = args.part if usual else f"{args.part}, {args.friction:g}/ps"
        save(args.outfile, {"result": result}, name)


if __name__ == "__main__":
    main()
