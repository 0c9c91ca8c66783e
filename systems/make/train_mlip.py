"""Train an ANI network on GFN2-xTB for one molecule and save it as TorchScript for TorchForce.

Stages, each cached in --workdir so that a later one can be run again:

    sample   amber (600 K) gives diverse starting conformers; from each, a short Langevin run with
             GFN2-xTB at a temperature between 300 and 600 K; frames with energies and forces
    train    TorchANI network on energies and forces; whole trajectories are held out
    explore  dynamics of the network itself, 64 replicas at 300 to 600 K; frames of it, above all
             those where the network goes astray, are labelled with GFN2-xTB and added
    export   TorchScript module: positions (N, 3) or (B, N, 3) in nm -> energy in kJ/mol, () or (B,)

    pip install ".[train]"
    python systems/make/train_mlip.py --prmtop X.prmtop --inpcrd X.inpcrd --output X.pt
"""

import argparse
import json
import multiprocessing
import os
import time
from pathlib import Path

import ase.data
import ase.units
import numpy as np
import torch

# A network has gone astray where a force component is larger than this (kJ/mol/nm), or the energy
# outside what the data set holds by more than this (kJ/mol).
LARGEST_FORCE, MARGIN = 5e4, 40.0
KCAL_PER_MOL_PER_EV = ase.units.mol / ase.units.kcal


def starting_conformers(prmtop_file, inpcrd_file, count, seed):
    """Positions (count, N, 3) in angstrom, 5 ps apart, of amber Langevin dynamics at 600 K."""
    import openmm
    from openmm import app, unit

    prmtop = app.AmberPrmtopFile(prmtop_file)
    integrator = openmm.LangevinMiddleIntegrator(
        600 * unit.kelvin, 2 / unit.picosecond, 0.5 * unit.femtosecond
    )
    integrator.setRandomNumberSeed(seed)
    simulation = app.Simulation(
        prmtop.topology,
        prmtop.createSystem(),
        integrator,
        openmm.Platform.getPlatform("Reference"),
    )
    simulation.context.setPositions(app.AmberInpcrdFile(inpcrd_file).positions)
    simulation.minimizeEnergy()
    simulation.context.setVelocitiesToTemperature(600 * unit.kelvin, seed)
    frames = []
    for _ in range(count):
        simulation.step(10_000)
        state = simulation.context.getState(positions=True)
        frames.append(state.getPositions(asNumpy=True).value_in_unit(unit.angstrom))
    return np.array(frames)


def xtb_trajectory(task):
    """One GFN2-xTB Langevin run: positions in A, energies in eV, forces in eV/A."""
    numbers, start, temperature, steps, stride, seed = task
    from ase import Atoms, units
    from ase.md.langevin import Langevin
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
    from tblite.ase import TBLite

    rng = np.random.default_rng(seed)
    atoms = Atoms(numbers=numbers, positions=start)
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=rng)
    dynamics = Langevin(
        atoms,
        0.5 * units.fs,
        temperature_K=temperature,
        friction=5e-3 / units.fs,
        rng=rng,
        fixcm=False,
    )
    positions, energies, forces = [], [], []
    for step in range(steps):
        dynamics.run(1)
        if (step + 1) % stride == 0:
            positions.append(atoms.get_positions())
            energies.append(atoms.get_potential_energy())
            forces.append(atoms.get_forces())
    return np.array(positions), np.array(energies), np.array(forces)


