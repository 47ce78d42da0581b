"""The speculative step of an adaptive plan: its tree grows by the draft's probabilities.

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
from sequoia_opt.engine.verify import (
    HostMatchRule,
    Uniforms,
    Verifier,
    host_rule,
    matching,
    node_rule,
)
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.growth import PAUSE, Growth
from sequoia_opt.plan.growth_counts import GrownStep
from sequoia_opt.plan.pause import PauseState
from sequoia_opt.plan.policy import Policy
from sequoia_opt.plan.tree import TokenTree

MOST_LACKING = 256  # tokens whose hidden states are kept for a head that a lookup stands in for


@dataclass
class GrowingState:
    """Where a text stands between two steps, on the host.

    Attributes:
        length: tokens in the target's cache: the root's slot.
        lacking: the text's tokens that the draft's cache lacks; the root is the last one.
        new: the tokens that the last step committed; the root is the last one.
        pause: see `PauseState`.
        last: what the last step did; None before the first one.
        seen, counts: see `State`.
        before: [lacking, width], the target's hidden states at the token before each that is
            lacking, where the draft reads them.
    """

    length: int
    lacking: list[int]
    new: list[int]
    pause: PauseState = field(default_factory=PauseState)
    last: GrownStep | None = None
    seen: Tensor | None = None
    counts: Tensor | None = None
    before: Tensor | None = None

    @classmethod
    def of(cls, state: State) -> GrowingState:
        """A text whose prompt both caches hold."""
        root = int(state.recent[1])
        before = None if state.committed is None else state.committed.states[:1]
        return cls(
            int(state.length), [root], [root], seen=state.seen, counts=state.counts, before=before
        )

    @property
    def held(self) -> int:
        """Tokens in the draft's cache."""
        return self.length + 1 - len(self.lacking)

    @property
    def size(self) -> int:
        """Nodes that the last step verified, the root included."""
        return 1 if self.last is None else self.last.size

    @property
    def levels(self) -> int:
        """Levels that the last step drafted."""
        return 0 if self.last is None else self.last.levels

    @property
    def looked_up(self) -> bool:
        """Whether the last step verified a lookup's guesses before the draft's."""
        return self.last is not None and self.last.looked_up


class StepGuesses(NamedTuple):
    """What a step verifies.

    Attributes:
        drafted: the guesses.
        drafter: that made them.
        held: tokens in the draft's cache before the step's passes.
    """

    drafted: Drafted
    drafter: GrowingDrafter
    held: int


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

    def followed(self, choices: Sequence[int]) -> tuple[list[int], int]:
        """The nodes below the root that the choices [nodes] lead to, and the choice after them."""
        path: list[int] = []
        node = 0
        while True:
            choice = choices[node]
            matches = [child for child in self.children[node] if self.tokens[child] == choice]
            if not matches:
                return path, choice
            node = matches[0]
            path.append(node)


def decides_on_host(world: World, device: torch.device) -> bool:
    """Whether logits are in the host's memory, and no other process has to agree."""
    return world.size == 1 and device.type == "cpu"


