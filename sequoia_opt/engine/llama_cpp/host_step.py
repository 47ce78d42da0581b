"""The step of a fixed tree in Python's whole numbers and numpy.

A forward pass leaves the processor's caches full of weights, and the first tensor operation after
it takes 50 µs instead of 1, which was most of a step's overhead. This step needs none: it decides
as `step.Step` does, by the rules of `verify.host_rules`, and looks only at the logits on the
accepted path. Knows nothing of logits processors, nor of what decides on whole paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sequoia_opt.engine.drafters import ModelTreeDrafter, State
from sequoia_opt.engine.llama_cpp.cache import LlamaCache
from sequoia_opt.engine.llama_cpp.passes import LlamaLevelPasses, LlamaTreePass
from sequoia_opt.engine.model import Caches
from sequoia_opt.engine.random_numbers import RandomNumbers
from sequoia_opt.engine.step import Step
from sequoia_opt.engine.verify import Chances, HostRule, host_rule, takes_rows
from sequoia_opt.plan.tree import TokenTree


class Place(NamedTuple):
    """Where a text stands between two steps: `State` without tensors.

    Attributes:
        length: tokens in the target's cache.
        recent: the last two committed tokens; the second is the root.
    """

    length: int
    recent: tuple[int, int]


class HostStep:
    """`Step`, for models whose logits the host has.

    Attributes:
        uniform_count: None: it takes its random numbers as a list.
        mode: see `Step`.
    """

    mode = nullcontext
    uniform_count = None

    def __init__(self, tree: TokenTree, rule: HostRule, drafter: HostDrafter | None) -> None:
        self._target_pass, self._rule, self._drafter = LlamaTreePass(tree), rule, drafter
        self._children, self._count = tree.children, tree.depth + 1
        self._drawn = 0 if drafter is None else drafter.uniform_count
        self._per_visit = rule.uniform_count(max(len(children) for children in tree.children))
        self._uniforms = self._drawn + self._count * self._per_visit

    @classmethod
    def of(cls, step: Step) -> HostStep | None:
        """The step that does what another does; None where that processes the logits,
        drafts without a model, or decides on whole paths."""
        if step.processor is not None or not takes_rows(step.verifier):
            return None
        rule = host_rule(step.verifier)
        if step.drafter is None:
            return cls(step.tree, rule, None)
        if not isinstance(step.drafter, ModelTreeDrafter):
            return None
        draft = step.drafter.drafter
        drafter = HostDrafter(step.tree, rule, draft.model.vocabulary, draft.vocabulary)
        return cls(step.tree, rule, drafter)

    def started(self, state: State) -> Place:
        """See `Step`."""
        previous, root = state.recent.tolist()
        return Place(int(state.length), (previous, root))

    def __call__(
        self, caches: Caches, place: Place, bound: int, uniforms: RandomNumbers
    ) -> tuple[list[int], Place]:
        """See `Step`."""
        length, recent = place
        numbers = uniforms.listed(self._uniforms)
        draft_cache: Any = caches.draft
        tokens = [recent[1]]
        drawn_from: dict[int, Chances] = {}
        if self._drafter is not None:
            tokens, drawn_from = self._drafter.draft(draft_cache, length, recent, numbers)
        logits = self._target_pass.forward(caches.target, tokens, length)
        committed, last = self._walk(tokens, drawn_from, logits.rows, numbers)
        if self._drafter is not None:
            self._target_pass.keep(caches.target, length, last)
            self._drafter.passes.keep(draft_cache, length, last)
        count, following = len(committed), committed[-1]
        told = [*committed, *[following] * (self._count - count), last, count]
        return told, Place(length + count, (tokens[last], following))

    def _walk(
        self,
        tokens: list[int],
        drawn_from: dict[int, Chances],
        rows: list[NDArray[np.float32]],
        numbers: list[float],
    ) -> tuple[list[int], int]:
        """The tokens to commit, and the last accepted node.

        Args:
            tokens: of each node.
            drawn_from: of each node whose children were drawn, the draft's probabilities.
            rows: the target's logits after each node; those on the path may be overwritten.
            numbers: the step's random numbers.
        """
        node, start = 0, self._drawn
        committed: list[int] = []
        while True:
            children = self._children[node]
            rank, token = self._rule.decide_row(
                rows[node],
                [tokens[child] for child in children],
                drawn_from.get(node),
                numbers[start : start + self._per_visit],
            )
            committed.append(token)
            if not rank:
                return committed, node
            node, start = children[rank - 1], start + self._per_visit


class HostDrafter:
    """A draft model's guesses, for one tree and one rule.

    Attributes:
        passes: its forward passes.
        uniform_count: random numbers that it takes.
    """

    def __init__(self, tree: TokenTree, rule: HostRule, vocabulary: int, width: int) -> None:
        """Prepare it.

        Args:
            vocabulary: number of its tokens.
            width: number of the target's.
        """
        self.passes = LlamaLevelPasses(tree)
        self.uniform_count = tree.size - 1 if rule.draws else 0
        self._rule, self._largest, self._width = rule, vocabulary - 1, width
        counts = tree.child_counts.tolist()
        # Each node's weights have their memory: new one of this size would be mapped in each step.
        size = min(vocabulary, width)
        self._levels = [
            [(node, counts[node], np.empty(size, np.float32)) for node in nodes]
            for nodes in tree.internal_levels
        ]

    def draft(
        self, cache: LlamaCache, length: int, recent: tuple[int, int], numbers: Sequence[float]
    ) -> tuple[list[int], dict[int, Chances]]:
        """The tokens of all nodes, and what each node's children were drawn from, if they were.

        Args:
            length, recent: see `Place`.
            numbers: random numbers, these first.
        """
        self.passes.start(cache, length)
        tokens, inputs = [recent[1]], list(recent)
        drawn_from: dict[int, Chances] = {}
        for number, level in enumerate(self._levels):
            if number > 0:
                inputs = [tokens[node] for node, _, _ in level]
            known = [min(token, self._largest) for token in inputs]
            rows = self.passes.forward(cache, number, known).rows
            for row, (node, count, weights) in zip(rows, level, strict=True):
                first = len(tokens) - 1  # one number for each node but the root
                guesses, chances = self._rule.guess_row(
                    row[: self._width], count, numbers[first : first + count], weights
                )
                tokens += guesses  # nodes are breadth-first
                if chances is not None:
                    drawn_from[node] = chances
        return tokens, drawn_from
