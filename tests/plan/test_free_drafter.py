"""Planning for a drafter that makes no forward pass: a lookup."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import make_recording, measured
from test_latency import make_profile, with_adaptive_overhead

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.documents import write_document
from sequoia_opt.plan.confidence import Confidence
from sequoia_opt.plan.curves import ModelLatency
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.policy import Policy
from sequoia_opt.plan.policy_replay import PolicyReplay
from sequoia_opt.plan.recording import Recording, slots_of
from sequoia_opt.plan.solver import solve
from sequoia_opt.plan.step_times import StepTimes

RECORDING = make_recording([120] * 12, sureness=2.0)


def free_profile(**options: Any) -> LatencyProfile:
    profile = with_adaptive_overhead(make_profile(**options))
    return replace(profile, draft=ModelLatency("lookup", "lookup1", [], passes="none"))


def solved(profile: LatencyProfile, **options: Any) -> Any:
    return solve(profile, measured(RECORDING), recording=RECORDING, replicates=20, **options)


def test_a_profile_says_that_the_drafter_makes_no_pass(tmp_path: Path) -> None:
    profile = free_profile()
    profile.save(tmp_path / "p.yaml")
    loaded = LatencyProfile.load(tmp_path / "p.yaml")
    assert loaded.draft == profile.draft
    assert loaded.document() == profile.document()
    assert loaded.contexts() == make_profile().contexts()
    assert loaded.batches() == make_profile().batches()
    assert loaded.draft.at([1, 64], 300).tolist() == [0, 0]
    document = profile.document()
    assert document["draft"]["passes"] == "none"
    document["draft"]["latency"] = document["target"]["latency"]
    write_document(tmp_path / "q.yaml", document)
    with pytest.raises(SequoiaError, match=r"q\.yaml: draft: latency"):
        LatencyProfile.load(tmp_path / "q.yaml")


def test_its_levels_take_no_more_than_their_overhead() -> None:
    times = StepTimes(free_profile(), "greedy", {300.0: 1.0}, replicates=3)
    overhead = free_profile().overhead["greedy"]
    assert (times.draft_ms == 0).all()
    assert times.draft_ms.shape == times.target_ms.shape
    assert (times.draft_pass_ms == overhead.per_level_ms).all()


def test_an_adaptive_plan_competes_with_plain_decoding_alone() -> None:
    plan = solved(free_profile(slope=0.3))
    assert plan.adaptive is not None
    assert [c.name for c in plan.baselines] == ["plain"]
    assert (plan.fastest.tree.size, plan.fastest.tree.depth) == (1, 0)
    policy = plan.tree.policy
    assert policy is not None
    assert plan.choice.speedup[0] > 1
    assert plan.adaptive.rules == {}
    costly = solved(with_adaptive_overhead(make_profile(slope=0.3, draft_ms=2.5)))
    assert plan.choice.speedup[0] > costly.choice.speedup[0]


def test_where_verifying_costs_too_much_it_is_plain() -> None:
    plan = solved(free_profile(slope=1e4))
    assert plan.tree.size == plan.tree.largest_size == 1


def test_without_adaptive_plans_it_is_plain() -> None:
    for options in ({"static": True}, {"max_depth": 0}, {"max_size": 1}):
        plan = solved(free_profile(slope=0.3), **options)
        assert (plan.tree.size, plan.tree.policy) == (1, None)


@pytest.mark.parametrize("option", ["size", "depth"])
def test_a_static_tree_cannot_be_asked_for(option: str) -> None:
    with pytest.raises(SequoiaError, match=f"{option}: found 4, but the trees of lookup") as error:
        solved(free_profile(), **{option: 4})
    assert "\n" not in str(error.value)


def test_the_corpus_goes_from_the_acceptance_to_the_plan() -> None:
    acceptance = measured(RECORDING)
    acceptance.extra["corpus"] = {"name": "notes", "fingerprint": "0123"}
    plan = solve(free_profile(), acceptance, recording=RECORDING, replicates=2)
    assert plan.tree.metadata["corpus"] == acceptance.extra["corpus"]
    assert "corpus" not in solved(free_profile()).tree.metadata


def test_a_slot_stays_empty_where_there_is_no_guess() -> None:
    """It names the guess of the first node that does not exist, for policies of any ranks."""
    table = np.array([[0.5, 0.0, 0.0, 0.0], [0.4, 0.3, 0.2, 0.1]])
    assert slots_of(table, [1.0, 1.0], 3) == [0, 4, 5]
    assert slots_of(table[:1], [1.0], 3) == [0, 1, 1]
    assert slots_of(np.zeros((2, 4)), [1.0, 1.0], 3) == [0, 0, 0]
    assert slots_of(table[::-1], [1.0, 1.0], 4) == [0, 4, 1, 2]


def test_missing_guesses_are_neither_calibrated_nor_replayed() -> None:
    everywhere = Confidence((0.5,), (((0.4, 0.9), (0.4, 0.4)),))
    rates = everywhere.of_many(1, np.array([[0.9, 0.1], [0.2, 0.0], [0.0, 0.0]]))
    np.testing.assert_array_equal(rates, [[0.9, 0.4], [0.4, np.nan], [np.nan, np.nan]])
    probabilities = np.zeros((6, 1, 2), np.float16)
    probabilities[::2, 0] = [0.75, 0.0]
    recording = Recording(
        probabilities,
        np.zeros((6, 0, 1), np.uint8),
        np.array([1, 0, 1, 0, 0, 0], np.uint8),
        np.array([0, 6], np.int64),
    )
    policy = Policy(everywhere, 1, 2, ((1, 0.0),), 0.0, 0.0, (1, 4))
    steps = PolicyReplay(recording, everywhere).steps(policy, fill=True)
    assert steps.sizes.tolist() == [4, 1, 4, 1, 4, 1]
    assert steps.accepted.tolist() == [1, 0, 1, 0, 0, 0]


def test_path_ranks_are_kept_and_checked(tmp_path: Path) -> None:
    ranks = np.tile(np.arange(4, dtype=np.uint8), (len(RECORDING.ranks), 1))
    recording = replace(RECORDING, path_ranks=ranks)
    recording.save(tmp_path / "r.npz")
    loaded = Recording.load(tmp_path / "r.npz")
    np.testing.assert_array_equal(loaded.path_ranks, ranks)
    assert loaded.fingerprint == recording.fingerprint != RECORDING.fingerprint
    joined = Recording.joined([recording.of_documents([n]) for n in range(12)], {})
    assert joined.fingerprint == recording.fingerprint
    for damaged in (ranks[:, :2], ranks + np.uint8(9)):
        with pytest.raises(SequoiaError, match="path_ranks"):
            replace(RECORDING, path_ranks=damaged)
