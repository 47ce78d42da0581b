from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes
from sequoia_opt.plan.draft_passes import draft_passes
from sequoia_opt.plan.tree import AUTOREGRESSIVE, TokenTree


@st.composite
def trees(draw: st.DrawFn, max_size: int = 24) -> TokenTree:
    """Any tree, its nodes grown in any order."""
    size = draw(st.integers(1, max_size))
    parents, ranks, counts = [-1], [0], [0]
    for node in range(1, size):
        parent = draw(st.integers(0, node - 1))
        counts[parent] += 1
        parents.append(parent)
        ranks.append(counts[parent])
        counts.append(0)
    return TokenTree.from_any_order(parents, ranks)


def path_of(tree: TokenTree, node: int) -> tuple[int, ...]:
    path: list[int] = []
    while node:
        path.insert(0, tree.ranks[node])
        node = tree.parents[node]
    return tuple(path)


def child_of(tree: TokenTree, node: int, rank: int) -> int | None:
    """The child of that rank, if the node has one."""
    children = tree.children[node]
    return children[rank - 1] if 0 < rank <= len(children) else None


@given(trees())
def test_structure_agrees_with_paths(tree: TokenTree) -> None:
    paths = [path_of(tree, node) for node in range(tree.size)]
    assert len(set(paths)) == tree.size
    assert tree.depth == max(map(len, paths))
    assert tree.depths.tolist() == [len(path) for path in paths]
    assert paths == sorted(paths, key=lambda path: (len(path), path))
    for level, nodes in enumerate(tree.levels):
        assert [len(paths[node]) for node in nodes] == [level] * len(nodes)
    for a in range(tree.size):
        for b in range(tree.size):
            assert tree.ancestor_mask[a, b] == (paths[a][: len(paths[b])] == paths[b])
        children = [v for v in range(1, tree.size) if tree.parents[v] == a]
        assert tree.children[a] == sorted(children, key=lambda v: tree.ranks[v])
        assert tree.child_counts[a] == len(children)
    assert TokenTree.from_paths(paths) == tree


@given(tree=trees())
def test_file_round_trip(tree: TokenTree, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("tree") / "tree.json"
    saved = TokenTree(
        tree.parents, tree.ranks, {"temperature": 0.6, "somebody_elses": [1, {"a": 2}]}
    )
    saved.save(path)
    loaded = TokenTree.load(path)
    assert loaded == tree
    assert loaded.metadata == saved.metadata
    document = json.loads(path.read_text())
    assert document["format"] == "sequoia-opt/tree"
    assert (document["size"], document["depth"]) == (tree.size, tree.depth)


@pytest.mark.parametrize(
    ("parents", "ranks", "complaint"),
    [
        ([], [], "root"),
        ([0], [0], "root"),
        ([-1, 0], [0], "2 parents but 1 ranks"),
        ([-1, 1], [0, 1], r"parents\[1\]: found 1"),
        ([-1, 0, 0], [0, 1, 3], r"ranks\[2\]: found 3, expected 2"),
        ([-1, 0, 0], [0, 2, 1], r"ranks\[1\]: found 2, expected 1"),
        ([-1, 0, 0, 2, 1], [0, 1, 2, 1, 1], "breadth-first"),
    ],
)
def test_refuses_lists_that_are_not_a_tree(
    parents: list[int], ranks: list[int], complaint: str
) -> None:
    with pytest.raises(SequoiaError, match=complaint):
        TokenTree(parents, ranks)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"format": "sequoia-opt/profile"}, "format: found"),
        ({"version": 99}, "version: found 99"),
        ({"parents": [-1, "0"]}, r"parents\[1\]: found '0'"),
        ({"ranks": None}, "ranks: found None"),
        ({"size": 7}, "size: found 7, expected 2"),
        ({"depth": 3}, "depth: found 3, expected 1"),
        ({"temperature": "hot"}, "temperature: found 'hot'"),
        ({"replayed_tokens": "many"}, "replayed_tokens: found 'many'"),
        ({"hardware": None}, "hardware: found None"),
        ({"predicted": {}}, "tokens_per_second: missing|step_ms: missing"),
        (
            {
                "predicted": dict.fromkeys(("step_ms", "tokens_per_second", "speedup"), 1.0)
                | {"tokens_low": "few"}
            },
            "tokens_low: found 'few'",
        ),
        ({"verifier": 3}, "verifier: found 3"),
    ],
)
def test_refuses_malformed_files(tmp_path: Path, change: dict[str, object], complaint: str) -> None:
    path = tmp_path / "tree.json"
    path.write_text(json.dumps(shapes.chain(2).document() | change))
    with pytest.raises(SequoiaError, match=complaint) as caught:
        TokenTree.load(path)
    assert str(path) in str(caught.value)


def test_refuses_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(SequoiaError, match="no such file"):
        TokenTree.load(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text('{"format": ')
    with pytest.raises(SequoiaError, match="not valid JSON"):
        TokenTree.load(tmp_path / "broken.json")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(SequoiaError, match="expected a mapping"):
        TokenTree.load(tmp_path / "list.json")


def test_shapes() -> None:
    assert shapes.chain(1) == AUTOREGRESSIVE
    assert draft_passes(shapes.chain(4)) == (2, 1, 1)
    assert shapes.chain(4).depth == 3
    sequences = shapes.k_sequences(3, 4)
    assert (sequences.size, sequences.depth) == (13, 4)
    assert draft_passes(sequences) == (2, 3, 3, 3)
    assert shapes.k_ary(2, 3).size == 15
    with pytest.raises(SequoiaError, match="elder sibling"):
        TokenTree.from_paths([(2,)])
