"""A run from files to files: minimise, equilibrate, simulate; and go on after it was stopped."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import sys
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, TextIO

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit

from ..contexts.periodicity import topology_box
from ..core.statistics import Statistics
from ..drafts.molgraph import (
    MolecularGraph,
    differences,
    graph_of_topology,
    molecules_of,
    with_contacts,
    with_missing_bonds,
)
from ..integrator.integrator import LSDIntegrator
from ..integrator.reporter import SECONDS_PER_DAY, LSDReporter
from .case import Array, Case, Notice, choose_platform

Indices = NDArray[np.int64]

TRAJECTORY, LOG, LSD_LOG, CHECKPOINT = "trajectory.dcd", "log.csv", "lsd.csv", "checkpoint.chk"
FILES, FINAL = "checkpoint.json", "final.pdb"
WRITTEN = (TRAJECTORY, LOG, LSD_LOG)
HEADER = 24  # bytes of a DCD file that change as it grows


@dataclasses.dataclass
class Plan:
    """Lengths of a run, in steps, and how it begins.

    Without velocities to start from the energy is minimised, velocities are drawn, and
    equilibration takes 1000 steps; with velocities neither is done, unless it is asked for.
    """

    steps: int
    equilibration: int | None = None
    report_interval: int = 100
    checkpoint_interval: int = 1000
    minimize: bool | None = None


def simulate(
    case: Case,
    plan: Plan,
    output: Path,
    *,
    window: int | str = "auto",
    resume: bool = False,
    notice: Notice = lambda line: None,
    stream: TextIO | None = None,
) -> Statistics:
    """Run, and write trajectory, log, statistics of LSD, and checkpoints to ``output``.

    With ``resume`` the run goes on from the last checkpoint: what was written after it is cut off
    and written again. On Ctrl-C a checkpoint is written first.

    Parameters
    ----------
    case : Case
        Its seed must be the same when a run is resumed.
    plan : Plan
        ``steps`` counts all steps after equilibration, those of earlier runs too.
    output : Path
        A directory.
    window : int or 'auto'
    resume : bool
    notice : callable, optional
    stream : text stream, optional
        For the progress; default stderr.
    """
    integrator = case.integrator(window)
    chosen = choose_platform(case.target, case.platform)
    topology = copy.deepcopy(case.topology)  # its box is that of the files that are written
    box = case.target.getDefaultPeriodicBoxVectors() if case.is_periodic else None
    topology.setPeriodicBoxVectors(box)
    simulation = app.Simulation(topology, case.target, integrator, *chosen)
    notice(case.description())
    output.mkdir(parents=True, exist_ok=True)
    if resume:
        simulation.context.setPositions(case.positions)
        _go_back_to_checkpoint(simulation, output)
        notice(f"going on at step {simulation.currentStep} of {plan.steps}")
    else:
        _begin(simulation, case, plan, notice)
    platform = simulation.context.getPlatform().getName()
    notice(f"{case.conditions()}, platform {platform}")
    checkpoints = Checkpoints(output, plan.checkpoint_interval)
    progress = Progress(plan.steps, stream or sys.stderr)
    whole = WholeMolecules(topology, case.positions)
    files = Files(output, plan.report_interval, resume, whole, simulation.currentStep)
    simulation.reporters = [files, checkpoints, progress]
    if not resume:
        checkpoints.write(simulation)
    try:
        simulation.step(max(0, plan.steps - simulation.currentStep))
    except BaseException:
        progress.close()
        if files.complete(simulation):  # the state is the last committed one
            checkpoints.write(simulation)
        raise
    progress.close()
    checkpoints.write(simulation)
    frame = whole.frame(simulation.context.getState(positions=True))
    if case.is_periodic:
        topology.setPeriodicBoxVectors(frame.getPeriodicBoxVectors())
    with open(output / FINAL, "w") as file:
        app.PDBFile.writeFile(topology, frame.getPositions(), file)
    return integrator.statistics


def _begin(simulation: app.Simulation, case: Case, plan: Plan, notice: Notice) -> None:
    simulation.context.setPositions(case.positions)
    minimize, equilibration = plan.minimize, plan.equilibration
    if minimize is None:
        minimize = case.velocities is None
    if equilibration is None:
        equilibration = 1000 if case.velocities is None else 0
    if minimize:
        notice("minimising the energy")
        simulation.minimizeEnergy()
    if case.velocities is not None and not minimize:
        simulation.context.setVelocities(case.velocities)
        speeds = np.array(case.velocities.value_in_unit(unit.nanometer / unit.picosecond))
        source = f" from {case.sources['velocities']}" if "velocities" in case.sources else ""
        notice(
            f"velocities{source}, {case.temperature_of(speeds):.0f} K; the energy is not minimised"
        )
    else:
        seed = (case.seed,) if case.seed else ()
        simulation.context.setVelocitiesToTemperature(case.temperature * unit.kelvin, *seed)
        notice("velocities drawn at the temperature")
    if equilibration:
        notice(f"equilibrating for {equilibration} steps")
        simulation.step(equilibration)
        # Step and time of what is written begin here; the integrator's random numbers go on.
        simulation.currentStep = 0
        simulation.context.setTime(0.0)


class Frame(NamedTuple):
    """What DCDReporter asks a State for."""

    positions: Array
    box: unit.Quantity

    def getPositions(self, asNumpy: bool = True) -> unit.Quantity:  # noqa: N802, N803
        """(N, 3)."""
        return unit.Quantity(self.positions, unit.nanometer)

    def getPeriodicBoxVectors(self) -> unit.Quantity:  # noqa: N802
        """Of the Context."""
        return self.box


class WholeMolecules:
    """Brings molecules into the periodic box without tearing them, as viewers want to have them.

    OpenMM does this by the bonds of its forces, and the forces of a network have none.

    Parameters
    ----------
    topology : openmm.app.Topology
        With a box if there is one; bonds that it does not have are found by distance.
    positions : Quantity, (N, 3)
        Of a sound structure.
    """

    def __init__(self, topology: app.Topology, positions: unit.Quantity) -> None:
        box = topology_box(topology)
        self.periodic = box is not None
        self._levels: list[tuple[Indices, Indices]] = []
        self._molecules = np.zeros(topology.getNumAtoms(), dtype=int)
        if box is None:
            return
        sites = np.array(positions.value_in_unit(unit.nanometer), dtype=np.float64)
        graph = with_missing_bonds(_with_extra_particles(topology), sites, box)
        graph = with_contacts(graph, sites, box)  # metals and salts are no molecules
        self._find_molecules(graph)
        # What is bonded to its own image (a crystal of silicon) cannot be whole.
        whole = self._joined(sites, box)
        bonds = whole[graph.bonds[:, 1]] - whole[graph.bonds[:, 0]]
        across = np.abs(bonds - differences(whole, graph.bonds, box)).max(axis=1) > 1e-6
        if across.any():
            endless = np.isin(self._molecules, self._molecules[graph.bonds[across, 0]])
            kept = graph.bonds[~endless[graph.bonds[:, 0]]]
            self._find_molecules(MolecularGraph(graph.elements, kept))

    def _find_molecules(self, graph: MolecularGraph) -> None:
        roots = []
        for index, members in enumerate(molecules_of(graph)):
            self._molecules[members] = index
            roots.append(int(members[0]))
        self._levels = _levels_of(graph, roots)

    def _joined(self, positions: Array, box: Array) -> Array:
        """Each atom at its image that is nearest to the atom it is bonded to."""
        positions = positions.copy()
        for parents, children in self._levels:
            bonds = differences(positions, np.stack([parents, children], axis=1), box)
            positions[children] = positions[parents] + bonds
        return positions

    def frame(self, state: openmm.State) -> Frame:
        """The positions of a State that OpenMM has not wrapped; as they are without a box."""
        positions = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
        box = state.getPeriodicBoxVectors()
        if not self.periodic:
            return Frame(positions, box)
        vectors = np.array(box.value_in_unit(unit.nanometer))
        positions = self._joined(positions, vectors)
        counts = np.bincount(self._molecules)
        centres = np.stack(
            [np.bincount(self._molecules, column) / counts for column in positions.T], axis=1
        )
        cells = np.zeros_like(centres)
        for axis in (2, 1, 0):
            cells[:, axis] = np.floor(centres[:, axis] / vectors[axis, axis])
            centres -= cells[:, axis, None] * vectors[axis]
        return Frame(positions - (cells @ vectors)[self._molecules], box)


def _with_extra_particles(topology: app.Topology) -> MolecularGraph:
    """The graph of a Topology in which virtual sites are bonded to an atom of their residue."""
    graph = graph_of_topology(topology)
    bonds = []
    for residue in topology.residues():
        atoms = list(residue.atoms())
        first = next((atom for atom in atoms if atom.element is not None), None)
        if first is not None:
            bonds += [(first.index, atom.index) for atom in atoms if atom.element is None]
    pairs = np.sort(np.array(bonds, dtype=int).reshape(-1, 2), axis=1)
    everything = np.concatenate([graph.bonds, pairs])
    return MolecularGraph(graph.elements, np.unique(everything, axis=0).reshape(-1, 2))


def _levels_of(graph: MolecularGraph, roots: list[int]) -> list[tuple[Indices, Indices]]:
    """Bonds of a tree in every molecule, by their distance from its root: parents, children."""
    seen = np.zeros(len(graph.elements), dtype=bool)
    seen[roots] = True
    levels = []
    while roots:
        pairs = []
        for parent in roots:
            for child in graph.neighbours[parent]:
                if not seen[child]:
                    seen[child] = True
                    pairs.append((parent, child))
        roots = [child for _, child in pairs]
        if pairs:
            parents, children = np.array(pairs).T
            levels.append((parents, children))
    return levels


class Trajectory(app.DCDReporter):
    """A DCDReporter of whole molecules."""

    def __init__(self, file: Path, interval: int, append: bool, whole: WholeMolecules) -> None:
        super().__init__(str(file), interval, append=append, enforcePeriodicBox=False)
        self._whole = whole

    def report(self, simulation: app.Simulation, state: openmm.State) -> None:
        """OpenMM's protocol."""
        super().report(simulation, self._whole.frame(state))


