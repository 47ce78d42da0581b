"""Two notations of a tree that other programs share, in both directions: rank paths and growmaps.

Rank paths are lists of ranks from the root down, counted from 0 (Medusa, EAGLE); a growmap is
the research code's mapping of lists (Sequoia, UMbreLLa). Reads and writes plain values; files
are handled elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.fields import shown
from sequoia_opt.plan.tree import TokenTree


def paths(tree: TokenTree) -> list[list[int]]:
    """Each node but the root as its ranks from the root down, counted from 0."""
    node_paths: list[list[int]] = [[]]
    for node in range(1, tree.size):
        node_paths.append([*node_paths[tree.parents[node]], tree.ranks[node] - 1])
    return node_paths[1:]


def of_paths(listed: Any, where: str, first_rank: int = 0) -> TokenTree:
    """The tree of a list of rank paths, in any order; an empty path is the root.

    Args:
        listed: the list, as it was read.
        where: its file, for messages.
        first_rank: rank of a first child, 0 or 1.

    Raises:
        SequoiaError: not a list of paths, or ranks with gaps.
    """
    if not isinstance(listed, (list, tuple)) or not listed:
        raise SequoiaError(f"{where}: found no paths, expected [[0], [1], [0, 0], …]")
    for path in listed:
        if not isinstance(path, (list, tuple)) or not all(
            isinstance(rank, int) and rank >= first_rank for rank in path
        ):
            raise SequoiaError(
                f"{where}: found path {shown(path)}, expected ranks from {first_rank}"
            )
    from_zero = {tuple(rank - first_rank for rank in path) for path in listed if len(path)}
    if first_rank == 0 and from_zero and all(min(path) > 0 for path in from_zero):
        raise SequoiaError(
            f"{where}: no path begins with rank 0; if the ranks are counted from 1, "
            f"`sequoia-opt import {where} --first-rank 1` reads them so"
        )
    for path in sorted(from_zero, key=lambda p: (len(p), p)):
        written = [rank + first_rank for rank in path]
        if len(path) > 1 and path[:-1] not in from_zero:
            raise SequoiaError(f"{where}: path {written} has no parent {written[:-1]}")
        if path[-1] and (*path[:-1], path[-1] - 1) not in from_zero:
            raise SequoiaError(
                f"{where}: path {written} has no elder sibling: its ranks have a gap"
            )
    return TokenTree.from_paths([[rank + 1 for rank in path] for path in from_zero])


def growmap(tree: TokenTree) -> dict[str, Any]:
    """The tree as a growmap in plain lists.

    `roots` are the nodes of each level and `branches` the numbers of their children;
    `Successors` are each node's children; `mask` marks a node's ancestors and itself; `size`
    counts the root.
    """
    return {
        "roots": tree.levels,
        "branches": [[len(tree.children[node]) for node in level] for level in tree.levels],
        "Successors": [list(children) for children in tree.children],
        "mask": tree.ancestor_mask.astype(int).tolist(),
        "depth": tree.depths.tolist(),
        "size": tree.size,
    }


def of_growmap(mapping: Mapping[str, Any], where: str) -> TokenTree:
    """The tree of a growmap, from its `Successors`.

    Args:
        where: the growmap's file, for messages.

    Raises:
        SequoiaError: not a growmap, or its fields contradict each other.
    """
    children = mapping.get("Successors")
    if not isinstance(children, list) or not all(isinstance(c, list) for c in children):
        raise SequoiaError(f"{where}: Successors: found none, expected each node's children")
    parents, ranks = [-1] * len(children), [0] * len(children)
    for node, node_children in enumerate(children):
        for rank, child in enumerate(node_children, start=1):
            if not isinstance(child, int) or not node < child < len(children):
                raise SequoiaError(
                    f"{where}: Successors[{node}]: found {child!r}, expected a later node"
                )
            if parents[child] != -1:
                raise SequoiaError(f"{where}: Successors: node {child} has two parents")
            parents[child], ranks[child] = node, rank
    orphans = [node for node in range(1, len(parents)) if parents[node] == -1]
    if not children or orphans:
        raise SequoiaError(f"{where}: Successors: node {orphans[0] if orphans else 0} is missing")
    if mapping.get("size", len(children)) != len(children):
        raise SequoiaError(
            f"{where}: size: found {mapping['size']}, expected {len(children)} (its Successors)"
        )
    return TokenTree.from_any_order(parents, ranks)
