"""Digests of trajectories, to the last bit: what a change of structure must not change.

Run it before and after, on one machine, and compare the lines. Each case is a Simulation with a
window and a seed of its own: both schemes, every kind of draft, learning beside the target, virtual
sites under a barostat, changes in between, and a run that is continued from a checkpoint.

    python scripts/trajectory_digests.py --outfile before.txt
    python scripts/trajectory_digests.py --compare before.txt
"""

import argparse
import copy
import hashlib
import sys
from pathlib import Path

import numpy as np
import openmm
import torch
from openmm import app, unit

from openmm_lsd import LSDIntegrator, systems

DIRECTORY = Path(__file__).parent.parent / "systems"
REFERENCE = openmm.Platform.getPlatform("Reference")
SEED = 7


def stiffened(system, factor=1.1):
    result = copy.deepcopy(system)
    for force in result.getForces():
        if isinstance(force, openmm.HarmonicBondForce):
            for index in range(force.getNumBonds()):
                i, j, length, constant = force.getBondParameters(index)
                force.setBondParameters(index, i, j, length, factor * constant)
    return result


def water():
    """Topology, System and positions of 27 flexible TIP4P-Ew molecules on a lattice."""
    topology, positions = app.Topology(), []
    chain = topology.addChain()
    for place in np.ndindex(3, 3, 3):
        residue = topology.addResidue("HOH", chain)
        oxygen, *hydrogens = [
            topology.addAtom(name, app.Element.getBySymbol(name[0]), residue)
            for name in ("O", "H1", "H2")
        ]
        for hydrogen in hydrogens:
            topology.addBond(oxygen, hydrogen)
        x, y, z = 0.33 * np.array(place)
        positions += [(x, y, z), (x + 0.0957, y, z), (x - 0.024, y + 0.0927, z)]
    topology.setPeriodicBoxVectors(np.eye(3) * unit.nanometer)
    forcefield = app.ForceField("tip4pew.xml")
    modeller = app.Modeller(topology, np.array(positions) * unit.nanometer)
    modeller.addExtraParticles(forcefield)
    system = forcefield.createSystem(
        modeller.topology,
        constraints=None,
        rigidWater=False,
        nonbondedMethod=app.CutoffPeriodic,
        nonbondedCutoff=0.45,
    )
    return modeller.topology, system, modeller.positions


def forces_of(system):
    """As a plain function of a batch, one state after another."""
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), REFERENCE)

    def forces(positions):
        result = np.empty_like(positions)
        for here, row in zip(positions, result, strict=True):
            context.setPositions(here)
            state = context.getState(forces=True)
            row[:] = state.getForces(asNumpy=True)._value
        return result

    return forces


def digest(simulation):
    state = simulation.context.getState(positions=True, velocities=True)
    parts = (
        state.getPositions(asNumpy=True)._value,
        state.getVelocities(asNumpy=True)._value,
        state.getPeriodicBoxVectors(asNumpy=True)._value,
        np.array([state.getTime()._value, state.getStepCount()]),
    )
    return hashlib.sha256(b"".join(each.tobytes() for each in parts)).hexdigest()[:16]


def build(molecule, draft, step_size=0.001, **options):
    topology, system, positions = molecule
    integrator = LSDIntegrator(300, 1, step_size, draft, randomNumberSeed=SEED, **options)
    simulation = app.Simulation(topology, system, integrator, REFERENCE)
    simulation.context.setPositions(positions)
    simulation.context.setVelocitiesToTemperature(300, SEED)
    return simulation


def cases():
    """Names, and what makes the Simulation and the steps between its digests."""
    molecule = systems.load(DIRECTORY / "alanine_dipeptide")
    network = molecule.topology, molecule.target, molecule.positions
    stiff = molecule.topology, stiffened(molecule.draft), molecule.positions

    module = torch.jit.load(DIRECTORY / "alanine_dipeptide" / "alanine_dipeptide.pt")
    given = {"target": module}  # of a TorchForce the form is chosen by timing

    def run(simulation, *steps):
        for count in steps:
            simulation.step(count)
            yield digest(simulation)

    def with_changes(simulation):
        yield from run(simulation, 150)
        simulation.integrator.setTemperature(320)
        yield from run(simulation, 50)
        simulation.context.setVelocitiesToTemperature(300, SEED)
        yield from run(simulation, 50)
        simulation.integrator.setStepSize(0.0005)
        yield from run(simulation, 150)

    def continued(make):
        simulation = make()
        yield from run(simulation, 433)
        checkpoint, other = simulation.context.createCheckpoint(), make()
        other.context.loadCheckpoint(checkpoint)
        yield from run(other, 600)

    for scheme, window in (("middle", 24), ("aboba", 16)):
        options = {"scheme": scheme, "windowLength": window, **given}
        yield f"network, auto, {scheme}", lambda o=options: run(build(network, "auto", **o), 7, 400)
    for learning in (False, True):
        options = {"learning": learning, "windowLength": 8, **given}
        yield (
            f"network, Amber, learning {learning}",
            lambda o=options: run(build(network, molecule.draft, **o), 7, 200),
        )
    for scheme in ("middle", "aboba"):
        options = {"scheme": scheme, "windowLength": 32, "topology": molecule.topology}
        yield (
            f"force field, auto, {scheme}",
            lambda o=options: run(build(stiff, "auto", **o), 33, 1000, 2000),
        )
    yield (
        "function, learning beside it",
        lambda: run(
            build(stiff, "auto", windowLength=24, target=forces_of(stiff[1])), 433, 600, 1000
        ),
    )
    yield "with changes", lambda: with_changes(build(stiff, "auto", windowLength=12))
    yield "continued", lambda: continued(lambda: build(stiff, "auto", windowLength=32))
    yield (
        "continued, function",
        lambda: continued(
            lambda: build(stiff, "auto", windowLength=24, target=forces_of(stiff[1]))
        ),
    )
    box = water()
    softer = stiffened(box[1], 0.9)
    barostat = openmm.MonteCarloBarostat(1.0, 300.0, 7)
    barostat.setRandomNumberSeed(SEED)
    box[1].addForce(barostat)
    for draft in ("auto", softer):
        name = "auto" if draft == "auto" else "force field"
        options = {"topology": box[0]} if draft == "auto" else {}
        yield (
            f"TIP4P-Ew, barostat, {name}",
            lambda d=draft, o=options: run(build(box, d, 0.0005, windowLength=12, **o), 5, 95, 100),
        )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--outfile", type=Path)
    parser.add_argument("--compare", type=Path, metavar="FILE")
    args = parser.parse_args()
    lines = []
    for name, make in cases():
        lines.append(f"{name}: {' '.join(make())}")
        print(lines[-1], flush=True)
    if args.outfile:
        args.outfile.write_text("\n".join(lines) + "\n")
    if args.compare:
        before = args.compare.read_text().splitlines()
        different = [line for line in before if line not in lines]
        print(f"{len(different)} of {len(before)} cases differ")
        sys.exit(bool(different) or len(before) != len(lines))


if __name__ == "__main__":
    main()
