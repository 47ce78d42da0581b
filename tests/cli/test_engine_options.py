"""Commands on llama.cpp, and a tree that carries its engine's settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from command_line import Outcome

from sequoia_opt.cli.engine_options import EngineOptions
from sequoia_opt.engine.cpu import cpu_name
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.tree import TokenTree

POINTS = ["--contexts", "32", "--tokens", "1,2,3,4,6,8", "--repeats", "5"]


@pytest.fixture
def tree(run: Callable[..., Outcome], tmp_path: Path) -> Callable[..., str]:
    """Writes a tree that was solved for llama.cpp with these settings."""

    def write(**settings: Any) -> str:
        engine = {"name": "llama.cpp", "dtype": "float32", "compile": False} | settings
        document = {
            "format": "sequoia-opt/tree", "version": 1, "size": 3, "depth": 2,
            "parents": [-1, 0, 1], "ranks": [0, 1, 1], "expected_tokens": 2.5,
            "target": "demo-target", "draft": "demo-draft", "engine": engine,
        }  # fmt: skip
        path = tmp_path / "solved.json"
        path.write_text(json.dumps(document))
        return str(path)

    return write


def test_a_plan_is_made_and_run_on_llama_cpp(
    run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Profile, solve and decode without naming a file: each finds what the one before wrote."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    monkeypatch.chdir(tmp_path)
    done = run("profile", "--engine", "llama.cpp", "--threads", "1", *POINTS, "--json")
    assert done.code == 0, done.err
    profile = json.loads(done.out)
    assert profile["engine"]["name"] == "llama.cpp"
    assert profile["engine"]["first_pass_tokens"] == 1
    assert profile["software"]["llama_cpp_python"]
    assert "+llama-cpp" in done.err
    done = run("estimate", "--engine", "llama.cpp", "--limit", "3", "--max-new-tokens", "16")
    assert done.code == 0, done.err
    done = run("solve", "--json")
    assert done.code == 0, done.err
    done = run(
        "decode", "--engine", "llama.cpp", "--threads", "1", "--prompt", "def f(x):",
        "--max-new-tokens", "12", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert len(json.loads(done.out)["tokens"]) == 12


@pytest.mark.parametrize(
    ("solved", "option", "found"),
    [
        ({"threads": 3}, ["--threads", "1"], "--threads: found 1, but the tree was solved for 3"),
        (
            {"cache_type_k": "q8_0"},
            ["--cache-type-k", "f16"],
            "--cache-type-k: found f16, but the tree was solved for q8_0",
        ),
        ({"gpu_layers": 0}, ["--gpu-layers", "5"], "--gpu-layers: found 5, but the tree was solv"),
        (
            {"context_size": 0},
            ["--context-size", "512"],
            "--context-size: found 512, but the tree was solved for the model's own length;",
        ),
    ],
)
def test_a_setting_that_differs_from_the_tree_s_is_refused(
    run: Callable[..., Outcome], tree: Callable[..., str], solved: Any, option: Any, found: str
) -> None:
    done = run("decode", tree(**solved), *option, "--prompt", "x")
    assert done.code == 1
    assert found in done.err
    assert "profile with it and solve again" in done.err


HERE, ELSEWHERE = {"device": "cpu", "name": cpu_name()}, {"device": "cpu", "name": "Z80"}
GPU = {"device": "cuda", "name": "NVIDIA H100"}


@pytest.mark.parametrize(
    ("engine", "hardware", "counts"),
    [
        ({"name": "llama.cpp"}, HERE, True),
        ({"name": "llama.cpp"}, ELSEWHERE, False),
        ({"name": "llama.cpp"}, GPU, True),
        ({}, HERE, True),  # torch: its trees need not name it
        ({"name": "torch"}, HERE, True),
        ({}, ELSEWHERE, False),
        ({}, GPU, False),
    ],
)
def test_threads_are_those_of_the_tree_on_its_machine(
    engine: dict[str, str], hardware: dict[str, str], counts: bool
) -> None:
    """There they are carried and compared, on each engine; elsewhere the option decides alone."""
    metadata = {"engine": engine | {"threads": 3}, "hardware": hardware}
    tree = TokenTree([-1, 0], [0, 1], metadata)
    assert EngineOptions().on(tree).threads == (3 if counts else None)
    assert EngineOptions(threads=3).on(tree).threads == 3
    refused = pytest.raises(SequoiaError, match="found 2, but the tree was solved for 3")
    with refused if counts else nullcontext():
        assert EngineOptions(threads=2).on(tree).threads == 2
    other = "torch" if engine.get("name") == "llama.cpp" else "llama.cpp"
    assert EngineOptions(engine=other, threads=2).on(tree).threads == 2
    assert EngineOptions(engine=other).on(tree).threads is None


def test_a_torch_tree_is_refused_with_other_threads(
    run: Callable[..., Outcome], tree: Callable[..., str]
) -> None:
    path = Path(tree(name="torch", threads=3))
    document = json.loads(path.read_text()) | {"hardware": HERE}
    path.write_text(json.dumps(document))
    done = run("decode", path, "--threads", "1", "--prompt", "x")
    assert done.code == 1
    assert "--threads: found 1, but the tree was solved for 3" in done.err


def test_a_tree_brings_its_engine_and_settings(
    run: Callable[..., Outcome], tree: Callable[..., str]
) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    done = run("decode", tree(cache_type_k="f12"), "--prompt", "x")
    assert done.code == 1
    assert "cache-type-k: found f12" in done.err  # so the tree's setting was used


def test_a_tree_of_an_engine_that_runs_none_names_export(
    run: Callable[..., Outcome], tree: Callable[..., str]
) -> None:
    """As `tune openvino --save` and `solve` make one."""
    path = tree(name="openvino")
    done = run("decode", path, "--prompt", "x")
    assert done.code == 1
    assert "the tree was solved for openvino, which runs no trees; `sequoia-opt export`" in done.err
    assert EngineOptions(engine="torch").on(TokenTree.load(path)).engine == "torch"


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--engine", "onnx", "expected torch or llama.cpp"),
        ("--flash-attention", "maybe", "expected auto, off or on"),
        ("--cache-type-v", "q3", "expected f32, f16"),
    ],
)
def test_unknown_names_are_usage_errors(
    run: Callable[..., Outcome], option: str, value: str, expected: str
) -> None:
    done = run("profile", option, value)
    assert done.code == 2
    assert f"found '{value}', {expected}" in done.err
