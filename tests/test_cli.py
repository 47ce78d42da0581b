from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from brute_force import random_profile

from sequoia_opt import __version__, cli, demo
from sequoia_opt.engine.attention import Attend
from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.tree import TokenTree

SMALL = ["--tokens", "1,2,4,8,16", "--contexts", "16,64", "--repeats", "5"]


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Runs a command line in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["sequoia-opt", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capfd.readouterr()
        code = stopped.value.code
        return Outcome(code if isinstance(code, int) else 0, captured.out, captured.err)

    return call


@pytest.fixture
def models(make_model: Callable[..., Path], tmp_path: Path) -> list[str]:
    """Options that name a small pair of two architectures, with the bundled tokenizer."""
    options = []
    for role, architecture in (("target", "qwen3"), ("draft", "gpt_neox")):
        folder = tmp_path / f"small-{role}"
        shutil.copytree(make_model(architecture, vocab_size=2048, spread=0.05), folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(demo.FOLDER / "target" / name, folder)
        options += [f"--{role}", str(folder)]
    return options


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    path = tmp_path / "numbers.jsonl"
    records = [{"prompt": f"def f{i}(x):\n", "completion": "    return x\n"} for i in range(3)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize(
    ("temperature", "verifier"),
    [("0", "greedy"), ("0.6", "sequoia"), ("0.6", "specinfer"), ("0.6", "topk")],
)
def test_the_four_commands_in_a_row(
    run: Callable[..., Outcome], models: list[str], dataset: Path, temperature: str, verifier: str
) -> None:
    named = "sequoia" if verifier == "greedy" else verifier
    done = run("profile", *models, *SMALL, "--verifiers", named)
    assert done.code == 0, done.err
    assert "milliseconds of a forward" in done.out
    (profile,) = Path("profiles").glob("*/small-target--small-draft--float32.yaml")
    assert str(profile) in done.err
    done = run(
        "estimate",
        *models,
        "--dataset",
        dataset,
        "--temperature",
        temperature,
        "--verifier",
        named,
        "--max-new-tokens",
        24,
        "--width",
        6,
    )
    assert done.code == 0, done.err
    name = f"small-target--small-draft--numbers--{verifier}-T{temperature}.yaml"
    acceptance = Path("profiles/acceptance") / name
    assert Acceptance.load(acceptance).positions > 0
    done = run("solve", "--profile", profile, "--acceptance", acceptance, "--max-size", 12)
    assert done.code == 0, done.err
    assert "chosen" in done.out
    assert "chain" in done.out
    slug = LatencyProfile.load(profile).hardware["slug"]
    tree = (
        Path("trees")
        / slug
        / f"small-target--small-draft--float32--numbers-{verifier}-T{temperature}.json"
    )
    loaded = TokenTree.load(tree)
    assert loaded.size <= 12
    assert loaded.metadata["verifier"] == verifier
    assert loaded.metadata["provenance"]["profile"]["file"] == profile.name
    done = run(
        "decode",
        tree,
        *models,
        "--prompt",
        "def g",
        "--max-new-tokens",
        12,
        "--compare",
        "--repeats",
        1,
        "--ignore-eos",
    )
    assert done.code == 0, done.err
    assert "12 tokens in" in done.out
    assert "tree" in done.out
    if temperature == "0":
        assert "agree with plain decoding" in done.out or "two best logits" in done.out
        return
    decoding = ["decode", tree, *models, "--prompt", "a", "--max-new-tokens", 4, "--verifier"]
    for other in ("sequoia", "specinfer", "topk", "traversal"):
        done = run(*decoding, other)
        if other == verifier or (other, verifier) == ("traversal", "sequoia"):
            assert done.code == 0, done.err
        else:
            assert done.code == 1
            assert f"solved for verifier {verifier}, found --verifier {other}" in done.err


def test_json_is_one_document_and_nothing_else(
    run: Callable[..., Outcome], models: list[str], dataset: Path
) -> None:
    profile = json.loads(run("profile", *models, *SMALL, "-o", "p.yaml", "--json").out)
    assert profile == yaml.safe_load(Path("p.yaml").read_text())
    acceptance = json.loads(
        run(
            "estimate",
            *models,
            "--dataset",
            dataset,
            "--max-new-tokens",
            8,
            "-o",
            "a.yaml",
            "--json",
        ).out
    )
    assert acceptance == yaml.safe_load(Path("a.yaml").read_text())
    tree = json.loads(
        run("solve", "--profile", "p.yaml", "--acceptance", "a.yaml", "-o", "t.json", "--json").out
    )
    assert tree == json.loads(Path("t.json").read_text())
    assert tree["format"] == "sequoia-opt/tree"
    shapes.k_ary(2, 2).save("k.json")
    decoded = json.loads(
        run("decode", "k.json", *models, "--prompt", "def", "--max-new-tokens", 9, "--json").out
    )
    assert {"text", "tokens", "steps", "tokens_per_step", "tokens_per_second", "seconds"} <= set(
        decoded
    )
    assert len(decoded["tokens"]) <= 9


def test_solving_again_gives_the_same_tree(
    run: Callable[..., Outcome], models: list[str], dataset: Path
) -> None:
    run("profile", *models, *SMALL, "-o", "p.yaml")
    run("estimate", *models, "--dataset", dataset, "--max-new-tokens", 8, "-o", "a.yaml")
    arguments = ["solve", "--profile", "p.yaml", "--acceptance", "a.yaml", "--json", "-o", "t.json"]
    assert run(*arguments).out == run(*arguments).out


def test_stop_strings_end_the_text(run: Callable[..., Outcome], models: list[str]) -> None:
    shapes.k_ary(2, 2).save("k.json")
    arguments = [
        "decode",
        "k.json",
        *models,
        "--prompt",
        "def",
        "--max-new-tokens",
        30,
        "--json",
        "--ignore-eos",
    ]
    whole = json.loads(run(*arguments).out)["text"]
    middle = whole[len(whole) // 2 : len(whole) // 2 + 3]
    stopped = json.loads(run(*arguments, "--stop", middle).out)
    assert stopped["text"] == whole[: whole.index(middle)]
    assert stopped["stopped"] == "stop"
    assert len(stopped["tokens"]) < 30


def test_the_text_that_is_shown_is_the_text(run: Callable[..., Outcome], models: list[str]) -> None:
    shapes.k_ary(2, 2).save("k.json")
    arguments = ["decode", "k.json", *models, "--prompt", "def", "--max-new-tokens", 30]
    text = json.loads(run(*arguments, "--json").out)["text"]
    assert run(*arguments).out.startswith(text)


def test_bench_puts_methods_side_by_side(
    run: Callable[..., Outcome], models: list[str], dataset: Path
) -> None:
    """Every method there is, at a temperature at which all of them differ."""
    rates = Acceptance(np.array([0.6, 0.2, 0.1]), temperature=0.7, verifier="sequoia")
    rates.save("rates.yaml")
    latencies = random_profile(np.random.default_rng(0), "monotone", 16)
    latencies.overhead["sequoia"] = latencies.overhead["greedy"]
    latencies.save("profile.yaml")
    solved = ["--profile", "profile.yaml", "--acceptance", "rates.yaml"]
    assert run("solve", *solved, "--size", 7, "-o", "tree.json").code == 0
    arguments = ["bench", "tree.json", *models, *solved, "--dataset", dataset, "--repeats", 1]
    done = run(*arguments, "--max-new-tokens", 8, "--limit", 2, "--json")
    document = json.loads(done.out)
    names = [result["name"] for result in document["results"]]
    assert names[:3] == ["plain", "transformers generate", "assisted generation"]
    assert re.fullmatch(r"assisted, \d+ guesses", names[3])
    assert names[4] == "prompt lookup"
    assert re.fullmatch(r"best chain \(\d+ nodes\)", names[5])
    assert re.fullmatch(r"best k sequences \(\d+ nodes\)", names[6])
    assert names[7:] == [
        "most tokens (64 nodes)",
        "most tokens (128 nodes)",
        "solved tree (7 nodes)",
        "solved tree, specinfer (7 nodes)",
        "solved tree, topk (7 nodes)",
        "solved tree, traversal (7 nodes)",
    ]
    assert document["prompts"] == 2
    assert document["hardware"]["device"] == "cpu"
    assert "2 prompts are few" in done.err


def test_bench_prints_what_can_be_compared_later(
    run: Callable[..., Outcome], models: list[str], dataset: Path
) -> None:
    shapes.k_ary(2, 2).save("k.json")
    arguments = ["bench", "k.json", *models, "--dataset", dataset, "--methods", "plain,tree"]
    arguments += ["--repeats", 1, "--max-new-tokens", 8, "--format"]
    rows = list(csv.DictReader(io.StringIO(run(*arguments, "csv").out)))
    assert [row["name"] for row in rows] == ["plain", "solved tree (7 nodes)"]
    assert all(float(row["tokens_per_second"]) > 0 for row in rows)
    assert {row["hardware_device"] for row in rows} == {"cpu"}
    assert json.loads(run(*arguments, "json").out)["software"]["torch"]
    lines = run(*arguments, "md").out.splitlines()
    assert lines[1].startswith("| --- | ---: |")
    assert [line.count("|") for line in lines[:4]] == [8] * 4


def test_bench_compares_sizes_and_plot_draws_what_it_keeps(
    run: Callable[..., Outcome], models: list[str], dataset: Path
) -> None:
    Acceptance(np.array([0.6, 0.2, 0.1])).save("rates.yaml")
    shapes.k_ary(2, 2).save("k.json")
    arguments = ["bench", "k.json", *models, "--dataset", dataset, "--max-new-tokens", 8]
    arguments += ["--repeats", 1, "--sizes", "3,6", "--acceptance", "rates.yaml"]
    shown = run(*arguments, "-o", "kept/sizes.json", "--format", "md")
    document = json.loads(Path("kept/sizes.json").read_text())
    nodes = {result["name"]: result["nodes"] for result in document["results"]}
    assert nodes["plain"] == 1
    assert {name: n for name, n in nodes.items() if name.startswith("tree")} == {
        "tree (3 nodes)": 3,
        "tree (6 nodes)": 6,
    }
    assert "k sequences (5 nodes)" in nodes
    assert "tree (6 nodes)" in shown.out
    done = run("plot", "kept/sizes.json", "-o", "drawn", "--format", "png")
    assert done.code == 0
    assert Path("drawn/sizes.png").read_bytes().startswith(b"\x89PNG")
    assert "takes neither --methods" in run(*arguments, "--methods", "plain").err
    assert "expected from 2 to" in run(*arguments[:-4], "--sizes", "1").err
    assert "expected svg, png, pdf" in run("plot", "kept/sizes.json", "--format", "gif").err
    assert "no such file" in run("plot", "missing.json").err


def test_bench_calibrates(run: Callable[..., Outcome], models: list[str], dataset: Path) -> None:
    shapes.k_ary(2, 2).save("k.json")
    latencies = random_profile(np.random.default_rng(0), "monotone", 16)
    latencies.overhead["sequoia"] = latencies.overhead["greedy"]
    latencies.save("profile.yaml")
    arguments = ["bench", "k.json", *models, "--profile", "profile.yaml", "--dataset", dataset]
    arguments += ["--repeats", 1, "--max-new-tokens", 8, "--calibrate"]
    document = json.loads(run(*arguments, "--json").out)
    assert [part["temperature"] for part in document["calibration"]] == [0, 0.6]
    assert document["prompts"] == 1  # of three documents two are estimated from
    for part in document["calibration"]:
        assert part["trees"][0]["name"] == "chosen"
        assert len(part["trees"]) >= 5
    shown = run(*arguments, "--temperature", 0, "--format", "md").out
    assert "speed-up: off by" in shown
    assert "takes neither --methods" in run(*arguments, "--methods", "plain").err


def test_compare_drafts_ranks_those_that_fit(
    run: Callable[..., Outcome],
    models: list[str],
    dataset: Path,
    make_model: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """The target drafts for itself, at full cost; another guesses; a third does not fit."""
    target, draft = models[1], models[3]
    misfit = tmp_path / "misfit"
    shutil.copytree(make_model("llama"), misfit)
    arguments = ["compare-drafts", "--target", target, "--dataset", dataset]
    arguments += ["--max-new-tokens", 8, "--contexts", "16,64", "--repeats", 5, "--limit", 2]
    drafts = [part for name in (target, draft, misfit) for part in ("--draft", name)]
    done = run(*arguments, *drafts, "--json")
    assert done.code == 0, done.err
    assert "left out: " in done.err
    assert "vocabular" in done.err
    found = json.loads(done.out)["drafts"]
    assert {each["draft"] for each in found} == {"small-target", "small-draft"}
    assert found[0]["speedup"] >= found[1]["speedup"]
    itself = next(each for each in found if each["draft"] == "small-target")
    assert itself["acceptance"][0] == 1
    assert len(list(Path("trees").glob("*/*.json"))) == 2
    assert "expected two or more" in run(*arguments, "--draft", draft).err
    twin = tmp_path / "other" / "small-draft"
    shutil.copytree(draft, twin)
    assert "the same name" in run(*arguments, "--draft", draft, "--draft", twin).err
    assert run(*arguments, "--draft", misfit, "--draft", tmp_path / "none").code == 1


def test_speed_without_weights(run: Callable[..., Outcome], models: list[str]) -> None:
    """From two config.json alone to a race, marked as what it is everywhere."""
    for folder in (Path(models[1]), Path(models[3])):
        for path in folder.iterdir():
            if path.name != "config.json":
                path.unlink()
    assert "no weights" in run("profile", *models, *SMALL).err
    done = run("profile", *models, *SMALL, "--random-weights")
    assert "measured with random weights" in done.out
    (profile,) = Path("profiles").glob("*/small-target--small-draft--float32+random.yaml")
    Acceptance(np.array([0.7, 0.1])).save("rates.yaml")
    solved = ["--profile", profile, "--acceptance", "rates.yaml", "-o", "tree.json"]
    assert run("solve", *solved, "--size", 4).code == 0
    arguments = ["bench", "tree.json", *models, "--repeats", 1, "--max-new-tokens", 24]
    arguments += ["--limit", 6, "--methods", "plain,generate,tree"]
    arguments += ["--random-weights"]
    assert "add --synthetic-acceptance" in run(*arguments).err
    arguments += ["--synthetic-acceptance", "rates.yaml"]
    done = run(*arguments)
    assert done.code == 0, done.err
    assert "acceptance SYNTHETIC from rates.yaml, random weights" in done.out.replace("\n", " ")
    assert "tokens a step: predicted" in done.out
    document = json.loads(run(*arguments, "--json").out)
    assert document["results"][-1]["name"] == "solved tree (4 nodes), synthetic"
    assert document["synthetic_acceptance"] == "rates.yaml"
    assert document["random_weights"] is True
    assert document["dataset"] == "random tokens"
    assert "at given rates expected" in run(*arguments, "--methods", "plain,assisted").err


def test_bench_leaves_out_prompts_that_do_not_fit(
    run: Callable[..., Outcome], models: list[str]
) -> None:
    long = json.dumps({"prompt": "x = 1\n" * 400})
    Path("d.jsonl").write_text(f'{{"prompt": "def f"}}\n{long}\n')
    shapes.k_ary(2, 2).save("k.json")
    arguments = ["bench", "k.json", *models, "--dataset", "d.jsonl", "--methods", "plain"]
    arguments += ["--repeats", 1, "--max-new-tokens", 8]
    done = run(*arguments)
    assert done.code == 0
    assert "1 of 2 prompts left out: a prompt of" in done.err
    Path("d.jsonl").write_text(f"{long}\n")
    done = run(*arguments)
    assert done.code == 1
    assert "no prompt is usable" in done.err


def test_bench_sets_the_methods_beside_the_first(
    run: Callable[..., Outcome], models: list[str], dataset: Path
) -> None:
    shapes.k_ary(2, 2).save("k.json")
    options = ["--dataset", dataset, "--chain", 3, "--repeats", 1, "--max-new-tokens", 8]
    done = run("bench", "k.json", *models, *options, "--methods", "chain,tree", "--json")
    first, second = json.loads(done.out)["results"]
    assert (first["name"], second["name"]) == ("best chain (3 nodes)", "solved tree (7 nodes)")
    assert first["speedup"] == 1
    ratio = second["tokens_per_second"] / first["tokens_per_second"]
    assert second["speedup"] == pytest.approx(ratio)


def test_solve_sets_given_trees_beside_and_sweeps(run: Callable[..., Outcome]) -> None:
    shapes.k_ary(2, 2).save("solved.json")
    Path("chain[v2].txt").write_text("[[0], [1], [0, 0]]")
    against = ["--against", "solved.json", "--against", "chain[v2].txt", "--compare"]
    done = run("solve", *against, "--sweep", "context", "-o", "t.json")
    assert done.code == 0, done.err
    alone = run("solve", "-o", "alone.json")
    assert alone.code == 0
    assert TokenTree.load("t.json") == TokenTree.load("alone.json")
    assert "solved.json" in done.out
    assert "chain[v2].txt" in done.out
    assert "best tree by cached tokens" in done.out
    document = json.loads(run("solve", *against, "--sweep", "batch", "-o", "t.json", "--json").out)
    assert document["against"]["solved.json"]["size"] == 7
    assert document["compare"]["4"]["chain[v2].txt"]["size"] == 4
    assert "solved.json" not in document["compare"]["4"]
    assert document["compare"]["8"]["solved.json"]["size"] == 7
    assert document["sweep"]["points"][0]["value"] == 1


BAD_INPUT: dict[str, tuple[list[str], str]] = {
    "no room for the tree beside": (
        ["solve", "--profile", "p.yaml", "--acceptance", "a.yaml", "--against", "large.json"],
        "large.json: target: measured for 1 to 64 tokens",
    ),
    "no tree to set beside": (["solve", "--against", "no.json"], "no.json: no such file"),
    "no such profile": (["solve", "--profile", "no.yaml"], "no.yaml: no such file"),
    "profile is a tree": (["solve", "--profile", "tree.json"], "format: found 'sequoia-opt/tree'"),
    "profile is broken": (["solve", "--profile", "broken.yaml"], "broken.yaml: not valid YAML"),
    "acceptance is a tree": (
        ["solve", "--profile", "p.yaml", "--acceptance", "tree.json"],
        "tree.json: format: found",
    ),
    "tree is broken": (["decode", "broken.json"], "broken.json: not valid JSON"),
    "tree is a profile": (["decode", "p.yaml"], "p.yaml: format: found 'sequoia-opt/profile'"),
    "size was not measured": (
        ["solve", "--profile", "p.yaml", "--acceptance", "a.yaml", "--size", "500"],
        "no point past 64 tokens, 500 asked for",
    ),
    "context was not measured": (
        ["solve", "--profile", "p.yaml", "--acceptance", "a.yaml", "--context", "9999"],
        "not for 9999",
    ),
    "no such model": (
        ["decode", "tree.json", "--target", "no/such", "--draft", "no/such"],
        "no/such",
    ),
    "model without weights": (["decode", "tree.json", "--target", "hollow"], "hollow: no weights"),
    "empty dataset": (["estimate", "--dataset", "empty.jsonl"], "empty.jsonl: the dataset has no"),
    "no such dataset": (["estimate", "--dataset", "no.jsonl"], "no.jsonl: no such file"),
    "temperature below 0": (["estimate", "--temperature", "-1"], "temperature: found -1"),
    "top-p above 1": (["decode", "tree.json", "--top-p", "1.5"], "top-p: found 1.5"),
    "top-p of 0": (["estimate", "--temperature", "1", "--top-p", "0"], "top-p: found 0"),
    "no such verifier": (["estimate", "--verifier", "magic"], "verifier: found 'magic'"),
    "output is a folder": (["profile", "-o", "."], "is a folder"),
    "output under a file": (["estimate", "-o", "p.yaml/x.yaml"], "cannot be written"),
    "prompt too long": (
        ["decode", "tree.json", "--prompt", "def f(): pass\n" * 3000],
        "do not fit the 8192 positions",
    ),
    "context too long": (["profile", "--contexts", "9000"], "only 8192 positions"),
    "unknown dtype": (["profile", "--dtype", "int3"], "dtype: found 'int3'"),
    "unknown device": (["profile", "--device", "abacus"], "device 'abacus'"),
}


@pytest.mark.parametrize(("arguments", "complaint"), BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input_gets_one_line(
    run: Callable[..., Outcome], tmp_path: Path, arguments: list[str], complaint: str
) -> None:
    from test_latency import make_profile

    shapes.chain(3).save("tree.json")
    shapes.chain(65).save("large.json")
    make_profile().save("p.yaml")
    Acceptance([0.5, 0.2]).save("a.yaml")  # type: ignore[arg-type]
    Path("broken.json").write_text("{")
    Path("broken.yaml").write_text("a: [1, 2")
    Path("empty.jsonl").write_text("")
    shutil.copytree(demo.FOLDER / "target", "hollow")
    Path("hollow/model.safetensors").unlink()
    before = sorted(tmp_path.rglob("*"))
    done = run(*arguments)
    assert done.code == 1
    assert done.out == ""
    assert complaint in done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert [p for p in sorted(tmp_path.rglob("*")) if p not in before and p.is_file()] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["fly"],
        ["solve", "--speed"],
        ["decode", "--max-new-tokens", "0"],
        ["profile", "--tokens", "a"],
        ["profile", "--repeats", "many"],
        ["bench", "--methods", "plain,fast"],
        ["bench", "--methods", ","],
        ["bench", "--methods", "plain,tree", "--chain", "3"],
        ["solve", "--sweep", "size"],
    ],
)
def test_usage_errors_exit_with_2(run: Callable[..., Outcome], arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert "Traceback" not in done.err
    assert not list(Path().iterdir())


def test_debug_shows_where(run: Callable[..., Outcome]) -> None:
    done = run("solve", "--profile", "no.yaml", "--debug")
    assert done.code == 1
    assert "Traceback" in done.err
    assert done.err.rstrip().endswith("error: no.yaml: no such file")


def test_trees_for_other_models_are_not_run_on_the_bundled_pair(
    run: Callable[..., Outcome],
) -> None:
    TokenTree([-1, 0], [0, 1], {"target": "big", "draft": "small"}).save("tree.json")
    assert "solved for target big" in run("decode", "tree.json").err


def test_streaming_never_shows_a_stop_string(
    run: Callable[..., Outcome], models: list[str]
) -> None:
    shapes.k_ary(2, 2).save("k.json")
    arguments = ["decode", "k.json", *models, "--prompt", "def", "--max-new-tokens", 30]
    whole = json.loads(run(*arguments, "--json", "--ignore-eos").out)["text"]
    middle = whole[len(whole) // 2 : len(whole) // 2 + 4]
    shown = run(*arguments, "--ignore-eos", "--stop", middle).out
    cut = whole[: whole.index(middle)]
    assert shown.startswith(cut + "\n")


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


def test_bench_wants_the_inputs_that_the_tree_was_solved_from(
    run: Callable[..., Outcome], models: list[str]
) -> None:
    shapes.k_ary(2, 2).save("k.json")
    assert "name --profile and --acceptance" in run("bench", "k.json", *models).err


@pytest.mark.parametrize("command", ["profile", "estimate", "solve", "decode", "bench"])
def test_help_has_an_example(run: Callable[..., Outcome], command: str) -> None:
    done = run(command, "--help")
    assert done.code == 0
    assert f"Example: sequoia-opt {command}" in done.out


def test_version_and_bare_call(run: Callable[..., Outcome]) -> None:
    assert run("--version").out.strip() == __version__
    bare = run()
    assert bare.code == 2
    assert "profile" in bare.out + bare.err


INTERRUPTED = """
import os, signal
from sequoia_opt import cli
from sequoia_opt.measure import profiler

profile = profiler.profile

def interrupted(pair, options, progress, note):
    def advance(done, total):
        progress(done, total)
        if done == 2:
            os.kill(os.getpid(), signal.SIGINT)
    return profile(pair, options, advance, note)

profiler.profile = interrupted
cli.main()
"""


def test_interruption_leaves_the_old_file(tmp_path: Path) -> None:
    """Ctrl-C in the middle of a measurement."""
    path = tmp_path / "profile.yaml"
    path.write_text("precious")
    command = [sys.executable, "-c", INTERRUPTED, "profile", "--tokens", "1,2", "-o", str(path)]
    process = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        timeout=120,
    )
    errors = process.stderr
    assert process.returncode == 1
    assert errors.strip().splitlines()[-1].startswith("error: interrupted")
    assert path.read_text() == "precious"
    assert [p.name for p in tmp_path.iterdir()] == ["profile.yaml"]


def test_export_and_import(run: Callable[..., Outcome], tmp_path: Path) -> None:
    """What was imported is solved; what was solved is exported and comes back."""
    (tmp_path / "times.csv").write_text(
        "role,batch,context,tokens,ms\n"
        "target,1,512,1,10\ntarget,1,512,16,12\ndraft,1,512,1,0.5\ndraft,1,512,16,0.6\n"
    )
    (tmp_path / "rates.csv").write_text("0.7,0.1,0.05\n")
    profile, acceptance, tree, back = (
        tmp_path / name for name in ("p.yaml", "a.yaml", "t.json", "b.json")
    )
    for source, made in (("times.csv", profile), ("rates.csv", acceptance)):
        found = run("import", tmp_path / source, "-o", made)
        assert found.code == 0, found.err
    options = ["--profile", profile, "--acceptance", acceptance, "-o", tree]
    assert run("solve", *options).code == 0
    parents = json.loads(tree.read_text())["parents"]
    for to in ("eagle", "sequoia", "umbrella"):
        written = tmp_path / f"{to}{'.pt' if to == 'sequoia' else '.json'}"
        found = run("export", tree, "--to", to, "-o", written)
        assert found.code == 0, found.err
        found = run("import", written, "-o", back)
        assert found.code == 0, found.err
        assert json.loads(back.read_text())["parents"] == parents
    found = run("export", tree, "--to", "vllm")
    assert found.code == 1
    assert "solve with --shape chain" in found.err
    assert run("solve", *options, "--shape", "chain").code == 0
    found = run("export", tree, "--to", "llama.cpp")
    assert found.out.startswith("--spec-draft-n-max ")
    assert "does not count the root" in found.err


def test_the_research_codes_vector_is_imported(run: Callable[..., Outcome], tmp_path: Path) -> None:
    import torch

    torch.save(torch.tensor([0.0, 0.6, 0.2, 0.1, 0.1]), tmp_path / "v.pt")
    found = run("import", tmp_path / "v.pt", "-o", tmp_path / "a.yaml", "--json")
    assert json.loads(found.out)["acceptance"] == [0.6, 0.2, 0.1]
    torch.save({"model": object}, tmp_path / "v.pt")
    found = run("import", tmp_path / "v.pt", "-o", tmp_path / "x.yaml")
    assert (found.code, found.err.count("\n")) == (1, 1)
    assert not (tmp_path / "x.yaml").exists()


def test_all_trees_are_solved_and_checked(run: Callable[..., Outcome], tmp_path: Path) -> None:
    for kind in ("profiles", "trees"):
        shutil.copytree(Path(__file__).parents[1] / kind, tmp_path / kind)
    found = run("solve", "--all", "--json")
    assert found.code == 0, found.err
    trees = json.loads(found.out)["trees"]
    assert len(trees) == len(list((tmp_path / "trees").rglob("*.json")))
    found = run("solve", "--all", "--check")
    assert (found.code, found.out) == (0, "")
    shutil.copy(trees[0], trees[-1])
    found = run("solve", "--all", "--check")
    assert found.code == 1
    assert found.out.startswith(f"{trees[-1]}: ")
    assert found.out.count("\n") == 1


@pytest.mark.parametrize("options", [["--check"], ["--all", "-o", "x.json"]])
def test_all_takes_no_single_files(run: Callable[..., Outcome], options: list[str]) -> None:
    found = run("solve", *options)
    assert (found.code, found.err.count("\n")) == (2, 1)


@pytest.mark.parametrize("words", [["--help"], ["--help", "solve"], []])
def test_help_lists_every_command(run: Callable[..., Outcome], words: list[str]) -> None:
    shown = run(*words)
    assert all(f" {name} " in shown.out for name in ("profile", "estimate", "solve", "decode"))


def test_a_misspelt_command_is_guessed(run: Callable[..., Outcome]) -> None:
    done = run("solv", "--profile", "decode")
    assert done.code == 2
    assert "solve" in done.err


def test_traversal_is_not_estimated(run: Callable[..., Outcome]) -> None:
    done = run("estimate", "--temperature", 0.6, "--verifier", "traversal")
    assert done.code == 1
    assert "estimate with sequoia" in done.err


@pytest.mark.parametrize("option", [["profile", "--verifiers"], ["estimate", "--verifier"]])
def test_an_unknown_verifier(run: Callable[..., Outcome], option: list[str]) -> None:
    done = run(*option, "best")
    assert done.code == 1
    assert "verifier: found 'best', expected sequoia or specinfer or topk" in done.err


def test_compiling_follows_the_profile_that_a_tree_was_solved_for(
    run: Callable[..., Outcome], models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the draft gains nothing its forwards stay eager, in the profile and in decoding."""
    graphs_of: list[object] = []

    def eager(model: Any) -> Callable[..., Any]:
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


def write(name: str, text: str) -> Path:
    """A file in the working folder."""
    path = Path(name)
    path.write_text(text)
    return path


def test_several_ways_to_sample_in_one_pass(
    run: Callable[..., Outcome], models: list[str], dataset: Path
) -> None:
    options = ["--dataset", dataset, "--teacher-forced", "--max-new-tokens", 8]
    options += ["--temperature", "0,0.6", "--verifier", "sequoia,topk", "--depths", 3]
    done = run("estimate", *models, *options, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)["estimates"]
    names = [(each["verifier"], each["temperature"]) for each in found]
    assert names == [("greedy", 0), ("sequoia", 0.6), ("topk", 0.6)]
    assert done.err.count("wrote ") == len(list(Path("profiles/acceptance").iterdir())) == 3
    refused = run("estimate", *models, *options, "-o", "one.yaml")
    assert refused.code == 2
    assert "one file, but 3" in refused.err
    assert "found '0;1', expected numbers" in run("estimate", "--temperature", "0;1").err
