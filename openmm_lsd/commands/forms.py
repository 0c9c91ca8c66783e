"""The targets that the command line can name by a prefix: how, by what, and what they need."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import openmm
from openmm import app

from ..structures import atomic_numbers
from ..targets import ASETarget, BatchedTarget, CHGNetTarget, TorchSimTarget, as_target
from .callspec import evaluate_call_spec

FILES = (
    "model.pt (TorchScript), amoeba2018.xml (OpenMM force field), system.xml (serialized System)"
)


class Form(NamedTuple):
    """Of a target.

    ``usage`` is what a user writes and ``about`` what it means; ``extra`` names what to install,
    ``pip install "openmm-lsd[extra]"``, if that is needed, and ``modules`` what must be there then;
    ``build`` makes the target, or its
    System, from what follows the prefix and a Topology.
    """

    usage: str
    about: str
    extra: str | None
    build: Callable[[str, app.Topology], BatchedTarget | openmm.System]
    modules: tuple[str, ...] = ()

    @property
    def prefix(self) -> str:
        """What ``usage`` begins with."""
        return self.usage.partition(":")[0]


def _ase(call: str, topology: app.Topology) -> BatchedTarget:
    return ASETarget(evaluate_call_spec(call), atomic_numbers(topology))


def _torchsim(call: str, topology: app.Topology) -> BatchedTarget:
    return TorchSimTarget(evaluate_call_spec(call), atomic_numbers(topology).tolist())


def _chgnet(name: str, topology: app.Topology) -> BatchedTarget:
    return CHGNetTarget(name, atomic_numbers(topology).tolist())


def _python(call: str, topology: app.Topology) -> BatchedTarget:
    return as_target(evaluate_call_spec(call), f"python:{call}")


def _openmmml(name: str, topology: app.Topology) -> openmm.System:
    atomic_numbers(topology)  # are known
    try:
        from openmmml import MLPotential
    except ImportError as error:
        raise ImportError(
            f"a target of OpenMM-ML needs openmmml, which cannot be imported here ({error}); "
            "install it with: pip install openmmml"
        ) from error
    return MLPotential(name).createSystem(topology)


FORMS = {
    form.prefix: form
    for form in (
        Form("ase:MODULE:CALL", "ASE calculator", "ase", _ase, ("ase",)),
        Form(
            "torchsim:MODULE:CALL", "TorchSim model", "torchsim", _torchsim, ("torch", "torch_sim")
        ),
        Form(
            "chgnet:NAME",
            "CHGNet with the weights of its package",
            "chgnet",
            _chgnet,
            ("torch", "chgnet"),
        ),
        Form("python:MODULE:CALL", "what as_target takes", None, _python),
        Form("openmmml:NAME", "potential of OpenMM-ML", "mace", _openmmml, ("openmmml",)),
    )
}


def in_words() -> str:
    """All forms, for errors and help."""
    *first, last = (form.usage for form in FORMS.values())
    return f"{FILES}, {', '.join(first)} or {last}"
