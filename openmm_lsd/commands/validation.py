"""Is the law right on this system? LSD against plain dynamics of the target, in three ways.

Short: thousands of runs of a few steps from one state, against the plain scheme, by two-sample
tests. Exact: the noise that drove every committed step is worked out from the path and must be
N(0, I). Long: kinetic energies, dihedral distributions and velocity autocorrelation functions
against plain dynamics by OpenMM, in pairs of runs from the same states, so that no run has to be
longer than the slowest motion.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from openmm import app
from scipy import stats

from ..contexts.checks import barostat_frequency, cm_removal_frequency, masses_of
from ..core.schemes import MOLAR_GAS_CONSTANT, SCHEMES, Scheme, reciprocal, remove_cm_motion
from ..core.statistics import Round
from ..theory import rejection_probability
from .case import Array, Case, Notice, Run

FAMILY_WISE = 1e-3  # chance that a right sampler fails anywhere
SHORT_STEPS = (1, 3, 8)
PLAIN_PER_RUN = 2  # plain runs for each of LSD's
CHUNK = 64  # plain runs side by side
PROJECTIONS = 24
BLOCKS = 24  # pairs of long runs: all choices of their signs can just be gone through
BINS = 12
EVERY = 2  # steps between recorded states of a long run
LAGS = 100  # recorded states
TESTED_LAGS = 20


@dataclasses.dataclass
class Check:
    """One family of tests: the smallest p value, and what it had to exceed.

    ``passed`` is None where the run was too short to judge.
    """

    name: str
    tests: int
    worst: str
    p: float
    threshold: float
    note: str = ""

    @property
    def passed(self) -> bool | None:
        """None: not judged."""
        return None if not self.tests else self.p >= self.threshold

    def __str__(self) -> str:
        if self.passed is None:
            return f"not judged  {self.name}: {self.note}"
        word = "passed" if self.passed else "FAILED"
        note = f"; {self.note}" if self.note else ""
        return (
            f"{word:11s} {self.name}: smallest p of {self.tests} tests {self.p:.2g} "
            f"({self.worst}), must exceed {self.threshold:.2g}{note}"
        )


@dataclasses.dataclass
class LongRun:
    """Of every block: dihedral angles (blocks, T, n) in radians, velocity autocorrelation (blocks,
    lags) over 3 N kT, and kinetic energies (blocks, T) in kJ/mol.
    """

    dihedrals: Array
    autocorrelation: Array
    kinetic_energies: Array


@dataclasses.dataclass
class Validation:
    """What ``validate`` found, and what its pictures are made of."""

    case: Case
    checks: list[Check]
    rounds: list[Round]
    dihedral_names: list[str]
    lsd: LongRun | None  # None: left out, since the law was wrong already
    plain: LongRun | None
    times: Array  # of the autocorrelation, ps

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(check.passed is not False for check in self.checks)

    def verdict(self) -> str:
        """In one sentence."""
        if not self.passed:
            return "THE LAW IS WRONG on this system: do not use these trajectories."
        judged = sum(check.tests for check in self.checks)
        return (
            f"The law is right as far as {judged} tests can tell (chance of a false alarm in all "
            f"of them: {FAMILY_WISE:g})."
        )

    def __str__(self) -> str:
        return "\n".join([*map(str, self.checks), "", self.verdict()])

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "passed": self.passed,
            "checks": [
                {**dataclasses.asdict(check), "passed": check.passed} for check in self.checks
            ],
        }


def validate(
    case: Case,
    *,
    window: int = 8,
    runs: int = 1000,
    short_steps: Sequence[int] = SHORT_STEPS,
    path_steps: int = 1000,
    long_steps: int = 20_000,
    equilibration: int = 5000,
    notice: Notice = lambda line: None,
) -> Validation:
    """Test the law of LSD on a case.

    Parameters
    ----------
    case : Case
    window : int
    runs : int
        Short LSD runs from one state; twice as many plain ones.
    short_steps : sequence of int
        After which their states are compared.
    path_steps : int
        Steps whose noise is worked out.
    long_steps : int
        Of LSD and of plain dynamics, in all blocks together.
    equilibration : int
        Steps of LSD before.
    notice : callable, optional
    """
    if barostat_frequency(case.target) is not None:
        raise ValueError("validation needs a System without a barostat; leave it out here")
    seed = case.seed or 1
    families = 4
    level = FAMILY_WISE / families
    run = case.lsd(window)
    notice(f"minimising, and {equilibration} steps of LSD")
    run.equilibrate(case, max(1, equilibration))
    notice(f"{runs} short LSD runs and {PLAIN_PER_RUN * runs} plain ones from one state")
    short = _short_law(case, run, runs, tuple(short_steps), seed, level)
    notice(f"the noise of {path_steps} steps")
    noise = _noise_of_path(case, run, path_steps, level)
    quadruples, names = dihedral_quadruples(case.topology)
    times = EVERY * case.step_size * np.arange(LAGS, dtype=np.float64)
    if not (short.passed and noise.passed):
        return Validation(case, [short, noise], [], names, None, None, times)
    rounds: list[Round] = []
    run.integrator.watchers.append(rounds.append)
    notice(f"{long_steps} steps of LSD and as many plain ones, in {BLOCKS} pairs")
    lsd, plain = _long_runs(case, run, case.plain(), long_steps, quadruples, seed)
    run.integrator.watchers.remove(rounds.append)
    checks = [
        short,
        noise,
        _kinetic_energy(case, lsd, plain, level),
        _long_law(lsd, plain, names, level),
    ]
    return Validation(case, checks, rounds, names, lsd, plain, times)


# --- short runs ---------------------------------------------------------------------------------


def _short_law(
    case: Case, run: Run, runs: int, steps: tuple[int, ...], seed: int, level: float
) -> Check:
    """Two-sample tests of many observables after each of ``steps``."""
    start = run.state
    sampler = run.integrator.probe().sampler
    states: list[list[Array]] = [[] for _ in steps]
    first = sampler.state.step
    for index in range(runs):
        sampler.set_state(*start, first + (index + 1) * (steps[-1] + 1), step_count=0)
        done = 0
        for rows, step in zip(states, steps, strict=True):
            rows.append(np.stack(sampler.advance(step - done)))
            done = step
    run.state = start
    lsd = [np.array(rows) for rows in states]
    plain = _plain_ensemble(case, run, start, PLAIN_PER_RUN * runs, steps, seed)
    observables = _Observables(case, run, start, plain, np.random.default_rng(seed))
    return _two_samples(
        f"few-step law ({runs} runs of {steps[-1]} steps)",
        observables(lsd),
        observables(plain),
        level,
    )


def _plain_ensemble(
    case: Case, run: Run, start: tuple[Array, Array], runs: int, steps: tuple[int, ...], seed: int
) -> list[Array]:
    """States (runs, 2, N, 3) after each of ``steps``, by the plain scheme with the target."""
    scheme = _scheme(case)
    masses = masses_of(case.target)[:, None]
    inverse_masses = reciprocal(masses)
    scale = scheme.noise_scale(inverse_masses)
    removal = cm_removal_frequency(case.target)
    rng = np.random.default_rng([seed, 1])
    result: list[list[Array]] = [[] for _ in steps]
    for begin in range(0, runs, CHUNK):
        count = min(CHUNK, runs - begin)
        positions, velocities = (np.repeat(part[None], count, axis=0) for part in start)
        for step in range(steps[-1]):
            if removal and step % removal == 0:
                velocities = np.stack([remove_cm_motion(each, masses) for each in velocities])
            forces = run.integrator.probe().evaluate(scheme.site(positions, velocities))[1]
            kicks = scale * rng.standard_normal(positions.shape)
            positions, velocities = scheme.step(
                positions, velocities, forces * inverse_masses, kicks
            )
            if step + 1 in steps:
                result[steps.index(step + 1)].append(np.stack([positions, velocities], axis=1))
    return [np.concatenate(chunks) for chunks in result]


class _Observables:
    """Named columns of an ensemble: energies, internal coordinates, projections of the path."""

    def __init__(
        self,
        case: Case,
        run: Run,
        start: tuple[Array, Array],
        reference: list[Array],
        rng: np.random.Generator,
    ) -> None:
        self._masses = masses_of(case.target)
        self._run = run
        bonds = [(bond[0].index, bond[1].index) for bond in case.topology.bonds()]
        self._bonds = np.array(bonds, dtype=int).reshape(-1, 2)
        self._angles = _angles(bonds)
        self._quadruples, _ = dihedral_quadruples(case.topology)
        self._start = start
        self._mean = [states.mean(axis=0) for states in reference]
        self._scale = [states.std(axis=0) for states in reference]
        shape = (PROJECTIONS, len(reference), *reference[0].shape[1:])
        self._directions = rng.standard_normal(shape)

    def __call__(self, ensemble: list[Array]) -> dict[str, Array]:
        columns: dict[str, Array] = {}
        path = np.zeros((len(ensemble[0]), PROJECTIONS))
        for time, states in enumerate(ensemble):
            positions, velocities = states[:, 0], states[:, 1]
            at = f" at time {time + 1}"
            kinetic = 0.5 * (self._masses[:, None] * velocities**2).sum(axis=(1, 2))
            columns["kinetic energy" + at] = kinetic
            if time == len(ensemble) - 1:
                energies = self._run.integrator.probe().evaluate(positions)[0]
                if np.isfinite(energies).all():
                    columns["potential energy" + at] = energies
            for name, values in (
                ("bond", _lengths(positions, self._bonds)),
                ("angle", _bends(positions, self._angles)),
                ("dihedral", self._turned(positions)),
            ):
                columns |= {f"{name} {k}{at}": column for k, column in enumerate(values.T)}
            scaled = (states - self._mean[time]) * reciprocal(self._scale[time])
            for number, direction in enumerate(self._directions[:, time]):
                projection = np.tensordot(scaled, direction, axes=3)
                columns[f"projection {number}{at}"] = projection
                path[:, number] += projection
        columns |= {f"projection {k} of the path": column for k, column in enumerate(path.T)}
        return columns

    def _turned(self, positions: Array) -> Array:
        """Dihedral angles against those at the start, far from the jump at 180 degrees."""
        now = dihedral_angles(positions, self._quadruples)
        return _wrapped(now - dihedral_angles(self._start[0][None], self._quadruples))


def _two_samples(name: str, lsd: dict[str, Array], plain: dict[str, Array], level: float) -> Check:
    """Kolmogorov-Smirnov, and the means of value and squared deviation, of every column."""
    results: list[tuple[float, str]] = []
    for key, ours in lsd.items():
        theirs = plain[key]
        if theirs.std() == 0 or ours.std() == 0:
            continue
        centre = theirs.mean()
        squares = (ours - centre) ** 2, (theirs - centre) ** 2
        results += [
            (float(stats.ks_2samp(ours, theirs, method="asymp").pvalue), f"{key}, distribution"),
            (float(stats.ttest_ind(ours, theirs, equal_var=False).pvalue), f"{key}, mean"),
            (float(stats.ttest_ind(*squares, equal_var=False).pvalue), f"{key}, spread"),
        ]
    return _family(name, results, level)


def _family(name: str, results: list[tuple[float, str]], level: float, note: str = "") -> Check:
    """Bonferroni: each test has its share of the level."""
    if not results:
        return Check(name, 0, "", 1.0, 0.0, note)
    p, worst = min(results)
    return Check(name, len(results), worst, p, level / len(results), note)


# --- the exact law ------------------------------------------------------------------------------


def _noise_of_path(case: Case, run: Run, steps: int, level: float) -> Check:
    """The noise that must have driven each committed step, given the target's forces."""
    scheme = _scheme(case)
    masses = masses_of(case.target)[:, None]
    inverse_masses = reciprocal(masses)
    removal = cm_removal_frequency(case.target)
    run.step(1)  # whatever was set before is taken up
    states = [run.state]
    first = run.simulation.currentStep
    with run.integrator.probe().recorded_shifts() as shift_of:
        begin = run.integrator.probe().sampler.state.step
        for _ in range(steps):
            run.step(1)
            states.append(run.state)
    starts = [
        (x, remove_cm_motion(v, masses) if removal and (first + k) % removal == 0 else v)
        for k, (x, v) in enumerate(states[:-1])
    ]
    sites = np.stack([scheme.site(x, v) for x, v in starts])
    forces = np.concatenate(
        [run.integrator.probe().evaluate(sites[k : k + CHUNK])[1] for k in range(0, steps, CHUNK)]
    )
    moving = masses[:, 0] > 0
    scale = scheme.noise_scale(inverse_masses)[moving]
    noise = []
    for (x, v), force, (_, after) in zip(starts, forces, states[1:], strict=True):
        _, undriven = scheme.step(x, v, force * inverse_masses, np.zeros_like(x))
        noise.append((after - undriven)[moving] / scale)
    eta = np.array(noise)
    norms = (eta**2).sum(axis=(1, 2))
    along = forces[:, moving] / np.linalg.norm(forces[:, moving], axis=(1, 2), keepdims=True)
    draft_error = run.integrator.probe().discrepancies(sites)[:, moving]
    astray = draft_error / np.linalg.norm(draft_error, axis=(1, 2), keepdims=True)
    lagged = (eta[1:] * eta[:-1]).sum(axis=(1, 2)) / np.sqrt(eta[0].size)
    shifted = [
        (n, shift[moving], norm)
        for n, shift in ((n, shift_of.get(begin + n)) for n in range(steps))
        if shift is not None and (norm := float(np.linalg.norm(shift))) > 0
    ]
    along_shift = np.array([float((eta[n] * shift).sum()) / norm for n, shift, norm in shifted])
    # By this much a sampler that only accepts would be off, or one that never reflects.
    norms_of_shifts = np.array([norm for _, _, norm in shifted])
    weights = norms_of_shifts * (1.0 - rejection_probability(norms_of_shifts))
    normal = {
        "noise along the noise shift": along_shift,
        "noise along the force": (eta * along).sum(axis=(1, 2)),
        "noise along the discrepancy": (eta * astray).sum(axis=(1, 2)),
        "noise of consecutive steps": lagged,
    }
    results = [
        (float(stats.kstest(eta.ravel(), "norm").pvalue), "all components"),
        (float(stats.kstest(norms, stats.chi2(eta[0].size).cdf).pvalue), "length"),
    ]
    for name, column in normal.items():
        if not len(column):  # a draft without any discrepancy
            continue
        if column is along_shift and weights.any():
            z = (weights * column).sum() / np.sqrt((weights**2).sum())
            results.append((float(2.0 * stats.norm.sf(abs(z))), f"{name}, weighted mean"))
        z = column.sum() / np.sqrt(len(column))  # of unit variance
        results.append((float(2.0 * stats.norm.sf(abs(z))), f"{name}, mean"))
        if name != "noise of consecutive steps":  # which is not normal
            results.append((float(stats.kstest(column, "norm").pvalue), f"{name}, distribution"))
    return _family(f"noise of {steps} committed steps is N(0, I)", results, level)


