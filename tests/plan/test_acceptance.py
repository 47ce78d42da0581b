from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from test_tree import child_of, trees

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.intervals import interval
from sequoia_opt.plan.tree import TokenTree


@st.composite
def rate_tables(draw: st.DrawFn, depth: int, width: int) -> np.ndarray:
    raw = draw(
        st.lists(
            st.lists(st.floats(0, 1), min_size=width, max_size=width),
            min_size=depth,
            max_size=depth,
        )
    )
    table = np.array(raw)
    return table / np.maximum(table.sum(axis=1, keepdims=True), 1)


@given(tree=trees(max_size=7), table=rate_tables(depth=3, width=3))
def test_expected_tokens_is_the_mean_over_all_outcomes(tree: TokenTree, table: np.ndarray) -> None:
    """Enumerate every outcome of a step with its probability."""
    acceptance = Acceptance(table[0], by_depth=table)
    total = mean = 0.0
    for ranks in product(range(4), repeat=tree.depth + 1):
        probability, node, tokens = 1.0, 0, 0
        for depth, rank in enumerate(ranks):
            row = table[min(depth, 2)]
            probability *= row[rank - 1] if rank else 1 - row.sum()
            if node >= 0:
                tokens += 1
                child = child_of(tree, node, rank)
                node = -1 if child is None else child
        total += probability
        mean += probability * tokens
    assert total == pytest.approx(1)
    assert acceptance.expected_tokens(tree) == pytest.approx(mean, abs=1e-9)


def step_by_step(
    tree: TokenTree, trace: list[int], by_depth: list[list[int]] | None = None
) -> tuple[int, int]:
    """Tokens and steps by the definition: whole steps that leave room for the longest one."""
    tokens = steps = start = 0
    while start + tree.depth + 1 <= len(trace):
        node, step_tokens = 0, 0
        while True:
            if by_depth is None:
                rank = trace[start + step_tokens]
            else:
                rank = by_depth[step_tokens][start] if step_tokens < len(by_depth) else 0
            step_tokens += 1
            child = child_of(tree, node, rank)
            if child is None:
                break
            node = child
        tokens, steps, start = tokens + step_tokens, steps + 1, start + step_tokens
    return tokens, steps


@given(tree=trees(max_size=12), traces=st.lists(st.lists(st.integers(0, 4)), max_size=4))
def test_replay_against_the_definition(tree: TokenTree, traces: list[list[int]]) -> None:
    acceptance = Acceptance(np.full(4, 0.2), traces=traces)
    others = [shapes.chain(3), tree, shapes.k_ary(3, 2)]
    tokens, steps = acceptance.replay(others)
    for row, other in enumerate(others):
        assert list(zip(tokens[row], steps[row], strict=True)) == [
            step_by_step(other, trace) for trace in traces
        ]


@st.composite
def traces_by_depth(draw: st.DrawFn) -> tuple[list[list[int]], list[list[list[int]]]]:
    depths, lengths = draw(st.integers(1, 4)), draw(st.lists(st.integers(0, 9), max_size=4))

    def ranks(length: int) -> list[int]:
        return draw(st.lists(st.integers(0, 4), min_size=length, max_size=length))

    documents = [[ranks(length) for _ in range(depths)] for length in lengths]
    return [ranks(length) for length in lengths], documents


@given(tree=trees(max_size=12), both=traces_by_depth())
def test_replay_by_depth_against_the_definition(
    tree: TokenTree, both: tuple[list[list[int]], list[list[list[int]]]]
) -> None:
    """The ranks of a step are those of its own start; behind the last depth there are none."""
    traces, by_depth = both
    acceptance = Acceptance(np.full(4, 0.2), traces=traces, traces_by_depth=by_depth)
    others = [shapes.chain(6), tree, shapes.k_ary(3, 2)]
    expected = [[step_by_step(other, *one) for one in zip(*both, strict=True)] for other in others]
    tokens, steps = acceptance.replay(others)
    for row, counts in enumerate(expected):
        assert list(zip(tokens[row], steps[row], strict=True)) == counts
    half = acceptance.of_documents(range(0, len(traces), 2))
    assert half.replay(others)[0].tolist() == tokens[:, ::2].tolist()


def test_short_traces_do_not_bias_replay() -> None:
    """The end of a document cuts long steps more often than short ones."""
    generator = np.random.default_rng(0)
    rates = np.array([0.75])
    traces = generator.choice(2, p=[0.25, 0.75], size=(4000, 60)).tolist()
    acceptance = Acceptance(rates, traces=traces)
    tree = shapes.chain(13)
    assert acceptance.replayed_tokens(tree) == pytest.approx(
        acceptance.expected_tokens(tree), rel=0.005
    )


def test_replay_of_independent_traces_approaches_expected_tokens() -> None:
    rates = np.array([0.5, 0.2, 0.1])
    generator = np.random.default_rng(0)
    draws = generator.choice(4, p=[0.2, *rates], size=(40, 2000))
    acceptance = Acceptance(rates, traces=draws.tolist())
    for tree in (shapes.chain(5), shapes.k_ary(3, 2), shapes.k_sequences(2, 4)):
        expected = acceptance.expected_tokens(tree)
        assert acceptance.replayed_tokens(tree) == pytest.approx(expected, rel=0.01)
        low, high = interval(acceptance.replicates([tree], 500)[0])
        assert low < expected < high