def sample(args, file):
    from openmm import app

    topology = app.AmberPrmtopFile(args.prmtop).topology
    numbers = [atom.element.atomic_number for atom in topology.atoms()]
    starts = starting_conformers(args.prmtop, args.inpcrd, args.trajectories, args.seed)
    rng = np.random.default_rng(args.seed)
    temperatures = rng.uniform(300, 600, args.trajectories)
    tasks = [
        (numbers, start, temperature, args.steps, args.stride, args.seed + index)
        for index, (start, temperature) in enumerate(zip(starts, temperatures, strict=True))
    ]
    os.environ["OMP_NUM_THREADS"] = "1"
    begin = time.time()
    results = []
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        for result in pool.imap(xtb_trajectory, tasks):
            results.append(result)
            print(f"sampled {len(results)}/{len(tasks)}  {time.time() - begin:.0f} s", flush=True)
    positions, energies, forces = (np.array(column) for column in zip(*results, strict=True))
    np.savez_compressed(
        file,
        numbers=numbers,
        temperatures=temperatures,
        positions=positions,
        energies=energies,
        forces=forces,
    )


def label(task):
    """GFN2-xTB energies (eV) and forces (eV/A) of frames; NaN where it does not converge."""
    numbers, frames = task
    from ase import Atoms
    from tblite.ase import TBLite

    energies, forces = np.full(len(frames), np.nan), np.full(frames.shape, np.nan)
    for index, frame in enumerate(frames):
        atoms = Atoms(numbers=numbers, positions=frame, calculator=TBLite(verbosity=0))
        try:
            energies[index], forces[index] = atoms.get_potential_energy(), atoms.get_forces()
        except Exception as error:  # a wild geometry
            print(f"frame {index}: {error}", flush=True)
    return energies, forces


def explore(args, data_file, file, replicas=64, steps=3000, stride=5, ordinary=1500):
    """Langevin dynamics of the network from frames of the data set; label what it visits."""
    from openmm_lsd.core.schemes import Middle

    data = np.load(data_file)
    rng = np.random.default_rng([args.seed, int(file.stem.removeprefix("explored"))])
    numbers, masses = data["numbers"], ase.data.atomic_masses[data["numbers"]][:, None]
    module = torch.jit.freeze(torch.jit.load(args.output).eval())
    frames = data["positions"][: -args.held_out].reshape(-1, len(numbers), 3)
    positions = frames[rng.choice(len(frames), replicas)] / ase.units.nm
    velocities = np.zeros_like(positions)
    temperatures = np.linspace(300, 600, replicas)
    scale = np.stack([Middle(t, 5.0, 0.001).noise_scale(1 / masses) for t in temperatures])
    scheme = Middle(300.0, 5.0, 0.001)
    unit = ase.units.mol / ase.units.kJ
    lowest, highest = data["energies"].min() * unit, data["energies"].max() * unit
    records, lost_at = [], []
    for step in range(steps):
        states = torch.tensor(positions, requires_grad=True)
        energies = module(states)
        (gradient,) = torch.autograd.grad(energies.sum(), states)
        energies = energies.detach().numpy()
        force = -np.nan_to_num(gradient.numpy())
        # What has gone astray is frozen: its last record is labelled below.
        astray = np.abs(force).max(axis=(1, 2)) > LARGEST_FORCE
        astray |= (energies < lowest - MARGIN) | (energies > highest + MARGIN)
        force[astray], velocities[astray] = 0.0, 0.0
        kick = scale * rng.standard_normal(positions.shape) * ~astray[:, None, None]
        if step % stride == 0:
            records.append(positions.copy())
            lost_at.append(astray)
        positions, velocities = scheme.step(positions, velocities, force / masses, kick)
    records, lost_at = np.array(records) * ase.units.nm, np.array(lost_at)
    lost = np.flatnonzero(lost_at.any(axis=0))
    print(f"explored {replicas} replicas of {steps} fs: {len(lost)} went astray", flush=True)
    near = [
        records[max(0, first - 20) : first + 1, r]
        for r in lost
        for first in [np.argmax(lost_at[:, r])]
    ]
    sound = records[:, np.setdiff1d(np.arange(replicas), lost)].reshape(-1, len(numbers), 3)
    chosen = [sound[rng.choice(len(sound), min(ordinary, len(sound)), replace=False)], *near]
    chosen = np.concatenate(chosen)
    os.environ["OMP_NUM_THREADS"] = "1"
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        tasks = [(numbers, part) for part in np.array_split(chosen, os.cpu_count())]
        energies, forces = (
            np.concatenate(column) for column in zip(*pool.map(label, tasks), strict=True)
        )
    useful = np.isfinite(energies) & (energies < data["energies"].max() + 5.0)
    useful &= np.nan_to_num(np.abs(forces).max(axis=(1, 2)), nan=np.inf) < 60.0
    print(f"labelled {len(chosen)} frames, {useful.sum()} of use", flush=True)
    np.savez_compressed(
        file, positions=chosen[useful], energies=energies[useful], forces=forces[useful]
    )


