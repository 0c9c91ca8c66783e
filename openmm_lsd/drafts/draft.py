"""The draft: forces of a System or a potential, of a valence force field that learns, or both."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app

from .._native import Valence
from ..contexts.digests import digest_of
from ..contexts.forcecontext import (
    ForceContext,
    describe_system,
    fastest_context,
    holds_python,
)
from ..contexts.platforms import loaded_platforms, platforms_to_try
from ..core.clock import Times
from ..core.schemes import reciprocal
from ..targets.base import BatchedTarget
from ..targets.system import SystemTarget
from .autodraft import NO_PAIRS, AutoDraft, auto_draft
from .bonds import BondMonitor
from .fingerprint import is_of
from .learning import WEIGHT_OF_DIFFERENCES, Learner
from .molgraph import (
    Pairs,
    elements_of_masses,
    graph_of_positions,
    graph_of_topology,
    with_missing_bonds,
)
from .nativedraft import ForceSource, NativeDraft, is_same_box
from .potentialdraft import PotentialDraft
from .valence import ValenceTerms

Array = NDArray[np.float64]

logger = logging.getLogger(__name__)


class Draft(NativeDraft):
    """The forces of a System."""

    def __init__(self, context: ForceContext) -> None:
        self.take_context(context)

    def take_context(self, context: ForceContext) -> None:
        """Let this Context compute the forces from now on."""
        self.context = context
        self.uses_times = context.uses_times

    def __call__(self, positions: Array, times: Times | None = None) -> Array:
        """See NativeDraft."""
        return self.context.forces(positions[None], times)[0]

    def roll_out(self, *arguments: Any, times: Times | None) -> tuple:
        """See NativeDraft."""
        return self.context.access.rollout(*arguments, *(times or ()))

    def roll_out_whole(self, *arguments: Any, times: Times | None) -> tuple:
        """See NativeDraft."""
        return self.context.access.rollout_whole(*arguments, *(times or ()))

    def roll_out_in_context(self, *arguments: Any) -> tuple:
        """See NativeDraft."""
        return self.context.access.rollout_in_context(*arguments)

    def set_environment(self, box: Array | None, parameters: Mapping[str, float]) -> None:
        """See NativeDraft."""
        self.context.set_environment(box, parameters)


class LearningDraft(NativeDraft):
    """A valence force field that learns, by itself or on top of the forces of a System.

    Parameters
    ----------
    start : AutoDraft
        The force field, with the parameters to start from.
    masses : (N,) amu
    base : ForceSource, optional
    bonds : BondMonitor, optional
        From which the terms were made. If bonds form, or the draft becomes bad, they are made anew.
    weight_of_differences : float
        See Learner.
    constraints : (C, 2) int
        Pairs of atoms at a fixed distance. What acts along them is not learned.
    """

    def __init__(
        self,
        start: AutoDraft,
        masses: Array,
        base: ForceSource | None = None,
        bonds: BondMonitor | None = None,
        weight_of_differences: float = WEIGHT_OF_DIFFERENCES,
        constraints: Pairs = NO_PAIRS,
    ) -> None:
        self._constraints = constraints
        self._weight_of_differences = weight_of_differences
        self._base = base
        self.uses_times = base is not None and base.uses_times
        self._bonds = bonds
        self._masses = masses
        self._box: Array | None = None
        self._at_start = start
        self._shown_until = 0  # index of a step
        self._take(start)

    def _take(self, draft: AutoDraft) -> None:
        terms = self._terms = draft.terms
        self._valence = Valence(
            terms.particles,
            terms.kinds,
            terms.atoms,
            terms.references,
            terms.limits,
            terms.factors,
            terms.classes,
        )
        self._valence.set_box(self._box)
        if len(self._constraints):
            pairs = self._constraints.astype(np.int32)
            self._valence.set_constraints(pairs, reciprocal(self._masses))
        self._learner = Learner(
            draft.guesses,
            self._masses,
            draft.stages,
            self._valence.add_normal_equations,
            self._weight_of_differences,
        )
        self._valence.set_parameters(self._learner.parameters)

    @property
    def parameters(self) -> Array:
        """Of the valence force field at present; a copy."""
        return self._learner.parameters.copy()

    def __call__(self, positions: Array, times: Times | None = None) -> Array:
        """See NativeDraft."""
        return self._valence.forces(positions[None], self._access(), *(times or ()))[0]

    def roll_out(self, *arguments: Any, times: Times | None) -> tuple:
        """See NativeDraft."""
        return self._valence.rollout(*arguments, self._access(), *(times or ()))

    def roll_out_whole(self, *arguments: Any, times: Times | None) -> tuple:
        """See NativeDraft."""
        return self._valence.rollout_whole(*arguments, self._access(), *(times or ()))

    def roll_out_in_context(self, *arguments: Any) -> tuple:
        """See NativeDraft."""
        return self._valence.rollout_in_context(*arguments, self._access())

    def set_environment(self, box: Array | None, parameters: Mapping[str, float]) -> None:
        """See NativeDraft."""
        if not is_same_box(box, self._box):
            self._learner.add_equations()
            self._learner.break_sequence()
            self._box = None if box is None else np.ascontiguousarray(box)
            self._valence.set_box(self._box)
        if self._base is not None:
            self._base.set_environment(box, parameters)

    def snapshot(self) -> dict[str, Any]:
        """See NativeDraft."""
        terms, guesses, stages = self._at_start
        return {
            "terms at start": dataclasses.asdict(terms),
            "guesses at start": guesses,
            "stages at start": stages,
            "terms": dataclasses.asdict(self._terms),
            "learner": self._learner.snapshot(),
            "bonds": None if self._bonds is None else self._bonds.snapshot(),
            "shown until": self._shown_until,
        }

    def restore(self, record: dict[str, Any]) -> None:
        """See NativeDraft."""
        self._at_start = AutoDraft(
            ValenceTerms(**record["terms at start"]),
            record["guesses at start"],
            tuple(record["stages at start"]),
        )
        learner = record["learner"]
        self._take(AutoDraft(ValenceTerms(**record["terms"]), learner["prior"], ()))
        self._learner.restore(learner)
        self._valence.set_parameters(self._learner.parameters)
        if self._bonds is not None:
            self._bonds.restore(record["bonds"])
        self._shown_until = record["shown until"]

    def start(self, step: int) -> None:
        """A run starts at this step. What was learned from it or later ones is forgotten.

        Their noise is about to be used again, and must not have shaped the draft.
        """
        if step < self._shown_until:
            if self._bonds is not None:
                self._bonds.reset()
            self._take(self._at_start)
        self._learner.break_sequence()
        self._shown_until = step

    def learn(self, step: int, sites: Array, discrepancies: Array) -> bool:
        """Learn from committed steps, as soon as there are some; whether the forces have changed.

        Parameters
        ----------
        step : int
            Index of the first.
        sites : (B, N, 3) nm
            Force sites of the committed steps.
        discrepancies : (B, N, 3) kJ/mol/nm
            Target force minus this draft's force there.
        """
        if step != self._shown_until:  # plain steps lie between
            self._learner.break_sequence()
        self._shown_until = step + len(sites)
        if self._base is not None and self._base.has_failed_at(sites):
            self._learner.break_sequence()
            return False
        bonds, here = self._bonds, sites[-1]
        formed = bonds is not None and bonds.update(self._shown_until, here, self._box)
        if self._learner.has_degraded(discrepancies) or formed:
            logger.info(
                "%s at step %d: the draft is rebuilt",
                "bonds have formed" if formed else "it has become worse",
                self._shown_until,
            )
            self._make_anew(here)
            return True
        changed = self._learner.learn(sites, discrepancies)
        if changed:
            self._valence.set_parameters(self._learner.parameters)
        return changed

    def _make_anew(self, positions: Array) -> None:
        """Terms of the structure as it is now; if they are the same, only learn them again."""
        if self._bonds is not None:
            graph = self._bonds.graph_at(positions, self._box)
            draft = auto_draft(graph, positions, self._box, constraints=self._constraints)
            if not np.array_equal(draft.terms.classes, self._terms.classes):
                self._take(draft if self._base is None else draft.without_guesses())
                return
        self._learner.forget_data()

    def _access(self) -> Any:
        return None if self._base is None else self._base.access


class DraftSpec(NamedTuple):
    """What the user wants for a draft; see LSDIntegrator."""

    system: openmm.System | None
    platform: openmm.Platform | None
    topology: app.Topology | None
    learning: bool
    potential: BatchedTarget | None = None  # where both are None: 'auto'

    @property
    def as_given(self) -> openmm.System | BatchedTarget | str:
        """The argument of LSDIntegrator."""
        if self.potential is not None:
            return self.potential
        return "auto" if self.system is None else self.system

    def digest(self) -> str:
        """The same for the same draft, in every process."""
        if self.potential is not None:
            return digest_of(type(self.potential).__name__, self.learning)
        system = "auto" if self.system is None else describe_system(self.system)
        return digest_of(system, self.learning)

    def may_continue(self, record: Mapping[str, Any]) -> bool:
        """Whether the forces that only a fingerprint tells apart are those of the record."""
        fingerprint = record.get("draft forces")
        if fingerprint is None:
            return True
        potential = self.unknown_forces(fingerprint["positions"])
        return potential is not None and is_of(fingerprint, potential)

    def unknown_forces(self, positions: Array) -> BatchedTarget | None:
        """Those of which ``digest`` knows a name only: a potential, or Python's in the System.

        ``positions`` (N, 3) nm: where they can be evaluated. None if there are none, or they
        cannot.
        """
        if self.potential is not None or self.system is None:
            return self.potential
        python = [i for i, force in enumerate(self.system.getForces()) if holds_python(force)]
        try:
            return SystemTarget(self.system, positions, indices=python) if python else None
        except Exception as error:  # whatever a user's function may raise
            logger.info("the draft's functions cannot be evaluated to tell them apart: %s", error)
            return None

    def build(
        self,
        positions: Array,
        masses: Array,
        box: Array | None,
        cores: int | None = None,
        reproducible: bool = False,
        constraints: Pairs = NO_PAIRS,
    ) -> NativeDraft:
        """The draft for a molecule at ``positions`` (N, 3) nm with ``masses`` (N,) amu.

        ``constraints`` (C, 2) are pairs of atoms at a fixed distance.
        ``cores`` is the most that it may use; by default all that are allowed. ``reproducible``:
        the same to the last bit, unless the user chose a platform that is not.

        Raises
        ------
        ValueError
            If the Topology is not that of the particles, or the draft fails at these positions.
        """
        base: ForceSource | None = None
        potential = self.potential
        if self.system is not None and any(map(holds_python, self.system.getForces())):
            # Which may raise, and that is no reason to stop.
            potential = self._make_potential(self.system, positions, cores, reproducible)
        if potential is not None:
            base = PotentialDraft(potential, len(masses), self.learning)
            base.set_environment(box, {})
            base.prepare(positions)
            if not self.learning:
                return base
        elif self.system is not None:
            base = self._make_context(self.system, positions, cores, reproducible)
            if not self.learning:
                return Draft(base)
        return self._make_learning(base, positions, masses, box, constraints)

    def _make_context(
        self, system: openmm.System, positions: Array, cores: int | None, reproducible: bool
    ) -> ForceContext:
        if self.platform is None:
            return fastest_context(system, positions, platforms_to_try(cores, reproducible))
        properties = loaded_platforms(cores).get(self.platform.getName())
        return ForceContext(system, self.platform, properties)

    def _make_potential(
        self, system: openmm.System, positions: Array, cores: int | None, reproducible: bool
    ) -> SystemTarget:
        platforms = platforms_to_try(cores, reproducible)
        fastest = max(platforms, key=lambda each: openmm.Platform.getPlatform(each).getSpeed())
        name = fastest if self.platform is None else self.platform.getName()
        return SystemTarget(
            system,
            positions,
            platform=name,
            properties=loaded_platforms(cores).get(name),
            reproducible=reproducible,
        )

    def _make_learning(
        self,
        base: ForceSource | None,
        positions: Array,
        masses: Array,
        box: Array | None,
        constraints: Pairs,
    ) -> LearningDraft:
        if self.topology is not None:
            graph = graph_of_topology(self.topology)
            if len(graph.elements) != len(masses):
                raise ValueError(
                    f"the topology has {len(graph.elements)} atoms and the System {len(masses)} "
                    "particles; give the Topology that the System was made from"
                )
            graph = with_missing_bonds(graph, positions, box)
        else:
            graph = graph_of_positions(elements_of_masses(masses), positions, box)
        bonds = BondMonitor(graph, positions, box)
        graph = bonds.graph_at(positions, box)
        draft = auto_draft(graph, positions, box, constraints=constraints)
        logger.info(
            "valence draft: %d bonds, %d contacts, %d terms, %d parameters",
            len(graph.bonds),
            len(graph.contacts),
            len(draft.terms.classes),
            draft.terms.parameters,
        )
        if base is None and not len(draft.terms.classes):
            found = (
                "all bonds are rigid"
                if len(constraints)
                else "no bonds were found, nor atoms close to each other"
            )
            logger.warning(
                "%s: the draft knows nothing of these forces, and LSD will hardly be faster than "
                "plain dynamics; give a draft System%s",
                found,
                "" if len(constraints) else ", or a Topology",
            )
        if base is not None:
            draft = draft.without_guesses()
        return LearningDraft(draft, masses, base, bonds, constraints=constraints)
