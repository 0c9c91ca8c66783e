"""What is compared between two ensembles of short runs."""

from __future__ import annotations

import numpy as np

from ...contexts.checks import masses_of
from ...contexts.constraints import constraints_of
from ...core.schemes import reciprocal
from ..case import Array, Case, Run
from .geometry import (
    angle_triples,
    bond_angles,
    bond_lengths,
    bond_pairs,
    dihedral_angles,
    dihedral_quadruples,
    wrapped,
)

PROJECTIONS = 24


class Observables:
    """Named columns of an ensemble: energies, internal coordinates, projections of the path.

    Parameters
    ----------
    case : Case
    run : Run
        Whose target gives potential energies.
    start : (positions, velocities)
        Of all runs.
    reference : list of (runs, 2, N, 3)
        Positions and velocities at each time, by whose mean and spread projections are scaled.
    rng : numpy.random.Generator
        Of the directions.
    """

    def __init__(
        self,
        case: Case,
        run: Run,
        start: tuple[Array, Array],
        reference: list[Array],
        rng: np.random.Generator,
    ) -> None:
        self._masses = masses_of(case.target)
        self._probe = run.integrator.probe()
        bonds = bond_pairs(case.topology)
        rigid = constraints_of(case.target)
        is_rigid = [(min(pair), max(pair)) in rigid for pair in bonds.tolist()]
        self._bonds = bonds[~np.array(is_rigid, dtype=bool)]
        self._angles = angle_triples(bonds)
        self._quadruples, _ = dihedral_quadruples(case.topology)
        self._dihedrals_at_start = dihedral_angles(start[0][None], self._quadruples)
        self._mean = [states.mean(axis=0) for states in reference]
        self._scale = [states.std(axis=0) for states in reference]
        shape = (PROJECTIONS, len(reference), *reference[0].shape[1:])
        self._directions = rng.standard_normal(shape)

    def __call__(self, ensemble: list[Array]) -> dict[str, Array]:
        """Columns (runs,) of the states (runs, 2, N, 3) at each time."""
        columns: dict[str, Array] = {}
        path = np.zeros((len(ensemble[0]), PROJECTIONS))
        for time, states in enumerate(ensemble):
            at = f" at time {time + 1}"
            positions, velocities = states[:, 0], states[:, 1]
            columns["kinetic energy" + at] = self._kinetic_energies(velocities)
            if time == len(ensemble) - 1:
                energies = self._probe.evaluate(positions)[0]
                if np.isfinite(energies).all():
                    columns["potential energy" + at] = energies
            for name, values in self._internal_coordinates(positions).items():
                columns |= {f"{name} {k}{at}": column for k, column in enumerate(values.T)}
            projections = self._projections(states, time)
            columns |= {f"projection {k}{at}": column for k, column in enumerate(projections.T)}
            path += projections
        columns |= {f"projection {k} of the path": column for k, column in enumerate(path.T)}
        return columns

    def _kinetic_energies(self, velocities: Array) -> Array:
        return 0.5 * (self._masses[:, None] * velocities**2).sum(axis=(1, 2))

    def _internal_coordinates(self, positions: Array) -> dict[str, Array]:
        """Dihedral angles against those at the start, far from the jump at 180 degrees."""
        dihedrals = dihedral_angles(positions, self._quadruples)
        return {
            "bond": bond_lengths(positions, self._bonds),
            "angle": bond_angles(positions, self._angles),
            "dihedral": wrapped(dihedrals - self._dihedrals_at_start),
        }

    def _projections(self, states: Array, time: int) -> Array:
        scaled = (states - self._mean[time]) * reciprocal(self._scale[time])
        directions = self._directions[:, time]
        return np.stack([np.tensordot(scaled, each, axes=3) for each in directions], axis=1)
