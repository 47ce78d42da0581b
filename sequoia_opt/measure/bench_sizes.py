"""The benchmark of shapes: at each size, the tree of most tokens against chains and other trees.

Knows the trees; `bench` decodes with them. Knows nothing of how results are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from sequoia_opt.measure.bench import BenchSpec, Synthetic
from sequoia_opt.measure.comparison import ComparisonSpec
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.scaling import of_size
from sequoia_opt.plan.tree import TokenTree


@dataclass(frozen=True, kw_only=True)
class SizesSpec(ComparisonSpec):
    """Which sizes to compare.

    Attributes:
        sizes: nodes, at most, of the trees.
        acceptance: the rates that the trees are made for.
        synthetic: simulates acceptance; None to decode what the models say.
    """

    sizes: Sequence[int]
    acceptance: Acceptance
    synthetic: Synthetic | None = None

    def bench_spec(self) -> BenchSpec:
        """The benchmark of these trees, with plain decoding as the baseline."""
        trees = trees_by_size(self.acceptance, self.sizes)
        shared = {option.name: getattr(self, option.name) for option in fields(ComparisonSpec)}
        return BenchSpec(
            **shared,
            methods=["plain", *trees],
            rivals=trees,
            synthetic=self.synthetic,
            sizes=self.sizes,
        )


def trees_by_size(acceptance: Acceptance, sizes: Sequence[int]) -> dict[str, TokenTree]:
    """At each size, the trees of each shape that have most tokens per step, by their labels."""
    return {
        f"{shape.replace('k-seq', 'k seq')} ({tree.size} nodes)": tree
        for size in sizes
        for shape, tree in of_size(acceptance, size).items()
    }
