"""Models of TorchSim: MACE, Orb, SevenNet, MatterSim, fairchem and others, behind one interface."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from openmm import unit

from ..contexts.cores import keep_torch_alive_in_children
from .base import (
    ANGSTROM_PER_NM,
    KJ_PER_MOL_PER_EV,
    Array,
    BatchedTarget,
    CachedOnDevice,
    Evaluation,
    Parts,
    checked,
    describe_model,
    finite_rows,
    is_out_of_memory,
    on_host,
)

if TYPE_CHECKING:
    import torch

INSTALL = 'pip install "torch-sim-atomistic>=0.3"'


def import_torch_sim() -> Any:
    """The module torch_sim.

    Raises
    ------
    ImportError
        If it cannot be imported, with what to install.
    """
    try:
        import torch_sim
        import torch_sim.models.interface
    except ImportError as error:
        raise ImportError(
            f"a TorchSim model needs torch_sim, which cannot be imported here ({error}); install "
            f"it with: {INSTALL}"
        ) from error
    return torch_sim


def takes_extras() -> bool:
    """Whether the SimState of this TorchSim does; it must be installed."""
    fields = dataclasses.fields(import_torch_sim().SimState)
    return "_system_extras" in {field.name for field in fields}


class TorchSimTarget(BatchedTarget):
    """Energies and forces from a TorchSim model; the batch is one SimState of B systems.

    Parameters
    ----------
    model : torch_sim.models.interface.ModelInterface
        Its own device and dtype are used. Stresses are not used: build a
        model that can compute them with ``compute_stress=False``.
    atomic_numbers : (N,) int
    masses : (N,) amu, optional
        For the few models that read them; default those of the elements.
    system_extras : mapping of str to number or array, optional
        What else the model reads of a system, as SimState's ``_system_extras``: networks for ions
        read ``{"charge": 1, "spin": 2}``. Without it these take them for neutral.
    atom_extras : mapping of str to (N, ...) array, optional
        The same of the atoms.

    Raises
    ------
    ImportError
        If TorchSim is not installed.
    TypeError
        If ``model`` is not a TorchSim model.
    ValueError
        If the model computes no forces, the numbers of atoms differ, or the installed TorchSim,
        before 0.6, has no extras.

    Notes
    -----
    TorchSim: Cohen et al., AI Sci. 1, 025003 (2025). Its lengths are angstrom, its energies eV, and
    the vectors of its cells are columns.
    """

    def __init__(
        self,
        model: Any,
        atomic_numbers: Sequence[int],
        *,
        masses: Sequence[float] | None = None,
        system_extras: Mapping[str, Any] | None = None,
        atom_extras: Mapping[str, Any] | None = None,
    ) -> None:
        self._torch_sim = import_torch_sim()
        import torch

        self._torch = torch
        interface = self._torch_sim.models.interface.ModelInterface
        if not isinstance(model, interface):
            raise TypeError(
                f"model is a {type(model).__name__}, not a torch_sim ModelInterface; "
                "wrap it in a model of torch_sim.models"
            )
        if not model.compute_forces:
            raise ValueError(
                f"the model, a {type(model).__name__}, computes no forces; build it with "
                "compute_forces=True"
            )
        self._model = model
        self._numbers = np.array(atomic_numbers, dtype=np.int64)
        if self._numbers.ndim != 1 or len(self._numbers) == 0:
            raise ValueError(
                f"atomic_numbers has shape {self._numbers.shape}; expected (N,), one for each atom"
            )
        self._masses = _masses_of(self._numbers) if masses is None else np.array(masses, float)
        if self._masses.shape != self._numbers.shape:
            raise ValueError(
                f"there are masses of shape {self._masses.shape} for {len(self._numbers)} atomic "
                "numbers"
            )
        self._system_extras = self._extras(system_extras)
        self._atom_extras = self._extras(atom_extras)
        for name, values in self._atom_extras.items():
            if values.shape[:1] != self._numbers.shape:
                raise ValueError(
                    f"atom_extras: {name} has shape {tuple(values.shape)}; the first axis must be "
                    f"that of the {len(self._numbers)} atoms"
                )
        self._cell = CachedOnDevice(self._tensor)
        self._on_device = (
            self._tensor(self._masses),
            torch.tensor(self._numbers, device=model.device),
        )
        keep_torch_alive_in_children()
        self._in_parts = Parts(self._evaluate, is_out_of_memory)

    def evaluate(self, positions: Array, box: Array | None = None) -> Evaluation:
        """See BatchedTarget. Periodic in all directions if there is a box, else in none."""
        if positions.ndim != 3 or positions.shape[1:] != (len(self._numbers), 3):
            raise ValueError(
                f"positions have shape {positions.shape}; expected (B, {len(self._numbers)}, 3), "
                f"since {len(self._numbers)} atomic numbers were given"
            )
        return finite_rows(self._in_parts, positions, box)

    def prepare(self, positions: Array, batch: int, box: Array | None = None) -> None:
        """See BatchedTarget."""
        self._in_parts.prepare(positions, batch, box, describe_model(self._model))

    def _evaluate(self, positions: Array, box: Array | None) -> Evaluation:
        results = self._model(self._state(positions, box))
        if "forces" not in results:
            raise ValueError(
                f"the model, a {type(self._model).__name__}, returned no forces, only "
                f"{', '.join(sorted(results))}"
            )
        energies, forces = on_host(results["energy"], results["forces"])
        energies = energies * KJ_PER_MOL_PER_EV
        forces = forces * (KJ_PER_MOL_PER_EV * ANGSTROM_PER_NM)
        if forces.size == positions.size:
            forces = forces.reshape(positions.shape)
        return checked(energies, forces, positions, "the TorchSim model")

    def _state(self, positions: Array, box: Array | None) -> Any:
        """All states as one SimState."""
        torch, batch = self._torch, len(positions)
        if box is not None:
            # Close to the origin, where single precision is finest.
            positions = positions - np.floor(positions @ np.linalg.inv(box)) @ box
        # Without a box no model may look at the cell, but some invert it.
        vectors = np.eye(3) if box is None else box * ANGSTROM_PER_NM
        cell = self._cell(vectors.T)
        masses, numbers = self._on_device
        systems = torch.arange(batch, device=self._model.device)
        return self._torch_sim.SimState(
            positions=self._tensor(positions.reshape(-1, 3) * ANGSTROM_PER_NM),
            masses=masses.repeat(batch),
            cell=cell.repeat(batch, 1, 1),
            pbc=box is not None,
            atomic_numbers=numbers.repeat(batch),
            system_idx=systems.repeat_interleave(len(numbers)),
            **self._extras_of(batch),
        )

    def _extras(self, given: Mapping[str, Any] | None) -> dict[str, torch.Tensor]:
        if given and not takes_extras():
            raise ValueError(
                f"this TorchSim has no extras, so the model cannot be told {', '.join(given)}; it "
                "takes version 0.6 or later"
            )
        return {name: self._tensor(np.asarray(value)) for name, value in (given or {}).items()}

    def _extras_of(self, batch: int) -> dict[str, dict[str, torch.Tensor]]:
        """As arguments of SimState; none where there are none, for older versions."""
        found = {}
        if self._system_extras:
            found["_system_extras"] = {
                name: value.expand(batch, *value.shape)
                for name, value in self._system_extras.items()
            }
        if self._atom_extras:
            found["_atom_extras"] = {
                name: value.repeat(batch, *(1 for _ in value.shape[1:]))
                for name, value in self._atom_extras.items()
            }
        return found

    def _tensor(self, array: Array) -> torch.Tensor:
        return self._torch.tensor(array, dtype=self._model.dtype, device=self._model.device)


def _masses_of(numbers: NDArray[np.int64]) -> Array:
    """Masses in amu of the elements with these atomic numbers."""
    from openmm.app import Element

    elements = [Element.getByAtomicNumber(int(number)) for number in numbers]
    return np.array([element.mass.value_in_unit(unit.amu) for element in elements])
