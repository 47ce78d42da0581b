from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given
from test_tree import trees

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes
from sequoia_opt.plan.export import FORMATS, export, growmap, of_growmap, read
from sequoia_opt.plan.tree import TokenTree

CHAINS = [name for name, form in FORMATS.items() if form.chains_only]
TREES = [name for name, form in FORMATS.items() if not form.chains_only and not form.dynamic]


@given(tree=trees(max_size=20))
def test_trees_come_back(tree: TokenTree) -> None:
    assert of_growmap(growmap(tree), "there") == tree
    if tree.size > 1:
        for name in TREES:
            assert read(export(tree, name)[0], "there") == tree


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("size", [2, 5, 12])
def test_chains_come_back(name: str, size: int) -> None:
    assert read(export(shapes.chain(size), name)[0], "there") == shapes.chain(size)


def test_settings_that_contradict_each_other_are_refused() -> None:
    both = "num_speculative_tokens: 4\nmax_draft_len: 5\n"
    with pytest.raises(SequoiaError, match="there: found chains of 4 and 5 guesses, expected one"):
        read(both, "there")
    assert read(both.replace("5", "4"), "there") == shapes.chain(5)


def test_what_each_engine_is_told() -> None:
    """A chain of four guesses, as each engine's user pastes it."""
    tree = TokenTree(*(shapes.chain(5).parents, shapes.chain(5).ranks), {"draft": "small"})
    said = {name: export(tree, name)[0] for name in FORMATS}
    assert said["llama.cpp"] == "--spec-draft-n-max 4\n"
    assert json.loads(said["vllm"].split("'")[1]) == {
        "method": "draft_model",
        "model": "small",
        "num_speculative_tokens": 4,
    }
    assert yaml.safe_load(said["tensorrt-llm"])["speculative_config"]["max_draft_len"] == 4
    assert "--speculative-num-steps 4\n" in said["sglang"]
    assert "--speculative-eagle-topk 1\n" in said["sglang"]
    assert "--speculative-num-draft-tokens 5\n" in said["sglang"]
    assert "num_assistant_tokens=4," in said["transformers"]
    assert "assistant_confidence_threshold=0," in said["transformers"]
    assert said["eagle"] == "[[0], [0, 0], [0, 0, 0], [0, 0, 0, 0]]\n"
    choices = yaml.safe_load(said["tensorrt-llm-tree"])["speculative_config"]["eagle_choices"]
    assert choices == json.loads(said["medusa"])


def test_the_growmap_is_umbrellas() -> None:
    """Two sequences of four, as in UMbreLLa's repository."""
    found = growmap(shapes.k_sequences(2, 4))
    assert found["roots"] == [[0], [1, 2], [3, 4], [5, 6], [7, 8]]
    assert found["branches"] == [[2], [1, 1], [1, 1], [1, 1], [0, 0]]
    assert found["Successors"] == [[1, 2], [3], [4], [5], [6], [7], [8], [], []]
    assert found["mask"][7] == [1, 1, 0, 1, 0, 1, 0, 1, 0]
    assert found["depth"] == [0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert found["size"] == 9


def test_dynamic_trees_say_what_is_lost() -> None:
    tree = shapes.k_ary(3, 2)
    text, notes = export(tree, "sglang-dynamic")
    assert "--speculative-num-steps 2\n" in text
    assert "--speculative-eagle-topk 3\n" in text
    assert "--speculative-num-draft-tokens 13\n" in text
    assert any("is lost" in note for note in notes)
    assert any("counts the root" in note for note in notes)
    with pytest.raises(SequoiaError, match="grows this tree itself"):
        read(text, "there")


def test_drafting_that_was_not_measured_is_said() -> None:
    warm = TokenTree([-1, 0, 0], [0, 1, 2], {"temperature": 0.6, "verifier": "sequoia"})
    assert any("does not hold" in note for note in export(warm, "eagle")[1])
    assert not any("does not hold" in note for note in export(shapes.chain(2), "eagle")[1])
    assert any("42121" in note for note in export(warm, "vllm-tree")[1])


@pytest.mark.parametrize("name", CHAINS)
def test_an_engine_of_chains_refuses_siblings(name: str) -> None:
    with pytest.raises(SequoiaError, match="solve with --shape chain"):
        export(shapes.k_ary(2, 1), name)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[[0], [2]]", r"path \[2\] has no elder sibling: its ranks have a gap"),
        ("[[0], [1, 0]]", r"path \[1, 0\] has no parent \[1\]"),
        ("[[0], [-1]]", r"found path \[-1\]"),
        ("[[0], 3]", "found path 3"),
        ("[]", "found no paths"),
        ("[[0], [", "neither JSON nor"),
        ("hello", "none of the known formats"),
        ('{"Successors": [[1], [2]]}', r"Successors\[1\]: found 2"),
        ('{"Successors": [[1], [], []]}', "node 2 is missing"),
        ('{"Successors": [[1, 2], [2], []]}', "node 2 has two parents"),
        ('{"Successors": [[1], []], "size": 3}', "size: found 3"),
    ],
)
def test_what_cannot_be_imported(text: str, complaint: str) -> None:
    with pytest.raises(SequoiaError, match="there: .*" + complaint):
        read(text, "there")


def test_one_node_is_not_exported() -> None:
    with pytest.raises(SequoiaError, match="decode plainly"):
        export(shapes.chain(1), "vllm")
    with pytest.raises(SequoiaError, match="found 'x', expected one of vllm"):
        export(shapes.chain(2), "x")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("eagle_choices:\n- [0]\n- [1]\n", "eagle_choices: found no list"),
        ('{"max_draft_len": 3, "dynamic_tree_max_topK": 10}', "grows this tree itself"),
        ('{"Successors": [[1], []], "size": "two"}', "size: found two"),
        ("[" * 5000, "neither JSON nor"),
    ],
)
def test_trees_are_not_taken_for_chains(text: str, complaint: str) -> None:
    with pytest.raises(SequoiaError, match=complaint):
        read(text, "there")


def test_paths_over_several_lines() -> None:
    assert read("eagle_choices: [[0],\n  [1]]", "there") == shapes.k_ary(2, 1)
