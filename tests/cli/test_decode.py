from __future__ import annotations

import json
import re
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import pytest
from command_line import SMALL, Outcome, write

from sequoia_opt.engine.torch.attention import Attend
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


@pytest.mark.parametrize("temperature", [0, 1])
def test_comparing_is_with_the_librarys_own_forward_too(
    run: Callable[..., Outcome], models: list[str], temperature: int
) -> None:
    shapes.k_ary(2, 2).save("k.json")
    arguments = ["decode", "k.json", *models, "--prompt", "def", "--max-new-tokens", 9]
    arguments += ["--dtype", "float64", "--compare", "--repeats", 1, "--temperature", temperature]
    document = json.loads(run(*arguments, "--json").out)
    assert document["compare"]["library"] == {"prompts": 1, "divergences": []}
    words = "greedy tokens agree with transformers' own forward pass on 1 prompt"
    assert words in run(*arguments).out


def test_comparing_a_single_token_is_a_usage_error(run: Callable[..., Outcome]) -> None:
    assert run("decode", "--compare", "--max-new-tokens", 1).code == 2


def test_a_tree_of_one_node_is_not_compared_with_itself(
    run: Callable[..., Outcome], models: list[str], dataset: Path
) -> None:
    """It is plain decoding, and is called so, by `bench` too."""
    shapes.chain(1).save("one.json")
    arguments = ["decode", "one.json", *models, "--prompt", "def", "--max-new-tokens", 4]
    done = run(*arguments, "--compare", "--repeats", 1)
    assert done.code == 0, done.err
    assert "the tree has one node: plain decoding" in done.out
    rows = [line for line in done.out.splitlines() if re.search(r"\.\d\dx", line)]
    assert [row.split()[0] for row in rows] == ["plain"]
    document = json.loads(run(*arguments, "--compare", "--repeats", 1, "--json").out)
    assert [result["name"] for result in document["compare"]["results"]] == ["plain"]
    assert document["compare"]["divergences"] == []
    raced = ["bench", "one.json", *models, "--dataset", dataset, "--methods", "plain,tree"]
    done = run(*raced, "--max-new-tokens", 4, "--repeats", 1, "--json")
    assert [result["name"] for result in json.loads(done.out)["results"]] == ["plain"]
    assert "one node, which is plain decoding" in done.err


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

    def eager(model: Any, *_: object) -> Callable[..., Any]:
        graphs_of.append(model)

        def forward(tokens: Any, positions: Any, slots: Any, masks: Any, cache: Any) -> Any:
            tree = Attend(cache, slots, masks).arguments()
            return model(input_ids=tokens, position_ids=positions, **tree).logits, ()

        return forward

    monkeypatch.setattr("sequoia_opt.engine.torch.compile.compiled", eager)
    monkeypatch.setattr(
        "sequoia_opt.measure.profiler._Profiling._compile_gains",
        lambda *_: {"target": 1.4, "draft": 0.8},
    )
    done = run("profile", *models, *SMALL, "--compile")
    assert done.code == 0, done.err
    assert "target: 1.40x as fast when compiled; measured compiled" in done.out
    assert "draft: 0.80x as fast when compiled; measured without compiling" in done.out
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


