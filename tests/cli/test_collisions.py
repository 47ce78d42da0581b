"""Files that two runs would give one name, or that a user names by mistake: nothing is lost."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import SMALL, Outcome, write
from test_latency import make_profile

from sequoia_opt.files.jsonl import Lines
from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.repository import paths

ROOT = Path(__file__).parents[2]
FEW = ["--max-new-tokens", "4", "--width", "3"]


@pytest.fixture
def runs(models: list[str], make_model: Callable[..., Path]) -> list[list[str]]:
    """Options that name two pairs whose targets' folders have one name, and their draft."""
    options = dict(zip(models[::2], models[1::2], strict=True))
    folders = []
    for number in (1, 2):
        folder = Path(f"run{number}/checkpoint")
        shutil.copytree(options["--target"], folder)
        if number == 2:
            other = make_model("qwen3", vocab_size=2048, spread=0.06)
            for name in ("config.json", "model.safetensors"):
                shutil.copy(other / name, folder)
        folders.append(["--target", str(folder), "--draft", options["--draft"]])
    return folders


def documents(name: str, *words: str) -> list[str]:
    """The option for a dataset of so many documents."""
    Path(name).parent.mkdir(exist_ok=True)
    write(name, "".join(json.dumps({"prompt": word}) + "\n" for word in words))
    return ["--dataset", name]


def test_datasets_of_one_name_have_files_of_their_own(
    run: Callable[..., Outcome], models: list[str]
) -> None:
    first, second = documents("a/prompts.jsonl", "def f():"), documents("b/prompts.jsonl", "class")
    assert run("estimate", *models, *first, *FEW).code == 0
    [path] = Path("profiles/acceptance").glob("*.yaml")
    before = path.read_bytes()
    done = run("estimate", *models, *second, *FEW)
    assert done.code == 0, done.err
    assert (
        f"{path} is kept: it was made from dataset a/prompts.jsonl, not b/prompts.jsonl" in done.err
    )
    assert path.read_bytes() == before
    [other] = set(path.parent.glob("*.yaml")) - {path}
    assert f"wrote {other}" in done.err
    assert [Acceptance.load(each).extra["sources"]["dataset"] for each in (path, other)] == [
        "a/prompts.jsonl",
        "b/prompts.jsonl",
    ]
    # Again, with a text more: each is its own former self.
    for options, file in ((first, path), (second, other)):
        documents(options[1], "def f():", f"{options[1]} = ")
        assert f"wrote {file}\n" in run("estimate", *models, *options, *FEW).err
        assert Acceptance.load(file).extra["documents"] == 2
    assert sorted(path.parent.glob("*.yaml")) == sorted([path, other])
    # A quick look does not replace what took longer.
    quick = run("estimate", *models, *first, *FEW, "--limit", "1")
    assert f"{path} is kept: it has more documents than the new file" in quick.err
    assert Acceptance.load(path).extra["documents"] == 2
    # Unless one says so.
    run("estimate", *models, *first, *FEW, "--limit", "1", "--force")
    assert Acceptance.load(path).extra["documents"] == 1


def test_models_of_one_name_have_files_of_their_own_and_are_not_mixed(
    run: Callable[..., Outcome], runs: list[list[str]]
) -> None:
    dataset = documents("prompts.jsonl", "def f():")
    done_profiles = []
    for options in runs:
        done = run("profile", *options, *SMALL, "--verifiers", "")
        assert done.code == 0, done.err
        done_profiles.append(done)
        assert run("estimate", *options, *dataset, *FEW).code == 0
    profiles = sorted(p for p in Path("profiles").glob("*/*.yaml") if p.parent.name != "acceptance")
    sources = {LatencyProfile.load(path).target.extra["source"]: path for path in profiles}
    assert sorted(sources) == ["run1/checkpoint", "run2/checkpoint"]
    assert "~" not in sources["run1/checkpoint"].name
    done = run("solve-all", "--json")
    assert done.code == 0, done.err
    trees = [TokenTree.load(path) for path in json.loads(done.out)["trees"]]
    assert len(trees) == 2  # not four
    for tree in trees:
        provenance = tree.metadata["provenance"]
        target = provenance["profile"]["from"]["target"]["source"]
        rates = Acceptance.load(Path("profiles/acceptance") / provenance["acceptance"]["file"])
        assert rates.extra["sources"]["target"] == target
    assert run("solve-all", "--check").code == 0
    # Measured again, each is renewed where it is.
    for options in runs:
        assert run("profile", *options, *SMALL, "--verifiers", "").code == 0
    assert sorted(p for p in Path("profiles").glob("*/*.yaml") if p in profiles) == profiles
    told = re.findall(r"the new file is (\S+)", done_profiles[1].err)
    assert set(told) == {sources["run2/checkpoint"].name}  # what it announces is what it writes
    narrow = run("profile", *runs[0], *SMALL[2:], "--tokens", "1,2", "--verifiers", "")
    assert f"{sources['run1/checkpoint']} is kept: it has more points" in narrow.err


