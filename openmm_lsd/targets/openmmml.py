"""Potentials of OpenMM-ML: all states of a batch through the model of its PythonForce at once.

OpenMM-ML 1.8 adds a PythonForce whose function is a ``functools.partial`` that holds the model.
OpenMM shows that function in pickled form only, as part of the force's XML; so what
``as_openmmml_force`` works on is a copy of the model.
"""

from __future__ import annotations

import logging
import pickle
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import unit

from ..cores import keep_torch_alive_in_children
from .base import (
    ANGSTROM_PER_NM,
    KJ_PER_MOL_PER_EV,
    Array,
    BatchedTarget,
    Evaluation,
    SubBatches,
    checked,
    finite_rows,
    is_out_of_memory,
    on_host,
)

if TYPE_CHECKING:
    import torch

Indices = NDArray[np.int64]

logger = logging.getLogger(__name__)

INSTALL_MACE = 'pip install "mace-torch>=0.3.16"'
INSTALL_ANI = 'pip install "torchani>=2.9,<3"'

KJ_PER_MOL_PER_HARTREE = (1 * unit.hartree * unit.AVOGADRO_CONSTANT_NA).value_in_unit(
    unit.kilojoule_per_mole
)

# States further apart than this are not searched for pairs together: what one search saves would be
# lost on pairs that are neighbours in none of them. Those of a window lie within 0.2 angstrom.
WIDEST_REACH = 0.5  # angstrom


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
        self._in_parts = SubBatches(self._evaluate, is_out_of_memory)

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


class Pairs(NamedTuple):
    """Pairs of atoms; the vector from the first to the second is x[second] - x[first] + shift."""

    state: Indices  # (P,)
    first: Indices  # (P,)
    second: Indices  # (P,)
    image: Indices  # (P, 3): of the second atom, in box vectors
    shift: Array  # (P, 3), angstrom

    def once(self) -> Pairs:
        """Each pair in one of its two directions."""
        sign = np.zeros(len(self.image), dtype=np.int64)
        for column in self.image.T:
            sign = np.where(sign == 0, np.sign(column), sign)
        keep = (self.first < self.second) | ((self.first == self.second) & (sign > 0))
        return Pairs(*(part[keep] for part in self))


