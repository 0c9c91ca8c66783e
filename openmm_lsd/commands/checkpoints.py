"""What a run writes, and how it goes back to its last checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import openmm
from openmm import app

TRAJECTORY, LOG, LSD_LOG, CHECKPOINT = "trajectory.dcd", "log.csv", "lsd.csv", "checkpoint.chk"
FILES, FINAL = "checkpoint.json", "final.pdb"
WRITTEN = (TRAJECTORY, LOG, LSD_LOG)
HEADER = 24  # bytes of a DCD file that change as it grows


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


def go_back_to_checkpoint(simulation: app.Simulation, output: Path) -> None:
    """Load it, and cut off what was written after it.

    Raises
    ------
    FileNotFoundError, ValueError
        If files are missing, are shorter than they were, or do not belong together.
    """
    for name in (CHECKPOINT, FILES):
        if not (output / name).is_file():
            raise FileNotFoundError(f"there is nothing to resume: {output / name} is missing")
    simulation.loadCheckpoint(str(output / CHECKPOINT))
    lengths = json.loads((output / FILES).read_text())
    try:
        lengths = lengths[str(simulation.currentStep)]
    except KeyError:
        raise ValueError(
            f"{output / FILES} does not belong to the checkpoint next to it (step "
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
