"""What ``benchmark`` measured: a row for every way to run, and the table of them."""

from __future__ import annotations

import dataclasses
from enum import Enum
from typing import Any

import numpy as np

from ..core.statistics import Statistics
from .case import Case
from .estimate import Estimate

PARTS = ("target", "draft", "learning", "overhead")


class Kind(Enum):
    """A way to run; the value is what its rows and estimates are called, or begin with."""

    PLAIN = "plain"
    LSD = "LSD"  # with the draft of the case
    AUTO_DRAFT = "LSD, auto draft"
    CONSTANT_OFFSET = "constant offset"  # the published rule
    MULTIPLE_TIME_STEPS = "MTS"


@dataclasses.dataclass(frozen=True)
class Spent:
    """Of an LSDIntegrator in all blocks: what was committed, and shares of the time."""

    steps_per_round: float
    acceptance_rate: float
    window: int
    shares: dict[str, float]  # by ``PARTS``

    @classmethod
    def of(cls, spent: Statistics) -> Spent:
        """From the Statistics of the blocks."""
        seconds = {part: getattr(spent, f"{part}_seconds") for part in PARTS}
        return cls(
            spent.steps_per_round,
            spent.acceptance_rate,
            spent.window_length,
            {part: each / spent.seconds for part, each in seconds.items()},
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "steps per round": self.steps_per_round,
            "acceptance rate": self.acceptance_rate,
            "window": self.window,
            **{f"{part} share": share for part, share in self.shares.items()},
        }


@dataclasses.dataclass(frozen=True)
class Row:
    """One way to run; times are medians of blocks, ratios those of plain dynamics over this way.

    ``temperature`` in kelvin is None if the particles flew apart, ``spent`` if this is not an
    LSDIntegrator.
    """

    name: str
    kind: Kind
    has_fixed_window: bool
    settings: str
    ns_per_day: float
    ms_per_step: float
    ratio: float
    ratio_quartiles: list[float]
    blocks: int
    steps_per_block: int
    temperature: float | None
    spent: Spent | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        result = {
            "run": self.name,
            "settings": self.settings,
            "ns/day": self.ns_per_day,
            "ms per step": self.ms_per_step,
            "ratio": self.ratio,
            "ratio quartiles": self.ratio_quartiles,
            "blocks": self.blocks,
            "steps per block": self.steps_per_block,
            "temperature, K": self.temperature,
        }
        return result if self.spent is None else result | self.spent.as_dict()

    def time_breakdown(self) -> dict[str, float]:
        """Milliseconds per step by what they were spent on; plain dynamics is all target."""
        shares = {"target": 1.0} if self.spent is None else self.spent.shares
        return {part: self.ms_per_step * shares.get(part, 0.0) for part in PARTS}

    def line(self, temperature_error: float) -> str:
        """Of the table."""
        quartiles = "{:.2f} to {:.2f}".format(*self.ratio_quartiles)
        temperature = "blew up"
        if self.temperature is not None:
            temperature = f"{self.temperature:.0f}({temperature_error:.0f})"
        line = (
            f"{self.name:20s}{self.settings:28s}{self.ns_per_day:8.2f}"
            f"{self.ms_per_step:9.2f}{self.ratio:10.2f}{quartiles:>14s}{temperature:>10s}"
        )
        if self.spent is not None:
            shares = " / ".join(f"{100 * self.spent.shares[part]:.0f}" for part in PARTS)
            line += f"{self.spent.steps_per_round:13.2f}  {shares} %"
        return line


HEAD = (
    f"{'':20s}{'settings':28s}{'ns/day':>8s}{'ms/step':>9s}{'speed-up':>10s}"
    f"{'quartiles':>14s}{'T, K':>10s}{'steps/round':>13s}  target/draft/learning/other"
)


MEANINGS = {
    Kind.CONSTANT_OFFSET: (
        "constant offset: the published rule, one correction for the whole window."
    ),
    Kind.MULTIPLE_TIME_STEPS: (
        "MTS: MTSLangevinIntegrator, slow forces every 2 or 4 steps; other dynamics, not exact."
    ),
}


@dataclasses.dataclass
class Benchmark:
    """What ``benchmark`` measured: the first row is plain dynamics, then LSD, then the others."""

    case: Case
    rows: list[Row]
    estimates: dict[Kind, Estimate] = dataclasses.field(default_factory=dict)

    def fastest(self, *kinds: Kind) -> Row:
        """Of the rows of these kinds."""
        return max((row for row in self.rows if row.kind in kinds), key=lambda row: row.ratio)

    @property
    def lsd(self) -> Row:
        """The row of LSD; of several windows the fastest."""
        return self.fastest(Kind.LSD)

    @property
    def speed_up(self) -> float:
        """Wall time of plain dynamics over that of LSD, median of the blocks."""
        return self.lsd.ratio

    def curve(self) -> tuple[list[int], list[float], list[list[float]], list[float]]:
        """Windows, speed-ups, their quartiles, steps per round; of the rows with a fixed window."""
        rows = [(row, row.spent) for row in self.rows if row.has_fixed_window and row.spent]
        return (
            [spent.window for _, spent in rows],
            [row.ratio for row, _ in rows],
            [row.ratio_quartiles for row, _ in rows],
            [spent.steps_per_round for _, spent in rows],
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        case = self.case
        return {
            "system": case.name,
            "atoms": case.atoms,
            "temperature, K": case.temperature,
            "friction, 1/ps": case.friction,
            "timestep, fs": 1e3 * case.step_size,
            "scheme": case.scheme,
            "rows": [
                {**row.as_dict(), "temperature error, K": self._temperature_error(row)}
                for row in self.rows
            ],
            "estimates": {kind.value: each.as_dict() for kind, each in self.estimates.items()},
        }

    def time_breakdown(self) -> dict[str, dict[str, float]]:
        """Milliseconds per step of every row, by what they were spent on."""
        return {row.name: row.time_breakdown() for row in self.rows}

    def __str__(self) -> str:
        lines = [HEAD, *(row.line(self._temperature_error(row)) for row in self.rows)]
        lines += ["", *(text for kind, text in MEANINGS.items() if kind in self._kinds())]
        lines += ["", self.verdict()]
        for kind, found in self.estimates.items():
            row = self.fastest(kind)
            off = 100 * (found.best.speed_up / row.ratio - 1)
            lines.append(
                f"{row.name}: predicted from {found.steps} steps {found.best.speed_up:.2f}, "
                f"measured {row.ratio:.2f} ({off:+.0f} %)."
            )
        return "\n".join(lines)

    def _kinds(self) -> set[Kind]:
        return {row.kind for row in self.rows}

    def _temperature_error(self, row: Row) -> float:
        """Standard error of the mean. Values two correlation times apart are independent, and that
        time is 1/gamma for the energy."""
        case = self.case
        picoseconds = row.blocks * row.steps_per_block * case.step_size
        independent = 1.0 + 0.5 * picoseconds * case.friction
        return case.temperature * float(np.sqrt(2.0 / case.degrees_of_freedom / independent))

    def verdict(self) -> str:
        """In one sentence, about the fastest LSD."""
        row = self.fastest(Kind.LSD, Kind.AUTO_DRAFT)
        assert row.spent is not None
        committed = row.spent.steps_per_round
        slower = "" if row.ratio >= 1 else " (slower)"
        return (
            f"{row.name}: {row.ratio:.2f} times as fast as plain dynamics here{slower}: each "
            f"round gives {committed:.2f} exact steps in the time of "
            f"{committed / row.ratio:.2f} plain steps."
        )
