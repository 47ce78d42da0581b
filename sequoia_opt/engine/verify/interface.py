"""What every verifier is given and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from sequoia_opt.plan.tree import TokenTree


def indices(values: ArrayLike, device: torch.device) -> Tensor:
    """Whole numbers as an index tensor, also when there are none."""
    return torch.as_tensor(np.asarray(values, dtype=np.int64), device=device)


class TreeIndex:
    """A tree's structure as tensors, prepared once.

    Internal nodes are kept in the order of falling child count, so that those with at least k
    children are the first few: each rank's test is then a slice.

    Attributes:
        internal: the internal nodes in that order.
        child: [internal, ranks], their children, 0 where there are fewer.
        exist: the same shape, where there are children.
        reach: how many of them have at least 1, 2, … children.
        levels: the same for each depth.
        post_order: all nodes, each after what is under it.
        parent, ranks, depths: [size], of each node; the root is its own parent.
        paths: [size, depth + 1], the nodes from the root to each; past it, the tree's size.
    """

    def __init__(self, tree: TokenTree, device: torch.device) -> None:
        self.size, self.depth = tree.size, tree.depth
        counts: list[int] = tree.child_counts.tolist()
        order = sorted((v for v in range(tree.size) if counts[v]), key=lambda v: -counts[v])
        self.internal = order
        self.reach = [
            sum(counts[v] >= rank for v in order) for rank in range(1, max(counts, default=0) + 1)
        ]
        row = {node: i for i, node in enumerate(order)}
        children = np.zeros((len(order), len(self.reach)), dtype=np.int64)
        for node in range(1, tree.size):
            children[row[tree.parents[node]], tree.ranks[node] - 1] = node

        self.internal_nodes = indices(order, device)
        # For each node its row among the internal ones; a leaf's is one past them.
        self.row = indices([row.get(v, len(order)) for v in range(tree.size)], device)
        self.child = indices(children, device)
        self.exist = self.child > 0
        self.parent = indices([0, *tree.parents[1:]], device)
        self.ranks = indices(tree.ranks, device)
        # Where a node's own test stands in the flattened [internal, rank] table.
        self.test = indices(
            [
                row[tree.parents[v]] * len(self.reach) + tree.ranks[v] - 1
                for v in range(1, tree.size)
            ],
            device,
        )
        self.levels = [
            Level(
                nodes=indices(nodes, device),
                rows=indices([row[v] for v in nodes], device),
                children=indices(children[[row[v] for v in nodes]][:, : counts[nodes[0]]], device),
                reach=[sum(counts[v] > rank for v in nodes) for rank in range(counts[nodes[0]])],
            )
            for level in tree.internal_levels
            for nodes in [sorted(level, key=lambda v: -counts[v])]
        ]
        self.post_order = indices(post_order(tree), device)
        mask = tree.ancestor_mask
        paths = [
            [*np.flatnonzero(mask[v]), *[tree.size] * (tree.depth + 1)] for v in range(tree.size)
        ]
        self.paths = indices([path[: tree.depth + 1] for path in paths], device)
        self.depths = indices(tree.depths, device)
        self.ancestors = torch.as_tensor(tree.ancestor_mask, device=device)
        self.nodes = torch.arange(tree.size, device=device)
        self.steps = torch.arange(tree.depth + 1, device=device)
        self.root = torch.ones(1, dtype=torch.bool, device=device)


@dataclass(frozen=True)
class Level:
    """The internal nodes of one depth, those with most children first.

    Attributes:
        nodes: [internal], the nodes.
        rows: [internal], their places among all internal ones.
        children: [internal, ranks], their children, 0 where there are fewer.
        exist: the same shape, where there are children.
        reach: how many of them have at least 1, 2, … children.
    """

    nodes: Tensor
    rows: Tensor
    children: Tensor
    reach: list[int]
    exist: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "exist", self.children > 0)


def post_order(tree: TokenTree) -> list[int]:
    """The nodes, each after those under it, elder siblings with what is under them first."""
    children: list[list[int]] = [[] for _ in range(tree.size)]
    for node in range(1, tree.size):
        children[tree.parents[node]].append(node)
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
        path: [depth + 1], the accepted nodes from the root down; past them, the tree's size.
        count: [1], how many they are, the root included.
        last: [1], the last of them.
        next: [1], the token after them: correction or bonus.
    """

    path: Tensor
    count: Tensor
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
        """How many uniforms in [0, 1) one step takes: `draft` and `verify` share them."""
        ...

    def draft(
        self, logits: Tensor, ranks: int, nodes: slice, index: TreeIndex, uniforms: Tensor
    ) -> Tensor:
        """Guesses of the nodes: [nodes, ranks].

        Args:
            logits: [nodes, vocabulary], the draft's at these internal nodes.
            ranks: how many guesses each node needs at most.
            nodes: which of the internal nodes they are, counted breadth-first.
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

    def trial(self, target_logits: Tensor, draft_logits: Tensor, width: int) -> Trial:
        """Draft `width` guesses at each position and verify them: what `estimate` samples.

        Args:
            target_logits, draft_logits: [positions, vocabulary].
        """
        ...


@dataclass
class Trial:
    """One verification of full width at a single node, for each of many positions.

    Attributes:
        chances: [positions, width], probability that the rank-k draw is the accepted one.
        rank: [positions], the rank that was accepted, 0 for none.
        token: [positions], the token that verification emitted, the target's own in law.
    """

    chances: Tensor
    rank: Tensor
    token: Tensor


def follow(index: TreeIndex, accepted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The accepted path: from `accepted` [size - 1], whether each node but the root is the one
    child of its parent that passed.

    Returns:
        path [depth + 1], count [1] and last [1], as in Verdict.
    """
    rejected = torch.cat([index.root, accepted]).logical_not()
    reached = (index.ancestors & rejected).any(dim=1).logical_not()
    # Breadth-first order is depth order along a path, so sorting the reached nodes gives it.
    nodes = torch.where(reached, index.nodes, index.size)
    path = nodes.sort().values[: index.depth + 1]
    count = reached.sum(dim=0, keepdim=True)
    return path, count, path.gather(0, count - 1)


def first_rank(passed: Tensor) -> Tensor:
    """Rank of the first that passed, from 1, along the last dimension; 0 if none did."""
    return (passed.int().argmax(dim=-1) + 1) * passed.any(dim=-1)
