from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import SMALL, Outcome, write

from sequoia_opt.engine.attention import Attend
from sequoia_opt.plan import shapes
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.tree import TokenTree


@pytest.fixture
def arguments(models: list[str]) -> list[Any]:
    """Of decoding a short text with the small pair and a tree for it."""
    shapes.k_ary(2, 2).save("k.json")
    return ["decode", "k.json", *models, "--prompt", "def", "--max-new-tokens", 30]


@pytest.fixture
def whole(run: Callable[..., Outcome], arguments: list[Any]) -> str:
    """The text, whatever tokens it has."""
    text: str = json.loads(run(*arguments, "--json", "--ignore-eos").out)["text"]
    return text


def test_stop_strings_end_the_text(
    run: Callable[..., Outcome], arguments: list[Any], whole: str
) -> None:
    middle = whole[len(whole) // 2 : len(whole) // 2 + 3]
    stopped = json.loads(run(*arguments, "--json", "--ignore-eos", "--stop", middle).out)
    assert stopped["text"] == whole[: whole.index(middle)]
    assert stopped["stopped"] == "stop"
    assert len(stopped["tokens"]) < 30


def test_the_text_that_is_shown_is_the_text(
    run: Callable[..., Outcome], arguments: list[Any]
) -> None:
    text = json.loads(run(*arguments, "--json").out)["text"]
    assert run(*arguments).out.startswith(text)


def test_trees_for_other_models_are_not_run_on_the_bundled_pair(
    run: Callable[..., Outcome],
) -> None:
    TokenTree([-1, 0], [0, 1], {"target": "big", "draft": "small"}).save("tree.json")
    assert "solved for target big" in run("decode", "tree.json").err


def test_streaming_never_shows_a_stop_string(
    run: Callable[..., Outcome], arguments: list[Any], whole: str
) -> None:
    middle = whole[len(whole) // 2 : len(whole) // 2 + 4]
    shown = run(*arguments, "--ignore-eos", "--stop", middle).out
    cut = whole[: whole.index(middle)]
    assert shown.startswith(cut + "\n")


def test_a_verifier_that_there_is_not_is_named_before_what_the_tree_was_solved_for(
    run: Callable[..., Outcome],
) -> None:
    metadata = {"verifier": "sequoia", "temperature": 0.6}
    TokenTree([-1, 0], [0, 1], metadata).save("tree.json")
    for command in ("decode", "bench"):
        done = run(command, "tree.json", "--verifier", "nucleus")
        assert done.code == 1
        assert "found 'nucleus', expected sequoia or specinfer" in done.err
    assert "was solved for verifier sequoia" in run("decode", "tree.json", "--verifier", "topk").err


def test_comparing_a_single_token_is_a_usage_error(run: Callable[..., Outcome]) -> None:
    assert run("decode", "--compare", "--max-new-tokens", 1).code == 2


def test_predictions_for_something_else_are_not_shown(
    run: Callable[..., Outcome], models: list[str]
) -> None:
    metadata = {
        "target": "small-target",
        "draft": "small-draft",
        "temperature": 0.0,
        "top_p": 1.0,
        "expected_tokens": 1.5,
    }
    tree = shapes.k_ary(2, 2)
    TokenTree(tree.parents, tree.ranks, metadata).save("k.json")
    arguments = [
        "decode",
        "k.json",
        *models,
        "--prompt",
        "def",
        "--max-new-tokens",
        9,
        "--ignore-eos",
    ]
    assert "predicted: 1.50" in run(*arguments).out
    assert "predicted" not in run(*arguments, "--temperature", "1").out


def test_compiling_follows_the_profile_that_a_tree_was_solved_for(
    run: Callable[..., Outcome], models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the draft gains nothing its forwards stay eager, in the profile and in decoding."""
    graphs_of: list[object] = []

    def eager(model: Any, last_position: int) -> Callable[..., Any]:
        graphs_of.append(model)

        def forward(tokens: Any, positions: Any, slots: Any, masks: Any, cache: Any) -> Any:
            tree = Attend(cache, slots, masks)
            return model(input_ids=tokens, position_ids=positions, tree=tree).logits

        return forward

    monkeypatch.setattr("sequoia_opt.engine.runner.compiled", eager)
    monkeypatch.setattr(
        "sequoia_opt.measure.profiler._compile_gains", lambda *_: {"target": 1.4, "draft": 0.8}
    )
    done = run("profile", *models, *SMALL, "--compile")
    assert done.code == 0, done.err
    assert "target: compiled forwards are 1.40 × as fast; measured compiled" in done.out
    assert "draft: compiled forwards are 0.80 × as fast; measured eager" in done.out
    (path,) = Path("profiles").glob("*/*+compiled.yaml")
    assert LatencyProfile.load(path).engine["compile"] == ["target"]
    run("import", write("rates.csv", "0.7,0.1\n"), "-o", "a.yaml")
    done = run("solve", "--profile", path, "--acceptance", "a.yaml", "-o", "t.json")
    assert done.code == 0, done.err
    for options, compiled in (
        ([], 1),
        (["--compile"], 1),
        (["--no-compile"], 0),
    ):
        graphs_of.clear()
        done = run("decode", "t.json", *models, "--max-new-tokens", 8, *options)
        assert done.code == 0, done.err
        assert len(graphs_of) == compiled
    shapes.chain(3).save("chain.json")
    graphs_of.clear()
    assert run("decode", "chain.json", *models, "--max-new-tokens", 8, "--compile").code == 0
    assert len(graphs_of) == 2
