"""A drug molecule from Amber files: GAFF is the draft, a machine-learned potential the target.

    python docs/examples/ligand_prmtop.py --steps 10000

Writes ligand.dcd and final.pdb. With --learning the draft is fitted to the target on top of GAFF.
"""

import argparse
from pathlib import Path

from openmm import app, unit

from openmm_lsd import LSDIntegrator, systems

STEM = Path(__file__).resolve().parents[2] / "systems/ibuprofen/ibuprofen"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--learning", action="store_true")
    args = parser.parse_args()

    prmtop = app.AmberPrmtopFile(f"{STEM}.prmtop")
    draft = prmtop.createSystem(nonbondedMethod=app.NoCutoff, constraints=None)
    target = systems.with_torch_force(draft, f"{STEM}.pt")
    integrator = LSDIntegrator(
        300 * unit.kelvin,
        1 / unit.picosecond,
        1 * unit.femtosecond,
        draft,
        topology=prmtop.topology,
        learning=args.learning,
    )
    simulation = app.Simulation(prmtop.topology, target, integrator)
    simulation.context.setPositions(app.AmberInpcrdFile(f"{STEM}.inpcrd").positions)
    simulation.minimizeEnergy()
    simulation.context.setVelocitiesToTemperature(300 * unit.kelvin)
    simulation.reporters.append(app.DCDReporter("ligand.dcd", max(1, args.steps // 100)))
    simulation.step(args.steps)

    state = simulation.context.getState(positions=True)
    with open("final.pdb", "w") as file:
        app.PDBFile.writeFile(prmtop.topology, state.getPositions(), file)
    print(integrator.statistics)


if __name__ == "__main__":
    main()