def test_a_prompt_comes_from_a_file_or_from_standard_input(
    run: Callable[..., Outcome], models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes.chain(3).save("k.json")
    common = ["decode", "k.json", *models, "--max-new-tokens", 8, "--json"]
    wanted = json.loads(run(*common, "--prompt", "def fé():\n").out)["tokens"]
    path = write("prompt.txt", "def fé():\n")
    assert json.loads(run(*common, "--prompt-file", path).out)["tokens"] == wanted
    with path.open("rb") as stream:
        monkeypatch.setattr("sys.stdin", TextIOWrapper(stream))
        assert json.loads(run(*common, "--prompt", "-").out)["tokens"] == wanted
    Path("bytes").write_bytes(b"\xff\xfe\xfa")
    with Path("bytes").open("rb") as stream:
        monkeypatch.setattr("sys.stdin", TextIOWrapper(stream))
        failed = run(*common, "--prompt", "-")
    assert (failed.code, failed.err.count("\n")) == (1, 1)
    assert "is not UTF-8" in failed.err


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--prompt", "a", "--prompt-file", "b"], "expected one"),
        (["--system", "Be brief."], "goes with --chat"),
        (["-o", "b.jsonl"], "No such option: -o"),
        (["--logit-bias", "a=b"], "as 42=-5"),
        (["--logit-bias", "4=1", "--compare"], "needs unprocessed logits"),
        (["--repetition-penalty", "2", "--stats", "s"], "needs unprocessed logits"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(
    run: Callable[..., Outcome], options: list[str], complaint: str
) -> None:
    shapes.chain(3).save("chain.json")
    failed = run("decode", "chain.json", *options)
    assert failed.code == 2
    assert complaint in failed.err


def test_a_bias_and_a_penalty_change_the_text(
    run: Callable[..., Outcome], arguments: list[Any]
) -> None:
    plain = json.loads(run(*arguments, "--json", "--ignore-eos").out)["tokens"]
    banned = max(plain, key=plain.count)
    biased = run(*arguments, "--json", "--ignore-eos", "--logit-bias", f"{banned}=-1e9")
    document = json.loads(biased.out)
    assert banned not in document["tokens"]
    assert document["bias"] == {str(banned): -1e9}
    penalised = run(*arguments, "--json", "--ignore-eos", "--repetition-penalty", 5)
    tokens = json.loads(penalised.out)["tokens"]
    assert len(set(tokens)) > len(set(plain))
    for option in (["--repetition-penalty", 0], ["--logit-bias", "99999=1"]):
        failed = run(*arguments, *option)
        assert (failed.code, failed.err.count("\n")) == (1, 1)


def test_what_is_missing_is_found_before_models_are_loaded(
    run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr("sequoia_opt.cli.decoding_options.load", load)
    write("notes.txt", "mine")
    for command in (["complete", "none.jsonl"], ["decode", "--stats", "notes.txt"]):
        failed = run(*command)
        assert failed.code == 1
        assert "loaded" not in failed.err


def test_statistics_of_several_temperatures_make_several_files(
    run: Callable[..., Outcome], models: list[str]
) -> None:
    shapes.k_ary(2, 2).save("k.json")
    for warmth in (0.7, 0.8):
        common = ["decode", "k.json", *models, "--prompt", "def", "--max-new-tokens", 30]
        assert run(*common, "--temperature", warmth, "--stats", "s.jsonl").code == 0
    done = run("estimate", "--from-stats", "s.jsonl", "--json")
    assert done.code == 0, done.err
    assert [each["temperature"] for each in json.loads(done.out)["estimates"]] == [0.7, 0.8]
    assert len(list(Path("profiles/acceptance").iterdir())) == 2
    refused = run("estimate", "--from-stats", "s.jsonl", "-o", "a.yaml")
    assert (refused.code, "decoded in 2 ways" in refused.err) == (2, True)


def own_settings(models: list[str], **settings: Any) -> None:
    path = Path(models[1]) / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": 1, **settings}))


def test_the_targets_own_settings_are_followed_and_named(
    run: Callable[..., Outcome], models: list[str]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    shapes.k_ary(2, 2).save("k.json")
    own_settings(
        models, repetition_penalty=1.3, no_repeat_ngram_size=40, do_sample=True, temperature=0.7,
        top_k=20,
    )  # fmt: skip
    common = ["decode", "k.json", *models, "--prompt", "def f", "--max-new-tokens", 30, "--json"]
    common += ["--dtype", "float64"]
    done = run(*common)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    library: Any = AutoModelForCausalLM.from_pretrained(models[1], dtype=torch.float64)
    ids = AutoTokenizer.from_pretrained(models[1])("def f", return_tensors="pt")["input_ids"]
    wanted = library.generate(ids, do_sample=False, max_new_tokens=30)
    assert found["tokens"] == wanted[0, ids.shape[1] :].tolist()
    assert found["repetition_penalty"] == 1.3
    where = "generation_config.json of small-target: "
    assert f"{where}applied: repetition_penalty 1.3" in done.err
    assert f"{where}not applied: no_repeat_ngram_size 40" in done.err
    differing = "temperature 0.7, top_k 20: decoding is greedy"
    assert f"{where}not applied: {differing}" in done.err
    assert "for these settings add --temperature 0.7 --top-k 20" in done.err
    done = run(*common, "--temperature", 0.7, "--top-k", 20)
    assert "for these settings" not in done.err
    assert json.loads(done.out)["top_k"] == 20

    plain = json.loads(run(*common, "--no-generation-config").out)
    chosen = run(*common, "--repetition-penalty", 1)
    assert json.loads(chosen.out)["tokens"] == plain["tokens"] != found["tokens"]
    assert "applied: repetition_penalty" not in chosen.err
    compared = json.loads(run(*common, "--compare", "--repeats", 1).out)
    assert compared["tokens"] == found["tokens"]
    assert compared["compare"]["results"][1]["agreement"] == 1
    for command in (["estimate"], ["bench", "k.json", "--methods", "plain,tree", "--limit", 2]):
        done = run(*command, *models, "--max-new-tokens", 4, "--dataset", write("t.txt", "a b c"))
        assert f"{where}its penalties and suppressed tokens are not applied here" in done.err


def test_the_targets_own_stop_strings_end_its_texts(
    run: Callable[..., Outcome], models: list[str], arguments: list[Any]
) -> None:
    whole = json.loads(run(*arguments, "--json").out)["text"]
    middle = whole[len(whole) // 2 : len(whole) // 2 + 3]
    own_settings(models, stop_strings=[middle])
    done = run(*arguments, "--json")
    assert json.loads(done.out)["text"] == whole[: whole.index(middle)]
    assert f"stop strings {middle!r}" in done.err
    assert json.loads(run(*arguments, "--json", "--stop", "\0").out)["text"] == whole


def test_what_may_be_drawn_is_part_of_every_file(
    run: Callable[..., Outcome], models: list[str], dataset: Path
) -> None:
    """Rates of a target that is cut, the tree that is solved from them, and texts decoded so."""
    cut = ["--temperature", 0.8, "--top-k", 5, "--min-p", 0.1]
    done = run("estimate", *models, "--dataset", dataset, "--max-new-tokens", 8, *cut)
    assert done.code == 0, done.err
    assert "top-p 1, top-k 5, min-p 0.1, sequoia" in done.out
    [rates] = Path("profiles/acceptance").glob("*.yaml")
    assert rates.name.endswith("--sequoia-T0.8-k5-m0.1.yaml")
    profile = ["profile", *models, *SMALL, "--verifiers", "sequoia", "-o", "p.yaml"]
    assert run(*profile).code == 0
    solved = ["--profile", "p.yaml", "--acceptance", rates, "--static", "-o", "t.json"]
    assert run("solve", *solved).code == 0
    tree = TokenTree.load("t.json")
    assert (tree.metadata["top_k"], tree.metadata["min_p"]) == (5, 0.1)
    common = ["decode", "t.json", *models, "--prompt", "def", "--max-new-tokens", 20, "--json"]
    found = json.loads(run(*common, "--stats", "s.jsonl").out)
    assert (found["top_k"], found["min_p"], found["temperature"]) == (5, 0.1, 0.8)
    other = json.loads(run(*common, "--top-k", 0, "--min-p", 0).out)
    assert (other["top_k"], other["min_p"]) == (0, 0)
    assert "predicted: " in run(*common[:-1], "--ignore-eos").out
    for other_cut in (["--top-k", 9], ["--min-p", 0.2]):  # what was predicted is not of this
        assert "predicted: " not in run(*common[:-1], "--ignore-eos", *other_cut).out
    line = json.loads(Path("s.jsonl").read_text())
    assert (line["top_k"], line["min_p"]) == (5, 0.1)
    done = run("bench", "t.json", *models, "--dataset", dataset, "--methods", "plain,generate,tree",
               "--max-new-tokens", 6, "--repeats", 1, "--json")  # fmt: skip
    assert done.code == 0, done.err
    assert json.loads(done.out)["top_k"] == 5
    for option in (["--top-k", -1], ["--min-p", 1.5]):
        assert run(*common, *option).code == 2


def test_penalties_for_what_the_new_text_has_change_it(
    run: Callable[..., Outcome], arguments: list[Any]
) -> None:
    plain = json.loads(run(*arguments, "--json", "--ignore-eos").out)["tokens"]
    for option in ("--presence-penalty", "--frequency-penalty"):
        document = json.loads(run(*arguments, "--json", "--ignore-eos", option, 50).out)
        assert len(set(document["tokens"])) > len(set(plain))
        assert document[option[2:].replace("-", "_")] == 50
    assert run(*arguments, "--presence-penalty", 1, "--compare").code == 2


def test_statistics_are_of_the_model_as_it_is(
    run: Callable[..., Outcome], models: list[str]
) -> None:
    shapes.chain(3).save("k.json")
    own_settings(models, repetition_penalty=1.3)
    common = ["decode", "k.json", *models, "--prompt", "x", "--max-new-tokens", 6]
    refused = run(*common, "--stats", "s.jsonl")
    assert refused.code == 2
    assert "add --no-generation-config" in refused.err
    assert run(*common, "--stats", "s.jsonl", "--no-generation-config").code == 0
    compared = json.loads(run(*common, "--compare", "--repeats", 1, "--json").out)["compare"]
    assert compared["library"]["divergences"] == []


def test_a_cut_without_effect_is_told_and_splits_no_files(
    run: Callable[..., Outcome], models: list[str]
) -> None:
    shapes.chain(3).save("k.json")
    common = ["decode", "k.json", *models, "--prompt", "x", "--max-new-tokens", 6, "--json"]
    done = run(*common, "--top-k", 5)
    assert "--top-k has no effect at temperature 0" in done.err
    assert json.loads(done.out)["top_k"] == 0
    assert "has no effect" not in run(*common).err
