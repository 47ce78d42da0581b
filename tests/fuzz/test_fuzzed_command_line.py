"""Every command line ends in a result or in one clear line of error."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import cases

from sequoia_opt import cli
from sequoia_opt.plan import shapes
from sequoia_opt.repository import paths

PLANNING = ["solve", "solve-all", "sweep", "show", "export", "import", "plot"]
RUNNING = [
    "report", "estimate", "decode", "complete", "chat", "bench", "bench-sizes", "calibrate",
    "compare-drafts", "profile",
]  # fmt: skip
FLAGS = [
    "--json", "--compare", "--scaling", "--check", "--all", "--help", "--debug", "--version",
    "--compile", "--calibrate", "--chat", "--resume", "--random-weights", "--nonsense",
]  # fmt: skip
OPTIONS = [
    "--profile", "--acceptance", "--max-size", "--max-depth", "--size", "--depth", "--context",
    "--batch", "--shape", "--max-width", "--confidence", "--against", "--sweep", "--limit", "--to",
    "--format", "--target", "--temperature", "--hardware", "--from-stats", "--methods", "--sizes",
    "--tokens", "--offload", "--memory-budget", "--max-seconds", "--prompt-file", "--logit-bias",
    "--name", "--first-rank", "--rates-by", "--draft", "-o",
]  # fmt: skip
VALUES = [
    "p.yaml", "a.yaml", "t.json", "c.txt", "b.jsonl", "none.yaml", ".", "", "-", "0", "1", "8",
    "64", "-1", "1e9", "1e400", "nan", "inf", "0.5", "128:3,512:1", "128,", ":", "tree", "chain",
    "context",
    "eagle", "vllm", "json", "csv", "disk", "1GB", "9" * 30, "é\u202e", "a=b", "../x.json",
]  # fmt: skip
ARGUMENTS = st.one_of(
    st.sampled_from(FLAGS).map(lambda flag: [flag]),
    st.tuples(st.sampled_from(OPTIONS), st.sampled_from(VALUES)).map(list),
    st.sampled_from(VALUES).map(lambda value: [value]),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz")
    shutil.copy(paths.bundled_profile(), path / "p.yaml")
    shutil.copy(paths.bundled_acceptance(), path / "a.yaml")
    shapes.k_ary(2, 2).save(path / "t.json")
    (path / "c.txt").write_text("[[0], [1], [0, 0]]")
    (path / "b.jsonl").write_text('{"prompt": "x"}\n')
    return path


@cases(1500)
@given(command=st.sampled_from(PLANNING), parts=st.lists(ARGUMENTS, max_size=5))
def test_any_options(
    command: str,
    parts: list[list[str]],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """For the commands that run no model."""
    ends_in_a_result_or_a_line(command, parts, folder, monkeypatch, capfd)


@cases(1500)
@given(
    command=st.sampled_from(RUNNING),
    parts=st.lists(ARGUMENTS, max_size=4),
    wrong=st.sampled_from(["--nonsense", "--limit=x", "--prompt"]),
)
def test_any_options_before_a_model_is_loaded(
    command: str,
    parts: list[list[str]],
    wrong: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    code = ends_in_a_result_or_a_line(command, [*parts, [wrong]], folder, monkeypatch, capfd)
    arguments = {argument for part in parts for argument in part}
    assert code == 2 or arguments & {"--help", "--version"}


def ends_in_a_result_or_a_line(
    command: str,
    parts: list[list[str]],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> int:
    monkeypatch.chdir(folder)
    arguments = [command, *(argument for part in parts for argument in part)]
    monkeypatch.setattr(sys, "argv", ["sequoia-opt", *arguments])
    capfd.readouterr()
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    errors = capfd.readouterr().err
    code = stopped.value.code
    assert code in (0, 1, 2)
    if code and "--debug" not in arguments:
        assert errors.splitlines()[-1].startswith("error: ")
        assert errors.count("error: ") == 1
        assert "(--debug shows where)" not in errors  # an unforeseen error
        assert "Traceback" not in errors
    return int(code)
