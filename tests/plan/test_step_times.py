from __future__ import annotations

import numpy as np
import pytest
from brute_force import all_trees
from test_latency import curve, make_profile

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.judge import judge
from sequoia_opt.plan.step_times import StepTimes


def test_a_step_takes_as_long_as_the_profile_says() -> None:
    profile = make_profile()
    times = StepTimes(profile, "greedy", {300.0: 1.0}, replicates=3)
    for tree in (*all_trees(5), shapes.k_sequences(3, 4)):
        expected = profile.step_ms(tree, "greedy", 300)
        assert times.step_ms(tree)[0] == pytest.approx(expected)
        widths = np.zeros((1, 6), np.int64)
        widths[0, : len(tree.internal_levels)] = [len(level) for level in tree.internal_levels]
        assert times.steps_ms(np.array([tree.size]), widths)[0] == pytest.approx(expected)


def test_contexts_are_averaged_by_their_weights() -> None:
    profile, tree = make_profile(), shapes.chain(3)
    times = StepTimes(profile, "greedy", {128.0: 3.0, 1024.0: 1.0})
    expected = 0.75 * profile.step_ms(tree, "greedy", 128) + 0.25 * profile.step_ms(
        tree, "greedy", 1024
    )
    assert times.step_ms(tree)[0] == pytest.approx(expected)


def test_replicates_spread_as_the_intervals_do() -> None:
    profile = make_profile()  # intervals of ±10%
    times = StepTimes(profile, "greedy", {128.0: 1.0}, replicates=4000)
    resampled = times.target_ms[1:, 8]
    low, high = np.quantile(resampled, [0.025, 0.975])
    middle = profile.target.at([8], 128)[0]
    assert low == pytest.approx(0.9 * middle, rel=0.02)
    assert high == pytest.approx(1.1 * middle, rel=0.02)


def test_refuses_to_price_what_was_not_measured() -> None:
    profile = make_profile()
    profile.target.curves = [curve(128, [2, 4], [1, 2]), curve(1024, [2, 4], [1, 2])]
    with pytest.raises(
        SequoiaError, match="measured for 2 to 4 tokens per forward pass, not for 1"
    ):
        StepTimes(profile, "greedy", {128.0: 1.0})
    times = StepTimes(make_profile(), "greedy", {128.0: 1.0})
    with pytest.raises(
        SequoiaError, match="measured for 1 to 64 tokens per forward pass, not for 65"
    ):
        times.step_ms(shapes.chain(65))
    wide = np.array([[1, 65]])
    assert np.isinf(times.steps_ms(np.array([60]), wide)).all()


def test_batches_have_their_own_curves() -> None:
    profile = make_profile()
    with pytest.raises(SequoiaError, match=r"batches \[1\], not for 4; profile with --batches"):
        StepTimes(profile, "greedy", {128.0: 1.0}, batch=4)
    for model in (profile.target, profile.draft):
        model.curves.append(curve(128, [1, 8], [40, 60], batch=4))
    times = StepTimes(profile, "greedy", {128.0: 1.0}, batch=4)
    assert times.largest_size == 8
    assert times.target_ms[0, 1] == 40


@pytest.mark.parametrize("block", [0, 4], ids=["no pass", "one pass of 4 tokens"])
def test_another_drafter_is_priced_by_its_passes(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    """A drafter that runs once per step, or never, only replaces `pass_tokens`."""

    def passes_of_block(level: int, internal: int, first: int) -> int:
        return block if level == 0 and internal else 0

    for module in ("draft_passes", "step_times"):
        monkeypatch.setattr(f"sequoia_opt.plan.{module}.pass_tokens", passes_of_block)
    profile = make_profile(draft_ms=1.5)
    times = StepTimes(profile, "greedy", {128.0: 1.0})
    overhead = profile.overhead["greedy"]
    for tree in (shapes.chain(5), shapes.k_ary(2, 3)):
        passes = 1 if block else 0
        expected = profile.target.at([tree.size], 128)[0] + 1.5 * passes
        expected += overhead.at(tree.size, passes)
        widths = np.zeros((1, 6), np.int64)
        widths[0, : len(tree.internal_levels)] = [len(level) for level in tree.internal_levels]
        assert times.step_ms(tree)[0] == pytest.approx(expected)
        assert times.steps_ms(np.array([tree.size]), widths)[0] == pytest.approx(expected)


def test_an_accepted_leaf_costs_the_next_step_a_token_where_passes_need_not_be_alike() -> None:
    """The prediction is the mean over many steps of a chain, some of which end at its leaf."""
    profile = make_profile(draft_ms=2.0)
    assert not StepTimes(profile, "greedy", {128.0: 1.0}).catch_up_ms.any()
    profile.engine["first_pass_tokens"] = 1
    for one in profile.draft.curves:
        one.median_ms[1] = 3.5  # of two tokens
    times = StepTimes(profile, "greedy", {128.0: 1.0}, replicates=2)
    assert times.catch_up_ms[0] == pytest.approx(1.5)
    rates, tree = np.array([0.7, 0.1]), shapes.chain(4)
    [candidate] = judge([("chain", tree)], times, Acceptance(rates), 2)
    generator = np.random.default_rng(0)
    ends = (generator.random((200_000, 3)) < rates[0]).all(axis=1)
    expected = times.step_ms(tree)[0] + 1.5 * ends.mean()
    assert candidate.step_ms[0] == pytest.approx(expected, rel=0.005)
    [plain] = judge([("plain", shapes.chain(1))], times, Acceptance(rates), 2)
    assert plain.step_ms[0] == times.plain_ms[0]
