"""What ``validate`` found."""

from __future__ import annotations

import dataclasses
from typing import Any

from ...core.statistics import Round
from ..case import Array, Case
from .longruns import LongRun
from .verdict import Check

FAMILY_WISE = 1e-3  # chance that a right sampler fails anywhere


@dataclasses.dataclass
class Validation:
    """All verdicts, and what the pictures are made of."""

    case: Case
    checks: list[Check]
    rounds: list[Round]
    dihedral_names: list[str]
    lsd: LongRun | None  # None: left out, since the law was wrong already
    plain: LongRun | None
    times: Array  # of the autocorrelation, ps

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(check.passed is not False for check in self.checks)

    def verdict(self) -> str:
        """In one sentence."""
        if not self.passed:
            return "THE DISTRIBUTION IS WRONG on this system: do not use these trajectories."
        judged = sum(check.tests for check in self.checks)
        return (
            f"The distribution is right as far as {judged} tests can tell (chance of a false alarm "
            f"in all of them: {FAMILY_WISE:g})."
        )

    def __str__(self) -> str:
        return "\n".join([*map(str, self.checks), "", self.verdict()])

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "passed": self.passed,
            "checks": [
                {**dataclasses.asdict(check), "passed": check.passed} for check in self.checks
            ],
        }
