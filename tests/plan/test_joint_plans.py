"""What `solve` makes of a pair that looks up before its model drafts."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import make_recording, measured
from test_latency import make_profile, with_adaptive_overhead

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.documents import read_document, write_document
from sequoia_opt.plan.confidence_fit import fitting_documents, held_out_documents
from sequoia_opt.plan.envelope import MISSES, MOST_LOST, PAUSES, hopeless_loss
from sequoia_opt.plan.joint_replay import JointReplay
from sequoia_opt.plan.joint_times import JointTimes
from sequoia_opt.plan.judge import ADAPTIVE_TREE, LOOKUP_ALONE, LOOKUP_FIRST, kind
from sequoia_opt.plan.latency import LatencyProfile, Overhead
from sequoia_opt.plan.plan import Plan
from sequoia_opt.plan.policy import LookupFirst, Pause
from sequoia_opt.plan.policy_text import rule
from sequoia_opt.plan.recording import Recording
from sequoia_opt.plan.solver import solve
from sequoia_opt.plan.tree import TokenTree

LENGTHS = [110, 80] * 10


def drafts(sureness: list[float], seed: int, levels: int) -> Recording:
    """A recording whose documents are as easy as that, one after the other."""
    parts = [
        make_recording([length], levels, seed=seed + number, sureness=sure)
        for number, (length, sure) in enumerate(zip(LENGTHS, sureness, strict=True))
    ]
    return Recording.joined(parts, {"target": "t", "draft": "d"})


def recording_of(model: list[float], lookup: list[float]) -> Recording:
    return replace(drafts(model, 0, 5), lookup=drafts(lookup, 100, 8))


# Every other pair of documents, so that both halves have both kinds.
EDITS = [3.5 if number % 4 < 2 else -4.0 for number in range(len(LENGTHS))]
MIXED = recording_of([1.5] * len(LENGTHS), EDITS)


def profile(draft_ms: float = 2.5) -> LatencyProfile:
    timed = with_adaptive_overhead(make_profile(slope=0.6, draft_ms=draft_ms))
    timed.overhead["adaptive greedy"] = replace(timed.overhead["adaptive greedy"], change_ms=0.4)
    timed.overhead["lookup greedy"] = Overhead(0.6, 0.02, 0.01, 0.1)
    return timed


def solved(recording: Recording = MIXED, **options: Any) -> Plan:
    options = {"replicates": 30} | options
    return solve(profile(), measured(recording), recording=recording, **options)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return solved()


def speeds(plan: Plan) -> dict[str, float]:
    assert plan.adaptive is not None
    return {kind(c.tree): float(c.speedup[0]) for c in plan.adaptive.compared}


def test_both_together_are_faster_than_either_on_a_mixture(plan: Plan) -> None:
    by_kind = speeds(plan)
    assert kind(plan.choice.tree) == LOOKUP_FIRST
    assert by_kind[LOOKUP_FIRST] > 1.05 * by_kind[ADAPTIVE_TREE]
    assert by_kind[LOOKUP_FIRST] > 1.05 * by_kind[LOOKUP_ALONE]
    assert plan.adaptive is not None
    assert 0.1 < plan.adaptive.document()["looked_up"] < 0.9


@pytest.mark.parametrize(
    ("model", "lookup", "better"), [(2.5, -4.0, ADAPTIVE_TREE), (-3.0, 4.0, LOOKUP_ALONE)]
)
def test_both_together_are_as_fast_as_the_better_one(
    model: float, lookup: float, better: str
) -> None:
    count = len(LENGTHS)
    by_kind = speeds(solved(recording_of([model] * count, [lookup] * count)))
    assert by_kind[LOOKUP_FIRST] > 0.98 * by_kind[better]


def test_the_prediction_is_the_replay_of_the_documents_held_out(plan: Plan) -> None:
    policy = plan.tree.policy
    assert policy is not None
    held_out = MIXED.of_documents(held_out_documents(MIXED))
    counts = JointReplay.of(held_out, policy).replay(policy, fill=True)
    times = JointTimes(profile(), "greedy", {300.0: 1.0})
    assert plan.choice.tokens[0] == pytest.approx(counts.tokens.sum() / counts.steps.sum())
    assert plan.choice.tokens_per_second[0] == pytest.approx(1000 * times.rate(counts))


def test_steps_are_priced_by_hand(plan: Plan) -> None:
    """Target passes of both kinds, draft passes of the model, and what it reads after lookups."""
    policy = plan.tree.policy
    assert policy is not None
    counts = JointReplay.of(MIXED, policy).replay(policy, fill=True)
    model, lookup = counts.model, counts.lookup
    own, other = profile().overhead["adaptive greedy"], profile().overhead["lookup greedy"]

    def target_ms(size: int) -> float:
        return float(profile().target.at([size], 300)[0])

    total = 0.0
    for of, overhead in ((model, own), (lookup, other)):
        for size, steps in enumerate(of.sizes.sum(axis=0)):
            if steps:
                total += steps * (target_ms(size) + overhead.constant_ms)
                total += steps * overhead.per_token_ms * size
        levels = of.levels.sum(axis=0)
        total += overhead.per_level_ms * (levels @ np.arange(len(levels)))
        total += overhead.drafting_ms * levels[1:].sum()
    total += other.per_level_ms * counts.passed_over.sum()
    assert model.changes.sum() > 0
    total += own.change_ms * model.changes.sum()
    total += 2.5 * (model.first.sum() + model.widths.sum())
    # The passes that read what a first pass does not take.
    total += (2.5 + own.per_level_ms) * model.first[:, 16:].sum()
    assert counts.passed_over.sum() > 0
    behind = model.first.sum(axis=0)
    assert behind[2:16].sum() > 0
    most = 64  # tokens of a draft pass that were measured; more take as much longer
    for tokens, passes in enumerate(behind):
        total += 2.5 * passes * max((tokens + 1) / most - 1, 0)
    priced = JointTimes(profile(), "greedy", {300.0: 1.0}).total_ms(
        counts, np.ones((MIXED.documents, 1))
    )
    assert priced[0] == pytest.approx(total, rel=1e-9)


def test_no_other_worth_is_faster_where_it_was_fitted(plan: Plan) -> None:
    """Every pair of thresholds for small and for large trees, on a grid."""
    policy = plan.tree.policy
    assert policy is not None
    assert policy.lookup is not None
    fitting = MIXED.of_documents(fitting_documents(MIXED))
    replay, times = JointReplay.of(fitting, policy), JointTimes(profile(), "greedy", {300.0: 1.0})
    fitted = times.rate(replay.replay(policy, fill=True))
    sizes = policy.lookup.policy.sizes[1:]
    half = len(sizes) // 2
    best = 0.0
    for small, large in product(np.linspace(0, 6, 13), repeat=2):
        least = [small] * half + [large] * (len(sizes) - half)
        worth = tuple(zip(sizes, map(float, least), strict=True))
        other = replace(policy, lookup=LookupFirst(policy.lookup.policy, worth))
        best = max(best, times.rate(replay.replay(other, fill=True)))
    assert fitted > 0.99 * best


def test_no_other_pause_insures_better_where_it_was_fitted(plan: Plan) -> None:
    """By the speed on the text, and by what is lost where nothing is accepted."""
    policy = plan.tree.policy
    assert policy is not None
    fitting = MIXED.of_documents(fitting_documents(MIXED))
    replay, times = JointReplay.of(fitting, policy), JointTimes(profile(), "greedy", {300.0: 1.0})
    steps = replay.model.steps(replace(policy, lookup=None), fill=True)
    missed = (steps.accepted == 0) & ((steps.widths > 0).sum(axis=1) == 1)
    passes_ms = times.model.target_ms[0, steps.sizes[missed]] + times.model.first_ms[0, 0]
    ratio = float(passes_ms.mean() / times.model.target_ms[0, 1])

    def insured(pause: Pause | None) -> float:
        counts = replay.replay(replace(policy, pause=pause), fill=True)
        return times.rate(counts) * (1 - max(hopeless_loss(pause, ratio) - MOST_LOST, 0.0))

    pauses = [None, *(Pause(*numbers) for numbers in product(MISSES, PAUSES))]
    assert insured(policy.pause) == pytest.approx(max(map(insured, pauses)), rel=1e-9)


def test_a_plan_that_was_given_is_judged_as_the_solved_one(plan: Plan) -> None:
    again = solved(given={"mine": plan.tree})
    assert again.given[0].speedup[0] == pytest.approx(plan.choice.speedup[0])
    alone = replace(MIXED, lookup=None)
    with pytest.raises(SequoiaError, match=r"mine: .* estimate with --draft lookup\+MODEL"):
        solved(alone, given={"mine": plan.tree})


def test_the_file_is_of_a_third_version_and_says_it_all(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    plan.tree.save(path)
    document = read_document(path, "sequoia-opt/tree", 3)
    assert document["version"] == 3
    loaded = TokenTree.load(path)
    assert loaded == plan.tree
    assert loaded.fingerprint == plan.tree.fingerprint != plan.tree.static.fingerprint
    with pytest.raises(SequoiaError, match="written by a newer version"):
        read_document(path, "sequoia-opt/tree", 2)  # as version 2's program read it
    without = replace(plan.tree.policy, lookup=None)  # type: ignore[type-var]
    assert TokenTree([-1], [0], policy=without).document()["version"] == 2
    assert TokenTree([-1], [0], policy=without) != TokenTree([-1], [0], policy=plan.tree.policy)


def test_the_rule_in_words(plan: Plan) -> None:
    assert plan.tree.policy is not None
    lines = rule(plan.tree.policy)
    assert any(line.startswith("lookup: is verified if enough guesses") for line in lines)
    assert any(line.startswith("otherwise the model: drafts up to") for line in lines)
    assert plan.adaptive is not None
    (alone,) = [c for c in plan.adaptive.compared if kind(c.tree) == LOOKUP_ALONE]
    assert alone.tree.policy is not None
    assert rule(alone.tree.policy)[-1] == "otherwise: a plain step"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"worth": {"2": 0.5}}, "worth: found sizes"),
        ({"worth": {"two": 0.5}}, "a number for each size"),
        ({"first": 1.0}, "a first threshold of 1"),
        ({"pause": {"misses": 1, "steps": [1]}}, "found a pause"),
    ],
)
def test_a_malformed_lookup_is_refused(
    change: dict[str, Any], complaint: str, plan: Plan, tmp_path: Path
) -> None:
    path = tmp_path / "t.json"
    document = plan.tree.document()
    document["policy"]["lookup"] |= change
    write_document(path, document)
    with pytest.raises(SequoiaError, match=complaint) as refusal:
        TokenTree.load(path)
    assert "t.json: policy: lookup" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_recordings_of_both_are_kept_together(tmp_path: Path) -> None:
    MIXED.save(tmp_path / "r.npz")
    loaded = Recording.load(tmp_path / "r.npz")
    assert loaded.fingerprint == MIXED.fingerprint != replace(MIXED, lookup=None).fingerprint
    assert loaded.lookup is not None
    assert MIXED.lookup is not None
    assert loaded.lookup.fingerprint == MIXED.lookup.fingerprint
    parts = [loaded.of_documents([number]) for number in range(loaded.documents)]
    assert Recording.joined(parts, {}).fingerprint == MIXED.fingerprint
    with pytest.raises(SequoiaError, match="lookup: found other documents"):
        replace(MIXED, lookup=MIXED.lookup.of_documents([0, 1]))
