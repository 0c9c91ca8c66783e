"""What a batch costs, for every form of target: milliseconds for B states.

Forms whose packages are missing are left out. Networks have random weights where they are not
the shipped one; they cost the same. The ANI of OpenMM-ML has ANI-2x's size (one of its eight
members), its MACE that of a small model (16 channels, l <= 1, two layers).

    pip install ".[test,train]"
    python benchmarks/target_cost.py
"""

import argparse
import functools
import importlib.util
import sys
import time
from pathlib import Path

import numpy as np
import openmm
import torch
from openmm import unit
from results import save

from openmm_lsd import batched, systems
from openmm_lsd.targets import (
    ANITarget,
    ASETarget,
    ContextTarget,
    MACETarget,
    ModuleTarget,
    PythonForceTarget,
    RayTarget,
    SystemTarget,
    TorchSimTarget,
)

ROOT = Path(__file__).resolve().parent.parent


def nm(quantity):
    return np.array(quantity.value_in_unit(unit.nanometer))


@functools.cache
def molecule():
    return systems.load(ROOT / "systems/alanine_dipeptide")


def numbers():
    return [atom.element.atomic_number for atom in molecule().topology.atoms()]


def torch_force():
    return SystemTarget(molecule().target, nm(molecule().positions)), nm(molecule().positions)


@functools.cache
def ani():
    sys.path.append(str(ROOT / "systems" / "make"))
    from train_mlip import Potential, build_model

    module = Potential(build_model(["H", "C", "N", "O"]), numbers(), 0.0).eval()
    return module.requires_grad_(False)


def nn_module():
    return ModuleTarget(ani(), dtype=torch.float32), nm(molecule().positions)


def python_force(takes_a_batch):
    module = ModuleTarget(ani(), dtype=torch.float32)

    @batched
    def compute(positions, box, parameters):
        return module.evaluate(positions)

    function = compute if takes_a_batch else lambda state: compute(state)
    system = openmm.System()
    force = openmm.PythonForce(function, {})
    for _ in numbers():
        system.addParticle(1.0)
    system.addForce(force)
    positions = nm(molecule().positions)
    target = PythonForceTarget(system.getForce(0), positions)
    target.system = system  # owns the force
    return target, positions


def mace():
    from mace import modules  # first: it lets e3nn load its file with torch 2.9

    from e3nn import o3  # isort: skip

    block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    model = modules.ScaleShiftMACE(
        r_max=5.0,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=2,
        interaction_cls=block,
        interaction_cls_first=block,
        num_interactions=2,
        num_elements=4,
        hidden_irreps=o3.Irreps("16x0e+16x1o"),
        MLP_irreps=o3.Irreps("16x0e"),
        gate=torch.nn.functional.silu,
        atomic_energies=np.zeros(4),
        avg_num_neighbors=10.0,
        atomic_numbers=[1, 6, 7, 8],
        correlation=3,
        radial_type="bessel",
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )
    return MACETarget(model, numbers()), nm(molecule().positions)


def ani_2x():
    from torchani.arch import simple_ani

    symbols = ("H", "C", "N", "O", "S", "F", "Cl")
    model = simple_ani(symbols, lot="wb97x-631gd", periodic_table_index=True)
    return ANITarget(model, numbers()), nm(molecule().positions)


def contexts():
    water = systems.load(ROOT / "systems/amoeba_water")
    return ContextTarget(water.target, platforms={"Reference": {}}), nm(water.positions)


def gfn2(atomic_numbers):
    from tblite.ase import TBLite

    return ASETarget(TBLite(method="GFN2-xTB", verbosity=0), atomic_numbers)


def ase():
    return gfn2(numbers()), nm(molecule().positions)


def ray():
    return RayTarget(functools.partial(gfn2, numbers()), 2), nm(molecule().positions)


def torch_sim():
    from torch_sim.models.lennard_jones import LennardJonesModel

    model = LennardJonesModel(
        sigma=3.405, epsilon=0.0104, cutoff=8.5, dtype=torch.float64, compute_forces=True
    )
    lattice = 0.38 * np.stack(np.meshgrid(*[np.arange(4.0)] * 3), axis=-1).reshape(-1, 3)
    return TorchSimTarget(model, [18] * 64), lattice


FORMS = {
    "TorchForce: ANI, 22 atoms": (torch_force, []),
    "torch.nn.Module: ANI, 22 atoms": (nn_module, ["torchani"]),
    "PythonForce, one state: ANI, 22 atoms": (lambda: python_force(False), ["torchani"]),
    "PythonForce, batched: ANI, 22 atoms": (lambda: python_force(True), ["torchani"]),
    "OpenMM-ML: ANI-2x, 22 atoms": (ani_2x, ["openmmml", "torchani"]),
    "OpenMM-ML: MACE, 22 atoms": (mace, ["openmmml", "mace"]),
    "Contexts: AMOEBA, 192 atoms": (contexts, []),
    "ASE: GFN2-xTB, 22 atoms": (ase, ["ase", "tblite"]),
    "Ray, 2 workers: GFN2-xTB, 22 atoms": (ray, ["ray", "ase", "tblite"]),
    "TorchSim: Lennard-Jones, 64 atoms": (torch_sim, ["torch_sim"]),
}


def milliseconds(target, positions, batch, seconds):
    states = positions + 0.002 * np.random.default_rng(0).standard_normal((batch, *positions.shape))
    target.prepare(positions, batch)
    target.evaluate(states)
    times = []
    while sum(times) < seconds or len(times) < 3:
        begin = time.perf_counter()
        target.evaluate(states)
        times.append(time.perf_counter() - begin)
    return 1e3 * float(np.median(times))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--seconds", type=float, default=1.0, help="of measurement for each number")
    parser.add_argument("--outfile", type=Path)
    args = parser.parse_args()
    print("| form | " + " | ".join(f"B = {batch}" for batch in args.batches) + " |")
    print("|---|" + "---|" * len(args.batches))
    rows = {}
    for name, (make, packages) in FORMS.items():
        if not all(importlib.util.find_spec(package) for package in packages):
            continue
        target, positions = make()
        costs = [milliseconds(target, positions, b, args.seconds) for b in args.batches]
        target.close()
        print(f"| {name} | " + " | ".join(f"{cost:.1f}" for cost in costs) + " |", flush=True)
        rows[name] = costs
    if args.outfile is not None:
        save(args.outfile, {"batches": args.batches, "ms": rows})


if __name__ == "__main__":
    main()
