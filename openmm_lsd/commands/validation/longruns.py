"""Long runs of LSD and of plain dynamics by OpenMM, in pairs of blocks from the same states."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np

from ...contexts.checks import cm_removal_frequency, masses_of
from ...core.schemes import MOLAR_GAS_CONSTANT, reciprocal, remove_cm_motion
from ..case import Array, Case, Run
from .geometry import Indices, dihedral_angles
from .verdict import Check

BLOCKS = 24  # pairs of long runs: all choices of their signs can just be gone through
BINS = 12
STRIDE = 2  # steps between recorded states of a long run
LAGS = 100  # recorded states
TESTED_LAGS = 20
EDGES = np.linspace(-np.pi, np.pi, BINS + 1)


@dataclasses.dataclass
class LongRun:
    """Of every block: dihedral angles (blocks, T, n) in radians, velocity autocorrelation (blocks,
    lags) over 3 N kT, and kinetic energies (blocks, T) in kJ/mol.
    """

    dihedrals: Array
    autocorrelation: Array
    kinetic_energies: Array


def run_in_pairs(
    case: Case, run: Run, plain: Run, steps: int, quadruples: Indices, seed: int
) -> tuple[LongRun, LongRun]:
    """Pairs of blocks, of LSD and of plain dynamics, both from the same positions and velocities.

    The next pair has new velocities, and the positions where either block has ended, by a fair
    coin. So if the law is right, the two blocks of any pair can be exchanged: differences have
    signs that are fair and independent, even if pairs are alike, being shorter than the memory.
    """
    masses = masses_of(case.target)
    scheme = case.build_scheme()
    thermal_speeds = scheme.thermal_speed(reciprocal(masses[:, None]))
    rng = np.random.default_rng([seed, 2])
    blocks: tuple[list, list] = ([], [])
    positions = run.state[0]
    for _ in range(BLOCKS):
        velocities = thermal_speeds * rng.standard_normal(positions.shape)
        if scheme.projection is not None:
            velocities = scheme.projection.velocities(positions, velocities)
        for each, rows in zip((plain, run), blocks, strict=True):
            each.set_state(positions, velocities)
            rows.append(run_block(case, each, max(1, steps // BLOCKS // STRIDE), quadruples))
        positions = (plain, run)[rng.integers(2)].state[0]
    plain_run, lsd_run = (LongRun(*map(np.array, zip(*rows, strict=True))) for rows in blocks)
    return lsd_run, plain_run


def run_block(case: Case, run: Run, count: int, quadruples: Indices) -> tuple[Array, Array, Array]:
    """Dihedrals, autocorrelation and kinetic energies of so many recorded states."""
    masses = masses_of(case.target)[:, None]
    removal = bool(cm_removal_frequency(case.target))
    positions, velocities = [], []
    for _ in range(count):
        run.step(STRIDE)
        x, v = run.state
        positions.append(x)
        velocities.append(remove_cm_motion(v, masses) if removal else v)
    weighted = (np.sqrt(masses) * np.array(velocities)).reshape(count, -1)
    thermal = case.degrees_of_freedom * MOLAR_GAS_CONSTANT * case.temperature
    return (
        dihedral_angles(np.array(positions), quadruples),
        _autocorrelation(weighted) / thermal,
        0.5 * (weighted**2).sum(axis=1),
    )


def _autocorrelation(block: Array) -> Array:
    """< v(0) . v(t) > at the lags 0 to LAGS - 1; NaN where the block is too short."""
    length = len(block)
    spectrum = np.fft.rfft(block, 2 * length, axis=0)
    products = np.fft.irfft((abs(spectrum) ** 2).sum(axis=1))[:length]
    result = np.full(LAGS, np.nan)
    lags = min(LAGS, length // 2)
    result[:lags] = products[:lags] / (length - np.arange(lags))
    return result


def kinetic_energy_check(case: Case, lsd: LongRun, plain: LongRun, level: float) -> Check:
    """Differences of the pairs in four functions of the kinetic energy, by their signs.

    Not against the law of Maxwell and Boltzmann, to which plain dynamics keeps only for harmonic
    forces; and the blocks of one run are no independent draws from any law, since energy is
    remembered for 1/friction and positions go from one block to the next.
    """
    law = kinetic_law(case)

    def means(run: LongRun) -> dict[str, Array]:
        energies = run.kinetic_energies
        uniform = law.cdf(energies)
        functions = {
            "mean": energies,
            "variance": (energies - law.mean()) ** 2,
            "lower half": uniform < 0.5,
            "tails": abs(uniform - 0.5) > 0.4,
        }
        return {word: values.mean(axis=1) for word, values in functions.items()}

    ours, theirs = means(lsd), means(plain)
    results = [(p_by_signs(ours[word] - theirs[word]), word) for word in ours]
    return Check.of(f"kinetic energy in {BLOCKS} pairs, LSD against plain", results, level)


def kinetic_law(case: Case) -> Any:
    """Of Maxwell and Boltzmann, of the kinetic energy in kJ/mol; a frozen law of scipy.stats."""
    from scipy import stats  # its import takes as long as that of all the rest

    thermal = MOLAR_GAS_CONSTANT * case.temperature
    return stats.gamma(0.5 * case.degrees_of_freedom, scale=thermal)


def p_by_signs(differences: Array) -> float:
    """p value of a sum: the share of all choices of signs by which it becomes as large.

    Exact for differences of any law that are as likely as their negatives.
    """
    sums = differences[:1]  # its sign stays: turning all of them makes no sum larger
    for each in differences[1:]:
        sums = np.concatenate([sums + each, sums - each])
    rounding = 1e-12 * abs(differences).sum()
    return float((abs(sums) >= abs(sums[0]) - rounding).mean())


def long_law_check(lsd: LongRun, plain: LongRun, names: list[str], level: float) -> Check:
    """Differences of the pairs, which are zero in the mean: of shares of bins of the dihedral
    angles, which have these names, and of velocity autocorrelation functions."""
    from scipy import stats

    columns = {}
    for number, name in enumerate(names):
        for bin_number, (low, high) in enumerate(itertools.pairwise(EDGES)):
            ours, theirs = (
                ((run.dihedrals[..., number] >= low) & (run.dihedrals[..., number] < high)).mean(1)
                for run in (lsd, plain)
            )
            columns[f"dihedral {name}, bin {bin_number + 1}"] = ours - theirs
    lags = np.flatnonzero(np.isfinite(lsd.autocorrelation).all(axis=0))
    for lag in lags[:: max(1, len(lags) // TESTED_LAGS)]:
        difference = lsd.autocorrelation[:, lag] - plain.autocorrelation[:, lag]
        columns[f"velocity autocorrelation, lag {lag * STRIDE} steps"] = difference
    results = [
        (float(stats.ttest_1samp(differences, 0.0).pvalue), name)
        for name, differences in columns.items()
        if differences.std() > 0
    ]
    return Check.of(f"{BLOCKS} pairs of long runs, LSD against plain", results, level)
