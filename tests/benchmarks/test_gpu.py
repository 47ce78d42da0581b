"""`make gpu`: an error is reported and stops only the part that it happens in."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import bundled
import parts
import processes
import psutil
import pytest
import resident
import torch
import typer
from checks import count_outcomes
from parts import LIMIT_MINUTES, PARTS, TINY, Options, Part
from record import Record
from summary import Outcome, table
from typer.testing import CliRunner

from sequoia_opt.cli.app import application
from sequoia_opt.engine.torch import memory
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.repository import paths

MAIN = Path(parts.__file__).with_name("__main__.py")
REHEARSAL = Options("cpu", TINY)
MACHINE = {"hardware": {"slug": "some-gpu", "name": "Some GPU"}, "software": {"torch": "2"}}


@pytest.fixture(scope="module")
def gpu() -> Any:
    """The module of the command, which cannot be imported by name."""
    spec = importlib.util.spec_from_file_location("gpu_main", MAIN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def part(run: Any) -> Part:
    return Part("some", "Some part", 1, 1, run)


def test_the_parts_fit_into_the_time() -> None:
    assert sum(part.expected for part in PARTS) <= 60 * LIMIT_MINUTES
    assert all(part.expected < part.limit for part in PARTS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has a GPU")
def test_a_missing_gpu_is_reported_in_one_line(
    gpu: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as stopped:
        gpu.main()
    assert stopped.value.exit_code == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shapes": "huge"}, "shapes: found 'huge', expected full or tiny"),
        ({"only": "7b,9b"}, "only: found '9b', expected some of tests, 7b"),
        ({"only": "own"}, "only: found own without a pair; name it with --target and --draft"),
        ({"target": "big"}, "found only one of --target and --draft, expected both"),
        ({"device": "gpu0"}, "device: found 'gpu0'"),
    ],
)
def test_wrong_options(
    options: dict[str, str], message: str, gpu: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as stopped:
        gpu.main(**{"device": "cpu", **options})
    assert stopped.value.exit_code == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(
    gpu: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(typer.Exit) as stopped:
        gpu.main(device="cpu", output=tmp_path / "file" / "folder")
    assert stopped.value.exit_code == 1
    assert "cannot be written" in capsys.readouterr().err


def test_a_part_that_exceeds_its_limit_is_stopped_and_its_stage_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "SHORTEST_PART_SECONDS", 0)
    outcome = processes.run_in_time(PARTS[1], REHEARSAL, tmp_path, tmp_path, left=0.5)
    assert outcome.state == "stopped at its limit of 0 s, stage: between stages"
    assert "stopped at its limit" in (tmp_path / "7b.log").read_text()
    assert processes.state_of(None, {"under_way": "profile"}, 60) == (
        "stopped at its limit of 60 s, stage: profile"
    )


def test_terminating_a_run_ends_its_part(tmp_path: Path) -> None:
    folders = [str(MAIN.parents[3]), str(MAIN.parents[1])]
    command = [sys.executable, str(MAIN.parent), "--device", "cpu", "--shapes", "tiny"]
    command += ["-o", str(tmp_path / "out"), "--only", "7b"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as run:
        assert run.stdout is not None
        assert "at most" in run.stdout.readline()
        log = tmp_path / "out" / "7b.log"
        while not (log.exists() and log.stat().st_size):  # the part has started
            assert run.poll() is None
            time.sleep(0.05)
        [child] = psutil.Process(run.pid).children()
        run.terminate()
        assert run.wait(30) == 128 + signal.SIGTERM
    assert not child.is_running()


def test_no_part_starts_when_the_time_is_up(tmp_path: Path) -> None:
    outcome = processes.run_in_time(PARTS[1], REHEARSAL, tmp_path, tmp_path, left=3)
    assert outcome.state == "not started: the time is up"
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_with_too_little_memory_is_reported(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)

    def run(record: Record, options: Options) -> None:
        resident.measure(record, "cpu", "tiny-target", "tiny-draft", [128], tiny=True)

    with pytest.raises(typer.Exit):
        gpu.run_part(part(run), Options("cpu", parts.FULL), tmp_path)
    state = processes.state_of(1, json.loads((tmp_path / "some.json").read_text()), 60)
    assert state.startswith("failed (load): the weights of")
    assert "0.0 GB of cpu memory are free" in state


def test_a_part_that_fails_keeps_its_results(gpu: Any, tmp_path: Path) -> None:
    def run(record: Record, options: Options) -> None:
        with record.stage("first"):
            record.note(plain_ms=2.0)
        with record.stage("second"):
            raise RuntimeError("out of\n  luck")

    with pytest.raises(RuntimeError):
        gpu.run_part(part(run), Options("cpu", parts.FULL), tmp_path)
    document = processes.read(tmp_path / "some.json")
    assert document["values"]["plain_ms"] == 2.0
    assert list(document["stages"]) == ["first"]
    assert processes.state_of(1, document, 60) == "failed (second): out of luck"
    assert processes.state_of(-9, {}, 60) == "failed (between stages): status -9"


def test_the_table_shows_the_available_numbers() -> None:
    values = {**MACHINE, "plain_ms": 5.6, "predicted_plain_ms": 5.5, "nodes": 8, "depth": 3}
    outcomes = {
        "tests": Outcome("GPU tests", "done", 60, {"passed": 9, "skipped": 1, "failed": ["a.b"]}),
        "7b": Outcome("A pair", "stopped at its limit of 150 s", 150, values),
        "13b-offloaded": Outcome("Another", "failed", 1, {}),
    }
    text = table(outcomes)
    assert text.startswith("Some GPU, torch 2\n")
    assert "9 passed, 1 skipped; FAILED a.b" in text
    assert "| plain decoding: predicted, measured | 5.50, 5.60 ms/token |" in text
    assert "8 nodes, depth 3" in text
    assert "generate" not in text  # the part stopped before it


def test_the_archive_is_ready_to_commit(gpu: Any, tmp_path: Path) -> None:
    scratch, output = tmp_path / "scratch", tmp_path / "out"
    tree = scratch / "entries" / "trees" / "some-gpu" / "a.json"
    tree.parent.mkdir(parents=True)
    tree.write_text("{}")
    output.mkdir()
    gpu.write_results({"7b": Outcome("A pair", "done", 9, MACHINE)}, REHEARSAL, output, scratch)
    with tarfile.open(output / "entries.tar.gz") as archive:
        assert set(archive.getnames()) == {
            "trees/some-gpu/a.json",
            "benchmarks/some-gpu/gpu.json",
            "benchmarks/some-gpu/gpu.md",
        }
    assert sorted(os.listdir(output)) == ["entries.tar.gz", "table.md"]


def test_the_bundled_pairs_plan_is_solved_from_the_recorded_drafts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As `solve-all` does it, which checks the entries once they are committed."""
    options: list[dict[str, Any]] = []
    monkeypatch.setattr(bundled, "solve", lambda *_, **given: options.append(given))
    profile = LatencyProfile.load(paths.bundled_profile())
    for temperature in bundled.TEMPERATURES:
        path = bundled.measured_acceptance(temperature)
        acceptance = Acceptance.load(path)
        bundled.plans(profile, acceptance, path)
        [plan, chain] = options
        assert acceptance.confidence is not None
        assert plan.pop("recording").fingerprint == acceptance.confidence.fingerprint
        assert (plan, chain) == ({}, {"shape": "chain"})
        options.clear()


