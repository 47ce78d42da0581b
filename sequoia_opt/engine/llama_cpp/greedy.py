"""The step at temperature 0, in Python's whole numbers.

A forward pass leaves the processor's caches full of weights, and the first tensor operation after
it takes 50 µs instead of 1, which was most of a step's overhead. Greedy decoding needs none: numpy
finds the most likely tokens, and all else is a few numbers. It decides as `step.Step` does, and
looks only at the logits on the accepted path. Knows nothing of sampling.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sequoia_opt.engine.drafters import ModelTreeDrafter, State
from sequoia_opt.engine.llama_cpp.cache import LlamaCache
from sequoia_opt.engine.llama_cpp.passes import LlamaLevelPasses, LlamaTreePass
from sequoia_opt.engine.model import Caches
from sequoia_opt.engine.step import Step
from sequoia_opt.engine.verify import Greedy
from sequoia_opt.plan.tree import TokenTree

FEW = 16  # of the most likely tokens: so many are found faster one after the other


class Place(NamedTuple):
    """Where a text stands between two steps: `State` without tensors.

    Attributes:
        length: tokens in the target's cache.
        recent: the last two committed tokens; the second is the root.
    """

    length: int
    recent: tuple[int, int]


class GreedyStep:
    """`Step` at temperature 0.

    Attributes:
        uniform_count, mode: see `Step`.
    """

    uniform_count = 0
    mode = nullcontext

    def __init__(self, tree: TokenTree, drafter: GreedyDrafter | None) -> None:
        self._target_pass, self._drafter = LlamaTreePass(tree), drafter
        self._children, self._count = tree.children, tree.depth + 1

    @classmethod
    def of(cls, step: Step) -> GreedyStep | None:
        """The step that does what another does; None where that samples, drafts without a model
        or processes logits."""
        if type(step.verifier) is not Greedy or step.processor is not None:
            return None
        if step.drafter is None:
            return cls(step.tree, None)
        if not isinstance(step.drafter, ModelTreeDrafter):
            return None
        draft = step.drafter.drafter
        return cls(step.tree, GreedyDrafter(step.tree, draft.width, draft.model.vocabulary))

    def started(self, state: State) -> Place:
        """See `Step`."""
        previous, root = state.recent.tolist()
        return Place(int(state.length), (previous, root))

    def __call__(
        self, caches: Caches, place: Place, bound: int, uniforms: Tensor
    ) -> tuple[list[int], Place]:
        """See `Step`."""
        length, recent = place
        draft_cache: Any = caches.draft
        tokens = [recent[1]]
        if self._drafter is not None:
            tokens = self._drafter.draft(draft_cache, length, recent)
        logits = self._target_pass.forward(caches.target, tokens, length)
        committed, last = self._accepted(tokens, logits.rows)
        if self._drafter is not None:
            self._target_pass.keep(caches.target, length, last)
            self._drafter.passes.keep(draft_cache, length, last)
        count, following = len(committed), committed[-1]
        told = [*committed, *[following] * (self._count - count), last, count]
        return told, Place(length + count, (tokens[last], following))

    def _accepted(
        self, tokens: list[int], rows: list[NDArray[np.float32]]
    ) -> tuple[list[int], int]:
        """The tokens to commit, and the last accepted node.

        Args:
            tokens: of each node.
            rows: the target's logits after each node.
        """
        node, committed = 0, []
        while True:
            choice = int(rows[node].argmax())
            committed.append(choice)
            for child in self._children[node]:
                if tokens[child] == choice:
                    node = child
                    break
            else:
                return committed, node


class GreedyDrafter:
    """A draft model's most likely tokens, for one tree.

    Attributes:
        passes: its forward passes.
    """

    def __init__(self, tree: TokenTree, width: int, vocabulary: int) -> None:
        """Prepare it.

        Args:
            width: how many of its tokens the target has too.
            vocabulary: number of its tokens.
        """
        self.passes = LlamaLevelPasses(tree)
        self._width, self._largest = width, vocabulary - 1
        counts = tree.child_counts.tolist()
        self._levels = [[(node, counts[node]) for node in nodes] for nodes in tree.internal_levels]

    def draft(self, cache: LlamaCache, length: int, recent: tuple[int, int]) -> list[int]:
        """The tokens of all nodes; see `TreeDrafter`."""
        self.passes.start(cache, length)
        tokens, inputs = [recent[1]], list(recent)
        for number, level in enumerate(self._levels):
            if number > 0:
                inputs = [tokens[node] for node, _ in level]
            known = [min(token, self._largest) for token in inputs]
            rows = self.passes.forward(cache, number, known).rows
            for row, (_, count) in zip(rows, level, strict=True):
                shared = row if len(row) == self._width else row[: self._width]
                tokens += most_likely(shared, count)  # nodes are breadth-first
        return tokens


def most_likely(logits: NDArray[np.float32], count: int) -> list[int]:
    """The indices of the `count` largest logits, in order; it may overwrite these."""
    if count > FEW:
        largest = np.argpartition(logits, -count)[-count:]
        return [int(token) for token in largest[np.argsort(-logits[largest], kind="stable")]]
    tokens = [int(logits.argmax())]
    while len(tokens) < count:
        logits[tokens[-1]] = -np.inf
        tokens.append(int(logits.argmax()))
    return tokens