def test_trees_of_other_options_are_set_apart(run: Callable[..., Outcome]) -> None:
    make_profile().save("p.yaml")
    Acceptance([0.5, 0.2]).save("a.yaml")  # type: ignore[arg-type]
    solve = ["solve", "--profile", "p.yaml", "--acceptance", "a.yaml"]
    assert run(*solve).code == 0
    [path] = Path("trees").rglob("*.json")
    before = path.read_bytes()
    done = run(*solve, "--max-size", "3")
    assert "is kept: it was made with options" in done.err
    assert path.read_bytes() == before
    [other] = set(Path("trees").rglob("*.json")) - {path}
    content = other.read_bytes()
    for options, file in (([], path), (["--max-size", "3"], other)):
        done = run(*solve, *options)
        assert done.err.splitlines()[-1] == f"wrote {file}"
    assert (path.read_bytes(), other.read_bytes()) == (before, content)
    # Where one names the file, one means it.
    assert run(*solve, "-o", "tree.json").code == 0
    assert run(*solve, "--max-size", "3", "-o", "tree.json").code == 0
    assert TokenTree.load("tree.json").size <= 3


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["solve", "--profile", "p.yaml", "--acceptance", "a.yaml"], "p.yaml"),
        (["solve", "--profile", "p.yaml", "--acceptance", "a.yaml"], "a.yaml"),
        (["solve", "--against", "t.json"], "t.json"),
        (["report", "t.json", "--profile", "p.yaml", "--acceptance", "a.yaml"], "t.json"),
        (["report", "t.json", "--profile", "p.yaml", "--acceptance", "a.yaml"], "a.yaml"),
        (["export", "t.json", "--to", "eagle"], "t.json"),
        (["import", "c.txt"], "c.txt"),
        (["bench", "t.json"], "t.json"),
        (["estimate", "--dataset", "d.jsonl"], "d.jsonl"),
        (["estimate", "--from-stats", "d.jsonl"], "d.jsonl"),
        (["complete", "d.jsonl", "t.json"], "d.jsonl"),
    ],
)
@pytest.mark.parametrize("force", [[], ["--force"]])
def test_an_input_is_not_written_over(
    run: Callable[..., Outcome], arguments: list[str], name: str, force: list[str]
) -> None:
    make_profile().save("p.yaml")
    Acceptance([0.5, 0.2]).save("a.yaml")  # type: ignore[arg-type]
    shapes.k_ary(2, 2).save("t.json")
    write("c.txt", "[[0], [1]]")
    write("d.jsonl", '{"prompt": "x"}\n')
    before = Path(name).read_bytes()
    done = run(*arguments, "-o", name, *(force if arguments[0] != "complete" else []))
    assert done.code == 1
    assert done.err == f"error: {name}: the command reads this file; name another one to write\n"
    assert Path(name).read_bytes() == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["solve"],
        ["report"],
        ["export", "t.json", "--to", "eagle"],
        ["import", "c.txt"],
        ["bench", "t.json"],
        ["estimate"],
        ["profile"],
    ],
)
def test_a_file_of_something_else_is_not_replaced(
    run: Callable[..., Outcome], arguments: list[str]
) -> None:
    shapes.k_ary(2, 2).save("t.json")
    write("c.txt", "[[0], [1]]")
    write("notes.json", "my notes")
    done = run(*arguments, "-o", "notes.json")
    assert done.code == 1
    assert done.err.startswith("error: notes.json: holds something else")
    assert "--force" in done.err
    assert done.err.count("\n") == 1
    assert Path("notes.json").read_text() == "my notes"
    if arguments[0] in ("solve", "export", "import"):
        assert run(*arguments, "-o", "notes.json", "--force").code == 0
        assert run(*arguments, "-o", "notes.json").code == 0  # which is one of its own now


