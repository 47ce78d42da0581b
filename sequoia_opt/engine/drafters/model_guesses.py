"""A draft model as a source of guesses: one forward pass for each level of a tree that grows.

A head on the target is another, whose cache keeps no guess. Knows which tokens the cache lacks.
Knows nothing of policies, or of how a tree is verified.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sequoia_opt.engine.distributed import World
from sequoia_opt.engine.drafters.base import Drafter
from sequoia_opt.engine.drafters.guesses import Drafted, LevelGuesses
from sequoia_opt.engine.model import GrowingPasses, HeadGrowingPasses
from sequoia_opt.engine.verify import HostMatchRule, NodeRule, Uniforms
from sequoia_opt.engine.verify.node_rules import Guesses
from sequoia_opt.plan.policy import LACKING_BEHIND_LOOKUPS, Policy


class ModelGuesses:
    """See `GuessSource`."""

    def __init__(
        self,
        drafter: Drafter,
        passes: GrowingPasses,
        policy: Policy,
        rule: NodeRule,
        world: World,
        device: torch.device,
        most_lacking: int | None = None,
    ) -> None:
        """Guess by forward passes.

        Args:
            passes: the drafter's.
            most_lacking: tokens of the text that a first pass takes, the root included; by default
                as many as the policy says.
        """
        self._drafter, self._passes = drafter, passes
        self._ranks, self._rule = policy.ranks, rule
        self._most_lacking = most_lacking or policy.most_lacking
        self._world, self._device = world, device
        self._matches = matches_on_host(rule)
        self._lacking: Sequence[int] = ()
        self._passed: dict[int, int] = {}  # of each node that was run, its number in the passes

    def catch_up(
        self, cache: Any, lacking: Sequence[int], held: int, before: Tensor | None = None
    ) -> int:
        """Read all that the cache lacks but the root, where that is more than a first pass takes;
        see `GuessSource`."""
        if len(lacking) <= self._most_lacking:
            return 0
        count = len(lacking) - 1
        tokens = torch.tensor([list(lacking[:count])], device=self._device)
        states = None if before is None else before[None, :count]
        self._drafter.prefill(cache, tokens, held=held, before=states)
        return count

    def begin(
        self,
        cache: Any,
        lacking: Sequence[int],
        held: int,
        bound: int,
        before: Tensor | None = None,
    ) -> None:
        """See `GuessSource`."""
        self._passes.begin(cache, held, bound)
        self._lacking, self._passed = lacking, {}

    def guess(
        self,
        drafted: Drafted,
        nodes: Sequence[int],
        uniforms: Uniforms,
        process: Callable[[Tensor], Tensor] | None,
    ) -> LevelGuesses:
        """See `GuessSource`."""
        if self._passed:
            first = len(self._lacking) + len(self._passed) - 1
            tokens = [drafted.tokens[node] for node in nodes]
            above = [self._passed[drafted.growth.parents[node]] for node in nodes]
        else:  # the root, behind what else the cache lacks
            first = len(self._lacking) - 1
            tokens, above = list(self._lacking), list(range(-1, first))
        self._passed |= {node: number for number, node in enumerate(nodes, start=first)}
        if self._matches and process is None:
            return LevelGuesses(*self._passes.likeliest(tokens, above, len(nodes), self._ranks))
        logits = self._passes.run(tokens, above, len(nodes))
        if process is not None:
            logits = process(logits)
        guesses = self._rule.guess(logits, self._ranks, uniforms)
        probabilities, guessed = self._read(guesses)
        return LevelGuesses(probabilities, guessed, guesses.draft)

    def accept(self, path: Sequence[int]) -> int:
        """See `GuessSource`."""
        kept = [self._passed[node] for node in path if node in self._passed]
        self._passes.accept([*range(len(self._lacking)), *kept])
        return len(self._lacking) + len(kept)

    def _read(self, guesses: Guesses) -> tuple[list[list[float]], list[list[int]]]:
        """Probabilities and tokens on the host, the first process's."""
        probabilities, tokens = guesses.probabilities, guesses.tokens
        if isinstance(tokens, list):
            return probabilities, tokens
        # In one piece, so that the device is waited for once.
        numbers = torch.cat([probabilities.double(), tokens.double()], dim=1)
        rows = self._world.agree(numbers).tolist()
        ranks = tokens.shape[1]
        return [row[:ranks] for row in rows], [[int(t) for t in row[ranks:]] for row in rows]


class HeadGuesses(ModelGuesses):
    """A head's: each step reads what was committed with the target's hidden states."""

    def __init__(
        self,
        drafter: Drafter,
        passes: HeadGrowingPasses,
        policy: Policy,
        rule: NodeRule,
        world: World,
        device: torch.device,
    ) -> None:
        """See `ModelGuesses`."""
        most = most_committed(policy)
        super().__init__(drafter, passes, policy, rule, world, device, most)
        self._head_passes = passes

    def begin(
        self,
        cache: Any,
        lacking: Sequence[int],
        held: int,
        bound: int,
        before: Tensor | None = None,
    ) -> None:
        """See `GuessSource`."""
        assert before is not None
        super().begin(cache, lacking, held, bound)
        self._head_passes.take_states(before)

    def accept(self, path: Sequence[int]) -> int:
        """See `GuessSource`; the next step reads the accepted path again."""
        return len(self._lacking)


def most_committed(policy: Policy) -> int:
    """The most tokens of the text that a head's first pass takes: all that a step can commit, and
    after a pause not many fewer than it lacks."""
    return max(policy.depth + 1, LACKING_BEHIND_LOOKUPS)


def matches_on_host(rule: NodeRule) -> bool:
    """Whether the host needs no more than the likeliest tokens; see `GrowingPasses.likeliest`."""
    return isinstance(rule, HostMatchRule)
