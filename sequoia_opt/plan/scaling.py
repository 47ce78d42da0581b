"""How tokens per step grow with the size of the tree, for solved trees and for k sequences.

Sequoia claims (section 3.1) that they grow almost logarithmically without bound for solved trees,
while k independent sequences reach a plateau.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.best_trees import best_trees
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.types import FloatArray

SKIPPED_DOUBLINGS = 2  # the fit leaves out the smallest trees, which are chains
UNLIMITED_DEPTH = 64  # levels: in practice, a depth without limit


@dataclass(frozen=True)
class Scaling:
    """Expected tokens by size, independence assumed.

    Attributes:
        sizes: powers of two.
        trees: E of the best tree of at most each size, [sizes].
        sequences: E of the best k sequences of at most each size, [sizes].
        offset, per_doubling: the line offset + per_doubling · log2(size), fitted to the trees
            from 8 nodes on.
        error: the line's largest relative error.
        plateau: the bound of E for any number of sequences.
    """

    sizes: list[int]
    trees: FloatArray
    sequences: FloatArray
    offset: float
    per_doubling: float
    error: float
    plateau: float

    def document(self) -> dict[str, object]:
        """The numbers as a mapping."""
        return dict(vars(self))


def scaling(
    acceptance: Acceptance, max_size: int = 512, max_depth: int = UNLIMITED_DEPTH
) -> Scaling:
    """Expected tokens of solved trees and of k sequences by size.

    Args:
        max_size: the largest size; at least 4.
    """
    table = acceptance.table(max_depth)
    sizes = [2**k for k in range(1, int(np.log2(max_size)) + 1)]
    best = np.fmax.accumulate(best_trees(table, sizes[-1]).expected[-1])[sizes]
    by_shape = shapes.shaped_trees(table, sizes[-1])
    sequences = np.array(
        [
            max(
                float(np.max(shape.expected, initial=1.0, where=shape.sizes <= size))
                for shape in (by_shape["chain"], by_shape["k-sequences"])
            )
            for size in sizes
        ]
    )
    skipped = min(len(sizes) - 2, SKIPPED_DOUBLINGS)
    doublings, tokens = np.log2(sizes[skipped:]), best[skipped:]
    per_doubling, offset = np.polyfit(doublings, tokens, 1)
    line = offset + per_doubling * doublings
    return Scaling(
        sizes=sizes,
        trees=best,
        sequences=sequences,
        offset=float(offset),
        per_doubling=float(per_doubling),
        error=float(np.abs(line / tokens - 1).max()),
        plateau=float(1 + table[0].sum() * (1 + np.cumprod(table[1:, 0]).sum())),
    )


def of_size(
    acceptance: Acceptance, size: int, max_depth: int = UNLIMITED_DEPTH
) -> dict[str, TokenTree]:
    """The trees of most tokens with at most `size` nodes, independence assumed.

    Returns:
        By name: the best tree of any shape as "tree", and the best tree of each shape that
        other engines run, if it has more nodes than the root.
    """
    table = acceptance.table(max_depth)
    best = best_trees(table, size)
    trees = {"tree": best.tree(int(np.nanargmax(best.expected[-1])), max_depth)}
    for name, shape in shapes.shaped_trees(table, size).items():
        expected = np.nan_to_num(shape.expected)
        if np.max(expected, initial=1.0) > 1:  # the root alone has no shape
            row, depth = np.unravel_index(expected.argmax(), expected.shape)
            trees[name] = shape.tree(int(row), int(depth))
    return trees
