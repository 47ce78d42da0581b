"""Drafting a tree that grows level by level: the policy decides by what a source guesses.

Knows nothing of where guesses come from, nor of how a tree is verified.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sequoia_opt.engine.distributed import World
from sequoia_opt.engine.drafters.base import Drafter
from sequoia_opt.engine.drafters.guesses import Drafted
from sequoia_opt.engine.verify import NodeRule, Uniforms
from sequoia_opt.plan.growth import Growth
from sequoia_opt.plan.policy import Policy

__all__ = ["Drafted", "GrowingDrafter"]


class GrowingDrafter:
    """A drafter prepared for one policy.

    Attributes:
        policy: by which its trees grow.
        rule: that decides about its guesses.
    """

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
            SequoiaError: the drafter cannot draft a tree that grows, or not with this verifier.
        """
        self.policy, self.rule = policy, rule
        self._source = drafter.guess_source(policy, rule, world, device)

    def draft(
        self,
        cache: Any,
        lacking: Sequence[int],
        held: int,
        bound: int,
        uniforms: Uniforms,
        process: Callable[[Tensor], Tensor] | None = None,
        before: Tensor | None = None,
    ) -> Drafted:
        """Grow a tree.

        Args:
            lacking, held, before: see `GuessSource.catch_up`; the root is the last that is lacking.
            bound: see `Machine.bound_for`.
            process: processes the draft's logits; None to take them as they are.
        """
        growth = Growth(self.policy)
        drafted = Drafted(growth, [lacking[-1]], {})
        nodes = growth.next_level()
        if nodes:
            self._source.begin(cache, lacking, held, bound, before)
        while nodes:
            guesses = self._source.guess(drafted, nodes, uniforms, process)
            growth.add(nodes, guesses.probabilities)
            for row, node in enumerate(nodes):
                drafted.tokens += guesses.tokens[row]
                if guesses.draft is not None:
                    drafted.draft[node] = guesses.draft[row]
            nodes = growth.next_level()
        return drafted

    def catch_up(
        self, cache: Any, lacking: Sequence[int], held: int, before: Tensor | None = None
    ) -> int:
        """Read what the cache lacks; see `GuessSource.catch_up`."""
        return self._source.catch_up(cache, lacking, held, before)

    def accept(self, drafted: Drafted, path: Sequence[int]) -> int:
        """Keep an accepted path in the cache; see `GuessSource.accept`."""
        return self._source.accept(path) if drafted.growth.widths else 0
