"""Size: LSD in periodic boxes of flexible TIP3P water, and the memory it takes above a plain run.

The target is a copy of the force field with bond and angle constants times 1.2, equilibrium values
plus 2 %, and charges times 1.03. Drafts: the force field, with corrections per step and with the
published rule; and 'auto', which makes itself from the bonds and learns, counted after --learning
steps.

    python benchmarks/water_boxes.py --molecules 216 2000
"""

import argparse
import copy
import dataclasses
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import openmm
from openmm import app, unit
from results import save

from openmm_lsd import LSDIntegrator, SpeculativeSampler
from openmm_lsd.contexts.checks import cm_removal_frequency, masses_of
from openmm_lsd.contexts.forcecontext import fastest_context
from openmm_lsd.core.correctors import Following
from openmm_lsd.core.schemes import SCHEMES
from openmm_lsd.drafts.draft import Draft, DraftSpec
from openmm_lsd.drafts.estimates import native_estimates
from openmm_lsd.drafts.molgraph import pairs_within
from openmm_lsd.drafts.nativeengine import NativeEngine
from openmm_lsd.targets import SystemTarget

TEMPERATURE, FRICTION, STEP_SIZE = 300.0, 1.0, 0.001


def water_box(molecules):
    """Topology, positions and flexible System of a periodic box."""
    force_field = app.ForceField("amber14/tip3p.xml")
    modeller = app.Modeller(app.Topology(), [] * unit.nanometer)
    modeller.addSolvent(force_field, model="tip3p", numAdded=molecules)
    edge = modeller.topology.getUnitCellDimensions()[0]
    system = force_field.createSystem(
        modeller.topology,
        nonbondedMethod=app.CutoffPeriodic,
        nonbondedCutoff=min(0.9 * unit.nanometer, 0.48 * edge),
        constraints=None,
        rigidWater=False,
    )
    return modeller.topology, modeller.positions, system


def perturb(system):
    """The target: stiffer, longer, wider and more polar than the draft."""
    system = copy.deepcopy(system)
    for force in system.getForces():
        if isinstance(force, openmm.HarmonicBondForce):
            for i in range(force.getNumBonds()):
                a, b, length, k = force.getBondParameters(i)
                force.setBondParameters(i, a, b, 1.02 * length, 1.2 * k)
        elif isinstance(force, openmm.HarmonicAngleForce):
            for i in range(force.getNumAngles()):
                a, b, c, angle, k = force.getAngleParameters(i)
                force.setAngleParameters(i, a, b, c, 1.02 * angle, 1.2 * k)
        elif isinstance(force, openmm.NonbondedForce):
            for i in range(force.getNumParticles()):
                charge, sigma, epsilon = force.getParticleParameters(i)
                force.setParticleParameters(i, 1.03 * charge, sigma, epsilon)
            for i in range(force.getNumExceptions()):
                a, b, product, sigma, epsilon = force.getExceptionParameters(i)
                force.setExceptionParameters(i, a, b, 1.03**2 * product, sigma, epsilon)
    return system


def equilibrated(molecules, steps):
    """A Simulation of the target after ``steps`` of LangevinMiddleIntegrator, and the draft."""
    topology, positions, draft = water_box(molecules)
    target = perturb(draft)
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, 10 * FRICTION, 0.5 * STEP_SIZE)
    simulation = app.Simulation(topology, target, integrator)
    simulation.context.setPositions(positions)
    simulation.minimizeEnergy(maxIterations=200)
    simulation.context.setVelocitiesToTemperature(TEMPERATURE, 1)
    simulation.step(steps)
    return simulation, draft


