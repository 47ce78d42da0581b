from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Outcome
from policies import random_policy

from sequoia_opt import demo
from sequoia_opt.plan import shapes
from sequoia_opt.plan.export import FORMATS, names_by_kind
from sequoia_opt.plan.tree import TokenTree


def test_export_speaks_json(run: Callable[..., Outcome]) -> None:
    shapes.chain(4).save("t.json")
    document = json.loads(run("export", "t.json", "--to", "llama.cpp", "--json").out)
    assert " --spec-draft-n-max 3 " in document["text"]


def test_a_failed_export_leaves_the_old_file(
    run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes.k_ary(2, 2).save("t.json")
    assert run("export", "t.json", "--to", "sequoia", "-o", "g.pt").code == 0
    old = Path("g.pt").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    failed = run("export", "t.json", "--to", "sequoia", "-o", "g.pt")
    assert (failed.code, "No space left" in failed.err) == (1, True)
    assert Path("g.pt").read_bytes() == old


def test_a_plan_that_does_not_hold_there_is_warned_of(run: Callable[..., Outcome]) -> None:
    metadata = {"temperature": 0.6, "verifier": "sequoia", "draft": "d", "draft_path": "/m/d"}
    TokenTree([-1, 0], [0, 1], metadata).save("warm.json")
    exported = run("export", "warm.json", "--to", "tensorrt-llm")
    assert exported.code == 0
    assert 'speculative_model: "/m/d"' in exported.out
    assert "note: above temperature 0 TensorRT-LLM drafts greedily" in exported.err
    assert "--verifier topk" in exported.err
    named = run("export", "warm.json", "--to", "vllm", "--draft", "x.gguf")
    assert '"model": "x.gguf"' in named.out
    assert '"draft_sample_method": "probabilistic"' in named.out


def test_the_bundled_draft_is_exported_by_its_folder(run: Callable[..., Outcome]) -> None:
    TokenTree([-1, 0], [0, 1], {"draft": demo.DRAFT_NAME}).save("t.json")
    assert str(demo.FOLDER / "draft") in run("export", "t.json", "--to", "sglang").out


def test_help_names_every_format(run: Callable[..., Outcome]) -> None:
    words = run("export", "--help").out.replace("│", " ").split()
    names = {word.strip(",;") for word in words}
    assert set(FORMATS) <= names


def test_an_adaptive_plan_is_said_to_be_cut_down(run: Callable[..., Outcome]) -> None:
    """Also where the draft is named anew."""
    tree = shapes.chain(3)
    TokenTree(tree.parents, tree.ranks, {}, random_policy((2, 2, 2), 0)).save("t.json")
    for options in ([], ["--draft", "d"]):
        done = run("export", "t.json", "--to", "eagle", *options)
        assert "EAGLE cannot grow trees by this plan's policy" in done.err


@pytest.mark.parametrize("to", FORMATS)
def test_an_export_of_another_tree_is_replaced(run: Callable[..., Outcome], to: str) -> None:
    wide = to not in names_by_kind()["chains"]
    earlier, later = (shapes.k_ary(2, 2), shapes.k_ary(2, 3)) if wide else map(shapes.chain, (3, 5))
    for number, tree in enumerate((earlier, later)):
        path = f"{number}.json"
        TokenTree(tree.parents, tree.ranks, {"draft_path": f"/m/d {number}"}).save(path)
        done = run("export", path, "--to", to, "-o", "there")
        if done.code == 1 and "rule" in done.err:
            pytest.skip("this format holds no fixed chain")
        assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("to", "content"),
    [
        ("vllm", "#!/bin/sh\nvllm serve m --speculative-config '{\"method\": \"ngram\"}'\n"),
        ("tensorrt-llm", "speculative_config:\n  decoding_type: Draft_Target\n  max_draft_len: 3\n"
         "  speculative_model: \"d\"\nkv_cache_config:\n  enable_block_reuse: true\n"),
        ("eagle", "[[1.5, 2.5], [3.5, 4.5]]\n"),
        ("eagle", "[[0], [0, 0]]\nand notes\n"),
        ("umbrella", '{"0": "cat", "1": "dog"}'),
    ],
)  # fmt: skip
def test_what_only_resembles_an_export_is_kept(
    run: Callable[..., Outcome], to: str, content: str
) -> None:
    shapes.chain(3).save("t.json")
    Path("there").write_text(content)
    done = run("export", "t.json", "--to", to, "-o", "there")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "holds something else than such an export" in done.err
    assert Path("there").read_text() == content
    assert run("export", "t.json", "--to", to, "-o", "there", "--force").code == 0
