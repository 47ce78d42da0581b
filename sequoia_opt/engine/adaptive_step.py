"""The speculative step of an adaptive plan: its tree grows by what the draft says.

The host decides after each draft pass whether another one pays, and which of the guesses the
target verifies. Shapes are those that the plan has prepared. Knows nothing of prompts, text, or
when to stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sequoia_opt.engine.distributed import ALONE, World
from sequoia_opt.engine.drafters import Drafter, State
from sequoia_opt.engine.drafters.growing import Drafted, GrowingDrafter
from sequoia_opt.engine.logits_processors import LogitsProcessor
from sequoia_opt.engine.model import Caches, Model
from sequoia_opt.engine.verify import Uniforms, Verifier, host_rule, node_rule
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.policy import Growth, PauseState
from sequoia_opt.plan.tree import TokenTree


@dataclass
class GrowingState:
    """Where a text stands between two steps, on the host.

    Attributes:
        length: tokens in the target's cache: the root's slot.
        lacking: the text's tokens that the draft's cache lacks; the root is the last one.
        pause: see `PauseState`.
        size, levels: nodes that the last step verified, the root included, and levels that it
            drafted.
        seen, counts: see `State`.
    """

    length: int
    lacking: list[int]
    pause: PauseState = field(default_factory=PauseState)
    size: int = 1
    levels: int = 0
    seen: Tensor | None = None
    counts: Tensor | None = None

    @classmethod
    def of(cls, state: State) -> GrowingState:
        """A text whose prompt both caches hold."""
        root = int(state.recent[1])
        return cls(int(state.length), [root], seen=state.seen, counts=state.counts)

    @property
    def held(self) -> int:
        """Tokens in the draft's cache."""
        return self.length + 1 - len(self.lacking)


class OfferedTree(NamedTuple):
    """The tree that the target verifies; its nodes are numbered from 0, the root's number.

    Attributes:
        nodes: of each node, the guess's number in `Growth`.
        tokens, parents: of each node; the root's parent is -1.
        children: of each node, by rank.
    """

    nodes: list[int]
    tokens: list[int]
    parents: list[int]
    children: list[list[int]]

    @classmethod
    def of(cls, drafted: Drafted, offered: Sequence[int]) -> OfferedTree:
        """The tree of the offered guesses."""
        nodes = [0, *offered]
        number = {node: i for i, node in enumerate(nodes)}
        parents = [-1, *(number[drafted.growth.parents[node]] for node in offered)]
        children: list[list[int]] = [[] for _ in nodes]
        for node in range(1, len(nodes)):
            children[parents[node]].append(node)
        return cls(nodes, [drafted.tokens[node] for node in nodes], parents, children)


def decides_on_host(world: World, device: torch.device) -> bool:
    """Whether logits are in the host's memory, and no other process has to agree."""
    return world.size == 1 and device.type == "cpu"


