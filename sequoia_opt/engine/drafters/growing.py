"""Drafting a tree that grows by what the draft says, level by level.

One forward pass a level; then a few numbers are read back, and the policy decides. Knows which
tokens the draft's cache lacks. Knows nothing of how a tree is verified.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sequoia_opt.engine.distributed import World
from sequoia_opt.engine.drafters.base import Drafter
from sequoia_opt.engine.verify import NodeRule, Uniforms
from sequoia_opt.engine.verify.node_rules import Guesses
from sequoia_opt.plan.policy import Growth, Policy

MOST_LACKING = 2  # tokens that the first pass takes: the root, and a leaf that was accepted


@dataclass
class Drafted:
    """One step's guesses, numbered as `Growth` numbers them; the root is number 0.

    Attributes:
        growth: which of them are offered.
        tokens: of each guess.
        draft: of each node whose guesses were drawn, the distribution [1, vocabulary].
        passed: of each node that a draft pass took, its number in the passes.
    """

    growth: Growth
    tokens: list[int]
    draft: dict[int, Tensor]
    passed: dict[int, int]


class GrowingDrafter:
    """A drafter prepared for one policy."""

    def __init__(
        self,
        drafter: Drafter,
        policy: Policy,
        rule: NodeRule,
        world: World,
        device: torch.device,
    ) -> None:
        """Prepare it.

        Raises:
            SequoiaError: the drafter cannot draft a tree that grows.
        """
        self._drafter, self._policy, self._rule = drafter, policy, rule
        self._world, self._device = world, device
        self._passes = drafter.growing_passes(policy.most_drafted, policy.most_drafted_leaves)

    def draft(
        self,
        cache: Any,
        lacking: Sequence[int],
        held: int,
        bound: int,
        uniforms: Uniforms,
        process: Callable[[Tensor], Tensor],
    ) -> Drafted:
        """Grow a tree.

        Args:
            lacking: the text's tokens that the cache lacks; the root is the last one.
            held: how many tokens the cache holds.
            bound: see `Machine.bound_for`.
            process: processes the draft's logits.
        """
        growth = Growth(self._policy)
        drafted = Drafted(growth, [lacking[-1]], {}, {})
        nodes = growth.next_level()
        if not nodes:
            return drafted
        self._passes.begin(cache, held, bound)
        inputs, above = list(lacking), list(range(-1, len(lacking) - 1))
        drafted.passed[0] = len(lacking) - 1
        count = len(inputs)
        while True:
            logits = process(self._passes.run(inputs, above, len(nodes)))
            guesses = self._rule.guess(logits, self._policy.ranks, uniforms)
            probabilities, tokens = self._read(guesses)
            growth.add(nodes, probabilities)
            for row, node in enumerate(nodes):
                drafted.tokens += tokens[row]
                if guesses.draft is not None:
                    drafted.draft[node] = guesses.draft[row : row + 1]
            nodes = growth.next_level()
            if not nodes:
                return drafted
            inputs = [drafted.tokens[node] for node in nodes]
            above = [drafted.passed[growth.parents[node]] for node in nodes]
            for node in nodes:
                drafted.passed[node] = count
                count += 1

    def catch_up(self, cache: Any, lacking: Sequence[int], held: int) -> int:
        """Read all that the cache lacks but the root, where that is more than a step leaves behind.

        Returns:
            How many tokens were read.
        """
        if len(lacking) <= MOST_LACKING:
            return 0
        count = len(lacking) - 1
        tokens = torch.tensor([list(lacking[:count])], device=self._device)
        self._drafter.prefill(cache, tokens, held=held)
        return count

    def accept(self, drafted: Drafted, path: Sequence[int]) -> int:
        """Keep an accepted path in the cache.

        Args:
            path: the accepted guesses, from the root's child on.

        Returns:
            How many tokens of the text and the path the cache has taken in this step.
        """
        root = drafted.passed.get(0)
        if root is None:
            return 0
        kept = [drafted.passed[node] for node in path if node in drafted.passed]
        self._passes.accept([*range(root + 1), *kept])
        return root + 1 + len(kept)

    def _read(self, guesses: Guesses) -> tuple[list[list[float]], list[list[int]]]:
        """Probabilities and tokens on the host, the first process's."""
        probabilities, tokens = guesses.probabilities, guesses.tokens
        if self._world.size == 1 and tokens.device.type == "cpu":
            return probabilities.tolist(), tokens.tolist()
        # In one piece, so that the device is waited for once.
        numbers = torch.cat([probabilities.double(), tokens.double()], dim=1)
        rows = self._world.agree(numbers).tolist()
        ranks = tokens.shape[1]
        return [row[:ranks] for row in rows], [[int(t) for t in row[ranks:]] for row in rows]
