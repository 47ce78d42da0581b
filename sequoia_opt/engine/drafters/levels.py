"""Drafting a fixed tree level by level: each level's logits give the next level's tokens.

Knows which guesses become which nodes. Knows nothing of what computes the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sequoia_opt.engine.drafters.base import State
from sequoia_opt.engine.logits_processors import LogitsProcessor
from sequoia_opt.engine.verify import TreeIndex, Verifier, as_slice, indices
from sequoia_opt.plan.tree import TokenTree


class Levels:
    """The levels of one tree, for one verifier."""

    def __init__(
        self,
        tree: TokenTree,
        index: TreeIndex,
        verifier: Verifier,
        processor: LogitsProcessor | None,
        vocabulary: int,
        device: torch.device,
    ) -> None:
        """Prepare them.

        Args:
            vocabulary: the target's.
        """
        self._index, self._verifier, self._processor = index, verifier, processor
        self._vocabulary = vocabulary
        self._levels = [_Level.of(tree, nodes, device) for nodes in tree.internal_levels]
        self._widths = [level.nodes for level in self._levels]
        row = {node: i for i, node in enumerate(index.internal)}
        # Each level's rows of the logits in the verifier's order.
        self._verified = [
            as_slice([row[node] for node in nodes], device) for nodes in tree.internal_levels
        ]

    def draft(
        self,
        state: State,
        inputs: Tensor,
        passes: Sequence[Callable[[Tensor], Tensor]],
        uniforms: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Propose the tree's tokens; see `TreeDrafter.draft`.

        Args:
            inputs: tokens of the first pass.
            passes: of each level, from the tokens of its internal nodes to their logits [nodes,
                target vocabulary], which the next pass may overwrite.
        """
        tokens = [state.recent[1:]]
        verified: Tensor | None = None
        noises = self._verifier.noise(self._index, uniforms).split(self._widths)
        parts = zip(self._levels, noises, passes, self._verified, strict=True)
        for level, noise, run, rows in parts:
            level_logits = run(inputs)
            if self._processor is not None and state.seen is not None:
                # As good a guess as any, and nearer to what the target's logits will be.
                level_logits = self._processor.apply(level_logits, state.seen, state.counts)
            guesses = self._verifier.draft(level_logits, level.ranks, noise)
            children = guesses.take(level.children)
            tokens.append(children)
            if self._verifier.reads_draft:  # the next pass may overwrite what it reads
                if verified is None:
                    verified = level_logits.new_empty(sum(self._widths), self._vocabulary)
                verified[rows] = level_logits
            inputs = children.index_select(0, level.inner)
        return torch.cat(tokens), level_logits if verified is None else verified


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
