from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from number_texts import documents

from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure.estimator import EstimateOptions, estimate
from sequoia_opt.measure.tally import Tally, acceptance_of
from sequoia_opt.plan.recording import Recording
from sequoia_opt.plan.sampling import Sampling

NAMES: dict[str, Any] = {"target": "t", "draft": "d", "dataset": "numbers", "extra": {}}


def test_positions_are_counted_by_the_accepted_tokens_before_them() -> None:
    tally = Tally.empty(depths=3, width=2)
    one_hot = np.vstack([np.zeros(2), np.eye(2)])  # by rank
    for ranks in ([1, 2], [1, 1, 0, 2]):  # a run of accepted tokens spans both calls
        tally.record(one_hot[ranks], ranks, [10 + i for i in range(len(ranks))])
    assert tally.trace == [1, 2, 1, 1, 0, 2]
    assert tally.counts.tolist() == [2, 1, 3]
    assert tally.sums.tolist() == [[1, 1], [0, 1], [2, 0]]
    assert tally.context == 21 + 46
    assert tally.run == 1


@given(
    paths=st.integers(0, 6).flatmap(
        lambda positions: st.lists(
            st.lists(st.integers(0, 3), min_size=positions, max_size=positions),
            min_size=1,
            max_size=4,
        )
    )
)
def test_a_depth_is_reached_where_all_above_it_was_accepted(paths: list[list[int]]) -> None:
    """Counted one by one."""
    tally, positions = Tally.empty(1, 3), len(paths[0])
    tally.paths = paths
    sums, counts = tally.reached()
    for depth in range(len(paths)):
        ranks = [
            paths[depth][root]
            for root in range(positions - depth)
            if all(paths[above][root] for above in range(depth))
        ]
        assert counts[depth] == len(ranks)
        assert sums[depth].tolist() == [ranks.count(rank) for rank in (1, 2, 3)]


def test_a_recorded_tally_is_restored() -> None:
    tally, restored = Tally.empty(2, 2), Tally.empty(2, 2)
    tally.record(np.array([[0.1 + 0.2, 0.5]]), [2], [7])
    tally.paths = [[2], [0]]
    values = {
        key: value.tolist() if isinstance(value, np.ndarray) else value
        for key, value in tally.document().items()
    }
    restored.restore(json.loads(json.dumps(values)))
    assert str(restored) == str(tally)
    assert restored.sums[0, 0] == 0.1 + 0.2
    with pytest.raises(LookupError):
        restored.restore({"sums": values["sums"]})
    with pytest.raises(ValueError, match="broadcast"):
        restored.restore(values | {"counts": [1.0, 2.0, 3.0]})


def test_a_damaged_recording_is_not_restored() -> None:
    tally, restored = Tally.empty(1, 1), Tally.empty(1, 1)
    tally.recording = Recording(
        np.ones((2, 1, 1), np.float16), np.zeros((2, 0, 1), np.uint8), np.ones(2, np.uint8),
        np.array([0, 2]),
    )  # fmt: skip
    values = tally.document()
    restored.restore(values)
    assert restored.recording is not None
    assert restored.recording.fingerprint == tally.recording.fingerprint
    for damage in (values["recording"][:80], values["recording"][1:], "é", 7):
        with pytest.raises((ValueError, TypeError)):
            restored.restore(values | {"recording": damage})


def test_documents_without_a_position_are_refused() -> None:
    with pytest.raises(SequoiaError, match="numbers: the target ended every document"):
        acceptance_of([Tally.empty(1, 4)], Sampling(), "greedy", **NAMES)


def test_rates_by_depth_are_those_after_as_many_accepted_tokens(number_pair: Any) -> None:
    """Counted again from the traces; greedy, where a probability is 0 or 1."""
    texts = documents(10, text_length=90)
    options = EstimateOptions(max_new_tokens=90, width=5, depths=4, teacher_forced=True)
    (acceptance,) = estimate(number_pair, texts, "numbers", options=options)
    assert acceptance.by_depth is not None
    assert len(acceptance.by_depth) == 4
    for depth, rates in enumerate(acceptance.by_depth):
        ranks = [
            rank
            for trace in acceptance.traces
            for i, rank in enumerate(trace)
            if i >= depth and all(trace[i - depth : i])
        ]
        counted = np.bincount(ranks, minlength=6)[1:] / len(ranks)
        # The isotonic fit keeps the sum of the rates.
        assert rates.sum() == pytest.approx(counted.sum(), abs=0.02)
        assert np.abs(rates - counted).max() < 0.1
    assert (acceptance.by_depth[0] == acceptance.rates).all()
    assert acceptance.document()["by_depth"][0] == acceptance.document()["acceptance"]


def test_a_depth_with_too_few_positions_has_no_rates(number_pair: Any) -> None:
    options = EstimateOptions(max_new_tokens=8, width=5, depths=64, teacher_forced=True)
    texts = documents(20, text_length=9)
    (acceptance,) = estimate(number_pair, texts, "numbers", options=options)
    assert acceptance.by_depth is not None
    assert 1 <= len(acceptance.by_depth) <= 8
