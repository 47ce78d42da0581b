from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from brute_force import all_trees
from hypothesis import given
from hypothesis import strategies as st
from test_tree import child_of

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes
from sequoia_opt.plan.decode_stats import (
    Setting,
    Text,
    acceptance,
    acceptances,
    add,
    check,
    life_table,
    load,
)
from sequoia_opt.plan.tree import TokenTree

SETTING = Setting("big", "small", 0.6, 1.0, "sequoia")
TREES = [tree for size in range(2, 7) for tree in all_trees(size)]


def decoded(tree: TokenTree, rates: list[float], steps: int, seed: int) -> Text:
    """The text of `steps` steps in which each guess is accepted at its rate."""
    generator = np.random.default_rng(seed)
    ended: Counter[int] = Counter()
    for _ in range(steps):
        node = 0
        while True:
            rank = generator.choice(len(rates) + 1, p=[1 - sum(rates), *rates])
            child = child_of(tree, node, rank)
            if child is None:
                break
            node = child
        ended[node] += 1
    return Text(SETTING, tree, dict(ended), 100.0)


def test_the_rates_are_recovered_from_any_trees() -> None:
    rates = [0.5, 0.2, 0.1]
    trees = [shapes.chain(4), shapes.k_ary(2, 2), shapes.k_ary(3, 1), shapes.k_sequences(3, 3)]
    texts = [decoded(tree, rates, 2000, seed) for seed, tree in enumerate(trees * 4)]
    estimated = acceptance(texts)
    assert estimated.rates == pytest.approx(rates, abs=0.015)
    assert estimated.low is not None
    assert estimated.high is not None
    assert (estimated.low <= estimated.rates).all()
    assert (estimated.rates <= estimated.high).all()
    assert (estimated.high - estimated.low < 0.06).all()
    assert (estimated.target, estimated.draft, estimated.verifier) == ("big", "small", "sequoia")
    assert estimated.context == pytest.approx(100)


@given(st.sampled_from(TREES), st.data())
def test_each_step_counts_the_guesses_that_it_tried(tree: TokenTree, data: st.DataObject) -> None:
    node = data.draw(st.integers(0, tree.size - 1))
    tried, accepted = Text(SETTING, tree, {node: 3}, 0.0).tried(tree.size)
    last, path = node, []
    while node:
        path.append((tree.parents[node], tree.ranks[node]))
        node = tree.parents[node]
    expected = np.zeros((2, tree.size))
    for _, rank in path:
        expected[0, :rank] += 3
        expected[1, rank - 1] += 3
    expected[0, : tree.child_counts[last]] += 3
    assert (tried == expected[0]).all()
    assert (accepted == expected[1]).all()


def test_rates_never_exceed_one_together() -> None:
    rates = life_table(np.array([10.0, 3.0, 1.0]), np.array([9.0, 3.0, 1.0]))
    assert rates == pytest.approx([0.9, 0.1, 0.0])


def test_adding_works_after_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "traffic.jsonl"
    texts = [decoded(shapes.k_ary(2, 2), [0.5, 0.2], 50, seed) for seed in range(4)]
    for text in texts[:2]:
        add(path, text)
    with path.open("ab") as stream:
        stream.write(b'{"format": "sequoia-opt/st')
    assert load(path) == texts[:2]
    for text in texts[2:]:
        add(path, text)
    assert load(path) == texts


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"format": "x"}, "expected sequoia-opt/stats"),
        ({"parents": [0]}, "parents but"),
        ({"ended": {"9": 1}}, "nodes from 0 to 2"),
        ({"ended": {"0": -1}}, "at least 0"),
        ({"ended": []}, "expected a mapping"),
        ({"temperature": "hot"}, "temperature"),
    ],
)
def test_refuses_malformed_lines(tmp_path: Path, change: dict[str, object], complaint: str) -> None:
    path = tmp_path / "traffic.jsonl"
    document = Text(SETTING, shapes.chain(3), {0: 1}, 1.0).document() | change
    path.write_text(json.dumps(document) + "\n")
    with pytest.raises(SequoiaError, match=rf"line 1.*{complaint}"):
        load(path)


def test_refuses_to_mix_two_pairs_of_models_with_the_same_names(tmp_path: Path) -> None:
    text = decoded(shapes.chain(3), [0.5], 20, 0)
    path = tmp_path / "traffic.jsonl"
    for fingerprints in ((), ("a", "b"), ("a", "b")):
        add(path, replace(text, setting=replace(SETTING, fingerprints=fingerprints)))
    [rates] = acceptances(load(path))  # older lines have no fingerprints
    assert rates.extra["fingerprints"] == {"target": "a", "draft": "b"}
    add(path, replace(text, setting=replace(SETTING, fingerprints=("a", "c"))))
    with pytest.raises(SequoiaError, match="2 pairs of models that are all named big and small"):
        acceptances(load(path))


def test_refuses_mixed_settings_and_texts_without_rates() -> None:
    text = decoded(shapes.chain(3), [0.5], 10, 0)
    other = Text(Setting("big", "small", 1.0, 1.0, "sequoia"), text.tree, text.ended, 1.0)
    with pytest.raises(SequoiaError, match=r"temperature 0\.6 and 1\.0|temperature 1\.0 and 0\.6"):
        acceptance([text, other])
    with pytest.raises(SequoiaError, match="no guess was ever tried"):
        acceptance([Text(SETTING, TokenTree([-1], [0]), {0: 9}, 1.0)])
    paths = Setting("big", "small", 0.6, 1.0, "traversal")
    with pytest.raises(SequoiaError, match="whole paths"):
        acceptance([Text(paths, text.tree, text.ended, 1.0)])


def test_refuses_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "traffic.jsonl"
    path.write_text("")
    with pytest.raises(SequoiaError, match="has no line"):
        load(path)


def test_one_text_has_rates_and_no_intervals() -> None:
    rates = acceptance([decoded(shapes.k_ary(2, 2), [0.5, 0.2], 50, 0)])
    assert (rates.low, rates.high) == (None, None)
    assert rates.rates.size == 2


def test_each_sampling_has_its_own_rates() -> None:
    texts = [decoded(shapes.k_ary(2, 2), [0.5, 0.2], 500, seed) for seed in range(4)]
    other = Setting("big", "small", 0.9, 1.0, "sequoia")
    texts += [
        Text(other, text.tree, text.ended, text.context)
        for text in (decoded(shapes.chain(3), [0.3], 500, seed) for seed in range(4))
    ]
    first, second = acceptances(texts[::-1])[::-1]
    assert (first.temperature, second.temperature) == (0.6, 0.9)
    assert first.rates == pytest.approx([0.5, 0.2], abs=0.05)
    assert second.rates == pytest.approx([0.3], abs=0.05)


def test_a_file_of_something_else_is_refused_before_decoding(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my notes\n")
    with pytest.raises(SequoiaError, match="do not begin with"):
        check(path)
    assert path.read_text() == "my notes\n"
