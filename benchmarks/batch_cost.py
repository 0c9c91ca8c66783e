"""What a batch of the ANI network of train_mlip.py costs: eager, scripted, frozen, compiled.

A TorchForce holds a ScriptModule, so LSDIntegrator can choose among the scripted ways only; this
script shows what the others would give. Random weights, which cost the same as trained ones.

    pip install ".[train]"
    python benchmarks/batch_cost.py --pdb systems/alanine_dipeptide/alanine_dipeptide.pdb
"""

import argparse
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from openmm import app, unit
from openmm_lsd._native import keep_freed_memory

sys.path.append(str(Path(__file__).resolve().parent.parent / "systems" / "make"))
from train_mlip import Potential, build_model

WAYS = ["eager", "scripted", "frozen", "compiled"]


def set_threads(threads):
    torch.get_num_threads()  # else the process's number is taken up later
    torch.set_num_threads(threads)


def forces(module, positions):
    positions = positions.detach().requires_grad_(True)
    return -torch.autograd.grad(module(positions).sum(), positions)[0]


def milliseconds(function, seconds=1.0):
    """Median, after a warm-up in which TorchScript and torch.compile do their work."""
    for _ in range(5):
        function()
    times = []
    while sum(times) < seconds or len(times) < 5:
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return 1e3 * np.median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pdb", required=True)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument(
        "--give-memory-back",
        action="store_true",
        help="to the system after every use, as glibc does by itself; LSDIntegrator keeps it",
    )
    args = parser.parse_args()
    if not args.give_memory_back:
        keep_freed_memory()
    pdb = app.PDBFile(args.pdb)
    numbers = [atom.element.atomic_number for atom in pdb.topology.atoms()]
    positions = np.array(pdb.positions.value_in_unit(unit.nanometer))
    module = Potential(build_model(["H", "C", "N", "O"]), numbers, 0.0).eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    scripted = torch.jit.script(module)
    ways = {"eager": module, "scripted": scripted, "frozen": torch.jit.freeze(scripted)}
    ways["compiled"] = torch.compile(module, dynamic=True)
    ways = {name: ways[name] for name in args.ways}
    cores = torch.get_num_threads()
    print(f"{len(numbers)} atoms; ms per batch")
    print(f"{'':12s}{'threads':>10s}" + "".join(f"{f'B = {b}':>10s}" for b in args.batches))
    for name, way in ways.items():
        for workers, threads in ((1, 1), (1, cores), (cores, 1)):
            if name == "compiled" and workers > 1:  # the compiler is not for several threads
                continue
            row, first = [], []
            for batch in args.batches:
                noise = 0.003 * np.random.default_rng(0).standard_normal((batch, *positions.shape))
                states = torch.tensor(positions + noise)
                torch.set_num_threads(threads)
                if workers == 1 or batch < workers:
                    run = lambda way=way, states=states: forces(way, states)  # noqa: E731
                else:
                    pool = ThreadPoolExecutor(workers, initializer=set_threads, initargs=(threads,))
                    shares = torch.chunk(states, workers)
                    run = lambda way=way, shares=shares, pool=pool: list(  # noqa: E731
                        pool.map(lambda share: forces(way, share), shares)
                    )
                begin = time.perf_counter()
                try:
                    run()
                    first.append(f"{time.perf_counter() - begin:10.1f}")
                    row.append(f"{milliseconds(run):10.2f}")
                except Exception as error:  # torch.compile may not cope with the neighbour list
                    row.append(f"{type(error).__name__[:9]:>10s}")
            print(f"{name:12s}{f'{workers} x {threads}':>10s}" + "".join(row), flush=True)
            if name == "compiled" and threads == 1:
                print(f"{'  its first call, s':22s}" + "".join(first), flush=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
