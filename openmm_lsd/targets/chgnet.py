"""CHGNet, a pretrained network for crystals: B graphs in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..contexts.cores import keep_torch_alive_in_children
from .base import (
    ANGSTROM_PER_NM,
    KJ_PER_MOL_PER_EV,
    Array,
    BatchedTarget,
    Evaluation,
    Parts,
    checked,
    describe_model,
    finite_rows,
    is_out_of_memory,
)


class CHGNetTarget(BatchedTarget):
    """Energies and forces from a CHGNet.

    Parameters
    ----------
    model : chgnet.model.CHGNet or str
        ``CHGNet.load(...)``, on the device that it is to use; or the name of one whose weights come
        with the package, such as '0.3.0' or 'r2scan'.
    atomic_numbers : (N,) int

    Raises
    ------
    ImportError
        If chgnet is not installed.
    ValueError
        If the atomic numbers are none, or there is no such model.

    Notes
    -----
    Deng et al., Nature Machine Intelligence 5, 1031 (2023). In single precision; lengths in
    angstrom, energies in eV per atom.
    """

    def __init__(self, model: Any, atomic_numbers: Sequence[int]) -> None:
        try:
            from chgnet.model import CHGNet
            from pymatgen.core import Lattice, Structure
        except ImportError as error:
            raise ImportError(
                f"CHGNet needs chgnet, which cannot be imported here ({error}); install it with: "
                "pip install chgnet"
            ) from error
        self._structure_of: Any = Structure
        self._lattice_of: Any = Lattice
        self._model = (
            CHGNet.load(model_name=model, verbose=False) if isinstance(model, str) else model
        )
        self._numbers = np.array(atomic_numbers, dtype=np.int64)
        if self._numbers.ndim != 1 or len(self._numbers) == 0:
            raise ValueError(
                f"atomic_numbers has shape {self._numbers.shape}; expected (N,), one for each atom"
            )
        keep_torch_alive_in_children()
        self._in_parts = Parts(self._evaluate, is_out_of_memory)

    def evaluate(self, positions: Array, box: Array | None = None) -> Evaluation:
        """See BatchedTarget.

        Raises
        ------
        ValueError
            If there is no box, or the number of atoms is another.
        """
        if positions.ndim != 3 or positions.shape[1:] != (len(self._numbers), 3):
            raise ValueError(
                f"positions have shape {positions.shape}; expected (B, {len(self._numbers)}, 3), "
                f"since {len(self._numbers)} atomic numbers were given"
            )
        if box is None:
            raise ValueError("CHGNet is a potential of crystals, and there is no periodic box")
        return finite_rows(self._in_parts, positions, box)

    def prepare(self, positions: Array, batch: int, box: Array | None = None) -> None:
        """See BatchedTarget."""
        self._in_parts.prepare(positions, batch, box, describe_model(self._model))

    def _evaluate(self, positions: Array, box: Array) -> Evaluation:
        lattice = self._lattice_of(box * ANGSTROM_PER_NM)
        graphs = [
            self._model.graph_converter(
                self._structure_of(
                    lattice, self._numbers, state * ANGSTROM_PER_NM, coords_are_cartesian=True
                )
            )
            for state in positions
        ]
        found = self._model.predict_graph(graphs, task="ef", batch_size=len(graphs))
        found = found if isinstance(found, list) else [found]  # of a single graph
        energies = np.array([float(each["e"]) for each in found])
        if self._model.is_intensive:
            energies *= len(self._numbers)
        forces = np.stack([np.asarray(each["f"], dtype=np.float64) for each in found])
        return checked(
            energies * KJ_PER_MOL_PER_EV,
            forces * (KJ_PER_MOL_PER_EV * ANGSTROM_PER_NM),
            positions,
            "CHGNet",
        )
