"""ML/MM: a molecule by its network in boxes of water of several sizes.

    pip install parmed                         # counts and waits: it makes the boxes
    python benchmarks/mixed.py counts          # steps per round, in vacuum and in boxes
    python benchmarks/mixed.py host            # time of the host per round, with free forces
    python benchmarks/mixed.py batch           # a batch of the slow force, in a box and alone
    python benchmarks/mixed.py waits           # wall time with a slow force that is simulated

Each with --outfile FILE adds its results to that file.
"""

import argparse
import copy
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np
import openmm
from openmm import app, unit
from results import save
from simulated_device import SPIN

from openmm_lsd import LSDIntegrator, batched, systems
from openmm_lsd.commands import Case
from openmm_lsd.commands.benchmark import Kind, Way, time_in_turns
from openmm_lsd.commands.estimate import estimate
from openmm_lsd.contexts.forcecontext import ForceContext
from openmm_lsd.targets import BatchedTarget, SystemTarget
from openmm_lsd.targets.slowforces import is_slow

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "systems" / "make"))
TEMPERATURE, FRICTION = 300.0, 1.0
ATOMS = {"alanine_dipeptide": 22, "ibuprofen": 33}
CPU = openmm.Platform.getPlatform("CPU")


def in_water(name, atoms, seed=1, picoseconds=5.0):
    """Topology, positions and force field of about so many atoms, at ease at 300 K and 1 bar."""
    from make_solution import build_solution, equilibrate

    solute = ATOMS[name]
    directory = ROOT / "systems" / name
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "box.prmtop"
        solution = build_solution(directory, round((atoms - solute) / 3))
        state = equilibrate(solution, file, picoseconds, seed)
        box = state.getPeriodicBoxVectors()
        prmtop = app.AmberPrmtopFile(str(file), periodicBoxVectors=box)
    edge = min(vector[axis] for axis, vector in enumerate(box)).value_in_unit(unit.nanometer)
    field = prmtop.createSystem(
        nonbondedMethod=app.PME,
        nonbondedCutoff=min(0.9, 0.45 * edge) * unit.nanometer,
        rigidWater=True,
    )
    return prmtop.topology, state.getPositions(), field


def case_in_water(name, atoms, seed=1):
    """A Case with the network on the molecule."""
    topology, positions, field = in_water(name, atoms, seed)
    target = with_network(name, field)
    return Case(topology, positions, "auto", target, platform="CPU", seed=seed, name=name)


def with_network(name, field):
    """The force field, with the molecule's network on the molecule."""
    network = ROOT / "systems" / name / f"{name}.pt"
    return systems.with_torch_force(field, network, atoms=range(ATOMS[name]))


def in_vacuum(name, seed=1, positions=None):
    """A Case of the molecule alone, at its own positions or others."""
    molecule = systems.load(ROOT / "systems" / name)
    case = Case.of(molecule, draft="auto", platform="CPU", seed=seed, name=name)
    return case if positions is None else replace(case, positions=positions)


def simulation_of(case, window=16):
    """With an LSDIntegrator whose draft is on the CPU platform, and its rounds."""
    integrator = LSDIntegrator(
        case.temperature,
        case.friction,
        case.step_size,
        case.draft,
        windowLength=window,
        randomNumberSeed=case.seed,
        draftPlatform="CPU",
        topology=case.topology,
    )
    rounds = []
    integrator.round_callbacks.append(rounds.append)
    simulation = app.Simulation(case.topology, case.target, integrator, CPU)
    # Not minimised: in a box OpenMM's minimiser takes the network to where it knows nothing.
    simulation.context.setPositions(case.positions)
    simulation.context.setVelocitiesToTemperature(case.temperature, case.seed)
    return simulation, rounds


def counts(args):
    rows = []
    print("K = 16, 1 fs, 300 K, 1/ps, draft 'auto'   atoms   steps per round   target, ms/round")
    for name in args.molecules:
        for atoms in (None, *args.atoms):
            committed, seconds, size = [], [], 0
            for seed in args.seeds:
                case = case_in_water(name, atoms or min(args.atoms), seed)
                if atoms is None:  # from where it is in a box
                    case = in_vacuum(name, seed, case.positions[: ATOMS[name]])
                simulation, rounds = simulation_of(case)
                simulation.step(args.warm_up)
                before = simulation.integrator.statistics
                del rounds[:]
                simulation.step(args.steps)
                spent = simulation.integrator.statistics.since(before)
                committed.append(np.mean([each.committed for each in rounds]))
                seconds.append(spent.target_seconds / spent.rounds)
                size = len(simulation.integrator.subset)
            error = np.std(committed, ddof=1) / np.sqrt(len(committed)) if committed[1:] else 0.0
            row = {
                "molecule": name,
                "atoms": case.atoms,
                "subset": size,
                "seeds": args.seeds,
                "steps per round": committed,
                "target, ms per round": 1e3 * float(np.mean(seconds)),
            }
            rows.append(row)
            print(
                f"{name:40s}{case.atoms:7d}{np.mean(committed):10.2f} +- {error:.2f}"
                f"{row['target, ms per round']:15.2f}",
                flush=True,
            )
    return {"warm-up": args.warm_up, "steps": args.steps, "rows": rows}


