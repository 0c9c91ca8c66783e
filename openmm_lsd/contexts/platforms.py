"""OpenMM's platforms on this machine: which can be tried, and with which properties.

Where the user has not named one, several are tried for speed. OpenMM lists every platform whose
libraries can be loaded; whether its driver works shows only in use, and one that does not may end
the process. So a device is first tried in another.
"""

from __future__ import annotations

import functools
import logging
import os
import subprocess
import sys
from collections.abc import Mapping

import openmm

from .cores import allowed_cores

logger = logging.getLogger(__name__)

HOSTS = ("Reference", "CPU")  # need no driver
LONGEST_PROBE = 120.0  # s; a device may have kernels to compile

# Computes forces of a periodic box, as most Systems need them.
PROBE = """
import sys
import openmm
system, force = openmm.System(), openmm.NonbondedForce()
system.setDefaultPeriodicBoxVectors([3, 0, 0], [0, 3, 0], [0, 0, 3])
positions = [[x, y, z] for x in (0.5, 1.5, 2.5) for y in (0.5, 1.5, 2.5) for z in (0.5, 1.5, 2.5)]
for index, _ in enumerate(positions):
    system.addParticle(10.0)
    force.addParticle((-1) ** index, 0.3, 0.5)
force.setNonbondedMethod(openmm.NonbondedForce.PME)
system.addForce(force)
platform = openmm.Platform.getPlatform(sys.argv[1])
context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
context.setPositions(positions)
context.getState(forces=True, energy=True)
"""

_in_use: set[str] = set()


def loaded_platforms(
    cores: int | None = None, reproducible: bool = False
) -> dict[str, Mapping[str, str]]:
    """The platforms that OpenMM has loaded, with their properties.

    Parameters
    ----------
    cores : int, optional
        That the CPU platform may use; by default all that are allowed.
    reproducible : bool
        Whether the same positions must always give the same forces, to the last bit.
    """
    platforms = [openmm.Platform.getPlatform(i) for i in range(openmm.Platform.getNumPlatforms())]
    properties: dict[str, Mapping[str, str]] = {each.getName(): {} for each in platforms}
    if "CPU" in properties:
        properties["CPU"] = {"Threads": str(allowed_cores() if cores is None else cores)}
    return reproducible_properties(properties) if reproducible else properties


def reproducible_properties(
    platforms: Mapping[str, Mapping[str, str]],
) -> dict[str, Mapping[str, str]]:
    """The properties of platforms, changed so that forces are the same to the last bit.

    The CPU platform adds up what its threads have found in an order that is a matter of luck, even
    where DeterministicForces is set.
    """
    result: dict[str, Mapping[str, str]] = {}
    for name, given in platforms.items():
        known = openmm.Platform.getPlatform(name).getPropertyNames()
        own = {"DeterministicForces": "true"} if "DeterministicForces" in known else {}
        result[name] = {**given, **own, **({"Threads": "1"} if name == "CPU" else {})}
    return result


def platforms_to_try(
    cores: int | None = None, reproducible: bool = False
) -> dict[str, Mapping[str, str]]:
    """Those of ``loaded_platforms`` that work on this machine."""
    platforms = loaded_platforms(cores, reproducible)
    return {name: own for name, own in platforms.items() if _works(name)}


def note_in_use(name: str) -> None:
    """The user has a Context on this platform, so it works."""
    _in_use.add(name)


def _works(name: str) -> bool:
    return name in HOSTS or name in _in_use or _works_elsewhere(name)


@functools.cache
def _works_elsewhere(name: str) -> bool:
    """Whether another process can compute forces on this platform."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        result = subprocess.run(
            [sys.executable, "-c", PROBE, name],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LONGEST_PROBE,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        logger.warning("OpenMM's platform %s is not used: %s", name, error)
        return False
    if result.returncode < 0:
        logger.warning(
            "OpenMM's platform %s is not used: a process that uses it ends with signal %d",
            name,
            -result.returncode,
        )
    elif result.returncode:
        reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
        logger.info("platform %s does not work here (%s)", name, reason)
    return result.returncode == 0
