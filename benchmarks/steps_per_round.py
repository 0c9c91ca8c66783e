"""Steps committed per batched target evaluation, for both schemes and all corrections.

    python benchmarks/steps_per_round.py systems/alanine_dipeptide               # its own target
    python benchmarks/steps_per_round.py systems/alanine_dipeptide --gfn2        # GFN2-xTB (tblite)

Needs no clock: the counts do not depend on the machine.
"""

import argparse
from pathlib import Path

import numpy as np
from openmm import unit
from results import save

from openmm_lsd import SpeculativeSampler, systems
from openmm_lsd.commands import Case
from openmm_lsd.contexts.checks import masses_of
from openmm_lsd.contexts.forcecontext import fastest_context
from openmm_lsd.core.schemes import MOLAR_GAS_CONSTANT, SCHEMES
from openmm_lsd.drafts.draft import Draft
from openmm_lsd.targets import SystemTarget


def gfn2_target(topology, charge=0.0):
    """Forces of GFN2-xTB for a batch of states, one after another."""
    import ase.units
    from tblite.interface import Calculator

    bohr = ase.units.Bohr / ase.units.nm
    hartree = ase.units.Hartree * ase.units.mol / ase.units.kJ
    numbers = np.array([atom.element.atomic_number for atom in topology.atoms()])
    calculator = None

    def forces(positions):
        nonlocal calculator
        result = np.empty_like(positions)
        for index, state in enumerate(positions):
            if calculator is None:
                calculator = Calculator("GFN2-xTB", numbers, state / bohr, charge=charge)
                calculator.set("verbosity", 0)
            calculator.update(state / bohr)
            gradient = calculator.singlepoint().get("gradient")
            result[index] = -gradient * hartree / bohr
        return result

    return forces


def system_target(molecule, positions, window):
    target = SystemTarget(molecule.target, positions, platform="CPU")
    target.prepare(positions, window)
    return lambda states: target.evaluate(states)[1]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("system", type=Path, help="directory, see systems.load")
    parser.add_argument("--gfn2", action="store_true", help="GFN2-xTB instead of its target")
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument("--timestep", type=float, default=1.0, help="fs")
    parser.add_argument("--temperature", type=float, default=300.0, help="kelvin")
    parser.add_argument("--friction", type=float, default=1.0, help="1/ps")
    parser.add_argument("--steps", type=int, default=1000, help="measured, the first two")
    parser.add_argument("--equilibration", type=int, default=1000, help="steps")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--outfile", type=Path)
    args = parser.parse_args()

    molecule = systems.load(args.system)
    positions = np.array(molecule.positions.value_in_unit(unit.nanometer))
    masses = masses_of(molecule.draft)
    target = (
        gfn2_target(molecule.topology)
        if args.gfn2
        else system_target(molecule, positions, args.window)
    )
    conditions = {
        "temperature": args.temperature,
        "friction": args.friction,
        "step_size": 1e-3 * args.timestep,
    }
    draft = Draft(fastest_context(molecule.draft, positions))
    rng = np.random.default_rng(args.seed)
    scale = np.sqrt(MOLAR_GAS_CONSTANT * args.temperature / masses)[:, None]

    def sampler(scheme, correction):
        return SpeculativeSampler.of_forces(
            scheme,
            masses,
            draft,
            target,
            args.window,
            args.seed,
            correction=correction,
            cm_removal_frequency=1,
        )

    potential = "GFN2-xTB" if args.gfn2 else "its own"
    print(
        f"{args.system.name}, target {potential}, K = {args.window}, "
        f"{args.timestep} fs, {args.temperature} K, {args.friction}/ps"
    )
    rows = []
    for name in ["middle"] if molecule.target.getNumConstraints() else SCHEMES:
        scheme = Case.of(molecule, **conditions, scheme=name).build_scheme()
        start = sampler(scheme, "secant")
        start.set_state(positions, scale * rng.standard_normal(positions.shape))
        state = start.advance(args.equilibration)
        for correction in ("secant", "per-step", "constant", "none"):
            run = sampler(scheme, correction)
            run.set_state(*state)
            # The bare rules commit about one step per round: a tenth of the steps will do.
            learns = correction in ("secant", "per-step")
            run.advance(args.steps if learns else max(20, args.steps // 10))
            counts = run.statistics
            print(
                f"  {name:7s} correction {correction:9s} {counts.steps_per_round:6.2f} steps per "
                f"round ({counts.steps} steps, acceptance rate {counts.acceptance_rate:.3f})",
                flush=True,
            )
            rows.append(
                {
                    "scheme": name,
                    "correction": correction,
                    "steps per round": counts.steps_per_round,
                    "steps": counts.steps,
                }
            )
    if args.outfile is not None:
        case = f"{args.system.name}, target {potential}, {args.timestep:g} fs"
        save(args.outfile, {"window": args.window, "rows": rows}, case)


if __name__ == "__main__":
    main()
