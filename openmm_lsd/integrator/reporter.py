"""Statistics of the speculation, as a table next to the other reporters' files."""

from __future__ import annotations

import operator
from pathlib import Path
from time import perf_counter
from typing import Any, TextIO

import openmm
from openmm import app, unit

from ..core.statistics import TIMES_MEASURED, Statistics
from .integrator import LSDIntegrator

SECONDS_PER_DAY = 86400.0


class LSDReporter:
    """Writes what LSDIntegrator did since the last report; asks for no energy and no positions.

    Columns: step and time; committed steps per round; acceptance rate and mean noise shift of the
    drafted steps, and the mean noise shift of those whose own discrepancy had been measured 0, 1,
    2, and 3 or more times before; window length (the last one, if it is tuned); windows cut short
    by failed sites of the target, or by a barostat's move; shares of the time in ``step`` that
    draft, target, learning and the rest took; speed by the clock, reporters and all; and the
    estimated speed-up over plain dynamics of the target: the time that the forces of as many plain
    steps would take, measured once when the target was new, over the time in ``step``. What is not
    known is left empty: in an interval without a round (its steps came from the one before) most
    columns are.

    Parameters
    ----------
    file : str, Path or stream
        Overwritten, unless ``append``.
    reportInterval : int
        In steps.
    separator : str
    append : bool
        Append to the file, without a header.

    Raises
    ------
    ValueError
        If the interval is not positive; and, from the first ``step``, if the Simulation has another
        integrator than LSDIntegrator.
    """

    def __init__(
        self,
        file: str | Path | TextIO,
        reportInterval: int,  # noqa: N803 (OpenMM's name)
        *,
        separator: str = ",",
        append: bool = False,
    ) -> None:
        self._interval = operator.index(reportInterval)
        if self._interval < 1:
            raise ValueError(f"reportInterval is {reportInterval}; it must be at least 1")
        self._separator = separator
        self._opened = isinstance(file, str | Path)
        self._out: Any = file
        if isinstance(file, str | Path):
            self._out = open(file, "a" if append else "w")  # noqa: SIM115
        self._needs_header = not append
        self._before: tuple[Statistics, float, float] | None = None

    def describeNextReport(self, simulation: app.Simulation) -> dict[str, Any]:  # noqa: N802
        """OpenMM's protocol: when the next report is due, and that it needs nothing."""
        integrator = simulation.integrator
        if not isinstance(integrator, LSDIntegrator):
            raise ValueError(
                f"LSDReporter needs a Simulation with an LSDIntegrator, not with a "
                f"{type(integrator).__name__}"
            )
        if self._before is None:  # nothing has been done yet
            time = _picoseconds(simulation.context.getTime())
            self._before = integrator.statistics, time, perf_counter()
        steps = self._interval - simulation.currentStep % self._interval
        return {"steps": steps, "periodic": None, "include": []}

    def report(self, simulation: app.Simulation, state: openmm.State) -> None:
        """OpenMM's protocol: write a line."""
        statistics, time = simulation.integrator.statistics, _picoseconds(state.getTime())
        now = perf_counter()
        before, time_before, then = self._before or (Statistics(), time, now)
        self._before = statistics, time, now
        row = {
            "Step": str(simulation.currentStep),
            "Time (ps)": f"{time:.10g}",
            **_columns(statistics.since(before)),
            # After a return to an earlier state the interval has no length.
            "Speed (ns/day)": _text(
                1e-3 * SECONDS_PER_DAY * (time - time_before) / (now - then)
                if time > time_before and now > then
                else None
            ),
            **_speed_up(statistics.since(before)),
        }
        if self._needs_header:
            self._out.write("#" + self._separator.join(f'"{name}"' for name in row) + "\n")
            self._needs_header = False
        self._out.write(self._separator.join(row.values()) + "\n")
        self._out.flush()

    def __del__(self) -> None:
        if getattr(self, "_opened", False) and hasattr(self, "_out"):
            self._out.close()


def _columns(interval: Statistics) -> dict[str, str]:
    tried = interval.accepted + interval.rejected
    total = interval.seconds if interval.rounds else 0.0
    shares = {
        "Draft (%)": interval.draft_seconds,
        "Target (%)": interval.target_seconds,
        "Learning (%)": interval.learning_seconds,
        "Overhead (%)": interval.overhead_seconds,
    }
    return {
        "Steps per Round": _text(interval.steps_per_round if interval.rounds else None),
        "Acceptance": _text(interval.acceptance_rate if tried else None),
        "Mean Noise Shift": _text(interval.mean_noise_shift if tried else None),
        **{
            f"Noise Shift {times}": _text(shift)
            for times, shift in zip(
                TIMES_MEASURED, interval.noise_shifts_by_measurement, strict=True
            )
        },
        "Window Length": str(interval.window_length or ""),
        "Failed Sites": str(interval.failed_sites),
        "Shortened Windows": str(interval.shortened_windows),
        **{k: _text(100.0 * v / total if total else None) for k, v in shares.items()},
    }


def _speed_up(interval: Statistics) -> dict[str, str]:
    plain = interval.steps * interval.plain_step_seconds
    known = plain > 0 and interval.seconds > 0
    return {"Estimated Speed-up": _text(plain / interval.seconds if known else None)}


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _picoseconds(time: unit.Quantity) -> float:
    return time.value_in_unit(unit.picosecond)