class AdaptiveStep:
    """One step of speculative decoding with a tree that grows.

    Attributes:
        tree: the plan, which has a policy.
        mode: see `TensorStep`.
        uniform_count: None, since how many it takes follows from how its tree grows.
    """

    mode = torch.inference_mode
    uniform_count = None

    def __init__(
        self,
        target: Model,
        drafter: Drafter,
        tree: TokenTree,
        verifier: Verifier,
        world: World = ALONE,
        processor: LogitsProcessor | None = None,
        lookup: Drafter | None = None,
    ) -> None:
        """Prepare a step; see `Step`.

        Args:
            lookup: of a plan that looks up first.

        Raises:
            SequoiaError: the verifier decides on whole paths, the drafter cannot draft a tree that
                grows, the models are too small for the policy, or the plan looks up first and
                nothing does.
        """
        assert tree.policy is not None
        self.tree, self.policy, self.processor = tree, tree.policy, processor
        self._device, self._world = target.device, world
        self._on_host = decides_on_host(world, target.device)
        self._drafter = self._growing(target, drafter, self.policy, verifier)
        self._hidden = drafter.hidden if self.policy.drafts else None
        self._lookup: GrowingDrafter | None = None
        if (first := self.policy.lookup) is not None:
            if lookup is None:
                raise SequoiaError(
                    "the plan looks up before its model drafts, but the pair has no lookup; load "
                    "the pair with --draft lookup+MODEL"
                )
            # Which of the two is asked follows from the text so far, so each has its own rule.
            self._lookup = self._growing(target, lookup, first.policy, matching(verifier))
        largest = tree.largest_size
        self._target_passes = target.growing_passes(largest, max(1, largest - 1))

    def _growing(
        self, target: Model, drafter: Drafter, policy: Policy, verifier: Verifier
    ) -> GrowingDrafter:
        """A drafter prepared for its policy, and for its rule at a node.

        Raises:
            SequoiaError: the models cannot run the policy, or the rule cannot decide about it.
        """
        vocabulary = min(target.vocabulary, drafter.width)
        if policy.ranks > vocabulary:
            raise SequoiaError(
                f"policy: ranks: found {policy.ranks}, but the draft makes at most {vocabulary} "
                "guesses at a place"
            )
        positions = min(target.positions, drafter.positions)
        if policy.depth >= positions:
            raise SequoiaError(
                f"policy: depth: found {policy.depth}, but the models have only {positions} "
                "positions"
            )
        rule = (host_rule if self._on_host else node_rule)(verifier)
        return GrowingDrafter(drafter, policy, rule, self._world, self._device)

    def started(self, state: State) -> GrowingState:
        """The state of a text before its first step, as a step returns it."""
        return GrowingState.of(state)

    def __call__(
        self, caches: Caches, state: GrowingState, bound: int, uniforms: Uniforms
    ) -> tuple[list[int], GrowingState]:
        """Run one step.

        Args:
            caches, state: the text's.
            bound: see `Step`.
            uniforms: gives random numbers.

        Returns:
            The step's tokens, the number of accepted ones, that of tokens; and the new state.
        """
        guesses = self._looked_up(caches, state, bound, uniforms)
        guesses = guesses or self._drafted(caches, state, bound, uniforms)
        drafted, drafter, held = guesses
        grown = drafted.growth.finish(fill=not drafter.rule.draws)
        tree = OfferedTree.of(drafted, grown.nodes)
        logits = self._score(caches, state, bound, tree, grown.size)
        hidden = None if self._hidden is None else self._hidden.last()[0]
        path, token = self._verify(logits, state, guesses, tree, uniforms)
        self._target_passes.accept([0, *path])
        accepted = [tree.nodes[node] for node in path]
        read = drafter.accept(drafted, accepted)
        if drafter is self._drafter:
            held += read
        tokens = [*(tree.tokens[node] for node in path), token]
        looked_up = drafter is self._lookup
        stop = PAUSE if state.pause.plain and not looked_up else drafted.growth.stop
        step = GrownStep(drafted.growth, grown.nodes, accepted, grown.size, stop, looked_up)
        after = self._after(state, tokens, held, step)
        if hidden is not None and state.before is not None:
            new = hidden[[0, *path]]  # at the token before each of the step's tokens
            after.before = torch.cat([state.before, new])[-len(after.lacking) :]
        return [*tokens, len(path), len(tokens)], after

    def _looked_up(
        self, caches: Caches, state: GrowingState, bound: int, uniforms: Uniforms
    ) -> StepGuesses | None:
        """What the lookup guesses, where that is worth more than what the draft would bring."""
        first = self.policy.lookup
        if self._lookup is None or first is None:
            return None
        indexed = state.length + 1 - len(state.new)
        drafted = self._lookup.draft(caches.lookup, state.new, indexed, bound, uniforms)
        if not first.takes(drafted.growth.offered, drafted.growth.expected):
            return None
        held = state.held
        if state.before is not None and len(state.lacking) > MOST_LACKING:
            held += self._drafter.catch_up(caches.draft, state.lacking, held, state.before)
        return StepGuesses(drafted, self._lookup, held)

    def _drafted(
        self, caches: Caches, state: GrowingState, bound: int, uniforms: Uniforms
    ) -> StepGuesses:
        """The draft's guesses, and none in a plain step."""
        lacking, held = state.lacking, state.held
        if state.pause.plain or not self.policy.drafts:
            nothing = Drafted(Growth(self.policy), [lacking[-1]], {})
            return StepGuesses(nothing, self._drafter, held)
        read = self._drafter.catch_up(caches.draft, lacking, held, state.before)
        held += read
        drafted = self._drafter.draft(
            caches.draft,
            lacking[read:],
            held,
            bound,
            uniforms,
            None if self.processor is None else lambda logits: self._processed(logits, state, []),
            None if state.before is None else state.before[read:],
        )
        return StepGuesses(drafted, self._drafter, held)

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
        guesses: StepGuesses,
        tree: OfferedTree,
        uniforms: Uniforms,
    ) -> tuple[list[int], int]:
        """Walk down from the root: the accepted nodes, and the token after them."""
        drafted, drafter, _ = guesses
        if self.processor is None and isinstance(drafter.rule, HostMatchRule):
            choices = drafter.rule.choices(logits)  # all at once, in less time than one by one
            if choices is not None:
                return tree.followed(choices)
        per_node = drafter.rule.uniform_count(drafter.policy.ranks)
        numbers = self._numbers(len(drafted.growth.widths) + 1, per_node, uniforms)
        path: list[int] = []
        node = 0
        while True:
            above = [tree.tokens[passed] for passed in path]
            rank, token = drafter.rule.decide(
                self._processed(logits[node : node + 1], state, above),
                [tree.tokens[child] for child in tree.children[node]],
                drafted.draft.get(tree.nodes[node]),
                numbers[len(path)],
            )
            if not rank:
                return self._agreed(path, token)
            node = tree.children[node][rank - 1]
            path.append(node)

    def _numbers(self, visits: int, count: int, uniforms: Uniforms) -> Any:
        """The random numbers [visits, count] of a walk."""
        if count == 0:
            return [[]] * visits
        numbers = uniforms(visits * count).view(visits, count)
        return numbers.tolist() if self._on_host else numbers

    def _agreed(self, path: list[int], token: int) -> tuple[list[int], int]:
        """The first process's decision: a path and the token after it."""
        if self._world.size == 1:
            return path, token
        padded = [*path, *[-1] * (self.tree.largest_depth - len(path)), token]
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
        self, state: GrowingState, tokens: list[int], held: int, step: GrownStep
    ) -> GrowingState:
        """Where the text stands with a step's tokens; `held` of them are in the draft's cache."""
        length = state.length + len(tokens)
        held = held if self.policy.drafts else length  # a draft that never runs lacks nothing
        pause = state.pause  # the draft's own: steps by the lookup neither count nor end it
        if not step.looked_up:
            pause = pause.after(len(tokens) - 1, self.policy.pause)
        behind = [*state.lacking, *tokens]  # ends with the new root
        seen, counts = state.seen, state.counts
        if seen is not None:
            seen, counts = self._with(state, tokens)
        return GrowingState(
            length,
            behind[len(behind) - (length + 1 - held) :],
            tokens,
            pause,
            step,
            seen,
            counts,
        )
