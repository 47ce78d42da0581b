"""What every verifier is given and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from sequoia_opt.engine.sampling import most_likely
from sequoia_opt.plan.tree import TokenTree


def indices(values: ArrayLike, device: torch.device) -> Tensor:
    """Whole numbers as an index tensor, also when there are none."""
    return torch.as_tensor(np.asarray(values, dtype=np.int64), device=device)


class TreeIndex:
    """A tree's structure as tensors, prepared once.

    Attributes:
        internal: the internal nodes, in the families' order.
        families: they and their children.
        row: [size], each node's place among the internal ones; a leaf's is one past them.
        levels: the same depth by depth.
        level_row: [size], each node's place among the levels' internal nodes, one level after the
            other; a leaf's is one past them.
        parent, ranks, depths: [size], of each node; the root is its own parent.
        needed, barred: [size, size], which nodes have to pass, and which must not, for each to be
            reached: those on the path to it, and their elder siblings.
        tested: [size - 1], where each node but the root stands among the families' children.
        posted: [size], the nodes, each after those under it.
        posted_tested: [size - 1], where these but the last, the root, stand among all levels'
            children, one level after the other, with the levels' internal nodes behind them.
        nodes: [size], all of them; root: [1], true.
    """

    def __init__(self, tree: TokenTree, device: torch.device) -> None:
        self.size = tree.size
        children: list[list[int]] = [[] for _ in range(tree.size)]
        for node in range(1, tree.size):
            children[tree.parents[node]].append(node)
        every = [node for node in range(tree.size) if children[node]]
        self.families = Families(every, children, device)
        self.internal = self.families.internal
        row = {node: i for i, node in enumerate(self.internal)}
        self.row = indices([row.get(v, len(row)) for v in range(tree.size)], device)
        self.tested = indices([self.families.place[v] for v in range(1, tree.size)], device)

        self.levels: list[Level] = []
        above, tests = {0: 0}, 0
        places: dict[int, int] = {}
        for nodes in tree.internal_levels:
            families = Families(nodes, children, device)
            rows = [row[v] for v in families.internal]
            own = indices([above[v] for v in families.internal], device)[:, None]
            self.levels.append(Level(families, _selection(rows, device), own))
            above = families.place
            places |= {child: tests + place for child, place in above.items()}
            tests += families.children.numel()
        in_levels = [v for level in self.levels for v in level.families.internal]
        places |= {node: tests + place for place, node in enumerate(in_levels)}
        level_row = {node: place for place, node in enumerate(in_levels)}
        self.level_row = indices([level_row.get(v, len(row)) for v in range(tree.size)], device)
        posted = post_order(children)
        self.posted = indices(posted, device)
        self.posted_tested = indices([places[v] for v in posted[:-1]], device)

        above_or_self = tree.ancestor_mask
        elder = np.zeros_like(above_or_self)  # siblings of the node, and of those above it
        for node in range(1, tree.size):
            siblings = children[tree.parents[node]]
            elder[node] = elder[tree.parents[node]]
            elder[node, siblings[: tree.ranks[node] - 1]] = True
        self.needed = torch.as_tensor(above_or_self, device=device)
        self.barred = torch.as_tensor(elder, device=device)
        self.parent = indices([0, *tree.parents[1:]], device)
        self.ranks = indices(tree.ranks, device)
        self.depths = indices(tree.depths, device)
        self.nodes = torch.arange(tree.size, device=device)
        self.root = torch.ones(1, dtype=torch.bool, device=device)


class Families:
    """Some internal nodes and their children.

    Those with most children come first: the nodes with at least k children are the first few, and
    each rank's test is a slice.

    Attributes:
        internal: the nodes.
        nodes: [internal], the same.
        children: [internal, ranks]; the first again where there are fewer.
        exist: the same shape, where there are children.
        reach: how many of the nodes have at least 1, 2, … children.
        place: of each child in the flattened table.
    """

    def __init__(
        self, internal: Sequence[int], children: list[list[int]], device: torch.device
    ) -> None:
        self.internal = sorted(internal, key=lambda v: -len(children[v]))
        counts = [len(children[v]) for v in self.internal]
        ranks = max(counts, default=0)
        self.reach = [sum(count > rank for count in counts) for rank in range(ranks)]
        table = [children[v] + children[v][:1] * (ranks - len(children[v])) for v in self.internal]
        self.nodes = indices(self.internal, device)
        self.children = indices(table, device).view(len(table), ranks)
        self.exist = indices(counts, device)[:, None] > torch.arange(ranks, device=device)
        self.place = {
            child: row * ranks + rank
            for row, node in enumerate(self.internal)
            for rank, child in enumerate(children[node])
        }


@dataclass(frozen=True)
class Level:
    """The internal nodes of one depth.

    Attributes:
        families: they and their children.
        rows: their places among all internal ones, as an index: neighbours need no gathering.
        own: [internal, 1], their places among the children of the level above; the root's is 0.
    """

    families: Families
    rows: slice | Tensor
    own: Tensor


def _selection(rows: list[int], device: torch.device) -> slice | Tensor:
    """Rows as a slice if they are neighbours in order, else as a tensor."""
    if rows == list(range(rows[0], rows[0] + len(rows))):
        return slice(rows[0], rows[0] + len(rows))
    return indices(rows, device)


def post_order(children: list[list[int]]) -> list[int]:
    """The nodes, each after those under it, elder siblings with what is under them first."""
    # The other way round it is the root, then its children from the youngest, and so on.
    order, waiting = [], [0]
    while waiting:
        order.append(waiting.pop())
        waiting.extend(children[order[-1]])
    return order[::-1]


@dataclass
class Verdict:
    """What verification decided.

    Attributes:
        last: [1], the last accepted node: those on the path from the root to it are kept.
        next: [1], the token after it: correction or bonus.
    """

    last: Tensor
    next: Tensor


class Verifier(Protocol):
    """A drafting rule and the verification rule that belongs to it.

    Attributes:
        name: as in the files.
        reads_draft: whether `verify` looks at the draft's logits at all.
    """

    name: str
    reads_draft: bool

    def uniform_count(self, index: TreeIndex, vocabulary: int) -> int:
        """How many uniforms in [0, 1) one step takes: `noise` and `verify` share them."""
        ...

    def noise(self, index: TreeIndex, uniforms: Tensor) -> Tensor:
        """What drafting draws with, prepared once a step: [internal, …], in breadth-first order."""
        ...

    def draft(self, logits: Tensor, ranks: int, noise: Tensor) -> Tensor:
        """Guesses at some internal nodes: [nodes, ranks].

        Args:
            logits: [nodes, vocabulary], the draft's.
            ranks: how many guesses each node needs at most.
            noise: [nodes, …], these nodes'.
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
        """Which path is kept.

        Args:
            tokens: [size], each node's token.
            target_logits: [size, vocabulary], the target's after each node.
            draft_logits: [internal, vocabulary], the draft's, in the order of `index.internal`.
        """
        ...

    def trial(self, positions: Positions) -> Trial:
        """Draft at each position and verify the guesses: what `estimate` samples."""
        ...


