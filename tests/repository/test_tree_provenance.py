from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measured_rates import rates_of
from test_latency import make_profile

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.solver import solve
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.repository.provenance import Provenance
from sequoia_opt.repository.tree_provenance import (
    THIS,
    Source,
    of_one_pair,
    plan_again,
    planned_tree,
)


def test_trees_of_other_options_and_inputs_are_told_apart() -> None:
    profile = make_profile()
    for folder in ("one", "two"):
        profile.target.extra["source"] = f"{folder}/model"
        profile.target.fingerprint = folder
        profile.save(f"{folder}/p.yaml")
    rates_of().save("a.yaml")

    def planned(folder: str = "one", **options: Any) -> TokenTree:
        source = Source(Path(folder) / "p.yaml", Path("a.yaml"))
        loaded = LatencyProfile.load(source.profile), Acceptance.load(source.acceptance)
        return planned_tree(solve(*loaded, replicates=5, **options), source, options)

    path = Path("tree.json")
    first = planned()
    first.save(path)
    former = Provenance.of(TokenTree.load(path).document())
    # With the defaults spelt out it is the same tree.
    again = planned(batch=1, shape="tree")
    assert Provenance.of(again.document()).difference(former) is None
    for other, difference in (
        (planned(max_size=4), "options"),
        (planned(context={256.0: 1.0}), "options"),
        (planned("two"), "made from target one/model, not two/model"),
        (
            TokenTree(first.parents, first.ranks, {"provenance": {"imported": "x"}}),
            "made from profile p.yaml",
        ),
    ):
        assert difference in str(Provenance.of(other.document()).difference(former))
    # With the same contexts, after it was written and read.
    weighted = planned(context={256.0: 1.0})
    weighted.save(path)
    assert (
        Provenance.of(weighted.document()).difference(
            Provenance.of(TokenTree.load(path).document())
        )
        is None
    )


def test_the_plan_is_solved_again_with_the_trees_options() -> None:
    profile, rates = make_profile(), rates_of()
    profile.save("p.yaml")
    rates.save("a.yaml")
    options = {"max_size": 4, "context": {256.0: 1.0}, "shape": "chain", "confidence": 0.5}
    tree = planned_tree(
        solve(profile, rates, **options), Source(Path("p.yaml"), Path("a.yaml")), options
    )
    plan = plan_again(tree, profile, rates)
    assert plan.tree == tree
    assert [candidate.name for candidate in plan.given] == [THIS]
    assert plan.given[0].tree == tree


def test_a_tree_states_when_its_profile_was_measured() -> None:
    profile, rates = make_profile(), rates_of()
    rates.save("a.yaml")
    for date in ("", "2026-01-31T08:00:00+00:00"):
        profile.date = date
        profile.save("p.yaml")
        loaded = LatencyProfile.load("p.yaml")
        source = Source(Path("p.yaml"), Path("a.yaml"))
        tree = planned_tree(solve(loaded, rates, max_size=2, replicates=5), source, {})
        assert tree.metadata["provenance"]["profile"].get("date", "") == date


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"max_size": "many"}, "max_size: found 'many', expected a whole number"),
        ({"confidence": 2}, "confidence: found 2, expected a number between 0 and 1"),
        ({"context": {"long": 1}}, "expected context lengths and their weights"),
    ],
)
def test_invalid_options_in_a_tree_are_refused(options: Any, complaint: str) -> None:
    tree = TokenTree([-1, 0], [0, 1], {"provenance": {"options": options}})
    with pytest.raises(SequoiaError, match=complaint):
        plan_again(tree, make_profile(), rates_of())


def test_measurements_of_one_pair_name_the_same_models() -> None:
    profile = make_profile()
    names = {"target": profile.target.model, "draft": profile.draft.model}
    assert of_one_pair(profile, Acceptance(np.array([0.5]), **names))
    assert not of_one_pair(profile, Acceptance(np.array([0.5]), **names | {"draft": "other"}))
