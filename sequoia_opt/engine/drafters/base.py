"""What a drafter is: it proposes the tokens of a tree.

A draft model is one kind, a lookup in the text another. A drafter says what it costs by its model:
one forward pass a level, or none without a model. Knows nothing of verifying.

To add one: a file beside this with a class that has these methods, and its forward passes in
`plan/draft_passes.py`. Step and decoder need no change; the profile of a drafter without a model
has no times of a draft.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sequoia_opt.engine.distributed import World
from sequoia_opt.engine.drafters.guesses import GuessSource
from sequoia_opt.engine.logits_processors import LogitsProcessor
from sequoia_opt.engine.model import GrowingPasses, TimedModel
from sequoia_opt.engine.verify import NodeRule, TreeIndex, Verifier
from sequoia_opt.plan.policy import Policy
from sequoia_opt.plan.tree import TokenTree


class HiddenStates(Protocol):
    """The hidden states that the target keeps for a drafter that reads them.

    Attributes:
        width: elements at a token.
    """

    width: int

    def last(self) -> Tensor:
        """Those of the target's last forward pass, [batch, tokens, width]."""
        ...


class Committed(NamedTuple):
    """What the last step committed, for a drafter that reads the target's hidden states.

    Attributes:
        tokens: [depth + 1]; behind those that count, the last one is repeated.
        states: [depth + 1, width], the target's hidden states at the token before each.
        counted: [1], how many of them count.
    """

    tokens: Tensor
    states: Tensor
    counted: Tensor

    @classmethod
    def blank(cls, tree: TokenTree, hidden: HiddenStates, like: Tensor) -> Committed:
        """Memory for what a step with this tree commits.

        Args:
            like: has the hidden states' dtype and device.
        """
        most = tree.depth + 1
        tokens, count = (like.new_zeros(size, dtype=torch.long) for size in (most, 1))
        return cls(tokens, like.new_zeros(most, hidden.width), count + 1)

    @classmethod
    def first(cls, tree: TokenTree, token: Tensor, states: Tensor) -> Committed:
        """What a prompt commits: the token [1] behind it.

        Args:
            states: [1, width], the target's hidden states at the prompt's last token.
        """
        most = tree.depth + 1
        return cls(token.repeat(most), states.repeat(most, 1), torch.ones_like(token))


@dataclass
class State:
    """Where a text stands between two steps.

    Attributes:
        length: [1], tokens in the target's cache: the root's slot.
        recent: [2], the last two committed tokens; the second is the root, in no cache yet.
        seen: [vocabulary], which tokens the text has, where a logits processor needs it.
        counts: [vocabulary], how often the new text has each, where a logits processor needs it.
        committed: where the drafter reads the target's hidden states.
    """

    length: Tensor
    recent: Tensor
    seen: Tensor | None = None
    counts: Tensor | None = None
    committed: Committed | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """All that it has, in one order for states of the same kind."""
        optional = [tensor for tensor in (self.seen, self.counts) if tensor is not None]
        return [self.length, self.recent, *optional, *(self.committed or ())]

    def blank(self) -> State:
        """Memory for a state of the same kind."""
        seen, counts = (
            None if tensor is None else torch.zeros_like(tensor)
            for tensor in (self.seen, self.counts)
        )
        committed = self.committed and Committed(*map(torch.zeros_like, self.committed))
        length, recent = torch.zeros_like(self.length), torch.zeros_like(self.recent)
        return State(length, recent, seen, counts, committed)


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
        passes: its forward passes in a step; see `draft_passes.PER_LEVEL`.
        about: what files say of it besides its name and fingerprint.

    A drafter that reads the target's hidden states is given them with the tokens, each at the token
    before: in `before`, [batch, count, width], or one fewer where they are not known of the first
    token. Others are given None.
    """

    positions: int
    width: int
    passes: str
    about: dict[str, Any]

    @property
    def hidden(self) -> HiddenStates | None:
        """The target's hidden states that it reads; None if it reads none."""
        ...

    @property
    def model(self) -> TimedModel | None:
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
        self,
        cache: Any,
        tokens: Tensor,
        pad: Tensor | None = None,
        held: int = 0,
        before: Tensor | None = None,
    ) -> Tensor:
        """Read prompts [batch, count]; logits [batch, target vocabulary] of the next token, none
        of a drafter without a model.

        Args:
            pad: [batch], how many of each text's first tokens are padding.
            held: tokens before these that were read already.
        """
        ...

    def extend(
        self,
        cache: Any,
        tokens: Tensor,
        length: int,
        pad: Tensor | None = None,
        before: Tensor | None = None,
        runs: Tensor | None = None,
    ) -> Tensor:
        """Read tokens [batch, count] after `length` others; logits [batch, 1, vocabulary].

        Args:
            runs: [batch], of a single token each, how many of the text's last tokens are the
                drafter's own guesses in a row; for a drafter that says something else then.
        """
        ...

    def read(
        self,
        cache: Any,
        tokens: Tensor,
        chunk: int,
        before: Iterator[Tensor | None] | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Read texts [batch, count] in chunks.

        Args:
            before: of each chunk; it is asked for as the chunk is read.

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

    def growing_passes(self, nodes: int, branches: int, likeliest: bool = False) -> GrowingPasses:
        """Forward passes over trees that grow; see `Model.growing_passes`.

        Their logits have the target's vocabulary.

        Raises:
            SequoiaError: trees cannot grow with this drafter.
        """
        ...

    def guess_source(
        self, policy: Policy, rule: NodeRule, world: World, device: torch.device
    ) -> GuessSource:
        """What guesses at the nodes of trees that grow, prepared for a policy and a verifier.

        Raises:
            SequoiaError: the drafter cannot draft a tree that grows, or not with this verifier.
        """
        ...
