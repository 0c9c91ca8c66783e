"""Two ensembles, one of the sampler and one of the plain scheme, and z scores of their moments."""

import itertools

import numpy as np

from openmm_lsd.core.sampler import SpeculativeSampler
from openmm_lsd.core.schemes import MOLAR_GAS_CONSTANT

TEMPERATURE = 300.0
KT = MOLAR_GAS_CONSTANT * TEMPERATURE


def make_sampler(scheme, masses, *rest, correction="secant", sampler=SpeculativeSampler, **options):
    """``SpeculativeSampler.of_forces``; ``correction`` may be a class of correctors as well."""
    if isinstance(correction, str):
        options["correction"] = correction
    else:
        options["corrector"] = correction(scheme, np.reshape(masses, (-1, 1)))
    return sampler.of_forces(scheme, masses, *rest, **options)


class TodaMolecule:
    """Two particles, each bound to the origin and to each other by skewed Toda springs.

    U(r) = k L^2 (exp(r/L) - r/L - 1) of every component: stiffness k at the minimum, a wall on one
    side, a soft tail on the other. Arrays are (..., 2, 3).
    """

    masses = np.array([1.0, 3.0])

    def __init__(self, stiffness, coupling):
        self.stiffness, self.coupling = stiffness, coupling
        self.length = 2.0 * np.sqrt(KT / stiffness)  # skewed within thermal displacements

    def forces(self, positions):
        force = -self._spring(positions, self.stiffness)
        bond = self._spring(positions[..., 1, :] - positions[..., 0, :], self.coupling)
        force[..., 0, :] += bond
        force[..., 1, :] -= bond
        return force

    def _spring(self, displacement, stiffness):
        # The wall is cut where no trajectory goes, so that wild sites stay finite.
        return stiffness * self.length * np.expm1(np.minimum(displacement / self.length, 50.0))

    def starts(self, count, rng):
        positions = 0.4 * self.length * rng.standard_normal((count, 2, 3))
        velocities = rng.standard_normal((count, 2, 3)) * np.sqrt(KT / self.masses)[:, None]
        return positions, velocities


def plain_ensemble(scheme, forces, masses, starts, steps, seed):
    """The plain scheme for a whole ensemble; states (count, 2, N, 3) after each of ``steps``."""
    rng = np.random.default_rng(seed)
    inverse_masses = 1.0 / np.asarray(masses)[:, None]
    scale = scheme.noise_scale(inverse_masses)
    positions, velocities = starts
    states = {}
    for step in range(1, max(steps) + 1):
        force = forces(scheme.site(positions, velocities))
        kick = scale * rng.standard_normal(positions.shape)
        positions, velocities = scheme.step(positions, velocities, force * inverse_masses, kick)
        if step in steps:
            states[step] = np.stack([positions, velocities], axis=1)
    return [states[step] for step in steps]


def speculative_ensemble(
    scheme, target, draft, masses, starts, steps, seed, window=4, until=None, **options
):
    """The same of the sampler: independent runs, one seed each; options of ``make_sampler``.

    ``until``: see ``Caught``.
    """
    states = [[] for _ in steps]
    runs = []
    for index, (positions, velocities) in enumerate(zip(*starts, strict=True)):
        own = seed * 10**6 + index
        sampler = make_sampler(scheme, masses, draft, target, window, own, **options)
        sampler.set_state(positions, velocities)
        done = 0
        for rows, step in zip(states, steps, strict=True):
            rows.append(np.stack(sampler.advance(step - done)))
            done = step
        runs.append(sampler.statistics)
        if until is not None and until(states, len(starts[0])):
            break
    rate = sum(s.accepted for s in runs) / sum(s.accepted + s.rejected for s in runs)
    return [np.array(rows) for rows in states], rate


def moments(states, scales):
    """Named functions of the states: components, cubes, all products, also across the times."""
    count = len(states[0])
    # One axis is enough for the pairs: the axes are copies of each other.
    columns = {}
    for time, state in enumerate(states):
        scaled = state / scales
        for axis in range(3):
            for name, kind in (("x", 0), ("v", 1)):
                for particle in range(state.shape[2]):
                    column = scaled[:, kind, particle, axis].reshape(count)
                    columns[f"{name}{particle}{'xyz'[axis]}({time})"] = column
    result = dict(columns)
    first_axis = {name: column for name, column in columns.items() if name[2] == "x"}
    for (a, x), (b, y) in itertools.combinations_with_replacement(first_axis.items(), 2):
        result[f"{a} {b}"] = x * y
    for a, x in first_axis.items():
        result[f"{a}^3"] = x**3
    return result


def z_scores(states, reference):
    """Differences of the mean moments of two ensembles in standard errors of the difference."""
    scales = np.stack([state.std(axis=(0, 3)) for state in reference]).mean(axis=0)[
        None, :, :, None
    ]
    ours, theirs = moments(states, scales), moments(reference, scales)
    scores = {}
    for name in ours:
        a, b = ours[name], theirs[name]
        error = np.sqrt(a.var() / len(a) + b.var() / len(b))
        scores[name] = (a.mean() - b.mean()) / error
    return scores


class Caught:
    """Ends the runs of a faulty sampler as soon as it is caught: their worst z is beyond ``limit``.

    Looks at them an eighth of all at a time, from a quarter on.
    """

    def __init__(self, reference, limit):
        self.reference, self.limit = reference, limit

    def __call__(self, rows, runs):
        """Whether the first of so many runs are enough; ``rows`` as a list for each time."""
        part, done = max(runs // 8, 1), len(rows[0])
        if done % part or done < 2 * part:
            return False
        states = [np.array(row) for row in rows]
        return abs(worst(z_scores(states, self.reference))[1]) > self.limit


def worst(scores):
    name = max(scores, key=lambda key: abs(scores[key]))
    return name, scores[name]