# --- long runs ----------------------------------------------------------------------------------


def _long_runs(
    case: Case, run: Run, plain: Run, steps: int, quadruples: Array, seed: int
) -> tuple[LongRun, LongRun]:
    """Pairs of blocks, of LSD and of plain dynamics, both from the same positions and velocities.

    The next pair has new velocities, and the positions where either block has ended, by a fair
    coin. So if the law is right, the two blocks of any pair can be exchanged: differences have
    signs that are fair and independent, even if pairs are alike, being shorter than the memory.
    """
    masses = masses_of(case.target)
    thermal_speeds = _scheme(case).thermal_speed(reciprocal(masses[:, None]))
    rng = np.random.default_rng([seed, 2])
    blocks: tuple[list, list] = ([], [])
    positions = run.state[0]
    for _ in range(BLOCKS):
        velocities = thermal_speeds * rng.standard_normal(positions.shape)
        for each, rows in zip((plain, run), blocks, strict=True):
            each.state = positions, velocities
            rows.append(_block(case, each, max(1, steps // BLOCKS // EVERY), quadruples))
        positions = (plain, run)[rng.integers(2)].state[0]
    plain_run, lsd_run = (LongRun(*map(np.array, zip(*rows, strict=True))) for rows in blocks)
    return lsd_run, plain_run


def _block(case: Case, run: Run, count: int, quadruples: Array) -> tuple[Array, Array, Array]:
    """Dihedrals, autocorrelation and kinetic energies of so many recorded states."""
    masses = masses_of(case.target)[:, None]
    removal = bool(cm_removal_frequency(case.target))
    positions, velocities = [], []
    for _ in range(count):
        run.step(EVERY)
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


def _kinetic_energy(case: Case, lsd: LongRun, plain: LongRun, level: float) -> Check:
    """Differences of the pairs in four functions of the kinetic energy, by their signs.

    Not against the law of Maxwell and Boltzmann, to which plain dynamics keeps only for harmonic
    forces; and the blocks of one run are no independent draws from any law, since energy is
    remembered for 1/friction and positions go from one block to the next.
    """
    law = _kinetic_law(case)

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
    results = [(_by_signs(ours[word] - theirs[word]), word) for word in ours]
    return _family(f"kinetic energy in {BLOCKS} pairs, LSD against plain", results, level)


def _kinetic_law(case: Case) -> Any:
    thermal = MOLAR_GAS_CONSTANT * case.temperature
    return stats.gamma(0.5 * case.degrees_of_freedom, scale=thermal)


def _by_signs(differences: Array) -> float:
    """p value of a sum: the share of all choices of signs by which it becomes as large.

    Exact for differences of any law that are as likely as their negatives.
    """
    sums = differences[:1]  # its sign stays: turning all of them makes no sum larger
    for each in differences[1:]:
        sums = np.concatenate([sums + each, sums - each])
    rounding = 1e-12 * abs(differences).sum()
    return float((abs(sums) >= abs(sums[0]) - rounding).mean())


def _long_law(lsd: LongRun, plain: LongRun, names: list[str], level: float) -> Check:
    """Differences of the pairs, which are zero in the mean."""
    results = []

    def compare(name: str, ours: Array, theirs: Array) -> None:
        differences = ours - theirs
        if differences.std() > 0:
            results.append((float(stats.ttest_1samp(differences, 0.0).pvalue), name))

    for number, name in enumerate(names):
        for bin_number, (low, high) in enumerate(itertools.pairwise(_EDGES)):
            ours, theirs = (
                ((run.dihedrals[..., number] >= low) & (run.dihedrals[..., number] < high)).mean(1)
                for run in (lsd, plain)
            )
            compare(f"dihedral {name}, bin {bin_number + 1}", ours, theirs)
    lags = np.flatnonzero(np.isfinite(lsd.autocorrelation).all(axis=0))
    for lag in lags[:: max(1, len(lags) // TESTED_LAGS)]:
        name = f"velocity autocorrelation, lag {lag * EVERY} steps"
        compare(name, lsd.autocorrelation[:, lag], plain.autocorrelation[:, lag])
    return _family(f"{BLOCKS} pairs of long runs, LSD against plain", results, level)


_EDGES = np.linspace(-np.pi, np.pi, BINS + 1)


# --- geometry -----------------------------------------------------------------------------------


def dihedral_quadruples(topology: app.Topology) -> tuple[Array, list[str]]:
    """One dihedral for every bond that can turn: (n, 4) indices and names such as 'N-CA-C-O'."""
    neighbours: dict[int, list[int]] = {}
    atoms = list(topology.atoms())
    bonds = [(bond[0].index, bond[1].index) for bond in topology.bonds()]
    for i, j in bonds:
        neighbours.setdefault(i, []).append(j)
        neighbours.setdefault(j, []).append(i)

    def mass(index: int) -> float:
        element = atoms[index].element
        return 0.0 if element is None else element.mass._value

    def rank(index: int) -> tuple[bool, float, float, int]:
        """The chain goes on before it ends, along heavy atoms: phi is C-N-CA-C, psi N-CA-C-N."""
        around = neighbours[index]
        return len(around) > 1, mass(index), sum(map(mass, around)), -index

    quadruples, names = [], []
    for j, k in bonds:
        ends = [[i for i in neighbours[middle] if i != other] for middle, other in ((j, k), (k, j))]
        if all(ends):
            quadruple = (max(ends[0], key=rank), j, k, max(ends[1], key=rank))
            quadruples.append(quadruple)
            names.append("-".join(atoms[index].name for index in quadruple))
    return np.array(quadruples, dtype=int).reshape(-1, 4), names


def dihedral_angles(positions: Array, quadruples: Array) -> Array:
    """(T, n) in radians from -pi to pi, of positions (T, N, 3)."""
    a, b, c, d = (positions[:, quadruples[:, corner]] for corner in range(4))
    ba, cb, dc = b - a, c - b, d - c
    normals = np.cross(ba, cb), np.cross(cb, dc)
    x = (normals[0] * normals[1]).sum(axis=-1)
    y = (np.linalg.norm(cb, axis=-1)) * (ba * normals[1]).sum(axis=-1)
    return np.arctan2(y, x)


def _angles(bonds: Sequence[tuple[int, int]]) -> Array:
    triples = []
    for (i, j), (k, m) in itertools.combinations(bonds, 2):
        shared = {i, j} & {k, m}
        if len(shared) == 1:
            (middle,) = shared
            ends = ({i, j} | {k, m}) - shared
            triples.append((min(ends), middle, max(ends)))
    return np.array(triples, dtype=int).reshape(-1, 3)


def _lengths(positions: Array, bonds: Array) -> Array:
    return np.linalg.norm(positions[:, bonds[:, 0]] - positions[:, bonds[:, 1]], axis=-1)


def _bends(positions: Array, triples: Array) -> Array:
    a, b = (positions[:, triples[:, end]] - positions[:, triples[:, 1]] for end in (0, 2))
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    return np.arccos(cosine.clip(-1.0, 1.0))


def _wrapped(angles: Array) -> Array:
    return (angles + np.pi) % (2.0 * np.pi) - np.pi


def _scheme(case: Case) -> Scheme:
    return SCHEMES[case.scheme](case.temperature, case.friction, case.step_size)
