from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_latency import make_profile

from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.intervals import interval
from sequoia_opt.plan.solver import solve
from sequoia_opt.plan.tree import TokenTree


def test_the_tree_file_has_the_prediction_and_its_inputs(tmp_path: Path) -> None:
    acceptance = Acceptance(
        np.array([0.6, 0.2]), dataset="d", temperature=0.6, top_p=0.9, verifier="sequoia", top_k=20
    )
    profile = make_profile(slope=0.05, draft_ms=0.2)
    profile.overhead["sequoia-top-p"] = profile.overhead["sequoia"]
    plan = solve(profile, acceptance, context={128.0: 3.0, 1024.0: 1.0})
    assert plan.context == pytest.approx(0.75 * 128 + 0.25 * 1024)
    plan.tree.save(tmp_path / "tree.json")
    metadata = TokenTree.load(tmp_path / "tree.json").metadata
    expected = {
        "target": "target",
        "draft": "draft",
        "dataset": "d",
        "temperature": 0.6,
        "top_p": 0.9,
        "top_k": 20,
        "verifier": "sequoia",
        "context": 352,
        "batch": 1,
    }
    assert {key: metadata[key] for key in expected} == expected
    assert "replayed_tokens" not in metadata
    assert "min_p" not in metadata
    predicted = metadata["predicted"]
    low, high = interval(plan.choice.speedup)
    assert predicted["speedup"] == pytest.approx(plan.choice.speedup[0], rel=1e-4)
    assert (predicted["speedup_low"], predicted["speedup_high"]) == pytest.approx(
        (low, high), rel=1e-4
    )
    assert predicted["pays"] == pytest.approx(plan.choice.pays, rel=1e-4)
    assert "tokens" not in predicted


def test_at_temperature_0_the_verifier_is_greedy() -> None:
    plan = solve(make_profile(), Acceptance(np.array([0.6]), verifier="topk"))
    assert plan.verifier == "greedy"
    assert plan.tree.metadata["verifier"] == "greedy"
