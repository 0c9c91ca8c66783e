"""LSDIntegrator: speculative Langevin dynamics behind OpenMM's integrator interface."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
import weakref
from collections.abc import Callable, Iterable
from typing import Any
from xml.etree import ElementTree

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit

from .._native import ContextAccess, connect, speculative_integrator
from ..contexts import autotune
from ..contexts.checks import masses_of
from ..contexts.digests import digest_of
from ..core.engine import Engine
from ..core.schemes import SCHEMES
from ..core.statistics import Round, Statistics, Stopwatch
from ..drafts.contextengine import ContextEngine
from ..drafts.nativeengine import NativeEngine, NativeSubsetEngine
from ..targets import BatchedTarget, as_target
from ..targets.torchplugin import check_torch_forces, load_plugin
from .arguments import (
    check_scheme_name,
    draft_of,
    engine_of,
    positive_number,
    seed_of,
    whole_steps,
    window_of,
)
from .barostat import BarostatMoves
from .binding import Binding
from .enginechoice import Engines
from .probe import Probe
from .program import FRICTION, NOISE_STEP, TEMPERATURE, add_program, refuse_program
from .restart import (
    Record,
    RestartError,
    check_record,
    from_checkpoint,
    install_load_guards,
    to_checkpoint,
)
from .snapshot import SystemSnapshot, existing

PROPERTY = "openmm_lsd"  # of the XML

logger = logging.getLogger(__name__)

install_load_guards()


@refuse_program
class LSDIntegrator(openmm.CustomIntegrator):
    """Exact Langevin dynamics of an expensive potential, whose steps a cheap one drafts.

    A drop-in for ``openmm.LangevinMiddleIntegrator``: the System of the Simulation holds the
    expensive potential (the target); ``draft`` is a classical force field or another cheap
    potential for the same particles, or 'auto': a valence force field that learns from the target.
    Windows of steps are drafted with the draft's forces, the target is evaluated at all of them in
    one batch, and as many steps as possible are committed, each an exact step of the scheme with
    the target's force. A bad draft costs speed, never correctness.

    The CustomIntegrator underneath is the plain dynamics of the target with the same scheme; that
    is what an XML round trip of the integrator gives. Nothing can be added to its program.

    A checkpoint continues its own run, to the last bit if ``windowLength`` is a number. A State is
    a starting point: it holds no random numbers, and the Context that loads it continues with its
    own, at indices that it has never used.

    For this, importing the package wraps ``openmm.Context.loadCheckpoint``, and making a Context
    with an LSDIntegrator wraps ``updateParametersInContext`` of every Force; for other integrators
    the wrappers change nothing.

    Every callable in the list ``round_callbacks`` (``watchers`` is the same list) is called after
    every round with its ``openmm_lsd.Round``. A round ends in the middle of ``step``: the Context
    does not show its state yet, and setting positions, velocities or box there is an error.

    Parameters
    ----------
    temperature : Quantity or float (kelvin)
    frictionCoeff : Quantity or float (1/ps)
    stepSize : Quantity or float (ps)
    draft : openmm.System, BatchedTarget, torch.nn.Module, callable or 'auto'
        A System of the same particles, masses and constraints as the target System; or a potential,
        as ``target``, of which one state at a time is evaluated. With 'auto' nothing is needed.
    windowLength : int or 'auto'
        K, the number of steps drafted and evaluated per round. 'auto' finds the fastest during the
        run, which may be plain steps. With a number, trajectories of one seed are the same
        to the last bit; with 'auto' they depend on the clock, and sample the same distribution.
    scheme : 'middle' or 'aboba'
        'middle' is that of LangevinMiddleIntegrator; 'aboba' does not support constraints.
    randomNumberSeed : int, optional
        None or 0: a fresh seed for every Context, and for every forked process.
    draftPlatform : openmm.Platform or str, optional
        Platform of the draft's forces; default: the fastest for them, found by timing. With a
        ``windowLength`` that is a number, only what gives the same forces every time is tried: of
        the CPU platform that is one thread. ``draftPlatform='CPU'`` uses all cores, and the same
        seed then gives another trajectory, of the same distribution.
    topology : openmm.app.Topology, optional
        Elements and bonds for a draft that learns. Default: elements from the masses, bonds from
        distances in the first structure.
    learning : bool, optional
        Whether the draft is fitted to the target's forces at the committed steps, on top of the
        draft System or potential, if there is one. Default: with 'auto' only.
    target : BatchedTarget, torch.nn.Module or callable, optional
        What ``openmm_lsd.targets.as_target`` takes; a callable gives forces (B, N, 3) in kJ/mol/nm
        at positions (B, N, 3) in nm. Its forces must be those of the Context's System, unless that
        has none; then it is evaluated in a periodic box if one was given. Default: built from that
        System, each force in the form that batches best.
    engine : 'auto', 'host' or 'context'
        Where windows are drafted if draft and target share forces: on the host, or in a Context on
        their platform, which pays in large boxes on a GPU. 'auto' takes the faster; if
        ``windowLength`` is a number, the host on the platforms CPU and Reference, and the Context,
        where that works, on others.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind or out of range; and from the first ``step`` if the
        Systems are not what they must be.
    """

    _correction: str | None = None  # see SamplerSpec
    _engine: type[Engine] = NativeEngine
    _subset_engine: type[Engine] = NativeSubsetEngine
    _context_engine: type[Engine] = ContextEngine
    _moves: type[BarostatMoves] = BarostatMoves
    _take_snapshot: Callable[[openmm.System], SystemSnapshot] = SystemSnapshot

    def __init__(  # OpenMM's argument names
        self,
        temperature: unit.Quantity | float,
        frictionCoeff: unit.Quantity | float,  # noqa: N803
        stepSize: unit.Quantity | float,  # noqa: N803
        draft: openmm.System | BatchedTarget | Callable | str,
        *,
        windowLength: int | str = "auto",  # noqa: N803
        scheme: str = "middle",
        randomNumberSeed: int | None = None,  # noqa: N803
        draftPlatform: openmm.Platform | str | None = None,  # noqa: N803
        topology: app.Topology | None = None,
        learning: bool | None = None,
        target: BatchedTarget | Callable | None = None,
        engine: str = "auto",
    ) -> None:
        # Not CustomIntegrator.__init__: underneath is a class of ours, derived from it in C++.
        step_size = positive_number(stepSize, unit.picosecond, "stepSize")
        made = openmm.XmlSerializer.deserialize(
            f'<Integrator type="{speculative_integrator}" stepSize="{step_size!r}"/>'
        )
        self.this = made.this
        self._draft = draft_of(draft, draftPlatform, topology, learning)
        check_scheme_name(scheme)
        target = None if target is None else as_target(target)
        self._target = target
        self._scheme, self._window = scheme, window_of(windowLength)
        self._wanted_engine = engine_of(engine)
        self._stopwatch = Stopwatch(Statistics())
        self._round_callbacks: list[Callable[[Round], Any]] = []
        self._snapshot: SystemSnapshot | None = None  # of the Context
        self._binding: Binding | None = None
        self._groups_of_plain_steps: int | None = None
        self._record: Record | None = None  # to continue from, once there is a binding
        self._is_stepping = False
        self._connect()
        if "openmmtorch" in sys.modules:
            load_plugin()
        add_program(self, scheme)
        self.setTemperature(temperature)
        self.setFriction(frictionCoeff)
        self.setRandomNumberSeed(randomNumberSeed)

    def step(self, steps: int | float) -> None:
        """Advance the simulation by ``steps`` time steps.

        Afterwards the Context holds the committed state of exactly that step. Further committed
        steps are kept for the next call, unless something is changed in between.

        Raises
        ------
        TypeError, ValueError
            If ``steps`` is not a whole number (whole floats are, as with OpenMM's integrators); and
            before the first step, if a System or the state of the Context is not fit for LSD.
        TargetError
            If the target fails at a committed state, in which the Context is left.
        """
        steps = whole_steps(steps)
        if steps <= 0:
            return
        if self._is_stepping:
            raise RuntimeError(
                "step() was called while step() runs (by a signal handler, or by a function that "
                "it calls); call it when the first has returned"
            )
        binding = self._ensure_binding()
        settings = binding.settings()
        if self._record is not None:
            binding.resume_from(self._record)
            self._record = None
        noise_step = round(self._value(NOISE_STEP))
        step_plainly = super().step

        def plain(n: int) -> None:
            self._groups_of_plain_steps = settings.force_groups
            step_plainly(n)

        # A CustomIntegrator keeps to the force groups of its first step.
        stale = self._groups_of_plain_steps not in (None, settings.force_groups)
        self._is_stepping = True
        try:
            binding.step(steps, noise_step, settings, None if stale else plain)
        finally:
            self.setGlobalVariableByName(NOISE_STEP, binding.noise_step)
            self._is_stepping = False

    def _settings_for_xml(self) -> dict[str, Any]:
        arguments, setters = self._recipe()
        for name in ("draft", "topology", "target"):
            del arguments[name]
        return {"arguments": arguments, "setters": setters}

    @classmethod
    def fromXml(  # noqa: N802
        cls,
        xml: str,
        draft: openmm.System | BatchedTarget | Callable | str,
        *,
        topology: app.Topology | None = None,
        target: BatchedTarget | Callable | None = None,
    ) -> LSDIntegrator:
        """The LSDIntegrator of which ``XmlSerializer.serialize`` made this XML.

        ``XmlSerializer.deserialize`` makes plain dynamics of the target from it.

        Parameters
        ----------
        xml : str
        draft, topology, target
            As the constructor; they are not in the XML.

        Raises
        ------
        ValueError
            If the XML is not that of an LSDIntegrator.
        """
        try:
            settings = json.loads(ElementTree.fromstring(xml).attrib[PROPERTY])
        except (ElementTree.ParseError, KeyError, ValueError) as error:
            raise ValueError(f"this is not the XML of an LSDIntegrator ({error!r})") from error
        given = {"draft": draft, "topology": topology, "target": target}
        return _rebuild(cls, {**settings["arguments"], **given}, settings["setters"])

    def _take_system(self, system: openmm.System, platform: str) -> None:
        """A Context was made, or rebuilt by ``reinitialize``: all is learned again."""
        check_torch_forces(system, platform)
        self._forget_binding()
        self._snapshot = self._take_snapshot(system)

    def _forget_binding(self) -> None:
        if self._binding is not None:
            self._binding.close()
        self._binding = None

    def note_update(self, force: openmm.Force) -> None:
        """Parameters of a Force were copied to the Context, by ``updateParametersInContext``.

        Forces of OpenMM's Python layer call this by themselves.
        """
        if self._snapshot is not None:
            self._snapshot.update(force)

    def note_inner_update(self, force: openmm.Force, path: list[int], inner: openmm.Force) -> None:
        """The same of a Force inside a CustomCVForce, ``path`` as ``SystemSnapshot``."""
        if self._snapshot is not None:
            self._snapshot.update_inner(force, path, inner)

    def note_failed_update(self) -> None:
        """An ``updateParametersInContext`` of this Context has raised an exception."""
        if self._snapshot is not None:
            self._snapshot.note_failed_update()

    def _ensure_binding(self) -> Binding:
        """The binding to the Context that owns this integrator."""
        groups = self.getIntegrationForceGroups() % 2**32
        if self._binding is not None and not self._binding.is_for(groups):
            self._forget_binding()
        if self._binding is None:
            access = ContextAccess(int(self.this))
            assert self._snapshot is not None
            self._binding = Binding(
                access,
                self._snapshot,
                self._draft,
                self._target,
                self._scheme,
                self._window,
                self._correction,
                Engines(
                    self._engine,
                    self._subset_engine,
                    self._context_engine,
                    self._wanted_engine,
                ),
                self._moves,
                self._stopwatch,
                self._round_callbacks,
            )
        return self._binding

    def _connect(self) -> None:
        """Tell the C++ object whom to ask when OpenMM makes a Context, or writes or loads a
        checkpoint."""
        reference = weakref.ref(self)

        def to(method: Callable) -> Callable:
            def call(*arguments: Any) -> Any:
                integrator = reference()
                assert integrator is not None, "a Context keeps its integrator"
                return method(integrator, *arguments)

            return call

        cls = LSDIntegrator
        connect(
            int(self.this),
            self._scheme,
            SCHEMES[self._scheme].velocity_offset,
            to(lambda self, before: to_checkpoint(before, cls._make_record(self))),
            to(lambda self, rest: cls._take_record(self, from_checkpoint(rest))),
            to(lambda self, address, platform: cls._take_system(self, existing(address), platform)),
            to(lambda self: json.dumps(cls._settings_for_xml(self))),
        )

    def _identity(self) -> Record:
        """What a run must have in common with one that it continues."""
        return {
            "scheme": self._scheme,
            "draft": self._draft.digest(),
            "given seed": self.getRandomNumberSeed(),
            "particles": ContextAccess(int(self.this)).num_particles,
            "masses": digest_of(masses_of(self._snapshot)),
        }

    def _make_record(self) -> Record:
        if self._is_stepping:
            raise RestartError(
                "a checkpoint was asked for while step() runs (by a signal handler?), when the "
                "Context holds no complete step; let the handler set a flag, and save the "
                "checkpoint when step() has returned"
            )
        record: Record = {"noise step": self._value(NOISE_STEP)}
        if self._record is not None:  # no step since
            record |= self._record
        elif self._binding is not None:
            record |= self._binding.record(self._binding.settings())
        return {**record, **self._identity()}

    def check_compatible(self, record: Record | None) -> None:
        """RestartError if it cannot continue a record; called before a checkpoint is loaded."""
        if record is None:
            return
        is_on_device = ContextAccess(int(self.this)).on_device
        check_record(record, self._identity(), is_on_device, self._draft.may_continue)

    def _take_record(self, record: Record | None) -> None:
        """The state in the Context was loaded, and this is what belongs to it."""
        self._record = None
        if record is None:
            logger.warning(
                "the checkpoint was not written by an LSDIntegrator; the run continues from its "
                "state, with random numbers of its own"
            )
            return
        self.check_compatible(record)
        self.setGlobalVariableByName(NOISE_STEP, record["noise step"])
        decisions = record.get("decisions")
        if decisions is None:  # written before the first step
            return
        if autotune.restore(decisions):
            self._forget_binding()
        self._record = record

    def probe(self) -> Probe:
        """A look at the target, the draft and the sampler, for those who study them.

        Raises
        ------
        RuntimeError
            Before the first step.
        """
        if self._binding is None:
            raise RuntimeError("there is nothing to look at before the first step")
        return Probe(self._binding)

    @property
    def subset(self) -> NDArray[np.int64]:
        """Indices of the particles on which draft and target may differ, in ascending order; all,
        unless the two share forces. Needs a Context with positions."""
        binding = self._ensure_binding()
        return np.arange(len(binding.masses))[binding.pair.subset]

    @property
    def round_callbacks(self) -> list[Callable[[Round], Any]]:
        """Called after every round with its Round."""
        return self._round_callbacks

    @round_callbacks.setter
    def round_callbacks(self, callbacks: Iterable[Callable[[Round], Any]]) -> None:
        self._round_callbacks[:] = callbacks

    watchers = round_callbacks  # the name it had first

    @property
    def statistics(self) -> Statistics:
        """Counts and times since the integrator was made; a copy."""
        return dataclasses.replace(self._stopwatch.statistics)

    def getTemperature(self) -> unit.Quantity:  # noqa: N802
        """Temperature of the heat bath, kelvin."""
        return self._value(TEMPERATURE) * unit.kelvin

    def setTemperature(self, temperature: unit.Quantity | float) -> None:  # noqa: N802
        """Set the temperature of the heat bath (Quantity, or a number in kelvin)."""
        value = positive_number(temperature, unit.kelvin, "temperature")
        self.setGlobalVariableByName(TEMPERATURE, value)

    def getFriction(self) -> unit.Quantity:  # noqa: N802
        """Friction coefficient, 1/ps."""
        return self._value(FRICTION) / unit.picosecond

    def setFriction(self, coeff: unit.Quantity | float) -> None:  # noqa: N802
        """Set the friction coefficient (Quantity, or a number in 1/ps)."""
        value = positive_number(coeff, unit.picosecond**-1, "friction coefficient")
        self.setGlobalVariableByName(FRICTION, value)

    def setStepSize(self, size: unit.Quantity | float) -> None:  # noqa: N802
        """Set the time step (Quantity, or a number in ps)."""
        super().setStepSize(positive_number(size, unit.picosecond, "stepSize"))

    def setRandomNumberSeed(self, seed: int | None) -> None:  # noqa: N802
        """Set the seed; with 0 or None every Context gets a fresh one."""
        super().setRandomNumberSeed(seed_of(seed))

    def _value(self, variable: str) -> float:
        return self.getGlobalVariableByName(variable)

    def __copy__(self) -> LSDIntegrator:
        return _rebuild(type(self), *self._recipe())

    def __deepcopy__(self, memo: dict) -> LSDIntegrator:
        return _rebuild(type(self), *self._recipe())

    def __reduce__(self) -> tuple:
        return _rebuild, (type(self), *self._recipe())

    def _recipe(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arguments of the constructor, and what setters set; not the binding to a Context."""
        draft = self._draft
        arguments = {
            "temperature": self._value(TEMPERATURE),
            "frictionCoeff": self._value(FRICTION),
            "stepSize": self.getStepSize().value_in_unit(unit.picosecond),
            "draft": draft.as_given,
            "windowLength": "auto" if self._window is None else self._window,
            "scheme": self._scheme,
            "randomNumberSeed": self.getRandomNumberSeed(),
            "draftPlatform": None if draft.platform is None else draft.platform.getName(),
            "topology": draft.topology,
            "learning": draft.learning,
            "target": self._target,
            "engine": self._wanted_engine,
        }
        return arguments, {
            "setIntegrationForceGroups": self.getIntegrationForceGroups(),
            "setConstraintTolerance": self.getConstraintTolerance(),
        }


def _rebuild(
    kind: type[LSDIntegrator], arguments: dict[str, Any], settings: dict[str, Any]
) -> LSDIntegrator:
    integrator = kind(**arguments)
    for setter, value in settings.items():
        getattr(integrator, setter)(value)
    return integrator
