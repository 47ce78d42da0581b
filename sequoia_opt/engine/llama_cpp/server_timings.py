"""The `timings` of llama.cpp's server: what it counted of an answer, or of its beginning.

Knows their names. Knows nothing of requests. Loads no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ServerTimings:
    """Counts since the beginning of an answer.

    Attributes:
        predicted: new tokens.
        predicted_ms: time from the end of the prompt's forward pass, which yields the first token.
        drafted, accepted: tokens that were guessed, and those of them that were accepted.
    """

    predicted: int
    predicted_ms: float
    drafted: int = 0
    accepted: int = 0

    @property
    def steps(self) -> int:
        """Forward passes of the target after the prompt's; each yields one token of its own."""
        return max(0, self.predicted - 1 - self.accepted)


def timings_of(document: Mapping[str, Any]) -> ServerTimings:
    """The counts in an answer's `timings`; those without `draft_n` are of a text without guesses.

    Raises:
        KeyError, TypeError, ValueError: they are of another form.
    """
    return ServerTimings(
        predicted=int(document["predicted_n"]),
        predicted_ms=float(document["predicted_ms"]),
        drafted=int(document.get("draft_n", 0)),
        accepted=int(document.get("draft_n_accepted", 0)),
    )
