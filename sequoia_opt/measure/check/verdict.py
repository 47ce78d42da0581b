"""What one check of a server found.

Knows the words of a verdict. Knows nothing of how it was reached.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

CHECKS = ("greedy", "sampled", "speed", "speculation", "acceptance", "settings")
BASELINE_ADVICE = "give --baseline URL of the same model served without speculation"
NEAR_TIE = 0.5
"""Log-probabilities (nats) that rounding may put apart: two units of bfloat16 at a logit of 32."""
NO_REFERENCE = f"no text decoded without speculation to compare with; {BASELINE_ADVICE}"


class Status(StrEnum):
    """How a check ended."""

    OK = "ok"
    FAILED = "failed"
    UNCHECKED = "could not be checked"


@dataclass(frozen=True)
class Finding:
    """One check's verdict.

    Attributes:
        check: the check's name.
        sentence: the result; if there is none, why the check could not run.
        numbers: the numbers behind it, as JSON has them.
        shows_other_weights: whether the servers turned out to run different models.
    """

    check: str
    status: Status
    sentence: str
    numbers: dict[str, Any] = field(default_factory=dict)
    shows_other_weights: bool = False

    def document(self) -> dict[str, Any]:
        """The verdict as a mapping."""
        return {
            "check": self.check,
            "status": str(self.status),
            "sentence": self.sentence,
            **self.numbers,
        }
