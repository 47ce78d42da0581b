"""Which plans `calibrate` decodes with: the chosen one, and others around it.

Knows plans. Knows nothing of predictions or races.
"""

from __future__ import annotations

from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.best_trees import best_trees
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.plan import Plan
from sequoia_opt.plan.solve_options import DEFAULT_MAX_DEPTH
from sequoia_opt.plan.tree import TokenTree

SMALLEST_MIDDLE = 4  # nodes around which sizes are spread if the chosen tree has fewer
SHARES = (0.5, 0.75, 1.0, 1.5, 2.0)  # sizes, as shares of that one


def plans_to_race(plan: Plan, largest: int, chains: int = 0) -> dict[str, TokenTree]:
    """The chosen plan first, then the adaptive ones and the trees around the best static one.

    Args:
        largest: nodes that the profile can price.
        chains: guesses of the longest chain to race besides, with all shorter ones.
    """
    around = {"chosen": plan.tree.static}
    if not plan.profile.draft.is_free:  # else no other tree can be drafted
        around = trees_around(plan.tree.static, plan.acceptance, largest, chains)
    growing = {} if plan.adaptive is None else {c.name: c.tree for c in plan.adaptive.adaptive}
    if plan.tree.policy is None:
        return {"chosen": around.pop("chosen"), **growing, **around}
    others = {name: tree for name, tree in growing.items() if tree.policy != plan.tree.policy}
    return {"chosen": plan.tree, "static": around.pop("chosen"), **others, **around}


def tokens_of_passes(tree: TokenTree, profile: LatencyProfile) -> set[int]:
    """Tokens of the forward passes that a plan's steps make."""
    if tree.policy is None:
        return {tree.size, *profile.draft_passes(tree)}
    sizes = {size for policy in tree.policy.parts for size in policy.sizes}
    return {*sizes, *(width for width, _ in tree.policy.expand), 1, 2}


def trees_around(
    chosen: TokenTree, acceptance: Acceptance, largest: int, chains: int = 0
) -> dict[str, TokenTree]:
    """The chosen tree first, then others from two nodes to twice its size.

    Of each size, the tree of most tokens per step and one half as deep; and chains.

    Args:
        largest: nodes that the profile can price.
        chains: guesses of the longest chain besides one of the chosen tree's size.
    """
    middle = max(chosen.size, SMALLEST_MIDDLE)
    sizes = sorted({2, 3, *(int(share * middle) for share in SHARES)})
    family = best_trees(acceptance.table(min(DEFAULT_MAX_DEPTH, sizes[-1] - 1)), sizes[-1])
    max_depth = len(family.expected) - 1
    trees = {"chosen": chosen}
    for size in sizes:
        deep = family.tree(size, min(max_depth, size - 1))
        trees[f"{size} nodes"] = deep
        if deep.depth > 2:
            trees[f"{size} nodes, shallow"] = family.tree(size, deep.depth // 2)
    for nodes in (middle, *range(2, chains + 2)):
        trees[f"chain of {nodes}"] = shapes.chain(nodes)
    distinct: dict[TokenTree, str] = {}
    for name, tree in trees.items():
        if tree.size <= largest:
            distinct.setdefault(tree, name)
    return {name: tree for tree, name in distinct.items()}
