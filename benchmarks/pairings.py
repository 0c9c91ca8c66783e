"""Steps per round with the draft potentials that users have, beside draft='auto'. Counts, no times.

    python benchmarks/pairings.py gfn        # alanine dipeptide, GFN1-xTB under GFN2-xTB
    python benchmarks/pairings.py copper     # 32 atoms, ASE's EMT under CHGNet; copper4 for tests
    python benchmarks/pairings.py salt       # NaCl, 64 atoms, CHGNet; 'auto' only
    python benchmarks/pairings.py copper32   # and copper108: EMT under SevenNet's 7net-0
    python benchmarks/pairings.py silicon64  # salt64 and urea32: 7net-0; 'auto' only
    python benchmarks/pairings.py metal32    # and metal108: EMT as the target; 'auto' only
    python benchmarks/pairings.py metal32 --pressure 1  # with a barostat

Each pairing: the draft as it is, the same with learning, 'auto', and the published rule (one
constant offset for the whole window) on each of these. With --outfile every count is written as
soon as it is known, so several of these can run side by side;
benchmarks/pairings_table.py makes the table of docs/materials.md.
"""

import argparse
from functools import partial
from pathlib import Path

import ase.build
import numpy as np
import openmm
from openmm import app, unit
from results import changing, today

from openmm_lsd import LSDIntegrator, systems
from openmm_lsd.commands.benchmark import machine
from openmm_lsd.targets import ASETarget, BatchedTarget, CHGNetTarget

DIPEPTIDE = Path(__file__).resolve().parent.parent / "systems" / "alanine_dipeptide"


class ConstantOffset(LSDIntegrator):
    """The published rule."""

    _correction = "constant"


class NoDraft(BatchedTarget):
    """No forces: what corrections alone achieve."""

    def evaluate(self, positions, box=None):
        return np.zeros(len(positions)), np.zeros_like(positions)


def gfn():
    """Topology, positions in nm, target, draft, time step in ps and temperature."""
    from tblite.ase import TBLite

    molecule = systems.load(DIPEPTIDE)
    numbers = [atom.element.atomic_number for atom in molecule.topology.atoms()]
    positions = molecule.positions.value_in_unit(unit.nanometer)
    target, draft = (ASETarget(TBLite(method=f"GFN{n}-xTB", verbosity=0), numbers) for n in (2, 1))
    return molecule.topology, np.array(positions), target, draft, 0.001, 300.0


def copper(repeats):
    from ase.calculators.emt import EMT

    atoms = ase.build.bulk("Cu", cubic=True) * repeats
    draft = ASETarget(EMT(), atoms.numbers)
    return *crystal(atoms), CHGNetTarget("0.3.0", atoms.numbers), draft, 0.005, 300.0


def salt():
    """NaCl, 64 atoms; nothing but 'auto' as a draft."""
    atoms = ase.build.bulk("NaCl", "rocksalt", a=5.69, cubic=True) * (2, 2, 2)
    return *crystal(atoms), CHGNetTarget("0.3.0", atoms.numbers), "auto", 0.002, 300.0


def sevennet(atoms, name="7net-0"):
    """From the weights in its wheel; sevenn cannot be installed beside mace-torch.

    Its tensor products are compiled, which makes it two to three times faster on a CPU.
    """
    import e3nn
    import torch

    e3nn.set_optimization_defaults(jit_mode="eager")  # what is scripted cannot be compiled
    from sevenn.calculator import SevenNetCalculator

    calculator = SevenNetCalculator(name, device="cpu")
    for module in calculator.model.modules():
        if isinstance(module, e3nn.o3.TensorProduct):
            product = torch.compile(module._compiled_main_left_right, dynamic=True)
            module._compiled_main_left_right = product
    return ASETarget(calculator, atoms.numbers)


def small_and_large():
    atoms = ase.build.bulk("Si", cubic=True)
    return *crystal(atoms), sevennet(atoms, "7net-l3i5"), sevennet(atoms), 0.002, 300.0


class Ensemble(BatchedTarget):
    """The mean of several targets."""

    def __init__(self, members):
        self.members = members

    def evaluate(self, positions, box=None):
        found = [member.evaluate(positions, box) for member in self.members]
        energies, forces = zip(*found, strict=True)
        return np.mean(energies, axis=0), np.mean(forces, axis=0)


