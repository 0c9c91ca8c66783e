"""MACE and ANI models, with a whole batch in one call."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from openmm import unit

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
    on_host,
)
from .neighbours import Indices, find_pairs

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

INSTALL_MACE = 'pip install "mace-torch>=0.3.16"'
INSTALL_ANI = 'pip install "torchani>=2.9,<3"'

KJ_PER_MOL_PER_HARTREE = (1 * unit.hartree * unit.AVOGADRO_CONSTANT_NA).value_in_unit(
    unit.kilojoule_per_mole
)


class Scales(NamedTuple):
    """What takes a model's results to kJ/mol and kJ/mol/nm."""

    energy: float
    force: float


class ModelTarget(BatchedTarget):
    """What the targets of this file share: a model of some of the atoms, in angstrom.

    Parameters
    ----------
    model : torch.nn.Module
        Its own device and dtype are used.
    atomic_numbers : (n,) int
        Of the atoms that the model acts on.
    atoms : (n,) int, optional
        Their indices; the others feel no force. Default: all atoms there are.
    periodic : bool
        Whether the model sees periodic images; then a box must be given.
    scales : Scales
    """

    def __init__(
        self,
        model: torch.nn.Module,
        atomic_numbers: Sequence[int],
        *,
        atoms: Sequence[int] | None,
        periodic: bool,
        scales: Scales,
    ) -> None:
        import torch

        if not isinstance(model, torch.nn.Module):
            raise TypeError(f"model is a {type(model).__name__}, not a torch.nn.Module")
        self._torch = torch
        self._model: Any = model
        parameter = next(model.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype
        self._numbers = np.array(atomic_numbers, dtype=np.int64)
        if self._numbers.ndim != 1 or len(self._numbers) == 0:
            raise ValueError(
                f"atomic_numbers has shape {self._numbers.shape}; expected (n,), one for each atom"
            )
        self.atoms = None if atoms is None else np.array(atoms, dtype=np.int64)
        if self.atoms is not None and (
            self.atoms.shape != self._numbers.shape
            or len(np.unique(self.atoms)) < len(self.atoms)
            or self.atoms.min() < 0
        ):
            raise ValueError(
                f"atoms must be {len(self._numbers)} different indices, as many as there are "
                f"atomic numbers; they are {self.atoms}"
            )
        self.periodic = periodic
        self._scales = scales
        keep_torch_alive_in_children()
        self._in_parts = Parts(self._evaluate, is_out_of_memory)

    def evaluate(self, positions: Array, box: Array | None = None) -> Evaluation:
        """See BatchedTarget; the box counts only if the model is periodic.

        Raises
        ------
        ValueError
            If the number of atoms does not fit, or a box is missing.
        """
        self._check(positions)
        if not self.periodic:
            box = None
        elif box is None:
            raise ValueError("the model is periodic, but there is no box")
        return finite_rows(self._in_parts, positions, box)

    def prepare(self, positions: Array, batch: int, box: Array | None = None) -> None:
        """See BatchedTarget."""
        model = describe_model(self._model, self._dtype, self._device)
        self._in_parts.prepare(positions, batch, box if self.periodic else None, model)

    def _check(self, positions: Array) -> None:
        count = len(self._numbers)
        if positions.ndim != 3 or positions.shape[2] != 3:
            raise ValueError(f"positions have shape {positions.shape}; expected (B, N, 3)")
        if self.atoms is None and positions.shape[1] != count:
            raise ValueError(
                f"positions of {positions.shape[1]} atoms were given to a model of {count} atoms"
            )
        if self.atoms is not None and positions.shape[1] <= self.atoms.max():
            raise ValueError(
                f"positions of {positions.shape[1]} atoms were given to a model that acts on atom "
                f"{self.atoms.max()}"
            )

    def _evaluate(self, positions: Array, box: Array | None) -> Evaluation:
        of_model = positions if self.atoms is None else positions[:, self.atoms]
        scaled_box = None if box is None else np.asarray(box) * ANGSTROM_PER_NM
        results = self._run(of_model * ANGSTROM_PER_NM, scaled_box)
        energies, own = checked(*on_host(*results), of_model, "the model")
        forces = own
        if self.atoms is not None:
            forces = np.zeros(positions.shape)
            forces[:, self.atoms] = own
        return energies * self._scales.energy, forces * self._scales.force

    @abstractmethod
    def _run(self, positions: Array, box: Array | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Energies (B,) and forces (B, n, 3) in the model's units; lengths in angstrom."""

    def _tensors(self, *arrays: Array) -> list[torch.Tensor]:
        """The arrays on the device, by one copy."""
        parts = self._tensor(np.concatenate([array.ravel() for array in arrays])).split(
            [array.size for array in arrays]
        )
        return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]

    def _tensor(self, array: Array | Indices, dtype: torch.dtype | None = None) -> torch.Tensor:
        return self._torch.tensor(array, dtype=dtype or self._dtype, device=self._device)


class MACETarget(ModelTarget):
    """Energies and forces from a MACE model; the batch is one graph, with one neighbour list.

    Parameters
    ----------
    model : mace.modules.MACE
        As ``torch.load`` gives it; its own device and dtype are used.
    atomic_numbers : (n,) int
    atoms, periodic
        See ModelTarget.
    energy : str
        Which of the model's energies counts: 'interaction_energy', without that of the free atoms
        (OpenMM-ML's default), or 'energy'.
    charge, multiplicity : float
        Total charge in e and 2 S + 1 of the atoms, for the models that depend on them.
    scales : Scales, optional
        Default: from eV and angstrom.

    Raises
    ------
    ImportError
        If mace-torch is not installed.
    TypeError, ValueError
        If ``model`` is no MACE model, lacks an element or that energy, or for wrong arguments.

    Notes
    -----
    MACE: Batatia et al., NeurIPS 2022, arXiv:2206.07697.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        atomic_numbers: Sequence[int],
        *,
        atoms: Sequence[int] | None = None,
        periodic: bool = False,
        energy: str = "interaction_energy",
        charge: float = 0.0,
        multiplicity: float = 1.0,
        scales: Scales | None = None,
    ) -> None:
        _import("mace", "a MACE model", INSTALL_MACE)
        scales = scales or _scales_from(KJ_PER_MOL_PER_EV)
        super().__init__(model, atomic_numbers, atoms=atoms, periodic=periodic, scales=scales)
        if not hasattr(model, "r_max") or not hasattr(model, "atomic_numbers"):
            raise TypeError(f"model is a {type(model).__name__}, not a MACE model")
        if energy not in ("interaction_energy", "energy"):
            raise ValueError(f"energy is {energy!r}; allowed: 'interaction_energy', 'energy'")
        self._energy, self._charge, self._multiplicity = energy, charge, multiplicity
        self._cutoff = float(self._model.r_max)
        elements = self._model.atomic_numbers.cpu().numpy()
        missing = sorted(set(self._numbers.tolist()) - set(elements.tolist()))
        if missing:
            raise ValueError(
                f"the MACE model knows the atomic numbers {elements.tolist()}, not {missing}"
            )
        self._node_attributes = self._tensor(self._numbers[:, None] == elements)

    def _run(self, positions: Array, box: Array | None) -> tuple[torch.Tensor, torch.Tensor]:
        torch, (batch, count) = self._torch, positions.shape[:2]
        positions, pairs = find_pairs(positions, self._cutoff, box)
        first_atom = pairs.state * count
        edges = np.stack([first_atom + pairs.first, first_atom + pairs.second])
        if box is None:
            # As OpenMM-ML hands it over; only models with long-range terms look at it.
            widths = 5 * self._cutoff * (np.abs(positions).max(axis=(1, 2)) + 1)
            cells = widths[:, None, None] * np.eye(3)
        else:
            cells = np.broadcast_to(box, (batch, 3, 3))
        # On the host: a device would have to be waited for.
        reciprocal = 2 * np.pi * np.linalg.inv(cells).swapaxes(1, 2)
        x, shifts, cell, rcell, volume = self._tensors(
            positions, pairs.shift, cells, reciprocal, np.linalg.det(cells)
        )
        results = self._model(
            {
                "ptr": count * torch.arange(batch + 1, device=self._device),
                "batch": torch.arange(batch, device=self._device).repeat_interleave(count),
                "node_attrs": self._node_attributes.repeat(batch, 1),
                "positions": x.view(-1, 3),
                "edge_index": self._tensor(edges, torch.int64),
                "shifts": shifts,
                "cell": cell.view(-1, 3),
                "rcell": rcell.view(-1, 3),
                "volume": volume,
                "pbc": torch.full((batch, 3), box is not None, device=self._device),
                "total_charge": self._per_state(batch, self._charge),
                "total_spin": self._per_state(batch, self._multiplicity),
                "external_field": torch.zeros(batch, 3, dtype=self._dtype, device=self._device),
                "fermi_level": self._per_state(batch, 0.0),
            },
            compute_force=True,
        )
        if results.get(self._energy) is None:
            raise ValueError(f"the model gives no {self._energy!r}")
        return results[self._energy], results["forces"].reshape(positions.shape)

    def _per_state(self, batch: int, value: float) -> torch.Tensor:
        return self._torch.full((batch,), value, dtype=self._dtype, device=self._device)


class ANITarget(ModelTarget):
    """Energies and forces from a TorchANI model, called with all states at once.

    Parameters
    ----------
    model : torchani.arch.ANI
        With ``periodic_table_index=True``; its own device and dtype are used.
    atomic_numbers : (n,) int
    atoms, periodic
        See ModelTarget.
    scales : Scales, optional
        Default: from hartree and angstrom.

    Raises
    ------
    ImportError
        If TorchANI is not installed.
    TypeError, ValueError
        If ``model`` is no such model or lacks an element, or for wrong arguments.

    Notes
    -----
    TorchANI: Gao et al., J. Chem. Inf. Model. 60, 3408 (2020). Its own search for periodic
    neighbours forgets all states of a batch but the first, hence ours.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        atomic_numbers: Sequence[int],
        *,
        atoms: Sequence[int] | None = None,
        periodic: bool = False,
        scales: Scales | None = None,
    ) -> None:
        _import("torchani", "an ANI model", INSTALL_ANI)
        scales = scales or _scales_from(KJ_PER_MOL_PER_HARTREE)
        super().__init__(model, atomic_numbers, atoms=atoms, periodic=periodic, scales=scales)
        if not hasattr(model, "compute_from_external_neighbors"):
            raise TypeError(f"model is a {type(model).__name__}, not a model of TorchANI 2.9")
        if not model.periodic_table_index:
            raise ValueError("the ANI model must be built with periodic_table_index=True")
        elements = self._model.atomic_numbers.tolist()
        missing = sorted(set(self._numbers.tolist()) - set(elements))
        if missing:
            raise ValueError(f"the ANI model knows the atomic numbers {elements}, not {missing}")
        self._species = self._tensor(self._numbers, self._torch.int64)

    def _run(self, positions: Array, box: Array | None) -> tuple[torch.Tensor, torch.Tensor]:
        species = self._species.expand(positions.shape[:2])
        if box is None:
            x = self._tensor(positions).requires_grad_()
            energies = self._model((species, x)).energies
        else:
            count = positions.shape[1]
            positions, pairs = find_pairs(positions, self._model.cutoff, box)
            half = pairs.once()  # TorchANI takes a pair in one direction only
            x = self._tensor(positions).requires_grad_()
            first_atom = half.state * count
            # Its vectors run from the second atom to the first.
            indices = np.stack([first_atom + half.second, first_atom + half.first])
            energies = self._model.compute_from_external_neighbors(
                species, x, self._tensor(indices, self._torch.int64), self._tensor(half.shift)
            ).energies
        (gradient,) = self._torch.autograd.grad(energies.sum(), x)
        return energies, -gradient


def _scales_from(energy: float) -> Scales:
    """Of a model in angstrom whose unit of energy is so many kJ/mol."""
    return Scales(energy, energy * ANGSTROM_PER_NM)


def _import(package: str, what: str, install: str) -> None:
    import importlib

    try:
        importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"{what} needs {package}, which cannot be imported here ({error}); install it with: "
            f"{install}"
        ) from error
