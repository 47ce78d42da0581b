from __future__ import annotations

import numpy as np
import pytest
from brute_force import all_trees
from hypothesis import given
from hypothesis import strategies as st

from sequoia_opt.cli import charts
from sequoia_opt.cli.output import bar
from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.tree import TokenTree

RATES = Acceptance(np.array([0.6, 0.2, 0.1]))


TREES = [tree for size in range(1, 7) for tree in all_trees(size)]


@given(st.sampled_from(TREES))
def test_what_is_shown_is_a_tree_of_the_most_probable_nodes(tree: TokenTree) -> None:
    values = RATES.node_values(tree)
    for limit in (1, 3, tree.size):
        kept = charts.most_probable(tree, values, limit)
        assert len(kept) == min(limit, tree.size)
        assert all(node == 0 or tree.parents[node] in kept for node in kept)
        left = [values[node] for node in range(tree.size) if node not in kept]
        assert min(values[kept]) >= max(left, default=0.0)
        lines = charts.outline(tree, kept)
        assert sorted(node for node, _ in lines) == kept
        hidden = sum(int(line.split("+ ")[1].split()[0]) for _, line in lines if "+" in line)
        orphans = [v for v in range(tree.size) if v not in kept and tree.parents[v] in kept]
        assert hidden == len(orphans)


def test_the_outline_draws_who_is_whose_child() -> None:
    tree = TokenTree([-1, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 1])
    lines = [line for _, line in charts.outline(tree, range(6))]
    assert lines == ["root", "├─ 1", "│  ├─ 1", "│  └─ 2", "└─ 2", "   └─ 1"]
    assert [node for node, _ in charts.outline(tree, range(6))] == [0, 1, 3, 4, 2, 5]


def test_a_trees_worth_adds_up(capsys: pytest.CaptureFixture[str]) -> None:
    charts.tree(shapes.k_ary(2, 2), RATES, 40)
    shown = capsys.readouterr().out
    assert f"the sum is {RATES.expected_tokens(shapes.k_ary(2, 2)):.2f} tokens" in shown
    shares = [float(line.split("%")[0].split()[-1]) for line in shown.splitlines() if "%" in line]
    assert len(shares) == 7
    assert sum(shares) == pytest.approx(100, abs=0.4)


def test_a_tree_without_rates_is_its_structure(capsys: pytest.CaptureFixture[str]) -> None:
    charts.tree(shapes.chain(9), None, 4)
    shown = capsys.readouterr().out
    assert "reached" not in shown
    assert "5 less probable nodes are not shown" in shown


@pytest.mark.parametrize(
    ("share", "drawn"), [(0, ""), (1, "████"), (2, "████"), (0.5, "██"), (0.28, "█▏"), (-1, "")]
)
def test_bars_are_as_long_as_they_should_be(share: float, drawn: str) -> None:
    assert bar(share, 4) == drawn


def test_deep_trees_fit_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    charts.tree(shapes.chain(40), RATES, 40)
    lines = capsys.readouterr().out.splitlines()
    assert sum("─ 1 " in line for line in lines) == 39
    assert max(map(len, lines)) <= 110
    assert any(line.lstrip().startswith("…") for line in lines)


def test_few_rates_have_no_rest(capsys: pytest.CaptureFixture[str]) -> None:
    charts.acceptance(RATES)
    shown = capsys.readouterr().out
    assert "ranks 9" not in shown
    assert "no rank accepted: " in shown