def member_and_ensemble():
    atoms = ase.build.bulk("Si", cubic=True)
    members = [CHGNetTarget(name, atoms.numbers) for name in ("0.2.0", "0.3.0")]
    return *crystal(atoms), Ensemble(members), members[1], 0.002, 300.0


def copper_by_sevennet(repeats):
    from ase.calculators.emt import EMT

    atoms = ase.build.bulk("Cu", cubic=True) * (repeats, repeats, repeats)
    return *crystal(atoms), sevennet(atoms), ASETarget(EMT(), atoms.numbers), 0.005, 300.0


def silicon():
    atoms = ase.build.bulk("Si", cubic=True) * (2, 2, 2)
    return *crystal(atoms), sevennet(atoms), "auto", 0.002, 300.0


def salt_by_sevennet():
    atoms = ase.build.bulk("NaCl", "rocksalt", a=5.69, cubic=True) * (2, 2, 2)
    return *crystal(atoms), sevennet(atoms), "auto", 0.002, 300.0


def urea():
    """A molecular crystal, 32 atoms: Swaminathan et al., Acta Cryst. B40, 300 (1984)."""
    from ase.spacegroup import crystal as by_symmetry

    sites = {
        "C": (0.0, 0.5, 0.3280),
        "O": (0.0, 0.5, 0.5962),
        "N": (0.1447, 0.6447, 0.1785),
        "H": (0.2552, 0.7552, 0.2872),
        "H2": (0.1428, 0.6428, -0.0348),
    }
    symbols = [name[0] for name in sites]
    cell = [5.565, 5.565, 4.684, 90, 90, 90]
    atoms = by_symmetry(symbols, list(sites.values()), spacegroup=113, cellpar=cell) * (1, 1, 2)
    return *crystal(atoms), sevennet(atoms), "auto", 0.001, 300.0


def metal(repeats):
    from ase.calculators.emt import EMT

    atoms = ase.build.bulk("Cu", cubic=True) * (repeats, repeats, repeats)
    return *crystal(atoms), ASETarget(EMT(), atoms.numbers), "auto", 0.005, 300.0


def crystal(atoms):
    """Topology and positions in nm."""
    topology = app.Topology()
    residue = topology.addResidue("X", topology.addChain())
    for number in atoms.numbers:
        element = app.Element.getByAtomicNumber(int(number))
        topology.addAtom(element.symbol, element, residue)
    topology.setPeriodicBoxVectors(0.1 * np.array(atoms.cell) * unit.nanometer)
    return topology, 0.1 * atoms.positions


PAIRINGS = {
    "gfn": gfn,
    "copper": partial(copper, (2, 2, 2)),
    "copper4": partial(copper, (1, 1, 1)),
    "salt": salt,
    "copper32": partial(copper_by_sevennet, 2),
    "copper108": partial(copper_by_sevennet, 3),
    "silicon64": silicon,
    "salt64": salt_by_sevennet,
    "silicon8": small_and_large,
    "ensemble": member_and_ensemble,
    "urea32": urea,
    "metal32": partial(metal, 2),
    "metal108": partial(metal, 3),
}
WAYS = {
    "draft": ("given", False, LSDIntegrator),
    "draft, published rule": ("given", False, ConstantOffset),
    "draft, learning": ("given", True, LSDIntegrator),
    "draft, learning, published rule": ("given", True, ConstantOffset),
    "auto": ("auto", None, LSDIntegrator),
    "auto, published rule": ("auto", None, ConstantOffset),
}
NO_DRAFT = {"no draft": ("none", False, LSDIntegrator)}
KEYS = ("pairing", "K", "temperature", "pressure", "way", "seed")