def test_the_outcomes_of_tests_are_counted(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="a" name="b"/><testcase classname="a" '
        'name="c"><failure message="x"/></testcase><testcase classname="a" name="d"><skipped/>'
        '</testcase><testcase classname="a" name="e"><error/></testcase></testsuite></testsuites>'
    )
    assert count_outcomes(report) == {"passed": 1, "skipped": 1, "failed": ["a.c", "a.e"]}


def test_solve_all_accepts_the_entries_of_a_rehearsed_part(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part runs in this process; `solve-all --check` reads its profile and tree."""
    record = Record(tmp_path / "some.json", tmp_path / "entries")
    resident.measure(record, "cpu", "tiny-target", "tiny-draft", [128], tiny=True)
    profile, acceptance = sorted((tmp_path / "entries" / "profiles").rglob("*.yaml"))[::-1]
    [tree] = (tmp_path / "entries" / "trees").rglob("*.json")
    if profile.parent.name == "acceptance":
        profile, acceptance = acceptance, profile
    assert LatencyProfile.load(profile).engine["random_weights"]
    assert TokenTree.load(tree).metadata["provenance"]["profile"]["file"] == profile.name
    monkeypatch.chdir(tmp_path / "entries")
    checked = CliRunner().invoke(application(["solve-all"]), ["solve-all", "--check"])
    assert checked.exit_code == 0, checked.output
    assert record.values["speedup_over_generate"] > 0
    assert record.under_way == ""
