from __future__ import annotations

import numpy as np
import pytest

from sequoia_opt.measure.fixed_growth import FixedGrowth, fixed_growths
from sequoia_opt.plan.growth import Growth


@pytest.mark.parametrize("growth", fixed_growths(64), ids=lambda one: f"{one.widths}-{one.size}")
def test_every_step_grows_the_same_tree(growth: FixedGrowth) -> None:
    """Whatever the draft says, sure or not."""
    policy = growth.plan.policy
    assert policy is not None
    generator = np.random.default_rng(0)
    for scale in (0.1, 1.0, 10.0, 1000.0):
        for _ in range(50):
            grown = Growth(policy)
            while nodes := grown.next_level():
                logits = scale * generator.normal(size=(len(nodes), 50))
                chances = np.exp(logits - logits.max(axis=1, keepdims=True))
                chances /= chances.sum(axis=1, keepdims=True)
                rows = -np.sort(-chances, axis=1)[:, : policy.ranks]
                grown.add(nodes, rows.tolist())
            assert tuple(grown.widths) == growth.widths
            tree = grown.finish(fill=True)
            assert (tree.size, len(tree.nodes) + 1) == (growth.size, growth.size)


def test_the_parts_of_an_overhead_can_be_told_apart() -> None:
    for few in (False, True):
        growths = fixed_growths(64, few)
        features = [[1, one.size, len(one.widths), bool(one.widths)] for one in growths]
        assert np.linalg.matrix_rank(np.array(features, float)) == 4
    assert [one.size for one in fixed_growths(7)] == [1, 7, 3]
    assert [one.size for one in fixed_growths(1)] == [1]
