"""A draft model as drafter: one forward pass for each level of the tree.

It evaluates internal nodes only. Its cache lacks at most one token besides the root, an accepted
leaf; so its first pass always takes the last two tokens, the elder of which may be evaluated
twice. Knows nothing of caches: the engine's `LevelPasses` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sequoia_opt.engine.drafters.base import State
from sequoia_opt.engine.logits_processors import LogitsProcessor
from sequoia_opt.engine.model import GrowingPasses, Model
from sequoia_opt.engine.sampling import at_least_float32
from sequoia_opt.engine.verify import TreeIndex, Verifier, as_slice, indices
from sequoia_opt.plan.tree import TokenTree


class ModelDrafter:
    """A draft model; see `Drafter`.

    Attributes:
        model: the draft model.
        vocabulary: the target's, which its logits are cut or padded to.
    """

    def __init__(self, model: Model, vocabulary: int) -> None:
        self.model, self.vocabulary = model, vocabulary
        self.positions = model.positions
        self.width = min(model.vocabulary, vocabulary)

    def reserve(self, capacity: int, batch: int = 1, branches: int = 1) -> Any:
        """See `Drafter`."""
        return self.model.reserve(capacity, batch, branches)

    def release(self, cache: Any) -> None:
        """See `Drafter`."""
        self.model.release(cache)

    def prefill(
        self, cache: Any, tokens: Tensor, pad: Tensor | None = None, held: int = 0
    ) -> Tensor:
        """See `Drafter`."""
        return self._fitted(self.model.prefill(cache, self._known(tokens), pad, held))

    def extend(self, cache: Any, tokens: Tensor, length: int, pad: Tensor | None = None) -> Tensor:
        """See `Drafter`."""
        return self._fitted(self.model.extend(cache, self._known(tokens), length, pad))

    def read(self, cache: Any, tokens: Tensor, chunk: int) -> Iterator[tuple[int, Tensor]]:
        """See `Drafter`."""
        for start, logits in self.model.read(cache, self._known(tokens), keep=0, chunk=chunk):
            yield start, self._fitted(logits)

    def on(
        self,
        tree: TokenTree,
        index: TreeIndex,
        verifier: Verifier,
        processor: LogitsProcessor | None,
    ) -> ModelTreeDrafter:
        """See `Drafter`."""
        return ModelTreeDrafter(self, tree, index, verifier, processor)

    def growing_passes(self, nodes: int, branches: int) -> GrowingPasses:
        """See `Drafter`."""
        passes = self.model.growing_passes(nodes, branches)
        if self.model.vocabulary == self.vocabulary:
            return passes
        return _FittedPasses(passes, self.model.vocabulary, self.vocabulary)

    def _known(self, tokens: Tensor) -> Tensor:
        """Tokens that the draft's embedding table has."""
        if self.model.vocabulary < self.vocabulary:
            return tokens.clamp(max=self.model.vocabulary - 1)
        return tokens

    def _fitted(self, logits: Tensor) -> Tensor:
        """Logits over the target's vocabulary, at least float32."""
        return fit_vocabulary(at_least_float32(logits), self.vocabulary)


class _FittedPasses:
    """Forward passes of a draft whose vocabulary has another size than the target's."""

    def __init__(self, passes: GrowingPasses, known: int, vocabulary: int) -> None:
        self._passes, self._last, self._vocabulary = passes, known - 1, vocabulary
        self.begin, self.accept = passes.begin, passes.accept

    def run(self, tokens: Sequence[int], parents: Sequence[int], rows: int) -> Tensor:
        """See `GrowingPasses`."""
        known = [min(token, self._last) for token in tokens]
        return fit_vocabulary(self._passes.run(known, parents, rows), self._vocabulary)


class ModelTreeDrafter:
    """A draft model prepared for one tree; see `TreeDrafter`."""

    def __init__(
        self,
        drafter: ModelDrafter,
        tree: TokenTree,
        index: TreeIndex,
        verifier: Verifier,
        processor: LogitsProcessor | None,
    ) -> None:
        self._drafter, self._index, self._verifier = drafter, index, verifier
        self._processor = processor
        device = drafter.model.device
        self._levels = [_Level.of(tree, nodes, device) for nodes in tree.internal_levels]
        self._widths = [level.nodes for level in self._levels]
        self._passes = drafter.model.level_passes(tree)
        row = {node: i for i, node in enumerate(index.internal)}
        # Each level's rows of the logits in the verifier's order.
        self._verified = [
            as_slice([row[node] for node in nodes], device) for nodes in tree.internal_levels
        ]

    @property
    def drafter(self) -> ModelDrafter:
        """The draft model."""
        return self._drafter

    def draft(
        self, cache: Any, state: State, bound: int, uniforms: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `TreeDrafter`."""
        tokens, inputs = [state.recent[1:]], state.recent
        verified: Tensor | None = None
        noises = self._verifier.noise(self._index, uniforms).split(self._widths)
        passes = self._passes.begin(cache, state.length, bound)
        parts = zip(self._levels, noises, passes, self._verified, strict=True)
        for level, noise, level_pass, rows in parts:
            level_logits = self._drafter._fitted(
                self._passes.run(cache, level_pass, self._drafter._known(inputs), keep=False)
            )
            if self._processor is not None and state.seen is not None:
                # As good a guess as any, and nearer to what the target's logits will be.
                level_logits = self._processor.apply(level_logits, state.seen, state.counts)
            guesses = self._verifier.draft(level_logits, level.ranks, noise)
            children = guesses.take(level.children)
            tokens.append(children)
            if self._verifier.reads_draft:  # the next pass may overwrite what it reads
                if verified is None:
                    verified = level_logits.new_empty(sum(self._widths), self._drafter.vocabulary)
                verified[rows] = level_logits
            inputs = children.index_select(0, level.inner)
        return torch.cat(tokens), level_logits if verified is None else verified

    def accept(self, cache: Any, length: Tensor, last: Tensor) -> None:
        """See `TreeDrafter`."""
        self._passes.accept(cache, length, last)


@dataclass(frozen=True)
class _Level:
    """How one level's guesses become the next level's nodes.

    Attributes:
        nodes: how many internal nodes the level has.
        ranks: the most children that any of them has.
        children: indices of the level's children in the flattened guesses [nodes, ranks].
        inner: indices, among these children, of those that are internal nodes themselves.
    """

    nodes: int
    ranks: int
    children: Tensor
    inner: Tensor

    @classmethod
    def of(cls, tree: TokenTree, nodes: list[int], device: torch.device) -> _Level:
        """The level that has these internal nodes."""
        counts = tree.child_counts[nodes]
        ranks = int(counts.max())
        children = [i * ranks + rank for i, count in enumerate(counts) for rank in range(count)]
        inner = indices(_inner_children(tree, nodes), device)
        return cls(len(nodes), ranks, indices(children, device), inner)


def _inner_children(tree: TokenTree, nodes: list[int]) -> list[int]:
    """Indices, among the children of `nodes`, of those that have children themselves."""
    parents = set(nodes)
    children = [node for node in range(tree.size) if tree.parents[node] in parents]
    return [i for i, child in enumerate(children) if tree.child_counts[child]]


def fit_vocabulary(logits: Tensor, vocabulary: int) -> Tensor:
    """Cut or pad the draft's logits [..., its vocabulary] to the target's: models of one
    tokenizer may round their embedding tables up differently."""
    missing = vocabulary - logits.shape[-1]
    if missing == 0:
        return logits
    if missing < 0:
        return logits[..., :vocabulary]
    return torch.nn.functional.pad(logits, (0, missing), value=-torch.inf)
