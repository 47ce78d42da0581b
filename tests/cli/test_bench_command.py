from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from brute_force import random_profile
from command_line import SMALL, Outcome

from sequoia_opt import demo
from sequoia_opt.measure.journal import Journal
from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance


def test_assisted_generation_is_left_out_for_a_padded_vocabulary(
    run: Callable[..., Outcome],
    models: list[str],
    dataset: Path,
    make_model: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """Transformers would take logits of two sizes for two tokenizers, and stop."""
    padded = tmp_path / "padded"
    shutil.copytree(make_model("qwen3", vocab_size=2176, spread=0.05), padded)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo.FOLDER / "target" / name, padded)
    shapes.k_ary(2, 2).save("k.json")
    arguments = ["bench", "k.json", *models, "--target", padded, "--dataset", dataset]
    arguments += ["--methods", "plain,assisted,tree", "--max-new-tokens", 8, "--limit", 2]
    done = run(*arguments, "--repeats", 1, "--json")
    names = [result["name"] for result in json.loads(done.out)["results"]]
    assert names == ["plain", "solved tree (7 nodes)"]
    assert "assisted is left out: transformers takes the target's 2176" in done.err


def test_bench_compares_all_methods(
    run: Callable[..., Outcome], models: list[str], dataset: Path
) -> None:
    """At a temperature at which all of them differ."""
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
    assert "2 prompts are few, so intervals are wide" in done.err


def test_bench_prints_csv_json_and_markdown(
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
    assert lines[0].startswith("| method | tokens/step | tokens/s | ms/token | speedup (95%) |")


def test_models_without_weights_are_benchmarked(
    run: Callable[..., Outcome], models: list[str]
) -> None:
    """From two config.json files alone, and marked so everywhere."""
    for folder in (Path(models[1]), Path(models[3])):
        for path in folder.iterdir():
            if path.name != "config.json":
                path.unlink()
    assert "no weights" in run("profile", *models, *SMALL).err
    done = run("profile", *models, *SMALL, "--verifiers", "", "--random-weights")
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
    assert "tokens per step: predicted" in done.out
    document = json.loads(run(*arguments, "--json").out)
    assert document["results"][-1]["name"] == "solved tree (4 nodes), synthetic"
    assert document["synthetic_acceptance"] == "rates.yaml"
    assert document["random_weights"] is True
    assert document["dataset"] == "random tokens"
    assert (
        "with simulated acceptance expected" in run(*arguments, "--methods", "plain,assisted").err
    )


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


def test_the_first_method_is_the_baseline(
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


def test_rivals_need_the_inputs_of_the_tree(run: Callable[..., Outcome], models: list[str]) -> None:
    shapes.k_ary(2, 2).save("k.json")
    assert "name it with --acceptance" in run("bench", "k.json", *models).err
    Acceptance(np.array([0.6, 0.2, 0.1])).save("rates.yaml")
    done = run("bench", "k.json", *models, "--acceptance", "rates.yaml")
    assert "name it with --profile" in done.err


@pytest.mark.parametrize("option", ["--sizes", "--calibrate"])
def test_bench_has_only_its_own_options(run: Callable[..., Outcome], option: str) -> None:
    shown = run("bench", "--help").out
    assert "--methods" in shown
    assert option not in shown


def test_resuming_needs_an_output(run: Callable[..., Outcome]) -> None:
    for command in ("bench", "bench-sizes"):
        done = run(command, "--resume")
        assert done.code == 2
        assert "--resume: needs -o, which names the results" in done.err


def test_a_bench_that_was_cut_short_is_resumed(
    run: Callable[..., Outcome],
    models: list[str],
    dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two of three prompts are decoded before the time is up, and are not decoded again."""
    shapes.k_ary(2, 2).save("k.json")
    arguments = ["bench", "k.json", *models, "--dataset", dataset, "--methods", "plain,tree"]
    arguments += ["--repeats", 1, "--max-new-tokens", 8, "-o", "r.json"]
    time_is_up = Journal.time_is_up

    def over_at_once(self: Journal, *world: Any) -> bool:
        self._deadline = 0.0
        return time_is_up(self, *world)

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "time_is_up", over_at_once)
        early = run(*arguments)
    assert early.code == 0, early.err
    assert "the time is up: 2 of 3 prompts decoded" in early.err
    assert json.loads(Path("r.json").read_text())["prompts"] == 2
    done = run(*arguments, "--resume")
    assert done.code == 0, done.err
    assert "2 parts already done" in done.err
    assert json.loads(Path("r.json").read_text())["prompts"] == 3
    assert not Path("r.json.partial").exists()
