"""Adaptive plans that grow the same tree in every step, whatever the draft says: to be timed.

Knows policies. Knows nothing of models or times.
"""

from __future__ import annotations

from dataclasses import dataclass

from sequoia_opt.plan.confidence import Confidence
from sequoia_opt.plan.policy import Policy
from sequoia_opt.plan.tree import TokenTree


@dataclass(frozen=True)
class FixedGrowth:
    """An adaptive plan whose steps are all alike.

    Attributes:
        widths: nodes of each draft pass.
        size: nodes of the target pass.
        plan: it.
    """

    widths: tuple[int, ...]
    size: int
    plan: TokenTree

    @classmethod
    def of(cls, depth: int, width: int, size: int) -> FixedGrowth:
        """Levels of `width` nodes with as many guesses each, offered as far as there is room.

        Args:
            depth: levels; 0 for a plan that never drafts.
            size: nodes of the target pass. What is expected of a wide level must exceed what is
                expected of one node: so at least the guesses of the two likeliest nodes of each
                level that is expanded must find room.
        """
        confidence = Confidence((), (tuple((0.5,) for _ in range(width)),))
        expand = ((1, 0.0),) if width == 1 else ((1, 0.0), (width, 0.0))
        policy = Policy(
            confidence=confidence,
            depth=max(1, depth),
            ranks=width,
            expand=expand,
            first=0.0 if depth else 1.0,
            offer=0.0,
            sizes=(1,) if size == 1 else (1, size),
        )
        widths = (1, *[width] * (depth - 1)) if depth else ()
        return cls(widths, size, TokenTree([-1], [0], policy=policy))


def fixed_growths(largest: int, few: bool = False) -> list[FixedGrowth]:
    """Plans of different sizes and depths, to tell the parts of their overhead from one another.

    Args:
        largest: nodes that any forward pass may have.
        few: as many as there are parts.
    """
    growths = [
        FixedGrowth.of(0, 1, 1),
        FixedGrowth.of(6, 1, 7),
        FixedGrowth.of(4, 2, 15),
        FixedGrowth.of(3, 4, 16),
        FixedGrowth.of(2, 1, 3),
    ]
    return [growth for growth in growths[: 4 if few else 5] if growth.size <= largest]


def fixed_chains(largest: int, few: bool = False) -> list[FixedGrowth]:
    """The same of chains alone, for a drafter that has few guesses at a node.

    Args:
        largest, few: see `fixed_growths`.
    """
    growths = [
        FixedGrowth.of(0, 1, 1),
        FixedGrowth.of(6, 1, 7),
        FixedGrowth.of(2, 1, 3),
        FixedGrowth.of(2, 1, 8),
        FixedGrowth.of(1, 1, 2),
    ]
    return [growth for growth in growths[: 4 if few else 5] if growth.size <= largest]
