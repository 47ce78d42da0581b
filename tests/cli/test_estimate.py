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

from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.recording import Recording


def test_traversal_is_not_estimated(run: Callable[..., Outcome]) -> None:
    done = run("estimate", "--temperature", 0.6, "--verifier", "traversal")
    assert done.code == 1
    assert "estimate with sequoia" in done.err


def test_an_unknown_verifier_is_refused(run: Callable[..., Outcome]) -> None:
    done = run("estimate", "--verifier", "best")
    assert done.code == 1
    assert "verifier: found 'best', expected sequoia or specinfer or topk" in done.err


def test_help_lists_the_verifiers_with_rates(run: Callable[..., Outcome]) -> None:
    shown = " ".join(run("estimate", "--help").out.replace("│", " ").split())
    assert "Choose from sequoia, specinfer, topk." in shown


def test_one_file_for_several_statistics_is_refused(run: Callable[..., Outcome]) -> None:
    tree = {"parents": [-1, 0], "ranks": [0, 1], "ended": {"0": 1, "1": 2}, "context": 8.0}
    lines = [
        {
            "format": "sequoia-opt/stats",
            "version": 1,
            "target": "t",
            "draft": "d",
            "temperature": temperature,
            "top_p": 1.0,
            "verifier": verifier,
            **tree,
        }
        for temperature, verifier in ((0.0, "greedy"), (0.6, "sequoia"))
    ]
    Path("s.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    refused = run("estimate", "--from-stats", "s.jsonl", "-o", "one.yaml")
    assert refused.code == 2
    assert "names one file, but the texts were decoded in 2 ways" in refused.err
    done = run("estimate", "--from-stats", "s.jsonl", "--json")
    assert done.code == 0, done.err
    estimates = json.loads(done.out)["estimates"]
    assert [rates["verifier"] for rates in estimates] == ["greedy", "sequoia"]
    assert [rates["sources"] for rates in estimates] == 2 * [{"dataset": "s.jsonl"}]
    assert len(list(Path("profiles/acceptance").iterdir())) == 2


def test_one_pass_serves_several_temperatures_and_verifiers(
    run: Callable[..., Outcome], models: list[str], dataset: Path
) -> None:
    options = ["--dataset", dataset, "--teacher-forced", "--max-new-tokens", 8]
    options += ["--temperature", "0,0.6", "--verifier", "sequoia,topk", "--depths", 3]
    done = run("estimate", *models, *options, "--json")
    assert done.code == 0, done.err
    estimates = json.loads(done.out)["estimates"]
    names = [(rates["verifier"], rates["temperature"]) for rates in estimates]
    assert names == [("greedy", 0), ("sequoia", 0.6), ("topk", 0.6)]
    assert done.err.count("wrote ") == len(list(Path("profiles/acceptance").iterdir())) == 3
    refused = run("estimate", *models, *options, "-o", "one.yaml")
    assert refused.code == 2
    assert "one file, but 3" in refused.err
    assert "found '0;1', expected numbers" in run("estimate", "--temperature", "0;1").err


def test_a_killed_run_is_resumed_and_gives_the_same_file(
    run: Callable[..., Outcome], models: list[str], dataset: Path
) -> None:
    """By SIGKILL, as soon as one part is finished."""
    options = [*models, "--dataset", str(dataset), "--batch", "1", "--temperature", "0.7"]
    options += ["--max-new-tokens", "100", "--dtype", "float64"]
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
    whole = Path("whole.yaml").read_bytes().replace(b"whole.npz", b"killed.npz")
    assert Path("killed.yaml").read_bytes() == whole
    assert Recording.load("killed.npz").fingerprint == Recording.load("whole.npz").fingerprint


@pytest.mark.parametrize("option", [["--chat"], ["--dataset", "d.jsonl"], ["--min-p", 0.1]])
def test_statistics_take_no_dataset(run: Callable[..., Outcome], option: list[object]) -> None:
    Path("s.jsonl").write_text("")
    done = run("estimate", "--from-stats", "s.jsonl", *option)
    assert done.code == 2
    assert f"{option[0]}: does nothing with --from-stats" in done.err


def test_recorded_drafts_lie_beside_the_rates(
    run: Callable[..., Outcome], models: list[str], dataset: Path
) -> None:
    options = [*models, "--dataset", dataset, "--max-new-tokens", 8, "--temperature", 0.7]
    done = run("estimate", *options, "--envelope", "3x2x2", "-o", "rates.yaml")
    assert done.code == 0, done.err
    assert done.err.splitlines()[-2:] == ["wrote rates.yaml", "wrote rates.npz"]
    rates, recording = Acceptance.load("rates.yaml"), Recording.load("rates.npz")
    assert rates.confidence is not None
    assert (rates.confidence.recording, rates.confidence.fingerprint) == (
        "rates.npz", recording.fingerprint
    )  # fmt: skip
    assert str(recording.envelope) == "3x2x2"
    assert [rank if rank <= 2 else 0 for trace in rates.traces for rank in trace] == (
        recording.ranks.tolist()
    )
    assert recording.documents == len(rates.traces)
    assert recording.about["temperature"] == 0.7
    assert recording.about["fingerprints"] == rates.extra["fingerprints"]
    again = run("estimate", *options, "--no-envelope", "-o", "other.yaml")
    assert again.code == 0, again.err
    assert "npz" not in again.err
    assert not Path("other.npz").exists()
    other = Acceptance.load("other.yaml")
    assert (other.confidence, other.traces) == (None, rates.traces)


def test_recordings_replace_recordings_alone(
    run: Callable[..., Outcome], models: list[str], dataset: Path
) -> None:
    options = [*models, "--dataset", dataset, "--max-new-tokens", 4, "-o", "rates.yaml"]
    Path("rates.npz").write_bytes(b"PK, but not from here")
    refused = run("estimate", *options)
    assert refused.code == 1
    assert "rates.npz: holds something else, not a recording of drafts" in refused.err
    assert Path("rates.npz").read_bytes() == b"PK, but not from here"
    for force in (["--force"], []):
        done = run("estimate", *options, *force)
        assert done.code == 0, done.err
        assert Recording.load("rates.npz").documents


def test_drafts_are_recorded_where_they_can_be(
    run: Callable[..., Outcome], models: list[str], dataset: Path
) -> None:
    options = [*models, "--dataset", dataset, "--max-new-tokens", 4]
    for more in (["--teacher-forced", "-o", "rates.yaml"], ["-o", "/dev/null"]):
        asked = run("estimate", *options, *more, "--envelope", "2x2x2")
        assert asked.code == 0, asked.err
        assert "the drafts are not recorded: " in asked.err
        done = run("estimate", *options, *more)
        assert done.code == 0, done.err
        assert "the drafts are not recorded" not in done.err
        assert not list(Path().glob("*.npz"))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--envelope", "8x4"], "expected levels, slots and ranks, such as 8x4x4"),
        (["--envelope", "8x4x2"], "slots: found 4, expected at most 2"),
        (["--envelope", "8x4x4", "--no-envelope"], "contradicts --no-envelope"),
        (["--envelope", "8x4x4", "--from-stats", "s.jsonl"], "does nothing with --from-stats"),
    ],
)
def test_a_wrong_envelope_is_refused(
    run: Callable[..., Outcome], options: list[str], complaint: str
) -> None:
    done = run("estimate", *options)
    assert done.code == 2
    assert complaint in " ".join(done.err.replace("│", " ").split())
