"""The same commands with a target whose layers are read from disk as they are used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from command_line import SMALL, Outcome


def test_profile_solve_and_decode_with_layers_on_disk(
    run: Callable[..., Outcome], models: list[str], dataset: Path
) -> None:
    measured = run("profile", *models, *SMALL, "--offload", "disk", "--memory-budget", "780 kB")
    assert measured.code == 0, measured.err
    [profile] = Path("profiles").glob("*/*--float32--offload-disk.yaml")
    engine = yaml.safe_load(profile.read_text())["engine"]
    assert engine["offload"] == "disk"
    assert engine["memory_budget"] == 780_000
    assert engine["streamed_layers"] == 2
    limits = ["--limit", 2, "--max-new-tokens", 8]
    rates = ["--dataset", dataset, *limits, "-o", "rates.yaml"]
    budget = ["--offload", "disk", "--memory-budget", "780kB"]
    assert run("estimate", *models, *rates, *budget).code == 0
    solved = run("solve", "--profile", profile, "--acceptance", "rates.yaml", "--size", 5)
    assert solved.code == 0, solved.err
    [tree] = Path("trees").glob("*/*--float32--offload-disk--*.json")
    decode = ["decode", tree, *models, "--prompt", "def f", "--max-new-tokens", 12, "--json"]
    found = json.loads(run(*decode).out)
    resident = json.loads(run(*decode, "--offload", "none").out)
    assert found["tokens"] == resident["tokens"]
    raced = ["bench", tree, *models, "--dataset", dataset, "--methods", "plain,generate,tree"]
    done = run(*raced, *limits, "--repeats", 1, "--json")
    document = json.loads(done.out)
    assert (document["offload"], document["memory_budget"]) == ("disk", 780_000)
    assert len(document["results"]) == 3


@pytest.mark.parametrize(
    ("options", "code", "complaint"),
    [
        (["--offload", "disk", "--memory-budget", "much"], 2, "expected a size like 8GB or 512MiB"),
        (["--offload", "disk", "--memory-budget", "1kB"], 1, "memory budget: found 1e-06 GB"),
        (["--memory-budget", "1GB"], 1, "nothing is offloaded"),
        (["--offload", "attic"], 1, "expected one of none, cpu, disk"),
        (
            ["--offload", "cpu", "--device", "cpu"],
            1,
            "--offload disk reads the weights as they are used",
        ),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    run: Callable[..., Outcome], models: list[str], options: list[str], code: int, complaint: str
) -> None:
    done = run("profile", *models, *SMALL, *options)
    assert done.code == code
    assert complaint in " ".join(done.err.split())
    assert "Traceback" not in done.err
    assert not Path("profiles").exists()
