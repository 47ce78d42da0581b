from __future__ import annotations

import numpy as np
import pytest

from sequoia_opt.measure.forwards import overhead_trees
from sequoia_opt.measure.overhead import fit_overhead
from sequoia_opt.plan import shapes
from sequoia_opt.plan.draft_passes import draft_passes


@pytest.mark.parametrize("few", [False, True])
def test_overhead_fit_finds_its_parts(few: bool) -> None:
    trees = overhead_trees(64, few)
    assert len(trees) == (5 if few else 10)
    rows = [
        (
            tree,
            0.4 + 0.01 * tree.size + 0.05 * len(draft_passes(tree)) + 0.7 * (tree.size > 1),
            10.0 + tree.size,
        )
        for tree in trees
    ]
    overhead = fit_overhead(rows)
    assert overhead.constant_ms == pytest.approx(0.4)
    assert overhead.per_token_ms == pytest.approx(0.01)
    assert overhead.per_level_ms == pytest.approx(0.05)
    assert overhead.drafting_ms == pytest.approx(0.7)
    for tree, overhead_ms, _ in rows:
        assert overhead.at(tree.size, len(draft_passes(tree))) == pytest.approx(overhead_ms)


def test_overhead_fit_passes_through_plain_decoding() -> None:
    generator = np.random.default_rng(0)
    rows = [(tree, 0.5 + generator.normal(0, 0.2), 10.0) for tree in overhead_trees(64)]
    overhead = fit_overhead(rows)
    assert overhead.at(1, 0) == pytest.approx(rows[0][1])
    assert overhead.per_token_ms >= 0
    assert overhead.per_level_ms >= 0
    assert fit_overhead([(shapes.chain(1), 0.3, 5.0)]).at(1, 0) == pytest.approx(0.3)
    assert fit_overhead([(shapes.chain(1), -4.7, 1.0)]).at(1, 0) == 0
