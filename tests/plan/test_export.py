from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from policies import random_policy
from test_tree import trees

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes
from sequoia_opt.plan.export import FORMATS, export, names_by_kind
from sequoia_opt.plan.import_settings import read
from sequoia_opt.plan.tree import TokenTree

CHAINS = [name for name, form in FORMATS.items() if form.chains_only]
TREES = [name for name, form in FORMATS.items() if not form.chains_only and not form.dynamic]


@given(tree=trees(max_size=20))
def test_an_exported_tree_is_imported_as_the_same_tree(tree: TokenTree) -> None:
    if tree.size > 1:
        for name in TREES:
            assert read(export(tree, name)[0], "file") == tree


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("size", [2, 5, 12])
def test_an_exported_chain_is_imported_as_the_same_chain(name: str, size: int) -> None:
    assert read(export(shapes.chain(size), name)[0], "file") == shapes.chain(size)


def test_the_text_for_each_engine() -> None:
    """A chain of four guesses, as each engine's user pastes it."""
    tree = TokenTree(*(shapes.chain(5).parents, shapes.chain(5).ranks), {"draft": "small"})
    texts = {name: export(tree, name)[0] for name in FORMATS}
    assert shlex.split(texts["llama.cpp"]) == [
        *["-md", "small", "--spec-type", "draft-simple", "--spec-draft-n-max", "4"],
        *["--spec-draft-n-min", "0", "--spec-draft-p-min", "0"],
    ]
    assert json.loads(texts["vllm"].split("'")[1]) == {
        "method": "draft_model",
        "model": "small",
        "num_speculative_tokens": 4,
    }
    assert yaml.safe_load(texts["tensorrt-llm"])["speculative_config"]["max_draft_len"] == 4
    assert "--speculative-num-steps 4\n" in texts["sglang"]
    assert "--speculative-eagle-topk 1\n" in texts["sglang"]
    assert "--speculative-num-draft-tokens 5\n" in texts["sglang"]
    assert "num_assistant_tokens=4," in texts["transformers"]
    assert "assistant_confidence_threshold=0," in texts["transformers"]
    assert shlex.split(texts["mlx-lm"]) == ["--draft-model", "small", "--num-draft-tokens", "4"]
    assert "max_draft_tokens=4" in texts["onnxruntime-genai"]
    assert texts["eagle"] == "[[0], [0, 0], [0, 0, 0], [0, 0, 0, 0]]\n"
    static = yaml.safe_load(texts["tensorrt-llm-tree"])["speculative_config"]
    assert static["eagle_choices"] == json.loads(texts["medusa"])
    assert static["speculative_model"] == "small"
    assert yaml.safe_load(texts["tensorrt-llm-dynamic"])["speculative_config"] == {
        "decoding_type": "Eagle3",
        "max_draft_len": 4,
        "speculative_model": "small",
        "use_dynamic_tree": True,
        "dynamic_tree_max_topK": 1,
        "max_total_draft_tokens": 4,
    }


def test_notes_say_what_a_dynamic_tree_loses() -> None:
    tree = shapes.k_ary(3, 2)
    text, notes = export(tree, "sglang-dynamic")
    assert "--speculative-num-steps 2\n" in text
    assert "--speculative-eagle-topk 3\n" in text
    assert "--speculative-num-draft-tokens 13\n" in text
    assert any("is lost" in note for note in notes)
    assert any("counts the root" in note for note in notes)
    with pytest.raises(SequoiaError, match="grows this tree itself"):
        read(text, "file")


SAMPLED = [name for name, form in FORMATS.items() if not form.greedy_only]
VERIFIED = {name: form.verifiers for name, form in FORMATS.items() if not form.greedy_only}


@pytest.mark.parametrize("name", SAMPLED)
@pytest.mark.parametrize("verifier", ["sequoia", "specinfer", "topk"])
def test_notes_say_whether_the_acceptance_holds(name: str, verifier: str) -> None:
    """Above temperature 0 each engine accepts as some of the verifiers do, or as none."""

    def notes(temperature: float) -> str:
        metadata = {"temperature": temperature, "verifier": verifier}
        return "\n".join(export(TokenTree([-1, 0], [0, 1], metadata), name)[1])

    assert "above temperature 0" not in notes(0)
    if verifier in VERIFIED[name]:
        assert f"the acceptance measured for verifier {verifier} holds there" in notes(0.6)
    elif VERIFIED[name]:
        assert f"measured for verifier {verifier} does not hold there" in notes(0.6)
        assert f"estimate --verifier {VERIFIED[name][0]} --temperature 0.6" in notes(0.6)
    else:
        assert "no acceptance that this program measures holds there" in notes(0.6)


def test_the_verifiers_of_each_engine() -> None:
    """Engines that draft greedily accept as topk does, those that draw and test as sequoia does."""
    assert VERIFIED["llama.cpp"] == VERIFIED["tensorrt-llm"] == VERIFIED["sglang"] == ("topk",)
    assert "sequoia" in VERIFIED["transformers"]
    assert "topk" not in VERIFIED["onnxruntime-genai"]
    assert not VERIFIED["mlx-lm"]
    assert not VERIFIED["openvino-genai"]


