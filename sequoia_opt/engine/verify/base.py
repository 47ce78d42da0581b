"""The protocol that every verifier follows, and what it takes and returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from sequoia_opt.engine.sampling import most_likely
from sequoia_opt.engine.verify.tree_index import TreeIndex


@dataclass
class Verdict:
    """What verification decided.

    Attributes:
        last: [1], the last accepted node; the path from the root to it is accepted.
        next: [1], the token after it: a correction or the bonus token.
    """

    last: Tensor
    next: Tensor


class Verifier(Protocol):
    """A drafting rule and the verification rule that belongs to it.

    Attributes:
        name: as in options and files.
        reads_draft: whether `verify` reads the draft's logits.
    """

    name: str
    reads_draft: bool

    def uniform_count(self, index: TreeIndex, vocabulary: int) -> int:
        """Number of uniforms in [0, 1) that one step takes; `noise` and `verify` share them."""
        ...

    def noise(self, index: TreeIndex, uniforms: Tensor) -> Tensor:
        """The noise that drafting draws with: [internal, …], internal nodes breadth-first.

        Args:
            uniforms: [uniform_count], in [0, 1).
        """
        ...

    def draft(self, logits: Tensor, ranks: int, noise: Tensor) -> Tensor:
        """Guesses for the children of some internal nodes: tokens [nodes, ranks].

        Args:
            logits: [nodes, vocabulary], the draft's.
            ranks: the largest number of children that any of the nodes has.
            noise: [nodes, …], the rows of `noise` for these nodes.
        """
        ...

    def verify(
        self,
        index: TreeIndex,
        tokens: Tensor,
        target_logits: Tensor,
        draft_logits: Tensor,
        uniforms: Tensor,
    ) -> Verdict:
        """Accept a path of the tree and choose the token after it.

        Args:
            tokens: [size], each node's token.
            target_logits: [size, vocabulary], the target's after each node.
            draft_logits: [internal, vocabulary], the draft's, in the order of `index.internal`.
            uniforms: [uniform_count], those that `noise` was made of.
        """
        ...

    def trial(self, positions: Positions) -> Trial:
        """Draft and verify one node's children at every position; `estimate` samples these."""
        ...


@dataclass
class Positions:
    """Positions in texts at which trials are made.

    Attributes:
        target, draft: logits [positions, vocabulary].
        width: number of guesses at each position.
        noise: [positions, vocabulary], see `gumbel`; a verifier that cannot draw with it makes
            random numbers itself.
    """

    target: Tensor
    draft: Tensor
    width: int
    noise: Tensor

    @cached_property
    def likely(self) -> Tensor:
        """The draft's most likely tokens [positions, width], in order."""
        return most_likely(self.draft, self.width)


@dataclass
class Trial:
    """The verification of one node with `width` children, at each of many positions.

    Attributes:
        guesses: [positions, width], tokens.
        chances: [positions, width], probability that the rank-k guess is the accepted one.
        rank: [positions], the rank of the accepted guess, 0 for none.
        emit: returns the tokens [positions] that verification emits; they are distributed as the
            target's own.
    """

    guesses: Tensor
    chances: Tensor
    rank: Tensor
    emit: Callable[[], Tensor]


def last_reached(index: TreeIndex, passed: Tensor) -> Tensor:
    """The last node [1] of the path whose nodes all passed and whose elder siblings all failed.

    Args:
        passed: [size - 1], whether each node but the root passed its test.
    """
    passed = torch.cat([index.root, passed])
    stopped = torch.where(passed, index.elders, index.ancestors).any(dim=1)
    # Nodes are breadth-first, so the last node of a path has the largest index.
    return index.nodes.masked_fill(stopped, 0).amax(dim=0, keepdim=True)


def first_rank(passed: Tensor) -> Tensor:
    """Rank of the first guess that passed, from 1, along the last dimension; 0 if none did."""
    return torch.where(passed.any(dim=-1), passed.int().argmax(dim=-1) + 1, 0)
