from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from policies import random_policy

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import decode_stats, growth_stats, shapes
from sequoia_opt.plan.decode_stats import Setting, Text, add
from sequoia_opt.plan.growth_counts import BINS, GuessCounts
from sequoia_opt.plan.growth_stats import Growths, Prediction, load
from sequoia_opt.plan.tree import TokenTree

SETTING = Setting("big", "small", 0.6, 1.0, "sequoia", fingerprints=("a", "b"))
PREDICTED = Prediction(2.5, {1: 0.1, 4: 0.9}, {0: 0.1, 2: 0.9})
GUESSES = GuessCounts(
    [3, *(BINS - 2) * [0], 5], [0.25, *(BINS - 2) * [0.0], 4.75], [0, *(BINS - 2) * [0], 4]
)
TEXT = Growths(
    SETTING, "f00d", 90.0, {0: 2, 1: 4}, {1: 1, 4: 5}, {0: 1, 2: 5}, {"pause": 1, "depth": 5},
    GUESSES, PREDICTED,
)  # fmt: skip
FIXED = Text(SETTING, shapes.chain(3), {0: 1, 2: 3}, 50.0)


def test_the_texts_of_a_plan_are_added_up(tmp_path: Path) -> None:
    path = tmp_path / "traffic.jsonl"
    longer = replace(TEXT, context=30.0, accepted={1: 12}, stops={"threshold": 12})
    other = replace(TEXT, plan="beef", predicted=None)
    for text in (TEXT, FIXED, other, longer):
        add(path, text)
    (both, alone), fixed = load(path)
    assert fixed == 1
    assert alone == other
    assert (both.texts, both.steps, both.context) == (2, 18, 50.0)
    assert both.accepted == {0: 2, 1: 16}
    assert both.tokens_per_step == pytest.approx(1 + 16 / 18)
    assert both.sizes == {1: 2, 4: 10}
    assert both.levels == {0: 2, 2: 10}
    assert both.stops == {"pause": 1, "depth": 5, "threshold": 12}
    assert both.guesses.verified[0] == 6
    assert both.guesses.predicted[-1] == 9.5
    assert both.guesses.accepted[-1] == 8
    assert both.predicted == PREDICTED


def test_they_give_no_rates_but_lines_of_fixed_trees_do(tmp_path: Path) -> None:
    path = tmp_path / "traffic.jsonl"
    add(path, FIXED)
    assert decode_stats.load(path) == [FIXED]
    assert load(path) == ([], 1)
    add(path, TEXT)
    with pytest.raises(SequoiaError, match=r"line 2: is of an adaptive plan.*solve --static"):
        decode_stats.load(path)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"version": 3}, "version: found 3, expected 2 at most; a newer sequoia-opt wrote it"),
        ({"plan": 4}, "plan: found 4, expected text"),
        ({"sizes": {"many": 1}}, "sizes: found .*, expected a mapping of whole numbers"),
        ({"accepted": {"1": -1}}, "accepted: 1: found -1"),
        ({"stopped": {"boredom": 1}}, "expected a number of steps by pause, depth, threshold"),
        ({"guesses": {"verified": [1]}}, "predicted: missing"),
        ({"predicted": {"tokens_per_step": "many"}}, "tokens_per_step"),
        ({"predicted": PREDICTED.document() | {"sizes": {"1": 7}}}, "between 0 and 1"),
    ],
)
def test_refuses_malformed_lines(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    path = tmp_path / "traffic.jsonl"
    path.write_text(json.dumps(TEXT.document() | change) + "\n")
    with pytest.raises(SequoiaError, match=rf"line 1.*{complaint}") as raised:
        load(path)
    assert "\n" not in str(raised.value)


def test_bins_are_as_many_as_there_are(tmp_path: Path) -> None:
    path = tmp_path / "traffic.jsonl"
    document = TEXT.document()
    document["guesses"]["accepted"] = [1, 2]
    path.write_text(json.dumps(document) + "\n")
    with pytest.raises(SequoiaError, match=r"accepted: found .*, expected a list of 10 numbers"):
        load(path)


def test_what_a_plan_predicts_is_what_its_file_says() -> None:
    origin = {"sizes": {"1": 0.25, "4": 0.75}, "drafted_levels": {"0": 0.25, "2": 0.75}}
    metadata = {"replayed_tokens": 3.5, "adaptive": origin}
    plan = TokenTree([-1], [0], metadata, random_policy((2, 2, 1), 1))
    assert Prediction.of(plan) == (3.5, {1: 0.25, 4: 0.75}, {0: 0.25, 2: 0.75})
    assert Prediction.of(TokenTree([-1], [0], {}, plan.policy)) is None
    broken = TokenTree([-1], [0], metadata | {"adaptive": {"sizes": 1}}, plan.policy)
    with pytest.raises(SequoiaError, match="sizes: found 1, expected a mapping"):
        Prediction.of(broken)
    assert growth_stats.FORMAT == decode_stats.FORMAT
