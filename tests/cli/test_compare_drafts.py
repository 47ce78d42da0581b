from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Outcome


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


def test_several_processes_do_not_compare_drafts(
    run: Callable[..., Outcome], models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their profiles would have the names of one process's."""
    for name, value in {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    target, draft = models[1], models[3]
    done = run("compare-drafts", "--target", target, "--draft", target, "--draft", draft)
    assert done.code == 1
    assert "runs in one process; start it without torchrun" in " ".join(done.err.split())
    assert not Path("profiles").exists()
