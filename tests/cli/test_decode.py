from __future__ import annotations

import json
from collections.abc import Callable
from io import StringIO, TextIOWrapper
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
    words = "greedy tokens are those of transformers' own forward pass on 1 prompt"
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
    assert [line.split()[0] for line in done.out.splitlines() if " × " in line] == ["plain"]
    document = json.loads(run(*arguments, "--compare", "--repeats", 1, "--json").out)
    assert [result["name"] for result in document["compare"]["results"]] == ["plain"]
    assert document["compare"]["divergences"] == []
    raced = ["bench", "one.json", *models, "--dataset", dataset, "--methods", "plain,tree"]
    done = run(*raced, "--max-new-tokens", 4, "--repeats", 1, "--json")
    assert [result["name"] for result in json.loads(done.out)["results"]] == ["plain"]
    assert "one node: it is plain decoding" in done.err


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

    monkeypatch.setattr("sequoia_opt.engine.torch.runner.compiled", eager)
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
        (["--prompts", "a.jsonl", "--compare"], "goes with one prompt"),
        (["-o", "b.jsonl"], "goes with --prompts"),
        (["--logit-bias", "a=b"], "as 42=-5"),
        (["--logit-bias", "4=1", "--compare"], "the models as they are"),
        (["--repetition-penalty", "2", "--stats", "s"], "the models as they are"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(
    run: Callable[..., Outcome], options: list[str], complaint: str
) -> None:
    failed = run("decode", *options)
    assert failed.code == 2
    assert complaint in failed.err


def test_many_prompts_are_completed_and_taken_up_again(
    run: Callable[..., Outcome], models: list[str], dataset: Path
) -> None:
    shapes.k_ary(2, 2).save("k.json")
    sampling = ["--temperature", 0.8, "--seed", 3]
    common = ["decode", "k.json", *models, *sampling, "--max-new-tokens", 10, "--prompts", dataset]
    done = run(*common, "-o", "all.jsonl", "--stats", "traffic.jsonl", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["completed"] == 3
    lines = Path("all.jsonl").read_bytes().splitlines(keepends=True)
    assert [json.loads(line)["prompt"] for line in lines] == [f"def f{i}(x):\n" for i in range(3)]
    Path("some.jsonl").write_bytes(lines[0] + lines[1][:20])
    again = run(*common, "-o", "some.jsonl")
    assert "has 1 of 3 completions already" in again.err

    def kept(path: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in Path(path).read_text().splitlines()]
        return [{key: line[key] for key in line if key != "seconds"} for line in found]

    assert kept("some.jsonl") == kept("all.jsonl")
    other = run(*common, "-o", "all.jsonl", "--top-p", 0.9)
    assert (other.code, "another top_p" in other.err) == (1, True)

    rates = run("estimate", "--from-stats", "traffic.jsonl", "--json", "-o", "a.yaml")
    assert rates.code == 0, rates.err
    document = json.loads(rates.out)
    assert document["dataset"] == "traffic"
    assert len(document["acceptance"]) == 2
    assert document["positions"] >= sum(line["steps"] for line in kept("all.jsonl"))


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


TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_a_conversation_has_a_turn_for_each_line(
    run: Callable[..., Outcome], models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes.k_ary(2, 2).save("k.json")
    common = ["decode", "k.json", *models, "--chat", "--max-new-tokens", 9, "--ignore-eos"]
    assert "has no chat template" in run(*common).err
    for folder in models[1::2]:
        path = Path(folder) / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": TEMPLATE}))
    monkeypatch.setattr("sys.stdin", StringIO("first?\n\nsecond?\n"))
    done = run(*common, "--system", "be brief", "--json", "--dtype", "float64")
    assert done.code == 0, done.err
    first, second = json.loads(done.out)["turns"]
    assert [first["user"], second["user"]] == ["first?", "second?"]
    assert first["prompt_tokens"] < second["prompt_tokens"]
    write(
        "p.txt",
        "<system>be brief\n<user>first?\n"
        f"<assistant>{first['assistant']}\n<user>second?\n<assistant>",
    )
    alone = run(
        *common[:2], *models, "--prompt-file", "p.txt", "--max-new-tokens", 9, "--ignore-eos",
        "--json", "--dtype", "float64",
    )  # fmt: skip
    assert json.loads(alone.out)["tokens"] == second["tokens"]
    monkeypatch.setattr("sys.stdin", StringIO("first?\n"))
    shown = run(*common, "--system", "be brief", "--dtype", "float64").out
    assert shown.startswith(first["assistant"])


def test_a_prompt_that_cannot_be_used_has_its_line_and_the_others_theirs(
    run: Callable[..., Outcome], models: list[str]
) -> None:
    shapes.chain(3).save("k.json")
    prompts = ["def f", "x = 1\n" * 400, "", "a\ud800b", "class A"]
    records = [{"prompt": each, "completion": "SECRET"} for each in prompts]
    path = write("d.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    common = ["decode", "k.json", *models, "--max-new-tokens", 8, "--prompts", path]
    done = run(*common, "-o", "out.jsonl", "--json")
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert len(lines) == len(prompts)
    stopped = [line["stopped"] for line in lines]
    assert [stop == "error" for stop in stopped] == [False, True, False, True, False]
    assert "positions" in lines[1]["error"]
    alone = json.loads(run(*common[:-2], "--prompt", "", "--json").out)
    assert lines[2]["completion"] == alone["text"]  # and not what follows SECRET
    document = json.loads(done.out)
    assert (document["completed"], document["failed"]) == (3, 2)
    assert "prompt 2: " in done.err


def test_rules_are_part_of_what_a_file_of_completions_is_of(
    run: Callable[..., Outcome], models: list[str], dataset: Path
) -> None:
    shapes.chain(3).save("k.json")
    common = ["decode", "k.json", *models, "--max-new-tokens", 8, "--prompts", dataset]
    common += ["-o", "out.jsonl"]
    assert run(*common, "--repetition-penalty", 1.3).code == 0
    lines = Path("out.jsonl").read_bytes().splitlines(keepends=True)
    Path("out.jsonl").write_bytes(b"".join(lines[:2]))
    failed = run(*common)
    assert (failed.code, "another repetition_penalty" in failed.err) == (1, True)


def test_what_is_missing_is_found_before_models_are_loaded(
    run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr("sequoia_opt.cli.decode.load", load)
    write("notes.txt", "mine")
    for options in (["--prompts", "none.jsonl"], ["--stats", "notes.txt"]):
        failed = run("decode", *options)
        assert failed.code == 1
        assert "loaded" not in failed.err


def test_turns_of_a_conversation_that_fails_are_kept(
    run: Callable[..., Outcome], models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third line is longer than the models' positions."""
    for folder in models[1::2]:
        path = Path(folder) / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": TEMPLATE}))
    shapes.chain(3).save("k.json")
    monkeypatch.setattr("sys.stdin", StringIO(f"one\ntwo\n{'x = 1 ' * 400}\nfour\n"))
    done = run("decode", "k.json", *models, "--chat", "--max-new-tokens", 5, "--json")
    assert done.code == 1
    assert [turn["user"] for turn in json.loads(done.out)["turns"]] == ["one", "two"]
    assert done.err.count("error: ") == 1


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


# The tenth of twelve records, and what is said of it.
TENTH = {
    "too long": (json.dumps({"prompt": "x = 1\n" * 400}).encode(), "positions"),
    "empty line in braces": (b"{}", "expected a field"),
    "wrong type": (b'{"prompt": 3}', "prompt: found 3"),
    "half of a character": (b'{"prompt": "a\\ud800b"}', "half of a character"),
    "not UTF-8": (b'{"prompt": "\xff\xfe"}', "not UTF-8"),
    "not JSON": (b'{"prompt": ', "not valid JSON"),
    "no such token": (b'{"prompt": [1, 999999]}', "token"),
    "a picture": (b'{"messages": [{"role": "user", "content": [{"image": 1}]}]}', "a part"),
}


@pytest.mark.parametrize("kind", TENTH)
def test_one_record_stops_no_run(
    run: Callable[..., Outcome], models: list[str], kind: str, tmp_path: Path
) -> None:
    """Of every command that reads a dataset: a line for that record, and nothing is lost."""
    record, complaint = TENTH[kind]
    records = [json.dumps({"prompt": f"def f{i}(x):\n"}).encode() for i in range(12)]
    records[9] = record
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\n".join(records))
    shapes.chain(3).save("k.json")
    common = [*models, "--max-new-tokens", 8]
    done = run("decode", "k.json", *common, "--prompts", path, "-o", "out.jsonl")
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [line["stopped"] == "error" for line in lines] == [i == 9 for i in range(12)]
    assert complaint in lines[9]["error"]
    told = [line for line in done.err.splitlines() if complaint in line]
    assert len(told) == 1
    assert told[0].startswith("prompt 10: ")
    assert "1 of 12 prompts could not be completed; their lines say why" in done.err

    # Taken up at any line, that of the tenth record among them, the file is the same.
    whole = Path("out.jsonl").read_bytes().splitlines(keepends=True)
    Path("out.jsonl").write_bytes(b"".join(whole[:10]))
    done = run("decode", "k.json", *common, "--prompts", path, "-o", "out.jsonl")
    assert done.code == 0, done.err
    again = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    for line in (*lines, *again):
        line.pop("seconds")
    assert again == lines

    for command in (
        ["estimate", *common, "--dataset", path],
        ["bench", "k.json", *common, "--dataset", path, "--methods", "plain,tree", "--limit", 12,
         "--repeats", 1],
    ):  # fmt: skip
        done = run(*command, "--json")
        assert done.code == 0, done.err
        found = json.loads(done.out)
        if command[0] == "estimate" and kind == "too long":
            assert "1 prompts of more than" in done.err  # their ends are sampled from
            assert found["documents"] == 12
            continue
        assert found["documents" if command[0] == "estimate" else "prompts"] == 11
        assert len([line for line in done.err.splitlines() if complaint in line]) == 1


def test_a_records_other_fields_are_kept(
    run: Callable[..., Outcome], models: list[str], tmp_path: Path
) -> None:
    records = [
        {"task_id": f"X/{i}", "prompt": f"def f{i}(x):\n", "test": "…", "tags": ["a", None]}
        for i in range(2)
    ]
    records.append({"task_id": "X/2", "prompt": None})
    records.append({"prompt": "a", "completion": "SECRET", "seed": 7, "target": "t", "record": 1})
    path = write("d.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    shapes.chain(3).save("k.json")
    common = ["decode", "k.json", *models, "--max-new-tokens", 4, "--prompts", path]
    assert run(*common, "-o", "out.jsonl").code == 0
    lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [line.get("task_id") for line in lines] == ["X/0", "X/1", "X/2", None]
    for line, record in zip(lines[:2], records[:2], strict=True):
        assert {key: line[key] for key in record} == record
    # What has the name of one of the line's own is set aside.
    last = lines[3]
    assert last["record"] == {"completion": "SECRET", "seed": 7, "target": "t", "record": 1}
    assert (last["seed"], last["target"]) == (0, "small-target")
    assert "SECRET" not in last["completion"]


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
    assert f"{where}not applied: temperature 0.7, top_k 20, for greedy decoding" in done.err
    assert "--temperature 0.7 --top-k 20 samples so" in done.err
    done = run(*common, "--temperature", 0.7, "--top-k", 20)
    assert "for this sampling" not in done.err
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
    [rates] = Path("profiles/acceptance").iterdir()
    assert rates.name.endswith("--sequoia-T0.8-k5-m0.1.yaml")
    assert run("profile", *models, *SMALL, "-o", "p.yaml").code == 0
    assert run("solve", "--profile", "p.yaml", "--acceptance", rates, "-o", "t.json").code == 0
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


def test_files_of_completions_without_newer_settings_are_continued(
    run: Callable[..., Outcome], models: list[str], dataset: Path
) -> None:
    shapes.chain(3).save("k.json")
    common = ["decode", "k.json", *models, "--max-new-tokens", 4, "--prompts", dataset]
    common += ["-o", "out.jsonl"]
    assert run(*common).code == 0
    lines = Path("out.jsonl").read_text().splitlines(keepends=True)
    assert not {"top_k", "min_p", "presence_penalty", "chat"} & json.loads(lines[0]).keys()
    Path("out.jsonl").write_text(lines[0])
    assert run(*common).code == 0
    Path("out.jsonl").write_text(lines[0])
    for options in (["--presence-penalty", 1.5], ["--temperature", 0.5, "--top-k", 3]):
        failed = run(*common, *options)
        assert (failed.code, "is of another" in failed.err) == (1, True)
    first = json.loads(lines[0]) | {"presence_penalty": 1.5}
    Path("out.jsonl").write_text(json.dumps(first) + "\n")
    assert "is of another presence_penalty" in run(*common).err


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
    assert "--top-k does nothing at temperature 0" in done.err
    assert json.loads(done.out)["top_k"] == 0
    assert "does nothing" not in run(*common).err