def measure(molecules, args):
    simulation, draft = equilibrated(molecules, args.equilibration)
    state = simulation.context.getState(positions=True, velocities=True)
    positions, velocities = (
        array.value_in_unit_system(unit.md_unit_system)
        for array in (state.getPositions(asNumpy=True), state.getVelocities(asNumpy=True))
    )
    platform = simulation.context.getPlatform().getName()
    target = SystemTarget(simulation.system, positions, platform=platform)
    draft_forces = Draft(fastest_context(draft, positions))
    print(f"{molecules} molecules, {len(positions)} atoms", flush=True)
    found = {"molecules": molecules, "atoms": len(positions), "steps per round": {}}
    for name in args.schemes:
        counts = found["steps per round"][name] = {}
        for correction in ("per-step", "constant"):
            sampler = SpeculativeSampler.of_forces(
                SCHEMES[name](TEMPERATURE, FRICTION, STEP_SIZE),
                masses_of(draft),
                draft_forces,
                lambda states: target.evaluate(states)[1],
                args.window,
                1,
                correction=correction,
                cm_removal_frequency=cm_removal_frequency(draft),
            )
            sampler.set_state(positions, velocities)
            sampler.advance(args.steps if correction == "per-step" else 20)
            print(f"  {name:7s} correction {correction:9s} {sampler.statistics}", flush=True)
            counts[correction] = sampler.statistics.steps_per_round
        choice = DraftSpec(None, None, simulation.topology, learning=True)
        vectors = simulation.topology.getPeriodicBoxVectors().value_in_unit(unit.nanometer)
        auto = choice.build(positions, masses_of(draft), np.array(vectors))
        auto.set_environment(np.array(vectors), {})
        masses, scheme = masses_of(draft), SCHEMES[name](TEMPERATURE, FRICTION, STEP_SIZE)
        estimates = native_estimates(masses, partial(pairs_within, box=np.array(vectors)))
        sampler = SpeculativeSampler.of_forces(
            scheme,
            masses,
            auto,
            lambda states: target.evaluate(states)[1],
            args.window,
            1,
            engine=NativeEngine,
            corrector=Following(scheme, masses[:, None], *estimates),
            cm_removal_frequency=cm_removal_frequency(draft),
        )
        sampler.set_state(positions, velocities)
        sampler.advance(args.learning)
        before = dataclasses.replace(sampler.statistics)
        sampler.advance(args.steps)
        since = sampler.statistics.since(before)
        per_step = 1e6 * since.draft_seconds / since.rounds / args.window
        print(
            f"  {name:7s} draft 'auto'         {since}; {len(auto.parameters)} "
            f"parameters, {per_step:.0f} us per drafted step",
            flush=True,
        )
        counts["auto"] = since.steps_per_round
        found["draft, us per step"] = per_step
        found["learning, us per step"] = 1e6 * since.learning_seconds / since.steps
    return found


def memory(run, molecules):
    """Peak resident memory in MB of a process that makes a short run, 'plain' or 'lsd'."""
    command = [sys.executable, __file__, "--molecules", str(molecules), "--memory-of", run]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(output.split()[-1])


def memory_of(run, molecules):
    topology, positions, draft = water_box(molecules)
    target = perturb(draft)
    if run == "lsd":
        integrator = LSDIntegrator(TEMPERATURE, FRICTION, STEP_SIZE, draft, windowLength=16)
    else:
        integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, FRICTION, STEP_SIZE)
    simulation = app.Simulation(topology, target, integrator)
    simulation.context.setPositions(positions)
    simulation.context.setVelocitiesToTemperature(TEMPERATURE, 1)
    simulation.step(20)
    # Not ru_maxrss, which begins with what the process that started this one has used.
    status = Path("/proc/self/status").read_text()
    print(int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) / 1024)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--molecules", type=int, nargs="+", default=[216, 2000])
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument("--schemes", nargs="+", choices=sorted(SCHEMES), default=["middle"])
    parser.add_argument("--steps", type=int, default=200, help="measured, per-step corrections")
    parser.add_argument("--learning", type=int, default=300, help="steps before 'auto' is counted")
    parser.add_argument("--equilibration", type=int, default=2000, help="steps of 0.5 fs")
    parser.add_argument("--outfile", type=Path)
    parser.add_argument("--memory-of", choices=["plain", "lsd"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        memory_of(args.memory_of, args.molecules[0])
        return
    rows = []
    for molecules in args.molecules:
        row = measure(molecules, args)
        plain, lsd = memory("plain", molecules), memory("lsd", molecules)
        print(f"  peak memory: plain {plain:.0f} MB, LSD {lsd:.0f} MB, {lsd - plain:+.0f} MB")
        rows.append(row | {"memory, MB": {"plain": plain, "LSD": lsd}})
    if args.outfile is not None:
        save(args.outfile, {"window": args.window, "steps": args.steps, "rows": rows})


if __name__ == "__main__":
    main()
