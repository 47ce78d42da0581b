from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from brute_force import random_profile
from command_line import Outcome

from sequoia_opt.plan import shapes


@pytest.fixture
def arguments(models: list[str], dataset: Path, run: Callable[..., Outcome]) -> list[object]:
    """A small calibration, with its inputs in the working folder."""
    shapes.k_ary(2, 2).save("k.json")
    latencies = random_profile(np.random.default_rng(0), "monotone", 16)
    latencies.overhead["sequoia"] = latencies.overhead["greedy"]
    latencies.save("profile.yaml")
    small = ["--profile", "profile.yaml", "--dataset", dataset, "--max-new-tokens", 8]
    return ["calibrate", "k.json", *models, *small]


def test_two_temperatures_are_calibrated_and_plotted(
    run: Callable[..., Outcome], arguments: list[object]
) -> None:
    done = run(*arguments, "--chains", 3, "-o", "kept/calibration.json", "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert [part["temperature"] for part in document["calibration"]] == [0, 0.6]
    assert document["prompts"] == 1  # acceptance is estimated from two of the three documents
    for part in document["calibration"]:
        assert part["trees"][0]["name"] == "chosen"
        shapes_raced = {(tree["size"], tree["depth"]) for tree in part["trees"]}
        assert {(2, 1), (3, 2), (4, 3)} <= shapes_raced
    written = json.loads(Path("kept/calibration.json").read_text())
    assert written == {"format": "sequoia-opt/bench", "version": 1, **document}
    assert run("plot", "kept/calibration.json", "-o", "drawn", "--format", "png").code == 0
    assert Path("drawn/calibration.png").read_bytes().startswith(b"\x89PNG")


def test_formats(run: Callable[..., Outcome], arguments: list[object]) -> None:
    shown = run(*arguments, "--temperature", 0, "--format", "md").out
    assert "\nspeedup: off by " in shown
    assert shown.startswith("| tree | nodes | depth | tokens/step, predicted | measured | error |")
    rows = list(csv.DictReader(io.StringIO(run(*arguments, "--format", "csv").out)))
    assert {row["temperature"] for row in rows} == {"0.0", "0.6"}
    assert all(float(row["speedup_predicted"]) > 0 for row in rows)


def test_one_document_is_not_enough(run: Callable[..., Outcome], arguments: list[object]) -> None:
    Path("one.jsonl").write_text('{"prompt": "def f"}\n')
    done = run(*arguments, "--dataset", "one.jsonl")
    assert done.code == 1
    assert "one: found 1 document, expected at least 2" in done.err


@pytest.mark.parametrize(
    ("options", "code", "complaint"),
    [
        (["--methods", "plain"], 2, "No such option: --methods"),
        (["--chain", "3"], 2, "No such option: --chain"),
        (["--synthetic-acceptance", "a.yaml"], 2, "No such option: --synthetic-acceptance"),
        (["--resume"], 2, "No such option: --resume"),
        (["--max-seconds", "9"], 2, "No such option: --max-seconds"),
        (["-o", "kept.csv"], 2, "expected a .json file"),
        (["--temperature", "0.6", "--verifier", "traversal"], 1, "estimate with sequoia"),
    ],
)
def test_what_cannot_be_calibrated(
    run: Callable[..., Outcome],
    arguments: list[object],
    options: list[str],
    code: int,
    complaint: str,
) -> None:
    done = run(*arguments, *options)
    assert done.code == code
    assert complaint in done.err


def test_the_old_spelling_names_the_command(run: Callable[..., Outcome]) -> None:
    done = run("bench", "t.json", "--calibrate", "--limit", "2")
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "sequoia-opt calibrate t.json --limit 2" in done.err
