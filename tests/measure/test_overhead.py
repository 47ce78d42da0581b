from __future__ import annotations

import numpy as np
import pytest

from sequoia_opt.measure.overhead import fit_overhead, overhead_trees
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
    found = fit_overhead(rows)
    assert found.constant_ms == pytest.approx(0.4)
    assert found.per_token_ms == pytest.approx(0.01)
    assert found.per_level_ms == pytest.approx(0.05)
    assert found.drafting_ms == pytest.approx(0.7)
    for tree, wanted, _ in rows:
        assert found.at(tree.size, len(draft_passes(tree))) == pytest.approx(wanted)


def test_overhead_fit_passes_through_plain_decoding() -> None:
    generator = np.random.default_rng(0)
    rows = [(tree, 0.5 + generator.normal(0, 0.2), 10.0) for tree in overhead_trees(64)]
    found = fit_overhead(rows)
    assert found.at(1, 0) == pytest.approx(rows[0][1])
    assert found.per_token_ms >= 0
    assert found.per_level_ms >= 0
    assert fit_overhead([(shapes.chain(1), 0.3, 5.0)]).at(1, 0) == pytest.approx(0.3)
    assert fit_overhead([(shapes.chain(1), -4.7, 1.0)]).at(1, 0) == 0