def free_system(atoms, rigid):
    """So many particles, water but for the first 22, and forces that cost next to nothing; a draft
    with the same forces, which need not be learned; where the particles are."""
    bond, angle = 0.09572, np.deg2rad(104.52)
    side = 2 * bond * np.sin(angle / 2)
    shape = bond * np.array(
        [
            [0, 0, 0],
            [np.sin(angle / 2), np.cos(angle / 2), 0],
            [-np.sin(angle / 2), np.cos(angle / 2), 0],
        ]
    )
    rng, waters = np.random.default_rng(1), (atoms - 22) // 3
    solute = 0.11 * np.stack(np.unravel_index(np.arange(22), (3, 3, 3)), axis=1)
    solvent = (rng.uniform(1, 7, (waters, 1, 3)) + shape).reshape(-1, 3)
    system = openmm.System()
    for _ in range(22):
        system.addParticle(12.0)
    for first in range(22, 22 + 3 * waters, 3):
        for mass in (15.999, 1.008, 1.008):
            system.addParticle(mass)
        if rigid:
            for i, j, length in ((0, 1, bond), (0, 2, bond), (1, 2, side)):
                system.addConstraint(first + i, first + j, length)
    nothing = openmm.CustomExternalForce("0*x")
    nothing.addParticle(0, [])
    system.addForce(nothing)
    system.addForce(openmm.CMMotionRemover(1))
    draft = copy.deepcopy(system)
    ties = openmm.CustomExternalForce("50*((x-x0)^2+(y-y0)^2+(z-z0)^2)")
    for name in ("x0", "y0", "z0"):
        ties.addPerParticleParameter(name)
    for index, site in enumerate(solute):
        ties.addParticle(index, site)
    draft.addForce(ties)

    @batched
    def springs(positions, box, parameters):
        apart = positions - solute
        return 50.0 * (apart**2).sum(axis=(1, 2)), -100.0 * apart

    force = openmm.PythonForce(springs)
    force.setParticles(list(range(22)))
    system.addForce(force)
    return system, draft, np.concatenate([solute, solvent])


def host(args):
    """Milliseconds per round that are neither learning nor the forces' own, which are next to
    nothing."""
    rows = []
    print("22 atoms in   rigid water   steps/round   ms per round   shared forces   host, ms")
    for atoms in args.atoms:
        for rigid in (False, True):
            system, draft, positions = free_system(atoms, rigid)
            integrator = LSDIntegrator(
                300, 1, 0.001, draft, windowLength=16, draftPlatform="Reference"
            )
            integrator.setRandomNumberSeed(1)
            context = openmm.Context(system, integrator, openmm.Platform.getPlatform("Reference"))
            context.setPositions(positions)
            context.setVelocitiesToTemperature(300, 1)
            context.applyVelocityConstraints(1e-6)
            integrator.step(args.warm_up)
            own = 1e3 * seconds_of_forces(system, positions)
            best = np.inf
            for _ in range(5):
                before, begin = integrator.statistics, perf_counter()
                integrator.step(args.steps)
                elapsed = perf_counter() - begin
                spent = integrator.statistics.since(before)
                best = min(best, 1e3 * (elapsed - spent.target_seconds) / spent.rounds)
            rows.append(
                {
                    "atoms": system.getNumParticles(),
                    "rigid": rigid,
                    "steps per round": spent.steps_per_round,
                    "round, ms": best,
                    "shared forces, ms": 16 * own,
                    "host, ms": best - 16 * own,
                }
            )
            print(
                f"{system.getNumParticles():11d}{rigid!s:>14s}{spent.steps_per_round:14.2f}"
                f"{best:15.2f}{16 * own:16.2f}{best - 16 * own:11.2f}",
                flush=True,
            )
    return {"window": 16, "rows": rows}


def seconds_of_forces(system, positions):
    """Of one call to a Context for the forces that are shared, which are none."""
    empty = openmm.System()
    for index in range(system.getNumParticles()):
        empty.addParticle(system.getParticleMass(index))
    forces = ForceContext(empty, openmm.Platform.getPlatform("Reference"))
    begin = perf_counter()
    for _ in range(50):
        forces.forces(positions[None])
    return (perf_counter() - begin) / 50