def build_model(symbols):
    """A small ANI network: 12 radial and 4 x 4 angular shells, two hidden layers per element."""
    from torchani.arch import simple_ani
    from torchani.nn import ANINetworks, AtomicNetwork

    model = simple_ani(
        symbols,
        lot="xtb-gfn2",
        radial_shifts=12,
        angular_shifts=4,
        sections=4,
        radial_cutoff=5.2,
        angular_cutoff=3.1,
        repulsion=False,
        strategy="pyaev",
        self_energies="zero",
    )
    width = model.aev_computer.out_dim
    networks = {symbol: AtomicNetwork([width, 64, 48, 1], "gelu", True) for symbol in symbols}
    model.potentials["nnp"].neural_networks = ANINetworks(networks)
    return model


class Potential(torch.nn.Module):
    """TorchForce's units around a TorchANI model whose output is eV relative to ``shift``."""

    def __init__(self, model, numbers, shift):
        super().__init__()
        self.model = model
        self.shift = float(shift)
        self.angstrom = float(ase.units.nm)
        self.kilojoule_per_mole = float(ase.units.mol / ase.units.kJ)
        self.register_buffer("numbers", torch.as_tensor(numbers, dtype=torch.long))

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        batched = positions.dim() == 3
        states = positions if batched else positions.unsqueeze(0)
        coordinates = (states * self.angstrom).to(torch.float32)
        species = self.numbers.unsqueeze(0).expand(coordinates.shape[0], -1)
        energies = self.model((species, coordinates)).energies.to(positions.dtype)
        energies = (energies + self.shift) * self.kilojoule_per_mole
        return energies if batched else energies[0]


def load_split(file, held_out):
    """Frames as (numbers, training set, test set); whole trajectories are held out."""
    data = np.load(file)
    sets = []
    for part in (slice(None, -held_out), slice(-held_out, None)):
        sets.append(
            (
                torch.tensor(np.concatenate(data["positions"][part]), dtype=torch.float32),
                torch.tensor(np.concatenate(data["forces"][part]), dtype=torch.float32),
                torch.tensor(np.concatenate(data["energies"][part]) - data["energies"].mean()),
            )
        )
    return data["numbers"], data["energies"].mean(), *sets


def predict(model, species, positions, create_graph=False):
    positions = positions.detach().requires_grad_(True)
    energies = model((species.expand(len(positions), -1), positions)).energies
    (gradient,) = torch.autograd.grad(energies.sum(), positions, create_graph=create_graph)
    return energies, -gradient


def errors(model, species, data):
    """Root mean square errors: energy per molecule (constant removed) in eV, force in eV/A."""
    positions, forces, energies = data
    energy_errors, force_errors = [], []
    for i in range(0, len(positions), 64):
        e, f = predict(model, species, positions[i : i + 64])
        energy_errors.append(e.detach() - energies[i : i + 64])
        force_errors.append(f - forces[i : i + 64])
    return torch.cat(energy_errors).std().item(), torch.cat(
        force_errors
    ).square().mean().sqrt().item()


def with_explored(training, shift, files):
    """The training set and the frames that exploration has added."""
    positions, forces, energies = ([column] for column in training)
    for file in files:
        data = np.load(file)
        positions.append(torch.tensor(data["positions"], dtype=torch.float32))
        forces.append(torch.tensor(data["forces"], dtype=torch.float32))
        energies.append(torch.tensor(data["energies"] - shift))
    return torch.cat(positions), torch.cat(forces), torch.cat(energies)