class AdaptiveStep:
    """One step of speculative decoding with a tree that grows.

    Attributes:
        tree: the plan, which has a policy.
        mode: see `TensorStep`.
    """

    mode = torch.inference_mode

    def __init__(
        self,
        target: Model,
        drafter: Drafter,
        tree: TokenTree,
        verifier: Verifier,
        world: World = ALONE,
        processor: LogitsProcessor | None = None,
    ) -> None:
        """Prepare a step; see `Step`.

        Raises:
            SequoiaError: the verifier decides on whole paths, the drafter cannot draft a tree that
                grows, or the models are too small for the policy.
        """
        assert tree.policy is not None
        self.tree, self.policy, self.processor = tree, tree.policy, processor
        self._check(target, drafter)
        self._device, self._world = target.device, world
        self._on_host = decides_on_host(world, target.device)
        self._rule = (host_rule if self._on_host else node_rule)(verifier)
        self._drafter = GrowingDrafter(drafter, self.policy, self._rule, world, target.device)
        branches = max(1, self.policy.largest_size - 1)
        self._target_passes = target.growing_passes(self.policy.largest_size, branches)
        self._uniforms_per_node = self._rule.uniform_count(self.policy.ranks)

    def _check(self, target: Model, drafter: Drafter) -> None:
        """Refuse a policy that the models cannot run."""
        policy, vocabulary = self.policy, min(target.vocabulary, drafter.width)
        if policy.ranks > vocabulary:
            raise SequoiaError(
                f"policy: ranks: found {policy.ranks}, but the vocabulary has only {vocabulary} "
                "tokens"
            )
        positions = min(target.positions, drafter.positions)
        if policy.depth >= positions:
            raise SequoiaError(
                f"policy: depth: found {policy.depth}, but the models have only {positions} "
                "positions"
            )

    def started(self, state: State) -> GrowingState:
        """The state of a text before its first step, as a step returns it."""
        return GrowingState.of(state)

    def __call__(
        self, caches: Caches, state: GrowingState, bound: int, uniforms: Uniforms
    ) -> tuple[list[int], GrowingState]:
        """Run one step.

        Args:
            caches: the text's.
            state: where the text stands.
            bound: see `Step`.
            uniforms: gives random numbers.

        Returns:
            The step's tokens, the number of accepted ones, and how many tokens there are; and
            where the text stands now.
        """
        drafted, held = self._draft(caches, state, bound, uniforms)
        grown = drafted.growth.finish(fill=not self._rule.draws)
        tree = OfferedTree.of(drafted, grown.nodes)
        logits = self._score(caches, state, bound, tree, grown.size)
        path, token = self._verify(logits, state, drafted, tree, uniforms)
        self._target_passes.accept([0, *path])
        held += self._drafter.accept(drafted, [tree.nodes[node] for node in path])
        tokens = [*(tree.tokens[node] for node in path), token]
        levels = len(drafted.growth.widths)
        return [*tokens, len(path), len(tokens)], self._after(
            state, tokens, held, grown.size, levels
        )

    def _draft(
        self, caches: Caches, state: GrowingState, bound: int, uniforms: Uniforms
    ) -> tuple[Drafted, int]:
        """The step's guesses, and how many tokens of the text the draft's cache holds now."""
        lacking, held = state.lacking, state.held
        if state.pause.plain:
            return Drafted(Growth(self.policy), [lacking[-1]], {}), held
        read = self._drafter.catch_up(caches.draft, lacking, held)
        held += read
        drafted = self._drafter.draft(
            caches.draft,
            lacking[read:],
            held,
            bound,
            uniforms,
            lambda logits: self._processed(logits, state, []),
        )
        return drafted, held

    def _score(
        self, caches: Caches, state: GrowingState, bound: int, tree: OfferedTree, size: int
    ) -> Tensor:
        """The target's logits [size, vocabulary] after each node of a tree.

        Copies of the root fill the pass up, as children of the root that nothing visits.
        """
        padding = size - len(tree.nodes)
        self._target_passes.begin(caches.target, state.length, bound)
        return self._target_passes.run(
            tree.tokens + padding * tree.tokens[:1], tree.parents + padding * [0], size
        )

    def _verify(
        self,
        logits: Tensor,
        state: GrowingState,
        drafted: Drafted,
        tree: OfferedTree,
        uniforms: Uniforms,
    ) -> tuple[list[int], int]:
        """Walk down from the root: the accepted nodes, and the token after them."""
        numbers = self._numbers(len(drafted.growth.widths) + 1, uniforms)
        path: list[int] = []
        node = 0
        while True:
            above = [tree.tokens[passed] for passed in path]
            rank, token = self._rule.decide(
                self._processed(logits[node : node + 1], state, above),
                [tree.tokens[child] for child in tree.children[node]],
                drafted.draft.get(tree.nodes[node]),
                numbers[len(path)],
            )
            if not rank:
                return self._agreed(path, token)
            node = tree.children[node][rank - 1]
            path.append(node)

    def _numbers(self, visits: int, uniforms: Uniforms) -> Any:
        """The random numbers [visits, uniforms per node] of a walk."""
        count = self._uniforms_per_node
        if count == 0:
            return [[]] * visits
        numbers = uniforms(visits * count).view(visits, count)
        return numbers.tolist() if self._on_host else numbers

    def _agreed(self, path: list[int], token: int) -> tuple[list[int], int]:
        """The first process's decision: a path and the token after it."""
        if self._world.size == 1:
            return path, token
        padded = [*path, *[-1] * (self.policy.depth - len(path)), token]
        *nodes, token = self._world.agree(torch.tensor(padded, device=self._device)).tolist()
        return [node for node in nodes if node >= 0], token

    def _processed(self, logits: Tensor, state: GrowingState, path: Sequence[int]) -> Tensor:
        """The processed logits [rows, vocabulary] after a path of tokens behind the root."""
        if self.processor is None or state.seen is None:
            return logits
        seen, counts = self._with(state, path)
        return self.processor.apply(logits, seen, counts)

    def _with(self, state: GrowingState, tokens: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Which tokens a text has with these behind it, and how often its new part has each."""
        assert state.seen is not None
        if not tokens:
            return state.seen, state.counts
        new = torch.tensor(tokens, dtype=torch.long, device=self._device)
        counts = state.counts
        if counts is not None:
            counts = counts.index_add(0, new, counts.new_ones(len(tokens)))
        return state.seen.index_fill(0, new, True), counts

    def _after(
        self, state: GrowingState, tokens: list[int], held: int, size: int, levels: int
    ) -> GrowingState:
        """Where the text stands with a step's tokens.

        Args:
            held: tokens in the draft's cache.
        """
        length = state.length + len(tokens)
        behind = [*state.lacking, *tokens]  # ends with the new root
        seen, counts = state.seen, state.counts
        if seen is not None:
            seen, counts = self._with(state, tokens)
        return GrowingState(
            length,
            behind[len(behind) - (length + 1 - held) :],
            state.pause.after(len(tokens) - 1, self.policy.pause),
            size,
            levels,
            seen,
            counts,
        )
