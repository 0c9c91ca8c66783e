"""The few-step law: many short runs of LSD from one state against the plain scheme."""

from __future__ import annotations

import numpy as np

from ...contexts.checks import cm_removal_frequency, masses_of
from ...core.schemes import reciprocal, remove_cm_motion
from ..case import Array, Case, Run
from .observables import Observables
from .verdict import Check

PLAIN_PER_RUN = 2  # plain runs for each of LSD's
CHUNK = 64  # plain runs side by side


def few_step_check(
    case: Case, run: Run, runs: int, steps: tuple[int, ...], seed: int, level: float
) -> Check:
    """Two-sample tests of many observables after each of ``steps``."""
    start = run.state
    lsd = _lsd_ensemble(run, start, runs, steps)
    plain = _plain_ensemble(case, run, start, PLAIN_PER_RUN * runs, steps, seed)
    observables = Observables(case, run, start, plain, np.random.default_rng(seed))
    return _two_samples(
        f"few-step distribution ({runs} runs of {steps[-1]} steps)",
        observables(lsd),
        observables(plain),
        level,
    )


def _lsd_ensemble(
    run: Run, start: tuple[Array, Array], runs: int, steps: tuple[int, ...]
) -> list[Array]:
    """States (runs, 2, N, 3) after each of ``steps``, by the sampler of ``run``."""
    sampler = run.integrator.probe().sampler
    states: list[list[Array]] = [[] for _ in steps]
    first = sampler.state.step
    for index in range(runs):
        sampler.set_state(*start, first + (index + 1) * (steps[-1] + 1), step_count=0)
        done = 0
        for rows, step in zip(states, steps, strict=True):
            rows.append(np.stack(sampler.advance(step - done)))
            done = step
    run.set_state(*start)
    return [np.array(rows) for rows in states]


def _plain_ensemble(
    case: Case, run: Run, start: tuple[Array, Array], runs: int, steps: tuple[int, ...], seed: int
) -> list[Array]:
    """The same by the plain scheme with the target."""
    scheme = case.build_scheme()
    masses = masses_of(case.target)[:, None]
    inverse_masses = reciprocal(masses)
    scale = scheme.noise_scale(inverse_masses)
    removal = cm_removal_frequency(case.target)
    probe = run.integrator.probe()
    rng = np.random.default_rng([seed, 1])
    result: list[list[Array]] = [[] for _ in steps]
    for begin in range(0, runs, CHUNK):
        count = min(CHUNK, runs - begin)
        positions, velocities = (np.repeat(part[None], count, axis=0) for part in start)
        for step in range(steps[-1]):
            if removal and step % removal == 0:
                velocities = np.stack([remove_cm_motion(each, masses) for each in velocities])
            forces = probe.evaluate(scheme.site(positions, velocities))[1]
            kicks = scale * rng.standard_normal(positions.shape)
            positions, velocities = scheme.step(
                positions, velocities, forces * inverse_masses, kicks
            )
            if step + 1 in steps:
                result[steps.index(step + 1)].append(np.stack([positions, velocities], axis=1))
    return [np.concatenate(chunks) for chunks in result]


def _two_samples(name: str, lsd: dict[str, Array], plain: dict[str, Array], level: float) -> Check:
    """Kolmogorov-Smirnov, and the means of value and squared deviation, of every column."""
    from scipy import stats  # its import takes as long as that of all the rest

    results: list[tuple[float, str]] = []
    for key, ours in lsd.items():
        theirs = plain[key]
        if np.ptp(theirs) == 0 or np.ptp(ours) == 0:
            continue
        centre = theirs.mean()
        squares = (ours - centre) ** 2, (theirs - centre) ** 2
        results += [
            (float(stats.ks_2samp(ours, theirs, method="asymp").pvalue), f"{key}, distribution"),
            (float(stats.ttest_ind(ours, theirs, equal_var=False).pvalue), f"{key}, mean"),
            (float(stats.ttest_ind(*squares, equal_var=False).pvalue), f"{key}, spread"),
        ]
    return Check.of(name, results, level)
