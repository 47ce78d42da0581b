"""A head on the target as drafter: it reads the target's hidden states, then its own outputs.

Its vocabulary may be a part of the target's. Each step begins with a forward pass over what was
committed since the last one; the levels below the root have a pass each, as with a draft model.
Knows nothing of caches: the engine's `HeadModel` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from sequoia_opt.engine.distributed import World
from sequoia_opt.engine.drafters.base import Committed, HiddenStates, State
from sequoia_opt.engine.drafters.levels import Levels
from sequoia_opt.engine.drafters.model_guesses import HeadGuesses, most_committed
from sequoia_opt.engine.logits_processors import LogitsProcessor
from sequoia_opt.engine.model import HeadGrowingPasses, Likeliest, TimedModel
from sequoia_opt.engine.sampling import at_least_float32
from sequoia_opt.engine.verify import NodeRule, TreeIndex, Verifier
from sequoia_opt.plan.draft_passes import OF_HEAD
from sequoia_opt.plan.policy import Policy
from sequoia_opt.plan.tree import TokenTree


class HeadPasses(Protocol):
    """Forward passes over a tree's internal nodes, level by level, prepared once for that tree.

    The first pass takes what was committed; it leaves nothing else in the cache that counts.
    """

    def begin(self, cache: Any, length: Tensor, bound: int, committed: Committed) -> Sequence[Any]:
        """What each level's pass needs in this step; see `LevelPasses.begin`."""
        ...

    def run(self, cache: Any, level: Any, tokens: Tensor, keep: bool = True) -> Tensor:
        """Logits [nodes, head's vocabulary] at one level's internal nodes.

        Args:
            tokens: of the level's internal nodes; of the first, those that were committed.
        """
        ...


class HeadModel(TimedModel, Protocol):
    """A head that an engine has loaded.

    Attributes:
        token_ids: [vocabulary], the target's token of each of the head's.
    """

    token_ids: Tensor

    def read(
        self,
        cache: Any,
        tokens: Tensor,
        states: Tensor,
        first: int,
        pad: Tensor | None = None,
        keep: int = 0,
    ) -> Tensor:
        """Read a part of a text.

        Args:
            tokens: [batch, count].
            states: [batch, count, width], the target's hidden states at the token before each.
            first: the first token's number in the text, from 1: the text's first token has none
                before it.
            pad: [batch], how many of each text's first tokens are padding.
            keep: how many of the last tokens' logits to return; 0 for all.

        Returns:
            Logits [batch, keep or count, head's vocabulary].
        """
        ...

    def follow(
        self,
        cache: Any,
        tokens: Tensor,
        states: Tensor,
        first: int,
        runs: Tensor,
        pad: Tensor | None = None,
    ) -> Tensor:
        """Read one more token of each text, some of which are the head's own guesses.

        What the head says behind a guess follows from its own outputs, as in decoding.

        Args:
            tokens: [batch, 1].
            states, first, pad: see `read`.
            runs: [batch], how many of each text's last tokens are guesses in a row, this one
                included; 0 for a token that the target chose.

        Returns:
            Logits [batch, 1, head's vocabulary].
        """
        ...

    def level_passes(self, tree: TokenTree) -> HeadPasses:
        """Forward passes over a tree's internal nodes, level by level."""
        ...

    def growing_passes(self, nodes: int) -> HeadGrowingPasses:
        """Forward passes over trees that grow while they are drafted; their logits have the head's
        vocabulary.

        Args:
            nodes: the most of a step, in all its passes, the committed tokens included.
        """
        ...


