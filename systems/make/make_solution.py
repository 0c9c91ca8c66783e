"""A molecule of systems/ in rigid TIP3P water, as Amber files, equilibrated at 300 K and 1 bar.

pip install parmed
python systems/make/make_solution.py systems/ibuprofen --waters 750 --output systems/ibuprofen_water
"""

import argparse
from pathlib import Path

import numpy as np
import openmm
import parmed
from openmm import app, unit

VOLUME, CLEARANCE = 0.0300, 0.24  # nm^3 of a water molecule; nm from oxygen to the molecule


def build_solution(solute, waters):
    """ParmEd's Structure of the molecule among so many waters, not equilibrated.

    Parameters
    ----------
    solute : path
        A directory with a prmtop and an inpcrd.
    waters : int
    """
    files = [next(Path(solute).glob(f"*.{suffix}")) for suffix in ("prmtop", "inpcrd")]
    molecule = parmed.load_file(str(files[0]), xyz=str(files[1]))
    own = 0.1 * molecule.coordinates
    own -= own.mean(axis=0)
    field = app.ForceField("amber14/tip3p.xml")
    edge = (VOLUME * (waters + 0.4 * len(own))) ** (1 / 3)
    modeller = app.Modeller(app.Topology(), [] * unit.nanometer)
    modeller.addSolvent(field, boxSize=openmm.Vec3(*[1.05 * edge] * 3) * unit.nanometer)
    positions = np.array(modeller.positions.value_in_unit(unit.nanometer))
    oxygens = positions[::3]
    centre = oxygens.mean(axis=0)
    apart = np.linalg.norm(oxygens[:, None] - centre - own[None], axis=2).min(axis=1)
    free = np.flatnonzero(apart > CLEARANCE)
    nearest = np.argsort(np.abs(oxygens[free] - centre).max(axis=1))
    kept = set(np.sort(free[nearest[:waters]]).tolist())
    if len(kept) < waters:
        raise ValueError(f"there is room for {len(kept)} waters only")
    residues = list(modeller.topology.residues())
    modeller.delete([each for each in residues if each.index not in kept])
    system = field.createSystem(modeller.topology, rigidWater=False)
    solvent = parmed.openmm.load_topology(modeller.topology, system, modeller.positions)
    molecule.coordinates = 10 * (own + centre)
    solution = molecule.copy(parmed.Structure) + solvent
    solution.box = [*[10 * edge] * 3, 90, 90, 90]
    return solution


def equilibrate(solution, prmtop, picoseconds, seed):
    """The State after so many picoseconds; the prmtop is written."""
    solution.save(str(prmtop), overwrite=True)
    topology = app.AmberPrmtopFile(str(prmtop))
    system = topology.createSystem(
        nonbondedMethod=app.PME, nonbondedCutoff=0.6 * unit.nanometer, constraints=app.HBonds
    )
    barostat = openmm.MonteCarloBarostat(1.0, 300.0, 25)
    barostat.setRandomNumberSeed(seed)
    system.addForce(barostat)
    integrator = openmm.LangevinMiddleIntegrator(300, 2, 0.002)
    integrator.setRandomNumberSeed(seed)
    simulation = app.Simulation(topology.topology, system, integrator)
    simulation.context.setPositions(solution.positions)
    simulation.minimizeEnergy(maxIterations=300)
    simulation.context.setVelocitiesToTemperature(300, seed)
    simulation.step(round(500 * picoseconds))
    return simulation.context.getState(positions=True, velocities=True, enforcePeriodicBox=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("solute", type=Path)
    parser.add_argument("--waters", type=int, default=750)
    parser.add_argument("--picoseconds", type=float, default=100.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True, help="directory; its name is used")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    stem = args.output / args.output.name
    solution = build_solution(args.solute, args.waters)
    state = equilibrate(solution, stem.with_suffix(".prmtop"), args.picoseconds, args.seed)
    box = np.diag(state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(unit.angstrom))
    solution.coordinates = state.getPositions(asNumpy=True).value_in_unit(unit.angstrom)
    speed = unit.angstrom / unit.picosecond
    solution.velocities = state.getVelocities(asNumpy=True).value_in_unit(speed)
    solution.box = [*box, 90, 90, 90]
    solution.save(str(stem.with_suffix(".prmtop")), overwrite=True)
    solution.save(str(stem.with_suffix(".inpcrd")), overwrite=True, format="rst7")
    print(f"{len(solution.atoms)} atoms, box {box[0] / 10:.4f} nm")


if __name__ == "__main__":
    main()
