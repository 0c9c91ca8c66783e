"""How forces that are computed on the host get into an OpenMM Context: three ways, in one run.

    pip install parmed        # it makes the boxes
    python benchmarks/forces_of_subset.py --platform OpenCL --precision mixed

A box of rigid water with a molecule on which NumPy's forces act, by a CustomIntegrator as the
Context engine has one. Milliseconds per step beyond one without those forces:

    of its particles    a PythonForce with setParticles: OpenMM collects their positions on the
                        device, and adds their forces there
    of all particles    one without: every position comes, a force on every particle goes
    parameters          a CustomExternalForce whose parameters are the forces: positions are read
                        between two steps, and the parameters updated
"""

import argparse
from time import perf_counter

import numpy as np
import openmm
from mixed import ATOMS, in_water

MOLECULE = "alanine_dipeptide"


def pull(positions):
    """Forces (n, 3) in kJ/mol/nm at positions (n, 3) in nm."""
    return -10.0 * (positions - positions.mean(axis=0))


def numbers(state):
    return state.getPositions(asNumpy=True)._value


def of_particles(state):
    return 0.0, pull(numbers(state))


def of_all(state):
    forces = np.zeros((len(positions := numbers(state)), 3))
    forces[: ATOMS[MOLECULE]] = pull(positions[: ATOMS[MOLECULE]])
    return 0.0, forces


class Way:
    """A Context with the forces put in in one way, and what does steps there."""

    def __init__(self, name, field, positions, platform):
        system, self.name = openmm.XmlSerializer.clone(field), name
        own = range(ATOMS[MOLECULE])
        self.force = None
        if name in ("of its particles", "of all particles"):
            force = openmm.PythonForce(of_particles if name == "of its particles" else of_all)
            if name == "of its particles":
                force.setParticles(list(own))
            system.addForce(force)
        elif name == "parameters":
            self.force = openmm.CustomExternalForce("-(fx*x + fy*y + fz*z)")
            for parameter in ("fx", "fy", "fz"):
                self.force.addPerParticleParameter(parameter)
            for index in own:
                self.force.addParticle(index, [0.0, 0.0, 0.0])
            system.addForce(self.force)
        self.integrator = openmm.CustomIntegrator(0.001)
        self.integrator.addComputePerDof("v", "v + dt*f/m")
        self.integrator.addConstrainVelocities()
        self.integrator.addComputePerDof("x", "x + dt*v")
        self.integrator.addConstrainPositions()
        self.context = openmm.Context(system, self.integrator, platform)
        self.context.setPositions(positions)
        self.context.setVelocitiesToTemperature(300, 1)

    def step(self, count):
        if self.force is None:
            self.integrator.step(count)
        else:
            for _ in range(count):
                positions = numbers(self.context.getState(positions=True))
                for index, force in enumerate(pull(positions[: ATOMS[MOLECULE]])):
                    self.force.setParticleParameters(index, index, force)
                self.force.updateParametersInContext(self.context)
                self.integrator.step(1)
        self.context.getState(positions=True)  # a device must have done it


NAMES = ("none", "of its particles", "of all particles", "parameters")


def measure(atoms, platform, seconds, steps):
    """Milliseconds per step of every way, medians of turns."""
    _, positions, field = in_water(MOLECULE, atoms, picoseconds=min(5.0, 10_000 / atoms))
    ways = [Way(name, field, positions, platform) for name in NAMES]
    for way in ways:
        way.step(steps)
    times = {name: [] for name in NAMES}
    begin = perf_counter()
    while perf_counter() - begin < seconds or len(times["none"]) < 3:
        for way in ways:
            start = perf_counter()
            way.step(steps)
            times[way.name].append(1e3 * (perf_counter() - start) / steps)
    return {name: float(np.median(each)) for name, each in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--platform", default="CPU")
    parser.add_argument("--precision", help="of a device: single, mixed or double")
    parser.add_argument("--atoms", type=int, nargs="+", default=[2300, 9000])
    parser.add_argument("--seconds", type=float, default=30.0, help="per box")
    parser.add_argument("--steps", type=int, default=20, help="per turn")
    args = parser.parse_args()
    platform = openmm.Platform.getPlatform(args.platform)
    if args.precision:
        platform.setPropertyDefaultValue("Precision", args.precision)
    print(f"{args.platform}\n atoms{'without, ms/step':>18s}   beyond it, ms/step")
    for atoms in args.atoms:
        found = measure(atoms, platform, args.seconds, args.steps)
        without = found.pop("none")
        beyond = "   ".join(f"{name}: {each - without:.2f}" for name, each in found.items())
        print(f"{atoms:6d}{without:18.2f}   {beyond}", flush=True)


if __name__ == "__main__":
    main()