class HeadDrafter:
    """A head on the target; see `Drafter`.

    Attributes:
        model: the head.
        hidden: the target's hidden states that it reads.
        about: see `Drafter`.
        vocabulary: the target's.
    """

    passes = OF_HEAD

    def __init__(self, model: HeadModel, hidden: HiddenStates, vocabulary: int) -> None:
        self.about: dict[str, Any] = {}
        self.model, self.hidden, self.vocabulary = model, hidden, vocabulary
        self.positions, self.width = model.positions, model.vocabulary

    def reserve(self, capacity: int, batch: int = 1, branches: int = 1) -> Any:
        """See `Drafter`."""
        return self.model.reserve(capacity, batch, branches)

    def release(self, cache: Any) -> None:
        """See `Drafter`."""
        self.model.release(cache)

    def prefill(
        self,
        cache: Any,
        tokens: Tensor,
        pad: Tensor | None = None,
        held: int = 0,
        before: Tensor | None = None,
    ) -> Tensor:
        """See `Drafter`."""
        return self._read(cache, tokens, held, before, pad, keep=1)[:, -1]

    def extend(
        self,
        cache: Any,
        tokens: Tensor,
        length: int,
        pad: Tensor | None = None,
        before: Tensor | None = None,
        runs: Tensor | None = None,
    ) -> Tensor:
        """See `Drafter`."""
        if runs is None:
            return self._read(cache, tokens, length, before, pad, keep=1)
        assert before is not None
        return self.fitted(self.model.follow(cache, tokens, before, length, runs, pad))

    def read(
        self,
        cache: Any,
        tokens: Tensor,
        chunk: int,
        before: Iterator[Tensor | None] | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """See `Drafter`."""
        assert before is not None
        for start in range(0, tokens.shape[1], chunk):
            part = tokens[:, start : start + chunk]
            yield start, self._read(cache, part, start, next(before), None, keep=0)

    def on(
        self,
        tree: TokenTree,
        index: TreeIndex,
        verifier: Verifier,
        processor: LogitsProcessor | None,
    ) -> HeadTreeDrafter:
        """See `Drafter`."""
        return HeadTreeDrafter(self, tree, index, verifier, processor)

    def growing_passes(
        self, nodes: int, branches: int, likeliest: bool = False
    ) -> HeadGrowingPasses:
        """See `Drafter`."""
        return _FittedPasses(self, self.model.growing_passes(nodes))

    def guess_source(
        self, policy: Policy, rule: NodeRule, world: World, device: torch.device
    ) -> HeadGuesses:
        """See `Drafter`."""
        nodes = most_committed(policy) + policy.most_drafted_below
        passes = self.growing_passes(nodes, policy.most_drafted_leaves)
        return HeadGuesses(self, passes, policy, rule, world, device)

    def fitted(self, logits: Tensor) -> Tensor:
        """Logits [..., head's vocabulary] over the target's vocabulary, at least float32.

        Tokens that the head does not have are never proposed.
        """
        logits = at_least_float32(logits)
        whole = logits.new_full((*logits.shape[:-1], self.vocabulary), -torch.inf)
        return whole.index_copy_(-1, self.model.token_ids, logits)

    def _read(
        self,
        cache: Any,
        tokens: Tensor,
        start: int,
        before: Tensor | None,
        pad: Tensor | None,
        keep: int,
    ) -> Tensor:
        """Logits [batch, keep or count, target vocabulary] after tokens behind `start` others.

        A first token without hidden states before it is not read: all tokens are alike after it.
        """
        assert before is not None
        batch, count = tokens.shape
        skipped = count - before.shape[1]
        parts = []
        if skipped and keep in (0, count):
            parts.append(before.new_zeros(batch, 1, self.model.vocabulary))
        if count > skipped:
            rest = tokens[:, skipped:]
            parts.append(self.model.read(cache, rest, before, start + skipped, pad, keep))
        return self.fitted(torch.cat(parts, dim=1))


class _FittedPasses:
    """A head's forward passes, over the target's vocabulary."""

    def __init__(self, drafter: HeadDrafter, passes: HeadGrowingPasses) -> None:
        self._drafter, self._passes = drafter, passes
        self._ids: list[int] = drafter.model.token_ids.tolist()
        self.begin, self.take_states, self.accept = passes.begin, passes.take_states, passes.accept

    def run(self, tokens: Sequence[int], parents: Sequence[int], rows: int) -> Tensor:
        """See `GrowingPasses`."""
        return self._drafter.fitted(self._passes.run(tokens, parents, rows))

    def likeliest(
        self, tokens: Sequence[int], parents: Sequence[int], rows: int, ranks: int
    ) -> Likeliest:
        """See `GrowingPasses`; tokens that the head does not have are not likely."""
        probabilities, likely = self._passes.likeliest(tokens, parents, rows, ranks)
        return Likeliest(probabilities, [[self._ids[token] for token in row] for row in likely])


class HeadTreeDrafter:
    """A head prepared for one tree; see `TreeDrafter`."""

    def __init__(
        self,
        drafter: HeadDrafter,
        tree: TokenTree,
        index: TreeIndex,
        verifier: Verifier,
        processor: LogitsProcessor | None,
    ) -> None:
        self._drafter = drafter
        self._passes = drafter.model.level_passes(tree)
        self._levels = Levels(
            tree, index, verifier, processor, drafter.vocabulary, drafter.model.device
        )

    def draft(
        self, cache: Any, state: State, bound: int, uniforms: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `TreeDrafter`."""
        assert state.committed is not None
        passes = self._passes.begin(cache, state.length, bound, state.committed)
        runs = [partial(self._run, cache, level_pass) for level_pass in passes]
        return self._levels.draft(state, state.committed.tokens, runs, uniforms)

    def accept(self, cache: Any, length: Tensor, last: Tensor) -> None:
        """See `TreeDrafter`: the next step reads the accepted path again."""

    def _run(self, cache: Any, level_pass: Any, tokens: Tensor) -> Tensor:
        """The logits [nodes, target vocabulary] of one level."""
        return self._drafter.fitted(self._passes.run(cache, level_pass, tokens, keep=False))
