"""One line that shows how far a run is."""

from __future__ import annotations

from time import perf_counter
from typing import Any, TextIO

import openmm
from openmm import app, unit

from ..core.statistics import Statistics
from ..integrator.integrator import LSDIntegrator
from ..integrator.reporter import SECONDS_PER_DAY


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
