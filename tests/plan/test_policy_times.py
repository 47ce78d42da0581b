from __future__ import annotations

import numpy as np
import pytest
from recordings import make_recording
from test_latency import make_profile

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.fields import Fields
from sequoia_opt.plan import shapes
from sequoia_opt.plan.confidence import Confidence
from sequoia_opt.plan.latency import Overhead
from sequoia_opt.plan.policy import Policy
from sequoia_opt.plan.policy_replay import Counts, PolicyReplay
from sequoia_opt.plan.policy_times import PolicyTimes

CERTAIN = Confidence((0.5,), (((0.9, 0.9),) * 4,))


def counts_of(tree_steps: int, size: int, levels: int) -> Counts:
    """One document of steps with a chain."""
    sizes = np.zeros((1, size + 1), np.int64)
    sizes[0, size] = tree_steps
    first = np.zeros((1, 3), np.int64)
    first[0, 0] = tree_steps
    widths = np.array([[0, tree_steps * (levels - 1)]])
    steps = np.array([tree_steps])
    return Counts(2 * steps, steps, sizes, widths, first, sizes, steps // 2)


def test_a_chain_takes_as_long_as_a_static_one() -> None:
    profile = make_profile()
    times = PolicyTimes(profile, "greedy", {300.0: 1.0})
    counts = counts_of(7, size=4, levels=3)
    expected = 7 * profile.step_ms(shapes.chain(4), "greedy", 300)
    assert times.total_ms(counts, np.ones((1, 1)))[0] == pytest.approx(expected)
    assert times.rate(counts) == pytest.approx(14 / expected)
    tokens, step_ms = times.predict(counts, np.ones((1, 1)))
    assert (tokens[0], step_ms[0]) == (2, pytest.approx(expected / 7))


def test_tokens_that_the_draft_lacks_make_its_first_pass_longer() -> None:
    profile = make_profile()
    for curve in profile.draft.curves:
        curve.median_ms = np.array(curve.tokens, np.float64)
    times = PolicyTimes(profile, "greedy", {300.0: 1.0})
    rest = 0.02 + 0.3  # per level, and for drafting
    assert times.first_ms[0, :4] == pytest.approx(np.array([1, 2, 3, 4]) + rest)
    assert times.first_ms[0, 64] == pytest.approx(65 + rest)  # 64 tokens were measured
    adaptive = Overhead(1.5, 0.01, 0.02, 0.3, catch_up_ms=0.25)
    profile.overhead["adaptive greedy"] = adaptive
    assert Overhead.read(Fields(adaptive.document(), "profile")) == adaptive
    times = PolicyTimes(profile, "greedy", {300.0: 1.0})
    assert times.first_ms[0, :3] == pytest.approx(np.array([1, 2.25, 3.25]) + rest)


def test_adaptive_steps_have_their_own_overhead_where_it_was_measured() -> None:
    profile = make_profile()
    static = PolicyTimes(profile, "greedy", {300.0: 1.0}, 5)
    profile.overhead["adaptive greedy"] = Overhead(1.5, 0.01, 0.02, 0.3)
    adaptive = PolicyTimes(profile, "greedy", {300.0: 1.0}, 5)
    assert (static.is_measured, adaptive.is_measured) == (False, True)
    added = adaptive.target_ms[:, 1:] - static.target_ms[:, 1:]
    assert added == pytest.approx(np.ones_like(added))


def test_steps_of_another_size_than_the_one_before_take_longer() -> None:
    profile, counts = make_profile(), counts_of(7, size=4, levels=3)
    totals = []
    for change_ms in (0.0, 0.5):
        profile.overhead["adaptive greedy"] = Overhead(1.5, 0.01, 0.02, 0.3, change_ms)
        times = PolicyTimes(profile, "greedy", {300.0: 1.0})
        totals.append(times.total_ms(counts, np.ones((1, 1)))[0])
    assert totals[1] - totals[0] == pytest.approx(3 * 0.5)


def test_documents_and_timings_are_resampled() -> None:
    recording = make_recording([60] * 4)
    policy = Policy(CERTAIN, 2, 4, ((1, 0.1),), 0.5, 0.1, (1, 4))
    counts = PolicyReplay(recording, CERTAIN).replay(policy, True)
    times = PolicyTimes(make_profile(), "greedy", {300.0: 1.0}, replicates=3)
    weights = np.ones((4, 4))
    weights[:, 1] = [4, 0, 0, 0]
    tokens, step_ms = times.predict(counts, weights)
    assert tokens[1] == pytest.approx(counts.tokens[0] / counts.steps[0])
    assert tokens[0] == pytest.approx(counts.tokens.sum() / counts.steps.sum())
    assert len(set(step_ms.tolist())) == 4


def test_a_policy_that_names_what_was_not_measured_is_refused() -> None:
    times = PolicyTimes(make_profile(), "greedy", {300.0: 1.0})
    policy = Policy(CERTAIN, 2, 4, ((1, 0.1),), 0.5, 0.1, (1, 4, 65, 80))
    with pytest.raises(SequoiaError, match="sizes: found 65, 80, which the profile of target"):
        times.check(policy)
    policy = Policy(CERTAIN, 2, 4, ((1, 0.1), (99, 0.2)), 0.5, 0.1, (1, 4))
    with pytest.raises(SequoiaError, match="widths: found 99, which the profile of draft"):
        times.check(policy)