def test_without_traces_nothing_is_replayed() -> None:
    acceptance = Acceptance(np.array([0.5]))
    assert acceptance.replayed_tokens(shapes.chain(3)) is None
    assert acceptance.replicates([shapes.chain(3)], 2).tolist() == [[1.75] * 3]


def test_without_traces_the_rates_are_resampled() -> None:
    rates = np.array([0.5, 0.2])
    acceptance = Acceptance(rates, low=rates - 0.0392, high=rates + 0.0392)
    row = acceptance.replicates([shapes.k_ary(2, 1)], 4000)[0]
    assert row[0] == pytest.approx(1.7)
    assert row[1:].mean() == pytest.approx(1.7, abs=0.002)
    assert row[1:].std() == pytest.approx(np.hypot(0.02, 0.02), rel=0.05)


def test_a_tree_deeper_than_the_traces_is_judged_by_its_rates() -> None:
    acceptance = Acceptance(np.array([0.5]), traces=[[1, 0, 1, 1, 0]] * 3)
    shallow, deep = acceptance.replicates([shapes.chain(2), shapes.chain(9)], 3)
    assert shallow[0] == pytest.approx(acceptance.replayed_tokens(shapes.chain(2)))
    assert deep[0] == pytest.approx(acceptance.expected_tokens(shapes.chain(9)))
    assert [acceptance.can_replay(shapes.chain(nodes)) for nodes in (2, 5, 6)] == [
        True,
        True,
        False,
    ]


def test_file_round_trip(tmp_path: Path) -> None:
    acceptance = Acceptance(
        rates=np.array([0.6, 0.1, 1e-5]),
        low=np.array([0.5, 0.05, 0.0]),
        high=np.array([0.7, 0.2, 1e-4]),
        by_depth=np.array([[0.6, 0.1, 0.0], [0.5, 0.1, 0.0]]),
        measured=np.array([0.6, 0.1, 2e-5]),
        traces=[[1, 0, 2], []],
        traces_by_depth=[[[1, 0, 2], [3, 0, 0]], [[], []]],
        positions=3,
        target="a/b",
        draft="c",
        dataset="d",
        temperature=0.6,
        top_p=0.9,
        fit="isotonic",
        context=77.5,
        extra={"unknown": {"kept": True}},
    )
    path = tmp_path / "acceptance.yaml"
    acceptance.save(path)
    assert Acceptance.load(path).document() == acceptance.document()
    assert Acceptance.load(path).extra == {"unknown": {"kept": True}}


def test_a_file_needs_no_more_than_the_vector(tmp_path: Path) -> None:
    path = tmp_path / "vector.yaml"
    path.write_text("format: sequoia-opt/acceptance\nversion: 1\nacceptance: [0.5, 1e-3]\n")
    assert Acceptance.load(path).rates.tolist() == [0.5, 1e-3]


PAIR: dict[str, object] = {"traces": [[1, 2]]}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"acceptance": []}, "acceptance: found"),
        ({"acceptance": [0.5, 1.5]}, r"acceptance\[1\]: found 1.5, expected a number between 0"),
        ({"acceptance": [0.5, -0.1]}, r"acceptance\[1\]"),
        ({"acceptance": [0.8, 0.7]}, "sum to 1.5"),
        ({"acceptance": "0.5"}, "acceptance: found '0.5'"),
        ({"low": [0.1]}, "low: found"),
        ({"traces": [[1, 9]]}, "rank 9, expected at most 2"),
        ({"traces": [[1, -1]]}, r"traces\[0\]\[1\]"),
        ({"traces": 3}, "traces: found 3"),
        (PAIR | {"traces_by_depth": 3}, "traces_by_depth: found 3, expected 1 lists"),
        (PAIR | {"traces_by_depth": []}, r"found \[\], expected 1 lists, as many as `traces` has"),
        (PAIR | {"traces_by_depth": [7]}, r"traces_by_depth: found \[7\]"),
        (PAIR | {"traces_by_depth": [[[1, 9]]]}, r"by_depth\[0\]\[0\]: found rank 9, expected at"),
        (PAIR | {"traces_by_depth": [[[1]]]}, r"\[0\]\[0\]: found 1 ranks, expected 2, as many"),
        ({"traces_by_depth": [[[1]]]}, "expected 0 lists"),
        ({"by_depth": [[0.1], [0.1, 0.2]]}, "differ in length"),
        ({"temperature": -1}, "temperature: found -1"),
        ({"top_p": 2}, "top_p: found 2"),
        ({"positions": 1.5}, "positions: found 1.5"),
    ],
)
def test_refuses_malformed_files(tmp_path: Path, change: dict[str, object], complaint: str) -> None:
    document = {"format": "sequoia-opt/acceptance", "version": 1, "acceptance": [0.5, 0.2]}
    path = tmp_path / "acceptance.yaml"
    path.write_text(yaml.safe_dump(document | change))
    with pytest.raises(SequoiaError, match=complaint) as caught:
        Acceptance.load(path)
    assert str(path) in str(caught.value)


def test_short_answers_do_not_invent_steps_without_tokens() -> None:
    """A resample without any document that is long enough for a step is not counted."""
    acceptance = Acceptance(np.array([0.6]), traces=[[1, 0] * 40, *[[1, 0]] * 12])
    row = acceptance.replicates([shapes.chain(9)], 200)[0]
    assert (row > 1).all()
