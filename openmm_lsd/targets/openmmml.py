"""Potentials of OpenMM-ML: all states of a batch through the model of its PythonForce at once.

OpenMM-ML 1.8 adds a PythonForce whose function is a ``functools.partial`` that holds the model.
OpenMM shows that function in pickled form only, as part of the force's XML; so what
``as_openmmml_force`` works on is a copy of the model.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import openmm
from openmm import unit

from .base import ANGSTROM_PER_NM, ForceSettings
from .models import ANITarget, MACETarget, ModelTarget, Scales

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


def of_force(force: openmm.Force, settings: ForceSettings) -> ModelTarget | None:
    """The batched form of a Force of OpenMM-ML, or None."""
    return as_openmmml_force(force, settings.rows)


def as_openmmml_force(
    force: openmm.Force, rows: Callable[[list[int]], Any] = list
) -> ModelTarget | None:
    """The batched form of a force that OpenMM-ML 1.8 made for MACE or ANI, or None.

    None stands for every other force, and for one whose function cannot be pickled. The target has
    a copy of the model, on the device of the original. ``rows`` says where particles are among
    those that the target will be given, if these are not all.

    Forces are scaled exactly as the force scales them. OpenMM-ML 1.7 and 1.8 take ANI's forces from
    kJ/mol/angstrom to OpenMM's units without the factor of 10, so they are not the gradient of
    its energy; that is logged as a warning and followed, for the target is what a Context computes.
    """
    data = pickled_function(force)
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
        particles = [int(index) for index in force.getParticles()]
        atoms = [int(row) for row in rows(particles)] or None
        compute.keywords["model"].requires_grad_(False)  # our copy; only positions need gradients
        return convert(called, compute.keywords, atoms)
    return None


def pickled_function(force: openmm.Force) -> bytes | None:
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
