from __future__ import annotations

import numpy as np
import pytest

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.curves import Curve, ModelLatency
from sequoia_opt.plan.latency import LatencyProfile, Overhead
from sequoia_opt.plan.solver import solve
from sequoia_opt.plan.sweep import sweep

RATES = Acceptance(np.array([0.6, 0.2, 0.1]), context=0.0)


def machine() -> LatencyProfile:
    """Batch and context both make width cost more; only batch 1 was measured up to 32 tokens."""

    def model(base: float) -> ModelLatency:
        curves = []
        for batch, largest in ((1, 32), (4, 16)):
            for context in (0, 100, 400):
                tokens = list(range(1, largest + 1))
                times = base * (1 + np.arange(largest) * batch * (1 + context / 100) / 100)
                curves.append(Curve(batch, context, tokens, times, times, times))
        return ModelLatency("m", "", curves)

    return LatencyProfile({}, {}, {}, model(10.0), model(0.3), {"greedy": Overhead(0.1, 0, 0)})


@pytest.mark.parametrize(("axis", "values"), [("context", [0, 100, 400]), ("batch", [1, 4])])
def test_each_point_is_what_solve_answers(axis: str, values: list[int]) -> None:
    profile, tree = machine(), shapes.k_ary(2, 3)
    points = sweep(profile, RATES, tree, axis)
    assert [point.value for point in points] == values
    for point in points:
        alone = solve(profile, RATES, **{axis: point.value})
        assert point.plan.choice.tree == alone.choice.tree
        assert point.given is not None
        assert point.given.tree == tree
        where = {"context": 0, "batch": 1} | {axis: point.value}
        step = profile.step_ms(tree, "greedy", where["context"], where["batch"])
        assert point.given.step_ms[0] == pytest.approx(step)
        speed = RATES.expected_tokens(tree) / step
        best = alone.choice.tokens_per_second[0] / 1000
        assert point.lost == pytest.approx(max(0, 1 - speed / best))
    sizes = [point.plan.choice.tree.size for point in points]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]


def test_a_tree_larger_than_the_measured_sizes_is_not_priced() -> None:
    points = sweep(machine(), RATES, shapes.chain(20), "batch")
    assert [point.given is None for point in points] == [False, True]
    assert points[1].lost is None
    assert points[1].document()["given_speedup"] is None


def test_max_size_is_lowered_to_the_measured_sizes() -> None:
    points = sweep(machine(), RATES, shapes.chain(2), "batch", max_size=32)
    assert [point.plan.expected.shape[1] - 1 for point in points] == [32, 16]


def test_batches_are_compared_at_one_context() -> None:
    acceptance = Acceptance(np.array([0.6]), context=130.0)
    points = sweep(machine(), acceptance, shapes.chain(2), "batch")
    assert [point.plan.context for point in points] == [130, 130]


def test_a_batch_that_was_not_measured_has_no_contexts() -> None:
    with pytest.raises(SequoiaError, match=r"measured for batches \[1, 4\], not for 7"):
        sweep(machine(), RATES, shapes.chain(2), "context", batch=7)


def test_refuses_other_axes() -> None:
    with pytest.raises(SequoiaError, match="sweep: found 'size', expected context or batch"):
        sweep(machine(), RATES, shapes.chain(2), "size")
