"""The verdict on one family of tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass
class Check:
    """One family of tests: the smallest p value, and what it had to exceed.

    ``passed`` is None where the run was too short to judge.
    """

    name: str
    tests: int
    worst: str
    p: float
    threshold: float
    note: str = ""

    @classmethod
    def of(cls, name: str, results: Sequence[tuple[float, str]], level: float) -> Check:
        """From p values and what was tested; by Bonferroni each has its share of the level."""
        if not results:
            return cls(name, 0, "", 1.0, 0.0)
        p, worst = min(results)
        return cls(name, len(results), worst, p, level / len(results))

    @property
    def passed(self) -> bool | None:
        """None: not judged."""
        return None if not self.tests else self.p >= self.threshold

    def __str__(self) -> str:
        if self.passed is None:
            return f"not judged  {self.name}: {self.note}"
        word = "passed" if self.passed else "FAILED"
        note = f"; {self.note}" if self.note else ""
        return (
            f"{word:11s} {self.name}: smallest p of {self.tests} tests {self.p:.2g} "
            f"({self.worst}), must exceed {self.threshold:.2g}{note}"
        )
