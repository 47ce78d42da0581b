"""How tokens per step grow with the size of the tree, for solved trees and for k sequences.

Sequoia's claim (section 3.1): near-logarithmic growth without bound, where k independent
sequences reach a plateau.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.best_trees import best_trees
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.types import FloatArray

FITTED_FROM = 2  # doublings that the fit leaves out: the smallest trees are chains
DEEP = 64  # levels: depth without limit, in practice


@dataclass(frozen=True)
class Scaling:
    """Expected tokens by size, independence assumed.

    Attributes:
        sizes: powers of two.
        trees: E of the best tree of at most so many nodes.
        sequences: E of the best k sequences of at most so many nodes.
        offset, per_doubling: the line offset + per_doubling · log2(size), fitted to the trees
            from 8 nodes on.
        error: its largest relative error.
        plateau: what no number of sequences exceeds.
    """

    sizes: list[int]
    trees: FloatArray
    sequences: FloatArray
    offset: float
    per_doubling: float
    error: float
    plateau: float

    def document(self) -> dict[str, object]:
        """The numbers, for a machine."""
        return dict(vars(self))


def scaling(acceptance: Acceptance, max_size: int = 512, max_depth: int = DEEP) -> Scaling:
    """Expected tokens of solved trees and of k sequences by size."""
    table = acceptance.table(max_depth)
    sizes = [2**k for k in range(1, int(np.log2(max_size)) + 1)]
    best = np.fmax.accumulate(best_trees(table, sizes[-1]).expected[-1])[sizes]
    families = shapes.families(table, sizes[-1])
    sequences = np.array(
        [
            max(
                float(np.max(shape.expected, initial=1.0, where=shape.sizes <= size))
                for shape in (families["chain"], families["k-sequences"])
            )
            for size in sizes
        ]
    )
    fitted_from = min(len(sizes) - 2, FITTED_FROM)
    doublings, wanted = np.log2(sizes[fitted_from:]), best[fitted_from:]
    per_doubling, offset = np.polyfit(doublings, wanted, 1)
    fitted = offset + per_doubling * doublings
    return Scaling(
        sizes=sizes,
        trees=best,
        sequences=sequences,
        offset=float(offset),
        per_doubling=float(per_doubling),
        error=float(np.abs(fitted / wanted - 1).max()),
        plateau=float(1 + table[0].sum() * (1 + np.cumprod(table[1:, 0]).sum())),
    )


def of_size(acceptance: Acceptance, size: int, max_depth: int = DEEP) -> dict[str, TokenTree]:
    """The trees of most tokens of at most `size` nodes, independence assumed: of any shape, and
    of those that other engines run."""
    table = acceptance.table(max_depth)
    family = best_trees(table, size)
    found = {"tree": family.tree(int(np.nanargmax(family.expected[-1])), max_depth)}
    for name, shape in shapes.families(table, size).items():
        expected = np.nan_to_num(shape.expected)
        if np.max(expected, initial=1.0) > 1:  # the root alone is of no shape
            first, depth = np.unravel_index(expected.argmax(), expected.shape)
            found[name] = shape.tree(int(first), int(depth))
    return found
