"""The exact law: the noise that drove every committed step is that of the plain scheme."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...contexts.checks import cm_removal_frequency, masses_of
from ...core.schemes import reciprocal, remove_cm_motion
from ...theory import rejection_probability
from ..case import Array, Case, Run
from .verdict import Check

CHUNK = 64  # sites evaluated at once


class Path(NamedTuple):
    """Consecutive committed steps, all arrays (steps, N, 3).

    ``start_velocities`` are those after the removal of the motion of the centre of mass, and
    ``shifts`` the noise shifts, zero where noise was not transported.
    """

    start_positions: Array
    start_velocities: Array
    end_positions: Array
    end_velocities: Array
    shifts: Array


def noise_check(case: Case, run: Run, steps: int, level: float) -> Check:
    """The noise that must have driven each committed step, given the target's forces: N(0, I)."""
    from scipy import stats  # its import takes as long as that of all the rest

    path = _recorded_path(case, run, steps)
    probe = run.integrator.probe()
    scheme = case.build_scheme()
    sites = np.stack([scheme.site(x, v) for x, v in zip(*path[:2], strict=True)])
    forces = np.concatenate(
        [probe.evaluate(sites[k : k + CHUNK])[1] for k in range(0, steps, CHUNK)]
    )
    moving = masses_of(case.target) > 0
    noise = _driving_noise(case, path, forces)[:, moving]
    shifts = path.shifts[:, moving]
    columns = {
        "noise along the noise shift": _along(shifts, noise),
        "noise along the force": _along(forces[:, moving], noise),
        "noise along the discrepancy": _along(probe.discrepancies(sites)[:, moving], noise),
    }
    lengths = (noise**2).sum(axis=(1, 2))
    results = [
        (float(stats.kstest(noise.ravel(), "norm").pvalue), "all components"),
        (float(stats.kstest(lengths, stats.chi2(noise[0].size).cdf).pvalue), "length"),
    ]
    results += _weighted_mean("noise along the noise shift", shifts, noise)
    for name, column in columns.items():
        if len(column):  # none where the draft has no discrepancy
            results.append(_mean(name, column))
            results.append((float(stats.kstest(column, "norm").pvalue), f"{name}, distribution"))
    lagged = (noise[1:] * noise[:-1]).sum(axis=(1, 2)) / np.sqrt(noise[0].size)
    if len(lagged):
        results.append(_mean("noise of consecutive steps", lagged))  # which is not normal
    return Check.of(f"noise of {steps} committed steps is N(0, I)", results, level)


def _recorded_path(case: Case, run: Run, steps: int) -> Path:
    masses = masses_of(case.target)[:, None]
    removal = cm_removal_frequency(case.target)
    run.step(1)  # whatever was set before is taken up
    states = [run.state]
    first = run.simulation.currentStep
    probe = run.integrator.probe()
    with probe.recorded_shifts() as shift_of:
        begin = probe.sampler.state.step
        for _ in range(steps):
            run.step(1)
            states.append(run.state)
    positions, velocities = map(np.stack, zip(*states, strict=True))
    starts = [
        remove_cm_motion(v, masses) if removal and (first + k) % removal == 0 else v
        for k, v in enumerate(velocities[:-1])
    ]
    untransported = np.zeros_like(positions[0])
    shifts = [shift_of.get(begin + k, untransported) for k in range(steps)]
    return Path(positions[:-1], np.stack(starts), positions[1:], velocities[1:], np.stack(shifts))


def _driving_noise(case: Case, path: Path, forces: Array) -> Array:
    """(steps, N, 3), zero for particles that do not move."""
    scheme = case.build_scheme()
    inverse_masses = reciprocal(masses_of(case.target)[:, None])
    inverse_scale = reciprocal(scheme.noise_scale(inverse_masses))
    noise = []
    for x, v, new_x, new_v, force in zip(*path[:4], forces, strict=True):
        kick = scheme.find_kick((x, v), force * inverse_masses, (new_x, new_v))
        noise.append(kick * inverse_scale)
    return np.array(noise)


def _along(directions: Array, noise: Array) -> Array:
    """Components of the noise along directions, of the steps that have one."""
    lengths = np.linalg.norm(directions, axis=(1, 2))
    known = lengths > 0
    return (noise * directions)[known].sum(axis=(1, 2)) / lengths[known]


def _weighted_mean(name: str, shifts: Array, noise: Array) -> list[tuple[float, str]]:
    """A mean in which errors of transport weigh most.

    The weights are by how much a sampler that only accepts would be off, or one that never
    reflects.
    """
    norms = np.linalg.norm(shifts, axis=(1, 2))
    norms = norms[norms > 0]
    weights = norms * (1.0 - rejection_probability(norms))
    if not weights.any():
        return []
    z = (weights * _along(shifts, noise)).sum() / np.sqrt((weights**2).sum())
    return [(_two_sided(z), f"{name}, weighted mean")]


def _mean(name: str, column: Array) -> tuple[float, str]:
    """Of values of unit variance."""
    return _two_sided(column.sum() / np.sqrt(len(column))), f"{name}, mean"


def _two_sided(z: float) -> float:
    """p value of a standard normal variable."""
    from scipy.special import ndtr

    return float(2.0 * ndtr(-abs(z)))
