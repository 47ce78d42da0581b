from __future__ import annotations

import numpy as np
import pytest

from sequoia_opt.measure.forwards import overhead_trees
from sequoia_opt.measure.overhead import Residual, fit_overhead
from sequoia_opt.plan.draft_passes import draft_passes


@pytest.mark.parametrize("few", [False, True])
def test_overhead_fit_finds_its_parts(few: bool) -> None:
    trees = overhead_trees(64, few)
    assert len(trees) == (5 if few else 10)
    measured = [(tree.size, len(draft_passes(tree))) for tree in trees]
    rows = [
        Residual(size, passes, 0.4 + 0.01 * size + 0.05 * passes + 0.7 * (size > 1), 10.0 + size)
        for size, passes in measured
    ]
    overhead = fit_overhead(rows)
    assert overhead.constant_ms == pytest.approx(0.4)
    assert overhead.per_token_ms == pytest.approx(0.01)
    assert overhead.per_level_ms == pytest.approx(0.05)
    assert overhead.drafting_ms == pytest.approx(0.7)
    for size, passes, overhead_ms, _ in rows:
        assert overhead.at(size, passes) == pytest.approx(overhead_ms)


def test_overhead_fit_passes_through_plain_decoding() -> None:
    generator = np.random.default_rng(0)
    rows = [
        Residual(tree.size, len(draft_passes(tree)), 0.5 + generator.normal(0, 0.2), 10.0)
        for tree in overhead_trees(64)
    ]
    overhead = fit_overhead(rows)
    assert overhead.at(1, 0) == pytest.approx(rows[0].extra_ms)
    assert overhead.per_token_ms >= 0
    assert overhead.per_level_ms >= 0
    assert fit_overhead([Residual(1, 0, 0.3, 5.0)]).at(1, 0) == pytest.approx(0.3)
    assert fit_overhead([Residual(1, 0, -4.7, 1.0)]).at(1, 0) == 0
