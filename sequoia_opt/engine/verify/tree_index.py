"""A token tree's structure as tensors on a device, prepared once and read by every step.

Knows parents, children, levels and paths. Knows nothing of tokens or probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from sequoia_opt.plan.tree import TokenTree


def indices(values: ArrayLike, device: torch.device) -> Tensor:
    """Whole numbers as an int64 tensor, also when the list is empty."""
    return torch.as_tensor(np.asarray(values, dtype=np.int64), device=device)


class TreeIndex:
    """A tree's structure as tensors.

    Attributes:
        size: number of nodes.
        children: the internal nodes and their children.
        internal: the internal nodes in the order of that table's rows.
        internal_row: [size], each node's row in that table; a leaf's is one past the last row.
        child_position: [size - 1], where each node but the root stands in the flattened table.
        levels: the same depth by depth, from the root.
        level_row: [size], each node's row among all levels' internal nodes, level after level; a
            leaf's is one past the last row.
        parent, ranks, depths: [size], of each node; the root is its own parent.
        ancestors: [size, size], row v marks the nodes on the path to v, v included: all of them
            must pass for v to be reached.
        elders: [size, size], row v marks the elder siblings of the nodes on the path to v: all of
            them must fail for v to be reached.
        post_order: [size], the nodes, each after its descendants; the root is last.
        post_order_position: [size - 1], where the nodes of `post_order` but the root stand in a
            flat list of all levels' children, followed by all levels' internal nodes. An internal
            node stands for itself among the latter.
        nodes: [size], 0 to size - 1.
        root: [1], true.
    """

    def __init__(self, tree: TokenTree, device: torch.device) -> None:
        self.size = tree.size
        children = tree.children
        internal = [node for node in range(tree.size) if children[node]]
        self.children = ChildTable(internal, children, device)
        self.internal = self.children.parents
        row_of = {node: row for row, node in enumerate(self.internal)}
        self.internal_row = indices([row_of.get(v, len(row_of)) for v in range(tree.size)], device)
        self.child_position = indices(
            [self.children.position_of[v] for v in range(1, tree.size)], device
        )
        self.parent = indices([0, *tree.parents[1:]], device)
        self.ranks = indices(tree.ranks, device)
        self.depths = indices(tree.depths, device)
        self.nodes = torch.arange(tree.size, device=device)
        self.root = torch.ones(1, dtype=torch.bool, device=device)
        self.ancestors = torch.as_tensor(tree.ancestor_mask, device=device)
        self.elders = torch.as_tensor(_elders(tree, children), device=device)
        self._index_levels(tree, children, row_of, device)

    def _index_levels(
        self,
        tree: TokenTree,
        children: list[list[int]],
        row_of: dict[int, int],
        device: torch.device,
    ) -> None:
        """Fill in `levels` and the attributes that refer to their order."""
        self.levels: list[LevelIndex] = []
        positions_above, child_count = {0: 0}, 0
        positions: dict[int, int] = {}
        for nodes in tree.internal_levels:
            table = ChildTable(nodes, children, device)
            rows = as_slice([row_of[node] for node in table.parents], device)
            above = indices([positions_above[node] for node in table.parents], device)
            self.levels.append(LevelIndex(table, rows, above[:, None]))
            positions_above = table.position_of
            positions |= {node: child_count + at for node, at in table.position_of.items()}
            child_count += table.children.numel()
        by_level = [node for level in self.levels for node in level.children.parents]
        level_row = {node: row for row, node in enumerate(by_level)}
        positions |= {node: child_count + row for node, row in level_row.items()}
        self.level_row = indices(
            [level_row.get(node, len(row_of)) for node in range(tree.size)], device
        )
        order = post_order(children)
        self.post_order = indices(order, device)
        self.post_order_position = indices([positions[node] for node in order[:-1]], device)


class ChildTable:
    """Some internal nodes and their children, a row for each node and a column for each rank.

    The nodes with most children come first, so that the nodes with at least k children are the
    first few rows, and the tests of rank k are a slice.

    Attributes:
        parents: the internal nodes, row by row.
        places: the same as a tensor [rows], or as a slice where they are neighbours, which needs
            no gathering.
        children: [rows, ranks]; where a node has fewer children, its first child again.
        exist: [rows, ranks], where the node has a child of that rank.
        row_counts: how many of the nodes have at least 1, 2, … children.
        position_of: where each child stands in the flattened table.
    """

    def __init__(
        self, internal: Sequence[int], children: list[list[int]], device: torch.device
    ) -> None:
        self.parents = sorted(internal, key=lambda node: -len(children[node]))
        counts = [len(children[node]) for node in self.parents]
        ranks = max(counts, default=0)
        self.row_counts = [sum(count > rank for count in counts) for rank in range(ranks)]
        padded = [
            children[node] + children[node][:1] * (ranks - len(children[node]))
            for node in self.parents
        ]
        self.places = as_slice(self.parents, device)
        self.children = indices(padded, device).view(len(padded), ranks)
        self.exist = indices(counts, device)[:, None] > torch.arange(ranks, device=device)
        self.position_of = {
            child: row * ranks + rank
            for row, node in enumerate(self.parents)
            for rank, child in enumerate(children[node])
        }


@dataclass(frozen=True)
class LevelIndex:
    """The internal nodes of one depth.

    Attributes:
        children: these nodes and their children.
        rows: the nodes' rows among all internal nodes; a slice where they are neighbours, which
            needs no gathering.
        position_above: [rows, 1], where the nodes stand in the flattened child table of the level
            above; 0 for the root.
    """

    children: ChildTable
    rows: slice | Tensor
    position_above: Tensor


def post_order(children: list[list[int]]) -> list[int]:
    """The nodes, each after its descendants, elder siblings and their descendants first."""
    # Backwards it is the root, then its children and their descendants from the youngest on.
    order, stack = [], [0]
    while stack:
        order.append(stack.pop())
        stack.extend(children[order[-1]])
    return order[::-1]


def _elders(tree: TokenTree, children: list[list[int]]) -> np.ndarray:
    """[size, size]: row v marks the elder siblings of the nodes on the path to v."""
    elders = np.zeros_like(tree.ancestor_mask)
    for node in range(1, tree.size):
        siblings = children[tree.parents[node]]
        elders[node] = elders[tree.parents[node]]
        elders[node, siblings[: tree.ranks[node] - 1]] = True
    return elders


def as_slice(rows: list[int], device: torch.device) -> slice | Tensor:
    """Rows as a slice if they are neighbours in order, otherwise as a tensor."""
    first = rows[0] if rows else 0
    if rows == list(range(first, first + len(rows))):
        return slice(first, first + len(rows))
    return indices(rows, device)