@dataclass
class Positions:
    """Where trials are made, in any number of ways.

    Attributes:
        target, draft: logits [positions, vocabulary].
        width: how many guesses.
        noise: the same shape, see `gumbel`; ways to draw that it does not fit take their own.
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
    """One verification of full width at a single node, for each of many positions.

    Attributes:
        chances: [positions, width], probability that the rank-k draw is the accepted one.
        rank: [positions], the rank that was accepted, 0 for none.
        emit: the token [positions] that comes of it, the target's own in law.
    """

    chances: Tensor
    rank: Tensor
    emit: Callable[[], Tensor]


def last_reached(index: TreeIndex, passed: Tensor) -> Tensor:
    """The last node [1] of the path on which all passed, and none of their elder siblings.

    Args:
        passed: [size - 1], whether each node but the root did.
    """
    passed = torch.cat([index.root, passed])
    stopped = torch.where(passed, index.barred, index.needed).any(dim=1)
    # Breadth-first order is depth order along a path: the last is the one with most before it.
    return index.nodes.masked_fill(stopped, 0).amax(dim=0, keepdim=True)


def first_rank(passed: Tensor) -> Tensor:
    """Rank of the first that passed, from 1, along the last dimension; 0 if none did."""
    return (passed.int().argmax(dim=-1) + 1) * passed.any(dim=-1)
