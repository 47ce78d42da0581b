"""What a drafter is: it proposes the tokens of a tree.

A draft model is one kind; a lookup in the text, or a head on the target, are others. A drafter
says what it costs by the forward passes that it makes in a step. Knows nothing of verifying.

To add one: a file beside this with a class that has these methods, and its forward passes in
`plan/draft_passes.py`. Step, decoder and estimator need no change; a profile of a drafter without
a model has no times of a draft.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from sequoia_opt.engine.logits_processors import LogitsProcessor
from sequoia_opt.engine.model import GrowingPasses, Model
from sequoia_opt.engine.verify import TreeIndex, Verifier
from sequoia_opt.plan.tree import TokenTree


@dataclass
class State:
    """Where a text stands between two steps.

    Attributes:
        length: [1], tokens in the target's cache: the root's slot.
        recent: [2], the last two committed tokens; the second is the root, in no cache yet.
        seen: [vocabulary], which tokens the text has, where a logits processor needs it.
        counts: [vocabulary], how often the new text has each, where a logits processor needs it.
    """

    length: Tensor
    recent: Tensor
    seen: Tensor | None = None
    counts: Tensor | None = None


class TreeDrafter(Protocol):
    """A drafter prepared for one tree and one verifier."""

    def draft(
        self, cache: Any, state: State, bound: int, uniforms: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Propose the tree's tokens.

        Args:
            cache: the drafter's own; None if it has none.
            bound: at least `state.length`, known without asking the device.
            uniforms: [uniform_count] of the verifier, in [0, 1).

        Returns:
            Tokens [size], the root's first; and the logits [internal, target vocabulary] that they
            were drawn from, in the order of the verifier's `index.internal`.
        """
        ...

    def accept(self, cache: Any, length: Tensor, last: Tensor) -> None:
        """Keep the path from the root to the accepted node `last` [1] in the drafter's cache."""
        ...


class Drafter(Protocol):
    """What proposes tokens.

    Attributes:
        positions: the most tokens of a text that it can take.
        width: the most guesses that it can make at a position.
    """

    positions: int
    width: int

    @property
    def model(self) -> Model | None:
        """What its forward passes run; None if it makes none."""
        ...

    def reserve(self, capacity: int, batch: int = 1, branches: int = 1) -> Any:
        """A cache for `batch` texts, the caller's until released; None if it keeps none.

        Args:
            branches: leaves of the largest tree that is drafted in it.

        Raises:
            SequoiaError: it does not fit into the memory that is left.
        """
        ...

    def release(self, cache: Any) -> None:
        """Give a cache back, for the next caller that needs one."""
        ...

    def prefill(
        self, cache: Any, tokens: Tensor, pad: Tensor | None = None, held: int = 0
    ) -> Tensor:
        """Read prompts [batch, count]; logits [batch, target vocabulary] of the next token.

        Args:
            pad: [batch], how many of each text's first tokens are padding.
            held: tokens before these that were read already.
        """
        ...

    def extend(self, cache: Any, tokens: Tensor, length: int, pad: Tensor | None = None) -> Tensor:
        """Read tokens [batch, count] after `length` others; logits [batch, 1, vocabulary]."""
        ...

    def read(self, cache: Any, tokens: Tensor, chunk: int) -> Iterator[tuple[int, Tensor]]:
        """Read texts [batch, count] in chunks.

        Yields:
            For each chunk: the index of its first token, and logits [batch, chunk, vocabulary]
            after each of its tokens.
        """
        ...

    def on(
        self,
        tree: TokenTree,
        index: TreeIndex,
        verifier: Verifier,
        processor: LogitsProcessor | None,
    ) -> TreeDrafter:
        """The drafter, prepared for a tree, a verifier and a logits processor."""
        ...

    def growing_passes(self, nodes: int, branches: int) -> GrowingPasses:
        """Forward passes over trees that grow; see `Model.growing_passes`.

        Their logits have the target's vocabulary.

        Raises:
            SequoiaError: the drafter has no distributions by which a tree could grow.
        """
        ...