class Pairing:
    """Runs of one pairing that begin with the same equilibrated atoms and the same drafts."""

    def __init__(self, args, seed):
        topology, positions, self.target, self.given, self.step_size, usual = PAIRINGS[
            args.pairing
        ]()
        self.topology, self.positions = topology, positions
        self.temperature = args.temperature or usual
        self.args, self.seed = args, seed
        self._started = None
        self._warm = {}

    def simulate(self, potential, integrator):
        system = systems.with_target(self.topology, potential)
        if self.args.pressure is not None:
            barostat = openmm.MonteCarloBarostat(self.args.pressure, self.temperature, 25)
            system.addForce(barostat)
        platform = openmm.Platform.getPlatform("Reference")
        simulation = app.Simulation(self.topology, system, integrator, platform)
        simulation.context.setPositions(self.positions)
        simulation.context.setVelocitiesToTemperature(2 * self.temperature, self.seed)
        return simulation

    def equilibrate(self):
        """State after plain dynamics with the draft potential, which costs next to nothing.

        None where no potential is given as a draft: the warm-up does it then.
        """
        if self._started is None and self.given != "auto":
            plain = openmm.LangevinMiddleIntegrator(self.temperature, 1.0, self.step_size)
            plain.setRandomNumberSeed(self.seed)
            simulation = self.simulate(self.given, plain)
            simulation.step(self.args.equilibration)
            self._started = simulation.context.getState(positions=True, velocities=True)
        return self._started

    def begin(self, draft, learning, kind):
        integrator = kind(
            self.temperature,
            1.0,
            self.step_size,
            {"given": self.given, "none": NoDraft(), "auto": "auto"}[draft],
            windowLength=self.args.window,
            randomNumberSeed=self.seed,
            topology=self.topology,
            learning=learning,
        )
        return self.simulate(self.target, integrator)

    def warm_up(self, draft, learning):
        """Checkpoint of a Simulation with our rule, whose draft has learned."""
        if (draft, learning) not in self._warm:
            simulation = self.begin(draft, learning, LSDIntegrator)
            started = self.equilibrate()
            if started is not None:
                simulation.context.setState(started)
            simulation.step(self.args.warm_up)
            self._warm[draft, learning] = simulation.context.createCheckpoint()
        return self._warm[draft, learning]

    def count(self, way):
        """Steps per round, and of what: KEYS say that, and the rest how it was counted."""
        draft, learning, kind = {**WAYS, **NO_DRAFT}[way]
        warm = self.warm_up(draft, learning)
        simulation = self.begin(draft, learning, kind)
        simulation.context.loadCheckpoint(warm)
        steps = self.args.steps
        if kind is ConstantOffset:  # which commits little, once it stands on its own offsets
            steps = min(steps, 32)
            simulation.step(steps)
        before = simulation.integrator.statistics
        simulation.step(steps)
        spent = simulation.integrator.statistics.since(before)
        return {
            "pairing": self.args.pairing,
            "K": self.args.window,
            "temperature": self.temperature,
            "pressure": self.args.pressure,
            "way": way,
            "seed": self.seed,
            "steps per round": spent.steps_per_round,
            "noise shift of steps not measured before": spent.noise_shifts_by_measurement[0],
            "equilibration": 0 if self.given == "auto" else self.args.equilibration,
            "warm-up": self.args.warm_up,
            "steps": steps,
            "date": today(),
            "machine": machine(),
        }


def write(count, outfile):
    """In the place of an earlier count of the same; others may write at the same time."""

    def key(each):
        return [str(each[name]) for name in KEYS]

    with changing(outfile, "[]") as known:
        others = [each for each in known if key(each) != key(count)]
        known[:] = sorted([*others, count], key=key)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pairing", choices=list(PAIRINGS))
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument("--temperature", type=float, help="K; by default the pairing's")
    parser.add_argument("--pressure", type=float, help="bar; by default the volume is constant")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--warm-up", type=int, default=600, help="steps, in which drafts learn")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--ways", nargs="+", choices=[*WAYS, *NO_DRAFT], default=list(WAYS))
    parser.add_argument("--outfile", type=Path)
    parser.add_argument(
        "--equilibration", type=int, default=400, help="steps of plain dynamics with the draft"
    )
    args = parser.parse_args()
    counts = {way: [] for way in args.ways}
    for seed in args.seeds:
        pairing = Pairing(args, seed)
        for way in args.ways:
            count = pairing.count(way)
            counts[way].append(count["steps per round"])
            if args.outfile is not None:
                write(count, args.outfile)
            print(f"{args.pairing}, {way}, seed {seed}: {counts[way][-1]:.2f}", flush=True)
    for way, found in counts.items():
        error = np.std(found, ddof=1) / np.sqrt(len(found)) if len(found) > 1 else np.nan
        print(f"{args.pairing}, {way}: {np.mean(found):.2f} +- {error:.2f}")


if __name__ == "__main__":
    main()