class Files:
    """Trajectory, log and statistics of LSD as one reporter that knows when it is at work."""

    def __init__(
        self, output: Path, interval: int, append: bool, whole: WholeMolecules, step: int
    ) -> None:
        self._interval = interval
        self._last, self._writing = step, False
        columns = ["step", "time", "potentialEnergy", "kineticEnergy", "temperature"]
        columns += ["volume"] * whole.periodic
        self._reporters: list[Any] = [
            Trajectory(output / TRAJECTORY, interval, append, whole),
            app.StateDataReporter(
                str(output / LOG), interval, append=append, **dict.fromkeys(columns, True)
            ),
            LSDReporter(output / LSD_LOG, interval, append=append),
        ]

    def describeNextReport(self, simulation: app.Simulation) -> dict[str, Any]:  # noqa: N802
        """OpenMM's protocol."""
        for reporter in self._reporters:
            reporter.describeNextReport(simulation)
        steps = self._interval - simulation.currentStep % self._interval
        return {"steps": steps, "periodic": False, "include": ["positions", "energy"]}

    def report(self, simulation: app.Simulation, state: openmm.State) -> None:
        """OpenMM's protocol."""
        self._writing = True
        for reporter in self._reporters:
            reporter.report(simulation, state)
        self._last, self._writing = simulation.currentStep, False

    def complete(self, simulation: app.Simulation) -> bool:
        """Write what is due at this step, if a run was stopped before it was; whether all is there.

        It is not if the run was stopped while something was written, or the state cannot be.
        """
        if self._writing:
            return False
        if simulation.currentStep % self._interval or simulation.currentStep == self._last:
            return True
        try:
            groups = simulation.integrator.getIntegrationForceGroups()
            state = simulation.context.getState(positions=True, energy=True, groups=groups)
            self.report(simulation, state)
        except Exception:
            return False
        return True


