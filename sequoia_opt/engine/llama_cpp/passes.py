"""A tree's forward passes on llama.cpp, prepared once and run in every step.

A node carries the sequences of the leaves below it, so that it sees its ancestors and no other
branch. Accepting a path drops the other branches, and lets all sequences hold the path: only the
cells' marks change. Knows nothing of drafting or verifying.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from sequoia_opt.engine.llama_cpp.cache import CHUNK, Batch, LlamaCache, Logits
from sequoia_opt.engine.llama_cpp.library import most_sequences
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.tree import TokenTree


class _Branches:
    """Which sequences each of some nodes belongs to.

    Attributes:
        count: number of sequences: of nodes that have none of the nodes below them.
        of: each node's sequences, by node.
    """

    def __init__(self, tree: TokenTree, nodes: Sequence[int]) -> None:
        """Number the branches.

        Args:
            nodes: breadth-first, with the ancestors of each.
        """
        parents = {tree.parents[node] for node in nodes}
        leaves = [node for node in nodes if node not in parents]
        self.count = len(leaves)
        self.of: dict[int, list[int]] = {node: [] for node in nodes}
        for sequence, leaf in enumerate(leaves):
            node = leaf
            while node >= 0:
                self.of[node].append(sequence)
                node = tree.parents[node]
        if self.count > most_sequences():
            raise SequoiaError(
                f"tree: found {self.count} leaves, but llama.cpp tells {most_sequences()} "
                f"sequences apart; solve with --max-size {most_sequences()}"
            )

    def settle(self, cache: LlamaCache, root: int, node: int, depth: int) -> None:
        """Keep the path to a node, whose root lies at a position, and drop the other nodes."""
        cache.cut(root + depth + 1)
        own = self.of[node]
        if depth and len(own) < cache.sharers:
            others = [number for number in range(cache.sharers) if number not in own]
            cache.keep(own[0], others, root + 1, root + depth + 1)


class LlamaTreePass:
    """One forward pass over all nodes of a tree; see `TreePass`."""

    def __init__(self, tree: TokenTree) -> None:
        if tree.size > CHUNK:
            raise SequoiaError(
                f"tree: found {tree.size} nodes, but a forward pass of llama.cpp has at most "
                f"{CHUNK} here; solve with --max-size {CHUNK}"
            )
        nodes = range(tree.size)
        self._branches = _Branches(tree, nodes)
        # A tree of one branch decodes with the sequences that the text has.
        self._batch = Batch([self._branches.of[node] for node in nodes], [True] * tree.size)
        self._depths = tree.depths.tolist()

    def score(self, cache: LlamaCache, tokens: Tensor, length: Tensor, bound: int) -> Tensor:
        """See `TreePass`."""
        return self.forward(cache, tokens.tolist(), int(length)).tensor

    def forward(self, cache: LlamaCache, tokens: list[int], root: int) -> Logits:
        """Run it: `score` without tensors.

        Args:
            root: the root's position.
        """
        cache.cut(root)
        cache.share(self._branches.count)
        self._batch.fill(tokens, [root + depth for depth in self._depths])
        logits = cache.forward(self._batch)
        cache.length = root + self._depths[-1] + 1
        return logits

    def accept(self, cache: LlamaCache, length: Tensor, last: Tensor) -> None:
        """See `TreePass`."""
        self.keep(cache, int(length), int(last))

    def keep(self, cache: LlamaCache, root: int, node: int) -> None:
        """Keep the path to a node: `accept` without tensors."""
        self._branches.settle(cache, root, node, self._depths[node])


class LlamaLevelPasses:
    """Forward passes over the internal nodes, level by level; see `LevelPasses`."""

    def __init__(self, tree: TokenTree) -> None:
        levels = tree.internal_levels
        internal = [node for nodes in levels for node in nodes]
        self._branches = _Branches(tree, internal)
        self._depths = tree.depths.tolist()
        self._parents = tree.parents
        self._internal = frozenset(internal)
        all_branches = list(range(self._branches.count))
        self._with_missing = Batch([all_branches, all_branches], [False, True])
        first = Batch([all_branches], [True])
        later = [
            Batch([self._branches.of[node] for node in nodes], [True] * len(nodes))
            for nodes in levels[1:]
        ]
        self._batches = [first, *later]
        self._numbers = list(range(len(self._batches)))
        self._root = 0

    def begin(self, cache: LlamaCache, length: Tensor, bound: int) -> Sequence[int]:
        """See `LevelPasses`."""
        return self.start(cache, int(length))

    def start(self, cache: LlamaCache, root: int) -> Sequence[int]:
        """Begin a step whose root has this position: `begin` without tensors."""
        self._root = root
        cache.cut(root)
        cache.share(self._branches.count)
        return self._numbers

    def run(self, cache: LlamaCache, level: int, tokens: Tensor, keep: bool = True) -> Tensor:
        """See `LevelPasses`."""
        logits = self.forward(cache, level, tokens.tolist()).tensor
        return logits.clone() if keep else logits

    def forward(self, cache: LlamaCache, level: int, tokens: list[int]) -> Logits:
        """Run one level's pass: `run` without tensors."""
        batch, root = self._batches[level], self._root
        positions = [root + level] * batch.size
        if level == 0 and cache.length < root:
            batch, positions = self._with_missing, [root - 1, root]
        batch.fill(tokens[-batch.size :], positions)
        logits = cache.forward(batch)
        cache.length = root + level + 1
        return logits

    def accept(self, cache: LlamaCache, length: Tensor, last: Tensor) -> None:
        """See `LevelPasses`."""
        self.keep(cache, int(length), int(last))

    def keep(self, cache: LlamaCache, root: int, node: int) -> None:
        """Keep the path to a node: `accept` without tensors."""
        if node not in self._internal:
            node = self._parents[node]
        self._branches.settle(cache, root, node, self._depths[node])


def chain_pass(cache: LlamaCache, context: int, count: int) -> Callable[[], object]:
    """A forward pass over `count` tokens of each text, to be repeated; see `Model.pass_to_time`."""
    texts = range(cache.batch)
    batch = Batch([[text] for text in texts for _ in range(count)], [True] * (count * cache.batch))
    batch.positions[:] = np.tile(np.arange(context, context + count), cache.batch)

    def run() -> object:
        if cache.batch == 1:
            cache.cut(context)
        else:
            for text in texts:
                cache.cut_text(text, context)
        logits = cache.forward(batch).tensor
        cache.length = context + count
        return logits

    return run
