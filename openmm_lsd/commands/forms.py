"""The targets that the command line can name by a prefix: how, by what, and what they need."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import openmm
from openmm import app

from ..structures import atomic_numbers, charges_in_words, totals_of
from ..targets import ASETarget, BatchedTarget, CHGNetTarget, TorchSimTarget, as_target
from ..targets.torchsim import takes_extras
from .callspec import evaluate_call_spec

if TYPE_CHECKING:
    import ase

logger = logging.getLogger(__name__)

FILES = (
    "model.pt (TorchScript), amoeba2018.xml (OpenMM force field), system.xml (serialized System)"
)


class Form(NamedTuple):
    """Of a target.

    ``usage`` is what a user writes and ``about`` what it means; ``extra`` names what to install,
    ``pip install "openmm-lsd[extra]"``, if that is needed, and ``modules`` what must be there then;
    ``make`` makes the target, or its System, from what follows the prefix and a Topology; where it
    ``takes_species`` also from what ASE read of the atoms, None if it did not.
    """

    usage: str
    about: str
    extra: str | None
    make: Callable[..., BatchedTarget | openmm.System]
    modules: tuple[str, ...] = ()
    takes_species: bool = False

    @property
    def prefix(self) -> str:
        """What ``usage`` begins with."""
        return self.usage.partition(":")[0]

    def build(
        self, call: str, topology: app.Topology, species: ase.Atoms | None = None
    ) -> BatchedTarget | openmm.System:
        """The target, or its System; with the charges and magnetic moments of the species."""
        if self.takes_species:
            return self.make(call, topology, species)
        warn_of_charges(species, f"{self.prefix}:{call}")
        return self.make(call, topology)


def warn_of_charges(species: ase.Atoms | None, target: str) -> None:
    """That this target is not told what the structure says of charges and magnetic moments."""
    if said := charges_in_words(species):
        logger.warning("the structure says %s, which %s is not told", said, target)


def _ase(call: str, topology: app.Topology, species: ase.Atoms | None) -> BatchedTarget:
    numbers = atomic_numbers(topology)
    return ASETarget(evaluate_call_spec(call), numbers if species is None else species)


def _torchsim(call: str, topology: app.Topology, species: ase.Atoms | None) -> BatchedTarget:
    model, numbers = evaluate_call_spec(call), atomic_numbers(topology).tolist()
    totals = totals_of(species)
    if not totals or not takes_extras():
        warn_of_charges(species, f"torchsim:{call}")
        return TorchSimTarget(model, numbers)
    logger.info("%s is told %s", f"torchsim:{call}", totals)
    return TorchSimTarget(model, numbers, system_extras=totals)


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
        Form("ase:MODULE:CALL", "ASE calculator", "ase", _ase, ("ase",), takes_species=True),
        Form(
            "torchsim:MODULE:CALL",
            "TorchSim model",
            "torchsim",
            _torchsim,
            ("torch", "torch_sim"),
            takes_species=True,
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