def test_notes_name_versions_and_needs() -> None:
    for name, words in (
        ("vllm-tree", "42121"),
        ("eagle", "EAGLE-1"),
        ("tensorrt-llm-dynamic", "solved for a draft model does not run there"),
        ("llama.cpp", ".gguf"),
    ):
        assert any(words in note for note in export(shapes.chain(3), name)[1])


@pytest.mark.parametrize("path", ["/models/run 1/checkpoint-500", "it's", 'a"b', "C: [x]", "null"])
@pytest.mark.parametrize("name", FORMATS)
def test_the_draft_is_named_by_its_path(name: str, path: str) -> None:
    """A shell, JSON or YAML reads back the path of the draft's folder."""
    tree = TokenTree([-1, 0, 1], [0, 1, 1], {"draft": "checkpoint-500", "draft_path": path})
    text = export(tree, name)[0]
    if name.startswith("tensorrt-llm"):
        assert yaml.safe_load(text)["speculative_config"]["speculative_model"] == path
    elif name.startswith("vllm"):
        assert json.loads(shlex.split(text)[1])["model"] == path
    elif name.startswith("sglang"):
        words = shlex.split(text)
        assert words[words.index("--speculative-draft-model-path") + 1] == path
    elif name in ("llama.cpp", "mlx-lm"):
        assert shlex.split(text)[1] == path
    if not FORMATS[name].dynamic:
        assert read(text, "file") == tree


def test_an_engine_without_lookups_before_a_draft_is_told_the_model_alone() -> None:
    tree = TokenTree([-1, 0, 1], [0, 1, 1], {"draft": "lookup+org/small"})
    assert json.loads(shlex.split(export(tree, "vllm")[0])[1])["model"] == "org/small"


def test_transformers_drafts_as_the_export_says(make_model: Callable[..., Path]) -> None:
    """The library itself reads the export: its assistant drafts four tokens, however unsure."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.generation.candidate_generator import AssistedCandidateGenerator

    assistant = AutoModelForCausalLM.from_pretrained(make_model())
    exec(export(shapes.chain(5), "transformers")[0], {"assistant": assistant})
    assistant.generation_config.validate()
    assistant.generation_config.min_length, assistant.generation_config.max_length = 0, 32
    start = torch.tensor([[1, 2, 3]])
    generator = AssistedCandidateGenerator(
        start, assistant, assistant.generation_config, {}, inputs_tensor=start
    )
    candidates, _ = generator.get_candidates(start)
    assert candidates.shape == (1, 3 + 4)


@pytest.mark.parametrize(("depth", "most"), [(2, 6), (4, 14), (5, 18)])
def test_a_dynamic_tree_has_no_more_guesses_than_are_drafted(depth: int, most: int) -> None:
    """SGLang drafts k children of the root, then k of each of the k best at every level."""
    text, notes = export(shapes.k_ary(2, depth), "sglang-dynamic")
    assert f"--speculative-num-draft-tokens {most + 1}\n" in text
    assert any(f"and {most} guesses are all" in note for note in notes)


@pytest.mark.parametrize("name", CHAINS)
def test_siblings_are_refused_for_engines_that_draft_chains(name: str) -> None:
    with pytest.raises(SequoiaError, match="solve with --shape chain"):
        export(shapes.k_ary(2, 1), name)


def test_a_head_is_called_what_each_engine_calls_it() -> None:
    tree = TokenTree([-1, 0, 1], [0, 1, 1], {"draft": "head", "draft_passes": "head"})
    words = {
        "vllm": '"method": "eagle3"',
        "sglang": "--speculative-algorithm EAGLE3",
        "llama.cpp": "--spec-type draft-eagle3",
        "tensorrt-llm": "decoding_type: Eagle3",
    }
    for name, form in FORMATS.items():
        if not form.takes_heads:
            with pytest.raises(SequoiaError, match=r"EAGLE head, which .* does not take"):
                export(tree, name)
            continue
        text = export(tree, name)[0]
        assert words.get(name, "") in text
        if name in words:
            assert read(text, "file") == tree


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("passes", "words"), [("block", "tell .* 2 guesses"), ("none", "a lookup")]
)
def test_drafts_that_engines_are_told_of_otherwise_are_refused(
    name: str, passes: str, words: str
) -> None:
    tree = TokenTree([-1, 0, 1], [0, 1, 1], {"draft": "d", "draft_passes": passes})
    with pytest.raises(SequoiaError, match=words):
        export(tree, name)


def test_an_adaptive_plan_whose_best_fixed_tree_has_one_node_says_so() -> None:
    tree = TokenTree([-1], [0], {}, random_policy((2, 2, 2), 0))
    with pytest.raises(SequoiaError, match="the plan is adaptive, which vLLM cannot run"):
        export(tree, "vllm")


def test_one_node_is_not_exported() -> None:
    with pytest.raises(SequoiaError, match="decode plainly"):
        export(shapes.chain(1), "vllm")
    with pytest.raises(SequoiaError, match="found 'x', expected one of vllm"):
        export(shapes.chain(2), "x")


def test_names_by_kind_has_every_format_once() -> None:
    kinds = names_by_kind()
    assert kinds["chains"] == CHAINS
    assert kinds["trees"] == TREES
    assert sorted(name for names in kinds.values() for name in names) == sorted(FORMATS)
