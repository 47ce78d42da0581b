from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Outcome

from sequoia_opt.cli.app import _kept


def test_traversal_is_not_estimated(run: Callable[..., Outcome]) -> None:
    done = run("estimate", "--temperature", 0.6, "--verifier", "traversal")
    assert done.code == 1
    assert "estimate with sequoia" in done.err


@pytest.mark.parametrize("option", [["profile", "--verifiers"], ["estimate", "--verifier"]])
def test_an_unknown_verifier(run: Callable[..., Outcome], option: list[str]) -> None:
    done = run(*option, "best")
    assert done.code == 1
    assert "verifier: found 'best', expected sequoia or specinfer or topk" in done.err


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


def test_what_was_killed_is_taken_up_and_gives_the_same_file(
    run: Callable[..., Outcome], models: list[str], dataset: Path
) -> None:
    """By SIGKILL, as soon as something has been kept."""
    options = [*models, "--dataset", str(dataset), "--batch", "1", "--temperature", "0.7"]
    options += ["--max-new-tokens", "200", "--dtype", "float64"]
    assert run("estimate", *options, "-o", "whole.yaml").code == 0
    command = [sys.executable, "-m", "sequoia_opt", "estimate", *options, "-o", "killed.yaml"]
    partial = Path("killed.yaml.partial")
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=alone) as process:
        ends = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < ends:
            if partial.exists() and partial.read_bytes().count(b"\n") > 1:
                process.kill()
            time.sleep(0.01)
    assert process.returncode == -signal.SIGKILL
    assert not Path("killed.yaml").exists()
    kept = partial.read_bytes()
    refused = run("estimate", *options, "-o", "killed.yaml")
    assert refused.code == 1
    assert "killed.yaml.partial: has 1 finished part" in refused.err
    assert partial.read_bytes() == kept
    done = run("estimate", *options, "-o", "killed.yaml", "--resume")
    assert done.code == 0, done.err
    assert "already done" in done.err
    assert not partial.exists()
    assert Path("killed.yaml").read_bytes() == Path("whole.yaml").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        (["profile"], "continue with --resume"),
        (["bench", "--limit", "2"], ""),
        (["bench", "--output=r.json"], "continue with --resume"),
        (["decode", "t.json", "--prompts", "p.jsonl"], "the same command goes on"),
        (["decode", "--prompt", "x"], ""),
        (["compare-drafts"], ""),
    ],
)
def test_what_an_interrupted_command_keeps(arguments: list[str], kept: str) -> None:
    said = _kept(arguments)
    assert kept in said
    assert bool(said) == bool(kept)


def test_statistics_take_no_dataset(run: Callable[..., Outcome]) -> None:
    Path("s.jsonl").write_text("")
    done = run("estimate", "--from-stats", "s.jsonl", "--chat")
    assert done.code == 2
    assert "--chat" in done.err