class Checkpoints:
    """A reporter that writes checkpoints, and with each how long the other files were.

    Both files are replaced at once; the lengths of the checkpoint before are kept too, in case
    the process dies between the two.
    """

    def __init__(self, output: Path, interval: int) -> None:
        self._output, self._interval = output, interval
        self._lengths: dict[str, Any] = {}

    def describeNextReport(self, simulation: app.Simulation) -> dict[str, Any]:  # noqa: N802
        """OpenMM's protocol."""
        steps = self._interval - simulation.currentStep % self._interval
        return {"steps": steps, "periodic": None, "include": []}

    def report(self, simulation: app.Simulation, state: openmm.State) -> None:
        """OpenMM's protocol."""
        self.write(simulation)

    def write(self, simulation: app.Simulation) -> None:
        """Now."""
        step = str(simulation.currentStep)
        last = dict(list(self._lengths.items())[-1:])
        self._lengths = {**last, step: {name: _length(self._output / name) for name in WRITTEN}}
        _replace(self._output / FILES, json.dumps(self._lengths).encode())
        _replace(self._output / CHECKPOINT, simulation.context.createCheckpoint())


def _length(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {"size": 0, "header": ""}
    with open(file, "rb") as opened:
        return {"size": file.stat().st_size, "header": opened.read(HEADER).hex()}


def _replace(file: Path, content: bytes) -> None:
    new = file.with_name(file.name + ".new")
    with open(new, "wb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())
    os.replace(new, file)


def _go_back_to_checkpoint(simulation: app.Simulation, output: Path) -> None:
    for name in (CHECKPOINT, FILES):
        if not (output / name).is_file():
            raise FileNotFoundError(f"there is nothing to resume: {output / name} is missing")
    simulation.loadCheckpoint(str(output / CHECKPOINT))
    lengths = json.loads((output / FILES).read_text())
    try:
        lengths = lengths[str(simulation.currentStep)]
    except KeyError:
        raise ValueError(
            f"{output / FILES} does not belong to the checkpoint beside it (step "
            f"{simulation.currentStep})"
        ) from None
    for name, length in lengths.items():
        file = output / name
        if not file.is_file() or file.stat().st_size < length["size"]:
            raise ValueError(f"{file} is shorter than it was at the checkpoint; it must be whole")
    for name, length in lengths.items():
        with open(output / name, "r+b") as opened:
            opened.truncate(length["size"])
            opened.write(bytes.fromhex(length["header"]))


class Progress:
    """A reporter: one line that shows how far the run is; on a terminal it rewrites itself."""

    def __init__(self, steps: int, stream: TextIO) -> None:
        self._steps, self._stream = steps, stream
        self._live = stream.isatty()
        self._interval = max(1, steps // (500 if self._live else 20))
        self._begin: tuple[float, int, float, Statistics] | None = None
        self._shown = 0.0

    def describeNextReport(self, simulation: app.Simulation) -> dict[str, Any]:  # noqa: N802
        """OpenMM's protocol."""
        steps = self._interval - simulation.currentStep % self._interval
        return {"steps": steps, "periodic": None, "include": []}

    def report(self, simulation: app.Simulation, state: openmm.State) -> None:
        """OpenMM's protocol."""
        now = self._now(simulation)
        if self._begin is None:  # what came before the first report was not only steps
            self._begin = now
        if self._live and now[0] - self._shown < 0.2 and now[1] < self._steps:
            return
        self._shown = now[0]
        line = progress_line(self._begin, now, self._steps)
        self._stream.write(f"\r{line}\x1b[K" if self._live else line + "\n")
        self._stream.flush()

    @staticmethod
    def _now(simulation: app.Simulation) -> tuple[float, int, float, Statistics]:
        integrator = simulation.integrator
        assert isinstance(integrator, LSDIntegrator)
        step_size = integrator.getStepSize().value_in_unit(unit.nanosecond)
        return perf_counter(), simulation.currentStep, step_size, integrator.statistics

    def close(self) -> None:
        """End the line."""
        if self._live and self._shown:
            self._stream.write("\n")
            self._stream.flush()


def progress_line(
    begin: tuple[float, int, float, Statistics],
    now: tuple[float, int, float, Statistics],
    steps: int,
) -> str:
    """Share done, steps; and since ``begin`` ns/day, steps per round, time left."""
    done = now[1] / steps
    filled = round(24 * done)
    line = f"[{'#' * filled}{'.' * (24 - filled)}] {100 * done:5.1f} %  step {now[1]}/{steps}"
    seconds, advanced = now[0] - begin[0], now[1] - begin[1]
    if advanced <= 0:
        return line
    per_round = now[3].since(begin[3]).steps_per_round
    speed = advanced * now[2] * SECONDS_PER_DAY / seconds
    left = (steps - now[1]) * seconds / advanced
    return f"{line}  {speed:.3g} ns/day  {per_round:.2f} steps/round  {_clock(left)} left"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days} d " * bool(days) + f"{hours}:{minutes:02d}:{rest:02d}"