def test_exports_replace_exports(run: Callable[..., Outcome]) -> None:
    for nodes in (3, 12):
        shapes.chain(nodes).save("chain.json")
        shapes.k_ary(2, nodes // 3).save("tree.json")
        for to in ("vllm", "llama.cpp", "sglang", "tensorrt-llm", "transformers"):
            assert run("export", "chain.json", "--to", to, "-o", f"{to}.txt").code == 0
        for to in ("eagle", "medusa", "umbrella", "sglang-dynamic", "sequoia"):
            done = run("export", "tree.json", "--to", to, "-o", f"{to}.txt")
            assert done.code == 0, done.err
    assert run("export", "tree.json", "--to", "eagle", "-o", "sglang-dynamic.txt").code == 1
    assert run("export", "tree.json", "--to", "eagle", "-o", "chain.json").code == 1


def test_reports_and_figures_of_one_name_are_set_apart(run: Callable[..., Outcome]) -> None:
    bench = next((ROOT / "benchmarks").glob("*/humaneval/T0.json"))
    bundled = paths.bundled_tree(0.0)
    for folder in ("a", "b"):
        Path(folder).mkdir()
        shutil.copy(bundled, f"{folder}/tree.json")
        shutil.copy(bench, f"{folder}/bench.json")
    for form in ("svg", "png", "pdf"):
        for _ in range(2):
            for folder in ("a", "b"):
                assert run("plot", f"{folder}/bench.json", "--format", form).code == 0
        figures = sorted(path.name for path in Path("figures").glob(f"*.{form}"))
        assert len(figures) == 2
        assert f"bench.{form}" in figures
    for _ in range(2):
        for folder in ("a", "b"):
            assert run("report", f"{folder}/tree.json").code == 0
    assert len(list(Path().glob("*.html"))) == 2
    assert "source 0 a/tree.json, not b/tree.json" in run("report", "b/tree.json").err


def test_imports_of_one_name_are_set_apart(run: Callable[..., Outcome]) -> None:
    for folder, rate in (("a", 0.5), ("b", 0.4)):
        Path(folder).mkdir()
        write(f"{folder}/rates.csv", f"{rate},0.2\n")
        write(f"{folder}/tree.txt", "[[0], [1]]" if folder == "a" else "[[0], [0, 0]]")
    for name in ("rates.csv", "tree.txt"):
        for _ in range(2):
            assert run("import", f"a/{name}").code == 0
            done = run("import", f"b/{name}")
            assert done.code == 0
            assert f"a/{name}" in done.err
    files = set(Path().rglob("*~*"))
    assert len(files) == 2
    assert len(list(Path("trees").rglob("*.json"))) == 2


def test_the_second_of_two_runs_into_one_file_is_refused(
    run: Callable[..., Outcome], models: list[str]
) -> None:
    shapes.chain(2).save("t.json")
    documents("d.jsonl", "a", "b")
    complete = ["complete", "d.jsonl", "t.json", *models, "-o", "done.jsonl", *FEW[:2]]
    with Lines(Path("done.jsonl"), '{"prompt": '):
        done = run(*complete)
    assert done.code == 1
    assert done.err == (
        "error: done.jsonl: another run is writing to it; wait for that one, or name another file\n"
    )
    assert run(*complete).code == 0
    assert len(Path("done.jsonl").read_text().splitlines()) == 2
    with Lines(Path("r.yaml.partial"), '{"journal": '):
        done = run("estimate", *models, "--dataset", "d.jsonl", "-o", "r.yaml", *FEW)
    assert "r.yaml.partial: another run is writing to it" in done.err
    assert not os.path.exists("r.yaml")


def test_completions_with_another_tree_are_not_continued(
    run: Callable[..., Outcome], models: list[str]
) -> None:
    shapes.chain(2).save("t.json")
    shapes.chain(3).save("other.json")
    documents("d.jsonl", "a", "b")
    common = [*models, "-o", "done.jsonl", *FEW[:2]]
    assert run("complete", "d.jsonl", "t.json", *common).code == 0
    assert "line 1: is of another tree" in run("complete", "d.jsonl", "other.json", *common).err


def test_long_names_are_cut_and_stay_apart(run: Callable[..., Outcome]) -> None:
    write("rates.csv", "0.5,0.2\n")
    for end in ("a", "b"):
        done = run("import", "rates.csv", "--target", 200 * "é" + end, "--draft", 300 * "d")
        assert done.code == 0, done.err
    files = list(Path("profiles/acceptance").glob("*.yaml"))
    assert len(files) == 2
    assert all(len(path.name.encode()) < 240 for path in files)
    for arguments in (
        ["solve", "--profile", 300 * "n"],
        ["solve", "-o", 300 * "n"],
        ["show", 300 * "n"],
        ["estimate", "--dataset", 300 * "n" + ".jsonl"],
        ["decode", "--prompt-file", 300 * "n"],
        ["profile", "--target", 300 * "n"],
        ["bench", "-o", 300 * "n" + ".json"],
    ):
        done = run(*arguments)
        assert done.code == 1
        assert "File name too long" in done.err
        assert done.err.count("\n") == 1
        assert "Error" not in done.err
