from __future__ import annotations

from pathlib import Path

import numpy as np

from sequoia_opt.measure.bench_sizes import SizesSpec, trees_by_size
from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.sampling import Sampling
from sequoia_opt.plan.scaling import of_size

RATES = Acceptance(np.array([0.6, 0.2, 0.1]))


def test_every_shape_is_compared_at_every_size() -> None:
    trees = trees_by_size(RATES, [3, 6])
    assert {"tree (3 nodes)", "tree (6 nodes)", "k sequences (5 nodes)"} <= set(trees)
    expected = {tree for size in (3, 6) for tree in of_size(RATES, size).values()}
    assert set(trees.values()) == expected


def test_the_benchmark_has_plain_decoding_first_and_names_its_sizes() -> None:
    spec = SizesSpec(
        tree=shapes.chain(2),
        tree_file=Path("tree.json"),
        sampling=Sampling(0.6, verifier="topk"),
        limit=3,
        sizes=[3, 6],
        acceptance=RATES,
    )
    benchmark = spec.bench_spec()
    assert list(benchmark.methods) == ["plain", *trees_by_size(RATES, [3, 6])]
    assert (benchmark.limit, benchmark.sampling.verifier, benchmark.sizes) == (3, "topk", [3, 6])
