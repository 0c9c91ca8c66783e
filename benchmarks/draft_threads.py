"""What one seed, one trajectory costs: forces of water on one thread of the CPU, and on all.

python benchmarks/draft_threads.py
"""

import time

import numpy as np
import openmm
from openmm import app, unit

from openmm_lsd.contexts.forcecontext import ForceContext
from openmm_lsd.contexts.platforms import loaded_platforms

CASES = ((192, app.CutoffPeriodic, 0.5), (3000, app.PME, 0.9))


def main():
    platform = openmm.Platform.getPlatform("CPU")
    for atoms, method, cutoff in CASES:
        field = app.ForceField("tip3p.xml")
        modeller = app.Modeller(app.Topology(), [] * unit.nanometer)
        modeller.addSolvent(field, numAdded=atoms // 3)
        system = field.createSystem(
            modeller.topology,
            nonbondedMethod=method,
            nonbondedCutoff=cutoff,
            constraints=None,
            rigidWater=False,
        )
        positions = np.array(modeller.positions.value_in_unit(unit.nanometer))
        contexts = {
            reproducible: ForceContext(
                system, platform, loaded_platforms(reproducible=reproducible)["CPU"]
            )
            for reproducible in (True, False)
        }
        seconds = {key: [] for key in contexts}
        for turn in range(60):
            for key, context in contexts.items():
                begin = time.perf_counter()
                context.forces(positions[None] + 1e-4 * turn)
                seconds[key].append(time.perf_counter() - begin)
        one, more = (1e3 * np.median(seconds[key][5:]) for key in (True, False))
        print(f"{atoms} atoms: one thread {one:.3g} ms, all {more:.3g} ms, {one / more:.2f} times")


if __name__ == "__main__":
    main()
