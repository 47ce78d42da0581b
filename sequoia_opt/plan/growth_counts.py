"""Counts of what the steps of an adaptive plan did, and of how well it was calibrated.

Knows steps' trees, as `Growth` numbers their guesses. Knows nothing of tokens, models or files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sequoia_opt.plan.growth import Growth

BINS = 10  # of calibrated acceptance


class GrownStep(NamedTuple):
    """One step of an adaptive plan.

    Attributes:
        growth: its tree.
        nodes: the guesses that the target verified.
        accepted: those that were accepted, from the root down.
        size: nodes of the target pass, the root included.
        stop: why no further level was drafted: one of `growth.STOPS`.
        looked_up: whether the guesses are a lookup's, in a pair that looks up before it drafts.
    """

    growth: Growth
    nodes: Sequence[int]
    accepted: Sequence[int]
    size: int
    stop: str
    looked_up: bool = False

    @property
    def levels(self) -> int:
        """How many levels were drafted."""
        return len(self.growth.widths)


@dataclass
class GuessCounts:
    """Verified guesses whose parents were reached, by calibrated acceptance, [bins] of equal width.

    Attributes:
        verified: how many there were.
        predicted: how many of them the calibration expects to be accepted.
        accepted: how many were.
    """

    verified: list[int] = field(default_factory=lambda: BINS * [0])
    predicted: list[float] = field(default_factory=lambda: BINS * [0.0])
    accepted: list[int] = field(default_factory=lambda: BINS * [0])

    def add(self, step: GrownStep) -> None:
        """Count the guesses of a step."""
        accepted = set(step.accepted)
        for node in step.nodes:
            parent = step.growth.parents[node]
            if parent == 0 or parent in accepted:
                rate = step.growth.rates[node]
                number = min(int(BINS * rate), BINS - 1)
                self.verified[number] += 1
                self.predicted[number] += rate
                self.accepted[number] += node in accepted

    @classmethod
    def together(cls, parts: Iterable[GuessCounts]) -> GuessCounts:
        """The sum of several counts."""
        total = cls()
        for part in parts:
            for number in range(BINS):
                total.verified[number] += part.verified[number]
                total.predicted[number] += part.predicted[number]
                total.accepted[number] += part.accepted[number]
        return total