def train(args, file, minutes, explored=()):
    numbers, shift, training, test = load_split(file, args.held_out)
    training = with_explored(training, shift, explored)
    symbols = sorted(
        {ase.data.chemical_symbols[n] for n in numbers}, key=ase.data.atomic_numbers.get
    )
    torch.manual_seed(args.seed)
    model = build_model(symbols)
    learning_rate = args.learning_rate
    if explored:  # go on from the network that explored
        source = dict(torch.jit.load(args.output).model.named_parameters())
        for name, parameter in model.named_parameters():
            parameter.data.copy_(source[name].data)
        learning_rate /= 2
    species = torch.tensor(numbers, dtype=torch.long).unsqueeze(0)
    positions, forces, energies = training
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-6)
    averaged = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998)
    )
    begin = time.time()
    elapsed, epoch = 0.0, 0
    while elapsed < 60 * minutes:
        for batch in torch.randperm(len(positions)).split(args.batch):
            elapsed = time.time() - begin
            progress = min(1.0, elapsed / (60 * minutes))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * (0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * progress)))
            e, f = predict(model, species, positions[batch], create_graph=True)
            force_loss = (f - forces[batch]).square().mean()
            energy_loss = (e - energies[batch].to(e.dtype)).square().mean() / len(numbers)
            optimizer.zero_grad()
            (force_loss + 0.5 * energy_loss).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            averaged.update_parameters(model)
        epoch += 1
        energy_error, force_error = errors(averaged.module, species, test)
        print(
            f"epoch {epoch}  {elapsed:.0f} s  held-out: energy {1e3 * energy_error:.1f} meV, "
            f"force {force_error * KCAL_PER_MOL_PER_EV:.3f} kcal/mol/A",
            flush=True,
        )
    export(averaged.module, numbers, shift, species, training, test, args)


def export(model, numbers, shift, species, training, test, args):
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    report = {"atoms": len(numbers), "parameters": sum(p.numel() for p in model.parameters())}
    for name, data in (("training", training), ("held-out", test)):
        energy_error, force_error = errors(model, species, data)
        report[name] = {
            "frames": len(data[0]),
            "energy RMSE, kcal/mol": round(energy_error * KCAL_PER_MOL_PER_EV, 3),
            "force RMSE, kcal/mol/A": round(force_error * KCAL_PER_MOL_PER_EV, 3),
            "force RMS, kcal/mol/A": round(
                data[1].square().mean().sqrt().item() * KCAL_PER_MOL_PER_EV, 3
            ),
        }
    torch.jit.save(torch.jit.script(Potential(model, numbers, shift).eval()), args.output)
    args.output.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prmtop", required=True)
    parser.add_argument("--inpcrd", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--workdir", type=Path, default=Path("build/train_mlip"))
    parser.add_argument("--trajectories", type=int, default=80)
    parser.add_argument("--steps", type=int, default=1600, help="of 0.5 fs, per trajectory")
    parser.add_argument("--stride", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--held-out", type=int, default=8, help="trajectories")
    parser.add_argument("--minutes", type=float, default=40, help="of training")
    parser.add_argument("--rounds", type=int, default=2, help="of exploration")
    parser.add_argument("--refine-minutes", type=float, default=8, help="training after each")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    args = parser.parse_args()
    args.workdir.mkdir(parents=True, exist_ok=True)
    data = args.workdir / "frames.npz"
    if not data.exists():
        sample(args, data)
    if not args.output.exists():
        train(args, data, args.minutes)
    explored = sorted(args.workdir.glob("explored*.npz"))
    for round_ in range(len(explored), args.rounds):
        explored.append(args.workdir / f"explored{round_}.npz")
        explore(args, data, explored[-1])
        train(args, data, args.refine_minutes, explored)


if __name__ == "__main__":
    main()
