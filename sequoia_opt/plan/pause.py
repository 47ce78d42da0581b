"""Pauses of an adaptive plan: plain steps for a while, where drafting brings nothing.

Knows numbers of missed steps. Knows nothing of how trees grow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Pause:
    """When to stop drafting for a while, where drafting brings nothing.

    Attributes:
        misses: steps in a row that accepted nothing, after which drafting stops.
        steps: numbers of plain steps: the first entry is the length of the first pause, the next
            one that of the next pause if the step between them missed again, and so on; the last
            entry repeats. An accepted guess starts over.
    """

    misses: int
    steps: tuple[int, ...]


class PauseState(NamedTuple):
    """Where a text stands with its policy's pause; a tuple, since replays make very many.

    Attributes:
        misses: steps in a row, outside of pauses, that accepted nothing, drafted or not.
        pauses: pauses in a row; a step that accepts something starts over.
        plain: plain steps that remain in this pause.
    """

    misses: int = 0
    pauses: int = 0
    plain: int = 0

    def after(self, accepted: int, pause: Pause | None) -> PauseState:
        """The state after a step that accepted so many guesses."""
        if pause is None:
            return self
        if self.plain:
            return PauseState(self.misses, self.pauses, self.plain - 1)
        if accepted:
            return PauseState() if self.misses else self
        misses = self.misses + 1
        if misses < pause.misses:
            return PauseState(misses, self.pauses)
        plain = pause.steps[min(self.pauses, len(pause.steps) - 1)]
        return PauseState(misses, self.pauses + 1, plain)
