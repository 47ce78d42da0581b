"""What `solve` makes of recorded drafts: which kind of plan it chooses, and what it says of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import make_recording, measured
from test_latency import make_profile, with_adaptive_overhead

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes
from sequoia_opt.plan.confidence_fit import held_out_documents
from sequoia_opt.plan.judge import KINDS, kind
from sequoia_opt.plan.latency import Overhead
from sequoia_opt.plan.plan import Plan
from sequoia_opt.plan.policy_replay import PolicyReplay
from sequoia_opt.plan.policy_times import PolicyTimes
from sequoia_opt.plan.recording import Recording
from sequoia_opt.plan.solver import solve
from sequoia_opt.plan.tree import TokenTree

RECORDING = make_recording([120] * 24, sureness=2.0)


def solved(recording: Recording = RECORDING, **options: Any) -> Plan:
    profile = with_adaptive_overhead(make_profile(slope=0.6, draft_ms=2.5))
    return solve(
        profile, measured(recording), recording=recording, **({"replicates": 60} | options)
    )


def test_a_plan_that_follows_what_the_draft_says_is_chosen_where_it_is_faster() -> None:
    plan = solved()
    assert plan.adaptive is not None
    assert plan.choice.tree.policy is not None
    by_kind = {kind(c.tree): c for c in plan.adaptive.compared}
    static = max(float(by_kind[name].speedup[0]) for name in KINDS[:3] if name in by_kind)
    assert plan.choice.speedup[0] > 1.03 * static
    assert plan.choice.speedup[0] < plan.adaptive.oracle.speedup[0]


def test_it_is_predicted_on_documents_that_it_was_not_fitted_to() -> None:
    plan = solved()
    assert plan.adaptive is not None
    assert (plan.adaptive.fitted, plan.adaptive.held_out) == (12, 12)
    policy = plan.choice.tree.policy
    assert policy is not None
    held_out = RECORDING.of_documents(held_out_documents(RECORDING))
    counts = PolicyReplay(held_out, policy.confidence).replay(policy, fill=True)
    times = PolicyTimes(make_profile(slope=0.6, draft_ms=2.5), "greedy", {300.0: 1.0})
    assert plan.choice.tokens[0] == pytest.approx(counts.tokens_per_step)
    assert plan.choice.tokens_per_second[0] == pytest.approx(1000 * times.rate(counts))


def test_static_plans_are_judged_on_the_same_documents() -> None:
    plan = solved()
    assert plan.adaptive is not None
    chain = next(c for c in plan.adaptive.compared if kind(c.tree) == "chain")
    acceptance = measured(RECORDING)
    acceptance.traces = [acceptance.traces[n] for n in held_out_documents(RECORDING)]
    assert chain.tokens == pytest.approx(acceptance.replicates([chain.tree], 60)[0])


def test_the_file_has_the_policy_and_where_it_comes_from(tmp_path: Path) -> None:
    plan = solved()
    path = tmp_path / "t.json"
    plan.tree.save(path)
    tree = TokenTree.load(path)
    assert tree.policy == plan.choice.tree.policy
    assert (tree.parents, tree.ranks) == (plan.fastest.tree.parents, plan.fastest.tree.ranks)
    adaptive = tree.metadata["adaptive"]
    assert adaptive["fitted_documents"] == adaptive["predicted_documents"] == 12
    assert sum(adaptive["sizes"].values()) == pytest.approx(1, abs=0.01)
    assert adaptive["compared"]["oracle"]["speedup"] > adaptive["compared"]["chain"]["speedup"]
    assert adaptive["fingerprint"] == RECORDING.fingerprint
    assert "expected_tokens" not in tree.metadata
    assert tree.predicted_tokens == pytest.approx(plan.choice.tokens[0], rel=1e-5)


def test_solving_again_gives_the_same_policy() -> None:
    assert solved().tree.document() == solved().tree.document()


def test_no_adaptive_plan_where_it_is_not_asked_for() -> None:
    for options in ({"static": True}, {"shape": "k-ary"}, {"size": 4}, {"depth": 2}):
        plan = solved(**options)
        assert plan.adaptive is None
        assert plan.tree.policy is None
    plan = solved(shape="chain")
    assert plan.adaptive is not None
    assert {kind(c.tree) for c in plan.adaptive.compared} <= {"plain", "chain", "adaptive chain"}


def test_limits_hold_for_policies() -> None:
    plan = solved(max_size=4, max_depth=2, max_width=2)
    assert plan.adaptive is not None
    for candidate in plan.adaptive.adaptive:
        policy = candidate.tree.policy
        assert policy is not None
        assert policy.largest_size <= 4
        assert policy.depth <= 2
        assert policy.ranks <= 2


def test_the_static_plan_stays_where_the_draft_tells_nothing() -> None:
    """A draft that is as sure of what is accepted as of what is not."""
    probabilities = np.zeros_like(RECORDING.probabilities)
    probabilities[..., 0], probabilities[..., 1:] = 0.75, 0.05
    drawn = np.random.default_rng(3).random(len(probabilities))
    ranks = np.where(drawn < 0.75, 1, 0).astype(np.uint8)
    blind = Recording(probabilities, RECORDING.origins, ranks, RECORDING.starts)
    profile = with_adaptive_overhead(make_profile(slope=0.2, draft_ms=1.0))
    plan = solve(profile, measured(blind), recording=blind, replicates=60)
    assert plan.adaptive is not None
    assert plan.tree.policy is None
    assert "adaptive" not in plan.tree.metadata
    without = solve(profile, measured(blind), replicates=60)
    document = plan.tree.document()
    assert document.pop("rules")  # of other engines, which a static plan's export may use
    assert document == without.tree.document()


def test_a_policy_that_never_guesses_is_no_plan() -> None:
    """Its plain steps are no faster than plain decoding, whatever the two overheads say."""
    wrong = replace(RECORDING, ranks=np.zeros_like(RECORDING.ranks))
    profile = make_profile()
    plain = profile.overhead["greedy"]
    cheaper = {"adaptive greedy": replace(plain, constant_ms=plain.constant_ms - 0.4)}
    profile = replace(profile, overhead=profile.overhead | cheaper)
    plan = solve(profile, measured(wrong), recording=wrong, replicates=60)
    assert plan.adaptive is not None
    assert max(candidate.speedup[0] for candidate in plan.adaptive.compared) > 1
    assert plan.tree.policy is None
    assert plan.tree.size == 1


def test_no_adaptive_plan_is_chosen_whose_overhead_was_not_measured() -> None:
    profile = make_profile(slope=0.6, draft_ms=2.5)
    plan = solve(profile, measured(RECORDING), recording=RECORDING, replicates=60)
    [note] = plan.notes
    assert "no overhead for adaptive greedy" in note
    assert plan.tree.policy is None
    assert plan.adaptive is not None
    assert plan.adaptive.adaptive
    profile.overhead["adaptive greedy"] = Overhead(0.5, 0.01, 0.02, 0.3)
    plan = solve(profile, measured(RECORDING), recording=RECORDING, replicates=60)
    assert plan.notes == []
    assert plan.tree.metadata["adaptive"]["overhead"] == "adaptive greedy"


def test_too_little_text_is_said_in_a_note() -> None:
    for recording in (make_recording([50] * 3), make_recording([1] * 8)):
        plan = solved(recording)
        assert plan.adaptive is None
        assert len(plan.notes) == 1
        assert plan.notes[0].startswith("no adaptive plans: ")


def test_a_recording_of_another_sampling_is_refused() -> None:
    recording = make_recording([20] * 4)
    recording = Recording(
        recording.probabilities,
        recording.origins,
        recording.ranks,
        recording.starts,
        {"temperature": 0.6},
    )
    with pytest.raises(SequoiaError, match="recording: temperature: found 0"):
        solved(recording)


def test_a_given_policy_is_predicted_like_the_chosen_one() -> None:
    plan = solved()
    again = solved(given={"mine": plan.tree, "chain": shapes.chain(3)}, static=True)
    assert [candidate.name for candidate in again.given] == ["mine", "chain"]
    assert again.adaptive is None
    assert again.given[0].tokens == pytest.approx(plan.choice.tokens)
    assert again.given[0].speedup == pytest.approx(plan.choice.speedup)


def test_a_given_policy_that_cannot_be_predicted_is_refused_by_name() -> None:
    tree = solved().tree
    assert tree.policy is not None
    profile = make_profile(slope=0.6, draft_ms=2.5)
    with pytest.raises(SequoiaError, match="mine: adaptive plans are predicted from recorded"):
        solve(profile, measured(RECORDING), given={"mine": tree})
    large = replace(tree.policy, sizes=(1, 4, 65))
    for policy, complaint in (
        (large, "mine: policy: sizes: found 65, which the profile of target has not measured"),
        (replace(tree.policy, depth=9), "mine: the policy drafts up to 9 levels, the recording"),
    ):
        given = {"mine": TokenTree(tree.parents, tree.ranks, policy=policy)}
        with pytest.raises(SequoiaError, match=complaint):
            solved(given=given, static=True)