def batch(args):
    """Milliseconds of a batch of 16 states: the molecule in a box, and alone.

    In turns in one process, each after 16 evaluations of the cheap forces, as in a round: threads
    fall asleep and caches are filled with other things meanwhile, whatever follows.
    """
    rows = []
    print("a batch of 16   atoms   in the box, ms   alone, ms   ratio")
    for name in args.molecules:
        alone = in_vacuum(name)
        here = alone.positions.value_in_unit(unit.nanometer)
        for atoms in args.atoms:
            _, positions, field = in_water(name, atoms)
            positions = np.array(positions.value_in_unit(unit.nanometer))
            mixed, subset = with_network(name, field), np.arange(ATOMS[name])
            slow = [k for k, force in enumerate(mixed.getForces()) if is_slow(force)]
            rest = ForceContext(field, CPU)
            states = np.repeat(positions[None, subset], 16, axis=0)
            states += np.random.default_rng(1).normal(scale=1e-3, size=states.shape)
            medians = []
            for _ in range(args.repeats):  # how a batch is run is found out anew
                targets = {
                    "in the box": SystemTarget(
                        mixed, positions, platform="CPU", subset=subset, indices=slow
                    ),
                    "alone": SystemTarget(alone.target, here, platform="CPU"),
                }
                for target in targets.values():
                    target.prepare(positions[subset], 16)
                seconds = {way: [] for way in targets}
                for _ in range(args.turns):
                    for way, target in targets.items():
                        for _ in range(16):
                            rest.forces(positions[None])
                        begin = perf_counter()
                        target.evaluate(states)
                        seconds[way].append(perf_counter() - begin)
                medians.append([1e3 * float(np.median(each)) for each in seconds.values()])
            in_box, by_itself = np.transpose(medians)
            ratio = float(np.median(in_box / by_itself))
            row = {"in the box, ms": list(in_box), "alone, ms": list(by_itself), "ratio": ratio}
            rows.append({"molecule": name, "atoms": len(positions), **row})
            print(
                f"{name:17s}{len(positions):5d}{np.median(in_box):15.2f}"
                f"{np.median(by_itself):12.2f}{ratio:8.3f}",
                flush=True,
            )
    return {"turns": args.turns, "rows": rows}


class Waiting(BatchedTarget):
    """A target whose forces are handed out after a fixed time for every 16 states, or fewer."""

    def __init__(self, target, seconds):
        self._target, self._seconds = target, seconds

    def evaluate(self, positions, box=None):
        ready = perf_counter() + self._seconds * -(-len(positions) // 16)
        result = self._target.evaluate(positions, box)
        time.sleep(max(0.0, ready - perf_counter() - SPIN))
        while perf_counter() < ready:
            pass
        return result


def waits(args):
    name = args.molecules[0]
    topology, positions, field = in_water(name, args.atoms[0])
    alone = in_vacuum(name)
    network = SystemTarget(alone.target, alone.positions.value_in_unit(unit.nanometer))
    rows = []
    print(
        f"{name} in {topology.getNumAtoms()} atoms, 1 fs\n"
        "wait, ms   plain, ms/step   LSD, ms/step   K   steps/round   speed-up   predicted"
    )
    for milliseconds in args.milliseconds:
        slow = Waiting(network, 1e-3 * milliseconds)
        target = systems.with_target(field, slow, atoms=range(ATOMS[name]))
        conditions = {"platform": "CPU", "seed": 1, "name": name}
        own = Case(topology, positions, "auto", target, **conditions, minimize=False)
        run = own.lsd("auto")
        run.equilibrate(own, args.warm_up)
        predicted = estimate(own, run=run, steps=200).best
        ways = [Way("plain", Kind.PLAIN, own.plain()), Way("LSD", Kind.LSD, run)]
        plain, lsd = time_in_turns(own, ways, run.state, args.seconds, 64, lambda line: None)
        rows.append(
            {
                "wait, ms": milliseconds,
                "plain": plain.as_dict(),
                "LSD": lsd.as_dict(),
                "predicted": predicted.speed_up,
            }
        )
        spent = lsd.spent
        print(
            f"{milliseconds:8g}{plain.ms_per_step:17.2f}{lsd.ms_per_step:15.2f}{spent.window:4d}"
            f"{spent.steps_per_round:14.2f}{lsd.ratio:11.2f}{predicted.speed_up:12.2f}",
            flush=True,
        )
    return {"molecule": name, "atoms": topology.getNumAtoms(), "rows": rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for command in (counts, host, batch, waits):
        sub = commands.add_parser(command.__name__)
        sub.add_argument("--outfile", type=Path)
        sub.set_defaults(measure=command)
        if command is not host:
            sub.add_argument("--molecules", nargs="+", default=list(ATOMS), choices=list(ATOMS))
    numbers = {
        "counts": {
            "--atoms": [500, 2300, 9000],
            "--warm-up": 500,
            "--steps": 4000,
            "--seeds": [1, 2, 3, 4],
        },
        "host": {"--atoms": [22, 2000, 20_000], "--warm-up": 500, "--steps": 400},
        "batch": {"--atoms": [500, 2300, 9000], "--turns": 60, "--repeats": 5},
        "waits": {"--atoms": [2300], "--warm-up": 2000, "--seconds": 40},
    }
    numbers["waits"]["--milliseconds"] = [20, 50, 100]
    for command, options in numbers.items():
        for option, value in options.items():
            more = {"nargs": "+"} if isinstance(value, list) else {}
            commands.choices[command].add_argument(option, type=int, default=value, **more)
    args = parser.parse_args()
    result = args.measure(args)
    if args.outfile is not None:
        save(args.outfile, result, args.command)


if __name__ == "__main__":
    main()
