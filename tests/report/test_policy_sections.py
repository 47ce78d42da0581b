"""The page's sections of an adaptive plan against what its file says."""

from __future__ import annotations

import json
from typing import Any

import pytest
from page_data import plan_of
from policies import random_policy

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.policy import Pause
from sequoia_opt.plan.policy_text import rule
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.report.page import page
from sequoia_opt.report.policy_sections import policy_sections

ORIGIN: dict[str, Any] = {
    "fitted_documents": 3,
    "predicted_documents": 4,
    "sizes": {"1": 0.25, "3": 0.75},
    "drafted_levels": {"0": 0.25, "2": 0.5, "8": 0.25},
    "compared": {
        "plain": {"speedup": 1.0, "low": 1.0, "high": 1.0},
        "adaptive tree": {"speedup": 1.75, "low": 1.5, "high": 2.0},
        "oracle": {"speedup": 3.0, "low": 2.5, "high": 3.5},
    },
    "reliability": {
        "predicted": [0.1, 0.9], "accepted": [0.12, 0.88], "guesses": [400, 100],
        "error": 0.02, "draft_error": 0.3,
    },
}  # fmt: skip


def adaptive_plan(**changes: Any) -> TokenTree:
    metadata = {} if changes.get("adaptive", 1) is None else {"adaptive": ORIGIN | changes}
    policy = random_policy((3, 2, 2), seed=1, pause=Pause(2, (4,)))
    return TokenTree([-1, 0, 1], [0, 1, 1], metadata, policy=policy)


def test_figures_show_the_numbers_of_the_file() -> None:
    sections = {section.name: section for section in policy_sections(adaptive_plan())}
    assert list(sections) == ["plans", "sizes", "levels", "reliability"]
    data = {name: json.loads(section.figure)["data"] for name, section in sections.items()}
    [bars] = data["plans"]
    assert bars["x"] == [1.0, 1.75, 3.0]
    assert bars["customdata"][1] == [1.5, 2.0]
    assert len({bars["marker"]["color"][i] for i in (0, 2)}) == 1 != bars["marker"]["color"][1]
    assert "4 documents" in sections["plans"].text
    assert (data["sizes"][0]["x"], data["sizes"][0]["y"]) == (["1", "3"], [25, 75])
    assert data["levels"][0]["y"] == [25, 50, 25]
    points = data["reliability"][1]
    assert (points["x"], points["y"], points["customdata"]) == (
        [0.1, 0.9],
        [0.12, 0.88],
        [400, 100],
    )
    assert "0.0200" in sections["reliability"].text


def test_the_page_of_an_adaptive_plan() -> None:
    """It says the rule and the prediction, and draws the best fixed tree behind the policy."""
    tree = adaptive_plan()
    text = page(tree, plan_of(tree))
    assert tree.policy is not None
    assert f"up to {tree.policy.largest_size} nodes" in text
    assert "1.75x plain decoding (1.50–2.00)" in text
    assert all(line in text for line in rule(tree.policy))
    assert text.index("The policy beside fixed plans") < text.index("The best fixed tree")
    fixed = tree.static
    assert "The best fixed tree" not in page(fixed, plan_of(fixed))


def test_a_file_without_these_numbers_has_a_page() -> None:
    tree = adaptive_plan(adaptive=None)
    assert policy_sections(tree) == []
    assert "The best fixed tree" in page(tree, plan_of(tree))


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"compared": {"plain": {"speedup": "fast"}}}, "compared: plain"),
        ({"sizes": {"1": 1.5}}, "sizes"),
        ({"reliability": {"predicted": [0.5]}}, "reliability"),
    ],
)
def test_numbers_of_another_form_are_refused(changes: dict[str, Any], where: str) -> None:
    with pytest.raises(SequoiaError, match=where):
        policy_sections(adaptive_plan(**changes))