def find_pairs(positions: Array, cutoff: float, box: Array | None) -> tuple[Array, Pairs]:
    """All pairs of atoms closer than the cutoff, in both directions, in each of a batch of states.

    States that are near one another, as those of a window are, share one search: around one of
    them, with the cutoff widened by twice the farthest that an atom of the others is away. Its
    pairs are then measured in all of these states.

    Parameters
    ----------
    positions : (B, n, 3) angstrom
    cutoff : float
        angstrom
    box : (3, 3) angstrom or None

    Returns
    -------
    positions : (B, n, 3) angstrom
        Atoms moved by whole box vectors to lie in or near the box.
    pairs : Pairs
        They belong to the returned positions.
    """
    positions = positions.copy()
    found: list[Pairs] = []
    left = np.arange(len(positions))
    while len(left):
        reference = positions[left[0]].copy()
        reach = np.linalg.norm(positions[left] - reference, axis=2).max(axis=1)
        together = reach <= WIDEST_REACH
        states, left = left[together], left[~together]
        if box is not None:
            wrapped = np.floor(reference @ np.linalg.inv(box)) @ box
            reference = reference - wrapped
            positions[states] -= wrapped
        first, second, image = _pairs_of_one(reference, cutoff + 2 * reach[together].max(), box)
        shift = np.zeros((len(first), 3)) if box is None else image @ box
        x = positions[states]
        distances = np.linalg.norm(x[:, second] - x[:, first] + shift, axis=2)
        row, pair = np.nonzero(distances < cutoff)
        found.append(Pairs(states[row], first[pair], second[pair], image[pair], shift[pair]))
    return positions, Pairs(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def _pairs_of_one(
    positions: Array, reach: float, box: Array | None
) -> tuple[Indices, Indices, Indices]:
    """First atoms, second atoms and their images of all pairs in one state.

    The images of the atoms within ``reach`` of the box are laid out around it and found by a tree.
    """
    from scipy.spatial import cKDTree

    count = len(positions)
    atoms, images = np.arange(count), np.zeros((count, 3), dtype=np.int64)
    copies = positions
    if box is not None:
        # Where an atom may lie, in fractions of the box vectors, to be within reach of the box.
        margin = reach * np.linalg.norm(np.linalg.inv(box), axis=0)
        most = np.ceil(margin).astype(np.int64)
        around = np.stack(
            np.meshgrid(*(np.arange(-m, m + 1) for m in most), indexing="ij"), axis=-1
        ).reshape(-1, 3)
        fractions = (positions @ np.linalg.inv(box))[None] + around[:, None]
        near = ((fractions >= -margin) & (fractions <= 1 + margin)).all(axis=2)
        which, atoms = np.nonzero(near)
        images = around[which]
        copies = positions[atoms] + images @ box
    centres, others = cKDTree(positions), cKDTree(copies)
    pairs = centres.sparse_distance_matrix(others, reach, output_type="ndarray")
    first, copy = pairs["i"].astype(np.int64), pairs["j"].astype(np.int64)
    itself = (atoms[copy] == first) & (images[copy] == 0).all(axis=1)
    first, copy = first[~itself], copy[~itself]
    order = np.lexsort((copy, first))
    return first[order], atoms[copy[order]], images[copy[order]]


def as_openmmml_force(force: openmm.Force) -> ModelTarget | None:
    """The batched form of a force that OpenMM-ML 1.8 made for MACE or ANI, or None.

    None stands for every other force, and for one whose function cannot be pickled. The target has
    a copy of the model, on the device of the original.

    Forces are scaled exactly as the force scales them. OpenMM-ML 1.7 and 1.8 take ANI's forces from
    kJ/mol/angstrom to OpenMM's units without the factor of 10, so they are not the gradient of
    its energy; that is logged as a warning and followed, for the target is what a Context computes.
    """
    data = _pickled_function(force)
    if data is None:
        return None
    for module, function, keywords, convert in _KINDS:
        if module.encode() not in data or function.encode() not in data:
            continue
        try:
            compute = pickle.loads(data)
        except Exception as error:  # whatever the packages that it needs may raise
            logger.info("PythonForce: its function cannot be copied (%s)", error)
            return None
        called: Any = getattr(compute, "func", None)
        if getattr(called, "__module__", "") != module or called.__name__ != function:
            continue
        if compute.args or set(compute.keywords) != keywords:
            logger.info("PythonForce: %s of another version of OpenMM-ML than 1.8", function)
            return None
        atoms = [int(index) for index in force.getParticles()] or None
        compute.keywords["model"].requires_grad_(False)  # our copy; only positions need gradients
        return convert(called, compute.keywords, atoms)
    return None


def _pickled_function(force: openmm.Force) -> bytes | None:
    """The pickled function of a PythonForce, or None.

    getPickledFunction() of OpenMM 8.6 gives Python an object that it cannot read.
    """
    python_force = getattr(openmm, "PythonForce", None)
    if python_force is None or not isinstance(force, python_force):
        return None
    try:
        text = openmm.XmlSerializer.serialize(force)
    except openmm.OpenMMException as error:
        logger.info("PythonForce: cannot be serialised (%s)", error)
        return None
    code = ElementTree.fromstring(text).get("function")
    return None if code is None else bytes.fromhex(code)


def _mace_of(
    compute: Callable[..., Any], given: dict[str, Any], atoms: list[int] | None
) -> MACETarget:
    elements = given["model"].atomic_numbers.cpu()
    return MACETarget(
        given["model"],
        elements[given["node_attrs"].argmax(dim=1).cpu()].tolist(),
        atoms=atoms,
        periodic=given["periodic"],
        energy=given["returnEnergyType"],
        charge=float(given["charge"]),
        multiplicity=float(given["multiplicity"]),
        scales=_mace_scales(compute),
    )


def _ani_of(
    compute: Callable[..., Any], given: dict[str, Any], atoms: list[int] | None
) -> ANITarget:
    scales = _ani_scales(compute)
    if not np.isclose(scales.force, scales.energy * ANGSTROM_PER_NM):
        logger.warning(
            "this version of OpenMM-ML gives forces for ANI that are %.3g times the negative "
            "gradient of its energy (a missing conversion of units); LSD follows it. Any dynamics "
            "with this System, plain or LSD, is wrong: build ANITarget(model, atomic_numbers) "
            "yourself, or use a version of OpenMM-ML that is corrected",
            scales.force / (scales.energy * ANGSTROM_PER_NM),
        )
    return ANITarget(
        given["model"],
        given["species"][0].tolist(),
        atoms=atoms,
        periodic=given["pbc"] is not None,
        scales=scales,
    )


_KINDS = [
    (
        "openmmml.models.macepotential",
        "_computeMACE",
        {"model", "ptr", "node_attrs", "batch", "pbc", "returnEnergyType", "charge"}
        | {"multiplicity", "periodic"},
        _mace_of,
    ),
    ("openmmml.models.anipotential", "_computeANI", {"model", "species", "pbc"}, _ani_of),
]


class _OneAtom:
    """As much of an openmm.State as OpenMM-ML's functions ask for: one atom at the origin."""

    def getPositions(self, asNumpy: bool = False) -> unit.Quantity:  # noqa: N802, N803
        return unit.Quantity(np.zeros((1, 3)), unit.nanometer)


def _mace_scales(compute: Callable[..., Any]) -> Scales:
    """What OpenMM-ML's function makes of an energy and forces of 1; it rounds its constants."""
    import torch

    class One:
        r_max = torch.tensor(1.0)

        def __call__(self, inputs: object, compute_force: bool) -> dict[str, torch.Tensor]:
            one = torch.ones(1, 3, dtype=torch.float64)
            return {"energy": one[0, :1], "forces": one}

    energy, forces = compute(
        _OneAtom(),
        model=One(),
        ptr=torch.tensor([0, 1]),
        node_attrs=torch.ones(1, 1, dtype=torch.float64),
        batch=torch.zeros(1, dtype=torch.int64),
        pbc=torch.zeros(3, dtype=torch.bool),
        returnEnergyType="energy",
        charge=torch.zeros(1),
        multiplicity=torch.ones(1),
        periodic=False,
    )
    return Scales(float(energy), float(forces[0, 0]))


def _ani_scales(compute: Callable[..., Any]) -> Scales:
    """What OpenMM-ML's function makes of the energy 1 + x, whose force is -1."""
    import torch

    def one(arguments: Any, cell: None, pbc: None) -> tuple[Any, torch.Tensor]:
        species, positions = arguments
        return species, 1 + positions[:, 0, 0]

    energy, forces = compute(_OneAtom(), model=one, species=torch.ones(1, 1), pbc=None)
    return Scales(float(torch.as_tensor(energy).detach()), -float(forces[0, 0]))


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
