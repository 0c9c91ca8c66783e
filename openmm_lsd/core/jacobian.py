"""How a discrepancy changes with the positions, estimated from its differences during a run.

A correction is right at the site where it was measured. When the step is drafted again after a
rejection, its site has moved, and what the correction then misses is J times the displacement, with
J the derivative of the discrepancy: what the draft's Hessian lacks, here and now. J varies slowly,
and differences of the discrepancy between sites close together tell it. That is a secant method, as
the Krylov-enhanced parareal iteration (Gander and Petcu, ESAIM: Proc. 25, 114 (2008)) is one; here
it is local, since an atom's force depends mostly on few atoms around it.

Measurability (docs/theory.md): both ends of a difference are sites of steps that have been handed
out. Then J does not depend on the noise of any step to come, and may be used at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Pairs = NDArray[np.int_]

REACH = 0.3  # nm, within which atoms count as neighbours
MOST_NEIGHBOURS = 10  # the atom itself is one
MEMORY = 24  # differences, after which the weight of old ones has fallen to 1/e
RIDGE = 2.0  # the mean square of a difference is 1
LEAST_SHARE = 0.1  # of the mean square displacement: an atom that hardly moved tells little
# Of the committed steps of a round, every how many are compared with the site where they were
# drafted a round ago, and with the step before. All of them would tell little more.
STRIDE_OF_REDRAFTED, STRIDE_OF_CONSECUTIVE = 8, 20
FIRST_SOLUTION, SOLVED_EVERY = 48, 96  # steps
CHOSEN_EVERY = 500  # steps; atoms diffuse
LARGEST_DIFFERENCE = 0.02  # nm, in each direction, that is learned from
LARGEST_DISPLACEMENT = 0.01  # nm, in each direction, up to which changes are taken to be linear
SECANT_RIDGE = 0.03  # the square of a secant's displacement is 1
LARGEST_SHARE = 1.5  # of a secant


class Secant(NamedTuple):
    """How far the site of a step moved from one round to the next, and how the discrepancy changed
    with it.

    Both (N, 3), or (K, N, 3) of K steps, in nm and kJ/mol/nm; zero where there is none.
    """

    displacements: Array
    changes: Array


class LocalJacobian(NamedTuple):
    """Derivative of forces by positions, where those of an atom depend on few atoms.

    ``neighbours`` (N, M) int32 are indices of atoms, and ``blocks`` (N, M, 3, 3) the derivatives of
    the force on each atom by the positions of those, in kJ/mol/nm^2; zero where there are fewer.
    """

    neighbours: NDArray[np.int32]
    blocks: Array

    def __call__(self, displacements: Array) -> Array:
        """Changes of the forces (..., N, 3) in kJ/mol/nm for displacements (..., N, 3) in nm."""
        return self._applied(displacements[..., self.neighbours, :])

    def _applied(self, near: Array) -> Array:
        """As above for displacements (..., N, M, 3) of the neighbours of each atom."""
        held = np.clip(near, -LARGEST_DISPLACEMENT, LARGEST_DISPLACEMENT)
        return np.einsum("nmij,...nmj->...ni", self.blocks, held)

    def with_secant(self, displacement: Array, secant: Secant, masses: Array) -> Array:
        """Changes of the forces (N, 3) for a displacement (N, 3) of one step: along its secant by
        how they changed with that, and by J for the rest.

        How much of the secant is in it is for each atom what it and its neighbours say, their
        displacements weighted by ``masses`` (N, 1) amu.
        """
        atoms = np.arange(len(self.neighbours))[:, None]
        counts = self.neighbours != atoms
        counts[:, :1] = True

        def sums(products: Array) -> Array:
            return ((masses * products).sum(axis=1)[self.neighbours] * counts).sum(axis=1)

        along = sums(displacement * secant.displacements)
        squares = (1.0 + SECANT_RIDGE) * sums(secant.displacements**2)
        usable = (squares > 0) & np.isfinite(squares) & np.isfinite(along)
        shares = np.divide(along, squares, out=np.zeros_like(along), where=usable)
        shares = np.clip(shares, -LARGEST_SHARE, LARGEST_SHARE)[:, None]
        rest = displacement[self.neighbours]
        rest = rest - shares[..., None] * secant.displacements[self.neighbours]
        return self._applied(rest) + shares * secant.changes


def pairs_within(positions: Array, cutoff: float) -> tuple[Pairs, Array]:
    """Pairs (P, 2) of atoms within ``cutoff`` nm, where nothing is periodic; their distances.

    For few atoms; ``molgraph.pairs_within`` is for many, and for periodic boxes.
    """
    distances = np.linalg.norm(positions[:, None] - positions, axis=2)
    pairs = np.argwhere(np.triu(distances < cutoff, 1))
    return pairs, distances[tuple(pairs.T)]


def add_differences(
    displacements: Array,
    changes: Array,
    neighbours: NDArray[np.int32],
    counts: NDArray[np.int32],
    gram: Array,
    moment: Array,
    estimate: Array | None,
    agreement: Array,
    memory: float,
    least_share: float,
) -> None:
    """Add to the sums of the regressions, in place; what was in them fades.

    Parameters
    ----------
    displacements, changes : (B, N, 3)
        The last of them counts most.
    neighbours, counts : (N, M), (N,)
        Indices, of which so many count.
    gram, moment : (N, 3 M, 3 M), (N, 3 M, 3)
        Sums of x x^T and x y^T, for x an atom's neighbours' displacements and y its change.
    estimate : (N, 3 M, 3) or None
        By which y was expected; the products of what was expected with y and with itself go to
        ``agreement`` (2, N).
    memory : float
        Differences, after which weights have fallen to 1/e.
    least_share : float
        A difference counts by one over x^2 and this share of its mean over atoms.
    """
    present = np.arange(neighbours.shape[1]) < counts[:, None]
    near = displacements[:, neighbours] * present[:, :, None]
    near = near.reshape(*near.shape[:2], 3 * neighbours.shape[1]).transpose(1, 0, 2)  # (N, B, 3 M)
    changes = changes.transpose(1, 0, 2)
    squares = np.einsum("nbi,nbi->nb", near, near)
    squares += least_share * squares.mean(axis=0)
    age = np.arange(len(displacements))[::-1]
    weights = np.exp(-age / memory) * np.divide(
        1.0, squares, out=np.zeros_like(squares), where=squares > 0
    )
    for sums in (gram, moment, agreement):
        sums *= np.exp(-len(displacements) / memory)
    if estimate is not None:
        expected = near @ estimate
        agreement[0] += np.einsum("nb,nbi,nbi->n", weights, expected, changes)
        agreement[1] += np.einsum("nb,nbi,nbi->n", weights, expected, expected)
    weighted = (near * weights[:, :, None]).transpose(0, 2, 1)
    gram += weighted @ near
    moment += weighted @ changes


def solve_ridge(gram: Array, moment: Array, counts: NDArray[np.int32], ridge: float) -> Array:
    """Estimates (N, 3 M, 3) that the sums of ``add_differences`` lead to, with a ridge."""
    regular = gram + ridge * np.eye(gram.shape[1])
    result = np.asarray(np.linalg.solve(regular, moment), dtype=np.float64)
    result[np.arange(gram.shape[1]) >= 3 * counts[:, None]] = 0.0
    return result


class Sums(NamedTuple):
    """Of the regressions, for M neighbours; see ``add_differences``."""

    gram: Array  # (N, 3 M, 3 M)
    moment: Array  # (N, 3 M, 3)
    agreement: Array  # (2, N)


class JacobianEstimate:
    """J by ridge regression of the latest differences, for each atom by itself.

    Lengths are mass-weighted, so that thermal motion is equal in all directions; and each
    difference is divided by how far an atom and its neighbours have moved, since what is not linear
    grows with that. An atom's part of J counts only so far as it has agreed with what was measured
    after it was solved for.

    Parameters
    ----------
    masses : (N,) or (N, 1) amu
    find_pairs : callable, positions (N, 3) nm, cutoff in nm -> (P, 2) int, (P,) nm
        Pairs of atoms within the cutoff, and their distances; in a periodic box, of the nearest
        images.
    add, solve : callable
        As ``add_differences`` and ``solve_ridge``.
    """

    def __init__(
        self,
        masses: Array,
        find_pairs: Callable[..., tuple[Pairs, Array]] = pairs_within,
        add: Callable[..., None] = add_differences,
        solve: Callable[..., Array] = solve_ridge,
    ) -> None:
        self._roots = np.sqrt(np.asarray(masses, dtype=np.float64)).reshape(-1, 1)
        self._inverse_roots = np.divide(
            1.0, self._roots, out=np.zeros_like(self._roots), where=self._roots > 0
        )
        self._find_pairs, self._add, self._solve = find_pairs, add, solve
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        count = len(self._roots)
        self._neighbours = np.empty((count, 0), dtype=np.int32)
        self._counts = np.zeros(count, dtype=np.int32)  # of neighbours that are there
        self._sums = Sums(np.empty((count, 0, 0)), np.empty((count, 0, 3)), np.zeros((2, count)))
        self._raw: Array | None = None  # (N, 3 M, 3), mass-weighted, by all differences so far
        self._waiting: list[
            tuple[Array, Array]
        ] = []  # (B, N, 3) displacements and changes to be added
        self._steps = self._next_choice = 0
        self._next_solution = FIRST_SOLUTION
        self._shown_until = 0  # index of a step
        self.jacobian: LocalJacobian | None = None

    def snapshot(self) -> dict[str, Any]:
        """All that it has learned, for ``restore``."""
        return {
            "neighbours": self._neighbours,
            "counts": self._counts,
            **self._sums._asdict(),
            "raw": self._raw,
            "waiting": self._waiting,
            "steps": self._steps,
            "next choice": self._next_choice,
            "next solution": self._next_solution,
            "shown until": self._shown_until,
            "blocks": None if self.jacobian is None else self.jacobian.blocks,
        }

    def restore(self, record: dict[str, Any]) -> None:
        """Continue as the estimate that the snapshot was taken of."""
        self._neighbours, self._counts = record["neighbours"], record["counts"]
        self._sums = Sums(record["gram"], record["moment"], record["agreement"])
        self._raw = record["raw"]
        self._waiting = [tuple(each) for each in record["waiting"]]
        self._steps, self._next_choice = record["steps"], record["next choice"]
        self._next_solution = record["next solution"]
        self._shown_until = record["shown until"]
        blocks = record["blocks"]
        self.jacobian = None if blocks is None else LocalJacobian(self._neighbours, blocks)

    def start(self, step: int) -> None:
        """A run starts at this step. What was learned from it or later ones is forgotten.

        Their noise is about to be used again.
        """
        if step < self._shown_until:
            self.reset()
        self._shown_until = step

    def learn(
        self,
        step: int,
        sites: Array,
        discrepancies: Array,
        earlier_sites: Array,
        earlier_discrepancies: Array,
    ) -> None:
        """Learn from the committed steps of a round, after all of them have been handed out.

        Parameters
        ----------
        step : int
            Index of the first.
        sites, discrepancies : (B, N, 3) nm, kJ/mol/nm
        earlier_sites, earlier_discrepancies : (E, N, 3), E <= B
            Of the first of them, as measured in the round before, with the same draft.
        """
        self._shown_until = step + len(sites)
        self._steps += len(sites)
        redrafted = slice(0, len(earlier_sites), STRIDE_OF_REDRAFTED)
        later = slice(1, len(sites), STRIDE_OF_CONSECUTIVE)
        before = slice(0, len(sites) - 1, STRIDE_OF_CONSECUTIVE)
        self._waiting += [
            (
                sites[redrafted] - earlier_sites[redrafted],
                discrepancies[redrafted] - earlier_discrepancies[redrafted],
            ),
            (sites[later] - sites[before], discrepancies[later] - discrepancies[before]),
        ]
        if self._steps < self._next_solution:
            return
        self._next_solution = self._steps + SOLVED_EVERY
        if self._steps >= self._next_choice:
            self._choose_neighbours(sites[-1])
        self._add_waiting()
        raw = self._solve(self._sums.gram, self._sums.moment, self._counts, RIDGE)
        self._raw = raw if np.isfinite(raw).all() else None
        self._publish()

    def _add_waiting(self) -> None:
        """Many differences together: it costs less."""
        if not self._waiting:
            return
        displacements, changes = map(np.concatenate, zip(*self._waiting, strict=True))
        self._waiting = []
        # A draft may lead anywhere, and say anything there.
        near = (np.abs(displacements) <= LARGEST_DIFFERENCE) & np.isfinite(changes)
        near = near.all(axis=(1, 2))
        if near.any():
            self._add(
                displacements[near] * self._roots,
                changes[near] * self._inverse_roots,
                self._neighbours,
                self._counts,
                self._sums.gram,
                self._sums.moment,
                self._raw,
                self._sums.agreement,
                MEMORY,
                LEAST_SHARE,
            )

    def _choose_neighbours(self, positions: Array) -> None:
        """The nearest atoms; what is known about those that were neighbours before is kept."""
        self._next_choice = self._steps + CHOSEN_EVERY
        count = len(positions)
        pairs, distances = self._find_pairs(positions, REACH)
        mobile = (self._roots[pairs, 0] > 0).all(axis=1)
        pairs, distances = pairs[mobile], distances[mobile]
        atoms = np.arange(count)
        ends = np.concatenate([np.stack([atoms, atoms], axis=1), pairs, pairs[:, ::-1]])
        distances = np.concatenate([np.full(count, -1.0), distances, distances])  # itself first
        ends = ends[np.lexsort((ends[:, 1], distances, ends[:, 0]))]
        first = np.searchsorted(ends[:, 0], atoms)
        place = np.arange(len(ends)) - first[ends[:, 0]]
        ends, place = ends[place < MOST_NEIGHBOURS], place[place < MOST_NEIGHBOURS]
        size = place.max(initial=0) + 1
        neighbours = np.repeat(atoms[:, None], size, axis=1).astype(np.int32)
        neighbours[ends[:, 0], place] = ends[:, 1]
        self._keep(neighbours, np.bincount(ends[:, 0], minlength=count).astype(np.int32))

    def _keep(self, neighbours: NDArray[np.int32], counts: NDArray[np.int32]) -> None:
        """Carry what was learned over to other neighbours."""
        (count, size), before = neighbours.shape, self._neighbours
        same = neighbours[:, :, None] == before[:, None, :]
        same &= (np.arange(size) < counts[:, None])[:, :, None]
        same &= (np.arange(before.shape[1]) < self._counts[:, None])[:, None, :]
        # (N, 3 new, 3 old): picks the components that stay.
        pick = np.einsum("nab,ij->naibj", same.astype(float), np.eye(3))
        pick = pick.reshape(count, 3 * size, 3 * before.shape[1])
        gram, moment, agreement = self._sums
        self._sums = Sums(pick @ gram @ pick.transpose(0, 2, 1), pick @ moment, agreement)
        self._neighbours, self._counts = neighbours, counts
        if self._raw is not None:
            self._raw = pick @ self._raw
        self._publish()

    def _publish(self) -> None:
        """Let ``jacobian`` be what is known, in units of forces and so far as it has agreed."""
        if self._raw is None:
            self.jacobian = None
            return
        agreed, expected = self._sums.agreement
        trust = np.divide(agreed, expected, out=np.ones_like(agreed), where=expected > 0)
        blocks = self._raw.reshape(*self._neighbours.shape, 3, 3).swapaxes(2, 3)
        scales = np.clip(trust, 0.0, 1.0)[:, None] * self._roots
        scales = scales * self._roots[self._neighbours, 0]
        blocks = np.ascontiguousarray(blocks * scales[:, :, None, None])
        self.jacobian = LocalJacobian(self._neighbours, blocks)
