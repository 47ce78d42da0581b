"""A tree's tensors against its parents and ranks, for every small shape."""

from __future__ import annotations

import pytest
import torch

from sequoia_opt.engine.verify import TreeIndex
from sequoia_opt.plan import shapes
from sequoia_opt.plan.tree import TokenTree

TREES = [
    shapes.chain(1),
    shapes.chain(4),
    shapes.k_ary(3, 2),
    TokenTree([-1, 0, 0, 0, 1, 1, 2, 4], [0, 1, 2, 3, 1, 2, 1, 1]),
]


@pytest.fixture(params=TREES, ids=lambda tree: f"{tree.size}-{tree.depth}")
def tree(request: pytest.FixtureRequest) -> TokenTree:
    result: TokenTree = request.param
    return result


def test_ancestors_and_elders_are_those_of_the_paths(tree: TokenTree) -> None:
    index = TreeIndex(tree, torch.device("cpu"))
    for node in range(tree.size):
        path, elders, current = [0], set(), node
        while current:
            path.append(current)
            elders |= {
                sibling
                for sibling in range(1, tree.size)
                if tree.parents[sibling] == tree.parents[current]
                and tree.ranks[sibling] < tree.ranks[current]
            }
            current = tree.parents[current]
        assert index.ancestors[node].nonzero().flatten().tolist() == sorted(set(path))
        assert index.elders[node].nonzero().flatten().tolist() == sorted(elders)


def test_the_child_table_has_each_child_at_its_parents_row_and_its_rank(tree: TokenTree) -> None:
    index = TreeIndex(tree, torch.device("cpu"))
    table = index.children
    assert int(table.exist.sum()) == tree.size - 1
    flat = table.children.flatten().tolist()
    for node in range(1, tree.size):
        row, rank = int(index.internal_row[tree.parents[node]]), tree.ranks[node] - 1
        assert table.exist[row, rank]
        assert int(table.children[row, rank]) == node
        assert flat[int(index.child_position[node - 1])] == node
    leaves = [node for node in range(tree.size) if not tree.child_counts[node]]
    assert set(index.internal_row[leaves].tolist()) <= {len(index.internal)}
    assert table.row_counts == [
        int((tree.child_counts > rank).sum()) for rank in range(tree.child_counts.max())
    ]


def test_post_order_has_descendants_and_elder_siblings_first(tree: TokenTree) -> None:
    index = TreeIndex(tree, torch.device("cpu"))
    order = index.post_order.tolist()
    assert sorted(order) == list(range(tree.size))
    step = {node: i for i, node in enumerate(order)}
    for node in range(1, tree.size):
        assert step[node] < step[tree.parents[node]]
        if tree.ranks[node] > 1:
            assert step[node - 1] < step[node]


def test_post_order_positions_are_a_leafs_test_or_an_internal_nodes_row(tree: TokenTree) -> None:
    index = TreeIndex(tree, torch.device("cpu"))
    flat = [node for level in index.levels for node in level.children.children.flatten().tolist()]
    flat += [node for level in index.levels for node in level.children.parents]
    count = len(flat) - len(index.internal)
    for node, position in zip(index.post_order, index.post_order_position, strict=False):
        assert flat[int(position)] == int(node)
        assert (int(position) >= count) == bool(tree.child_counts[int(node)])
