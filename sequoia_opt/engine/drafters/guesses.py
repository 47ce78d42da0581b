"""What guesses at the nodes of a tree that grows, level by level: a source of guesses.

A draft model is one, with a forward pass a level, and so is a head on the target; a lookup in the
text is another, with none.
Knows what growth asks of a source. Knows nothing of how one answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from sequoia_opt.engine.verify import Uniforms
from sequoia_opt.plan.growth import Growth


@dataclass
class Drafted:
    """One step's guesses, numbered as `Growth` numbers them; the root is number 0.

    Attributes:
        growth: which of them are offered.
        tokens: of each guess.
        draft: of each node whose guesses were drawn, the distribution; see `NodeRule`.
    """

    growth: Growth
    tokens: list[int]
    draft: dict[int, Any]


class LevelGuesses(NamedTuple):
    """The guesses at some nodes of one level, on the host.

    Attributes:
        probabilities: of each node's guesses, in the order of rank, as far as there are any;
            growth decides by them.
        tokens: of the same guesses.
        draft: of each node, the distribution that its guesses were drawn from; None where
            guesses are not drawn.
    """

    probabilities: Sequence[Sequence[float]]
    tokens: Sequence[Sequence[int]]
    draft: Sequence[Any] | None = None


class GuessSource(Protocol):
    """Where guesses come from, prepared for one policy and one verifier."""

    def catch_up(
        self, cache: Any, lacking: Sequence[int], held: int, before: Tensor | None = None
    ) -> int:
        """Read what the cache lacks, as far as that is not left to the next step's first level.

        Args:
            cache: the drafter's own for the text.
            lacking: the text's tokens that the cache lacks; the root is the last one.
            held: how many tokens the cache holds.
            before: [tokens, width], the target's hidden states at the token before each that is
                lacking, for a drafter that reads them.

        Returns:
            How many tokens were read.
        """
        ...

    def begin(
        self,
        cache: Any,
        lacking: Sequence[int],
        held: int,
        bound: int,
        before: Tensor | None = None,
    ) -> None:
        """Begin a step; see `catch_up`, and `Machine.bound_for` for the bound."""
        ...

    def guess(
        self,
        drafted: Drafted,
        nodes: Sequence[int],
        uniforms: Uniforms,
        process: Callable[[Tensor], Tensor] | None,
    ) -> LevelGuesses:
        """The guesses at a level's nodes, whose parents' guesses were asked for before.

        Args:
            drafted: the step's guesses so far.
            uniforms: gives random numbers, to draw with.
            process: processes logits; None to take them as they are.
        """
        ...

    def accept(self, path: Sequence[int]) -> int:
        """End a step that has begun: keep an accepted path in the cache.

        Args:
            path: the accepted guesses, from the root's child on.

        Returns:
            How many tokens of the text and the path the cache has taken in this step.
        """
        ...
