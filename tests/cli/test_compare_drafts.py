from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Outcome

from sequoia_opt import LatencyProfile


@pytest.mark.usefixtures("few_tokens")
def test_drafts_that_fit_are_ranked(
    run: Callable[..., Outcome],
    models: list[str],
    dataset: Path,
    make_model: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """The target is its own draft, at full cost; another one guesses; a third does not fit."""
    target, draft = models[1], models[3]
    misfit = tmp_path / "misfit"
    shutil.copytree(make_model("llama"), misfit)
    arguments = ["compare-drafts", "--target", target, "--dataset", dataset]
    arguments += ["--max-new-tokens", 8, "--repeats", 5, "--limit", 2]
    arguments += ["--contexts", "16,64", "--tokens", "1,2,5"]
    drafts = [part for name in (target, draft, misfit) for part in ("--draft", name)]
    done = run(*arguments, *drafts, "--json")
    assert done.code == 0, done.err
    assert "left out: " in done.err
    assert "vocabular" in done.err
    drafts_found = json.loads(done.out)["drafts"]
    assert {entry["draft"] for entry in drafts_found} == {"small-target", "small-draft"}
    assert drafts_found[0]["speedup"] >= drafts_found[1]["speedup"]
    itself = next(entry for entry in drafts_found if entry["draft"] == "small-target")
    assert itself["acceptance"][0] == 1
    assert len(list(Path("trees").glob("*/*.json"))) == 2
    for path in Path("profiles").glob("*/*.yaml"):
        if path.parent.name != "acceptance":
            profile = LatencyProfile.load(path)
            assert [curve.tokens for curve in profile.target.curves] == [[1, 2, 5]] * 2
    assert "expected two or more" in run(*arguments, "--draft", draft).err
    twin = tmp_path / "other" / "small-draft"
    shutil.copytree(draft, twin)
    assert "the same name" in run(*arguments, "--draft", draft, "--draft", twin).err
    assert run(*arguments, "--draft", misfit, "--draft", tmp_path / "none").code == 1


def test_several_processes_do_not_compare_drafts(
    run: Callable[..., Outcome], models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their profiles would have the file names of a single process."""
    for name, value in {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    target, draft = models[1], models[3]
    done = run("compare-drafts", "--target", target, "--draft", target, "--draft", draft)
    assert done.code == 1
    assert "runs in one process; start it without torchrun" in " ".join(done.err.split())
    assert not Path("profiles").exists()
