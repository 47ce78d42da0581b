"""Two processes on gloo, as torchrun starts them, beside one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import short_runs
import yaml
from command_line import SMALL, Outcome

from sequoia_opt.cli.tree_defaults import check_world
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes

FIRST_OF_TWO = {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2"}
ENDS_WITHIN = 300  # seconds; far from what it takes, near enough to call the rest a hang


def launch(*arguments: object, count: int = 2) -> subprocess.Popen[str]:
    """A command line in several processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(count), short_runs.__file__, *map(str, arguments)]
    return subprocess.Popen(
        command,
        # Where there are GPUs, transformers would spread the target over them.
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[str]) -> Outcome:
    """What came of it; its own errors, without torchrun's."""
    out, err = process.communicate(timeout=ENDS_WITHIN)
    own = [line for line in err.splitlines() if line.startswith("error: ")]
    return Outcome(process.returncode, out, "\n".join(own) or err)


def test_profile_and_decode_with_a_target_on_two_processes(
    run: Callable[..., Outcome], models: list[str]
) -> None:
    done = finish(launch("profile", *models, *SMALL, "--verifiers", ""))
    assert done.code == 0, done.err
    assert done.out.count("milliseconds per forward pass") == 1
    [profile] = Path("profiles").glob("*/*--float32--tp2.yaml")
    assert yaml.safe_load(profile.read_text())["engine"]["world_size"] == 2
    (Path("rates.csv")).write_text("0.6,0.2\n")
    names = ["--target", "small-target", "--draft", "small-draft", "-o", "rates.yaml"]
    assert run("import", "rates.csv", *names).code == 0
    solved = ["--profile", profile, "--acceptance", "rates.yaml", "--size", 7, "-o", "tree.json"]
    assert run("solve", *solved).code == 0
    decode = ["decode", "tree.json", *models, "--prompt", "def f", "--max-new-tokens", 24]
    spread = finish(launch(*decode, "--dtype", "float64", "--json"))
    assert spread.code == 0, spread.err
    refused = run(*decode)
    assert refused.code == 1
    assert "the tree was solved for 2 processes, found 1" in refused.err
    shapes.k_ary(2, 2).save("plain.json")
    alone = run("decode", "plain.json", *decode[2:], "--dtype", "float64", "--json")
    assert json.loads(spread.out)["tokens"] == json.loads(alone.out)["tokens"]


def test_a_tree_for_one_process_is_not_run_by_several(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {**FIRST_OF_TWO, "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    tree = shapes.k_ary(2, 2)
    tree.metadata["engine"] = {"world_size": 1}
    with pytest.raises(SequoiaError, match="for one process, found 2; start it without torchrun"):
        check_world(tree)
    tree.metadata["engine"] = {"world_size": 2}
    check_world(tree)


def test_estimates_are_those_of_one_process(
    run: Callable[..., Outcome], models: list[str], dataset: Path
) -> None:
    """In float64, where rounding, which depends on threads and alignment, is not in the file."""
    options = ["estimate", *models, "--dataset", dataset, "--temperature", "0,0.7"]
    options += ["--max-new-tokens", 12, "--dtype", "float64"]
    done = finish(launch(*options))
    assert done.code == 0, done.err
    files = sorted(Path("profiles/acceptance").iterdir())
    assert [path.suffix for path in files] == [".npz", ".yaml"] * 2
    shared = [path.read_bytes() for path in files]
    assert run(*options).code == 0
    assert [path.read_bytes() for path in files] == shared


def test_bad_input_is_said_once(run: Callable[..., Outcome], models: list[str]) -> None:
    """A model whose heads cannot be divided among three processes."""
    done = finish(launch("profile", *models, *SMALL, count=3))
    assert done.code != 0
    assert re.fullmatch(r"error: .* its 4 heads cannot be divided among 3 processes.*", done.err)
    assert not Path("profiles").exists()


def test_processes_without_a_device_are_told_once(
    run: Callable[..., Outcome], models: list[str]
) -> None:
    done = finish(launch("profile", *models, *SMALL, "--device", "cuda"))
    assert done.code != 0
    assert done.err == "error: this machine has no GPU for its processes; use --device cpu"


def test_what_another_programs_processes_leave_behind_is_told_of(
    run: Callable[..., Outcome], models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in FIRST_OF_TWO.items():
        monkeypatch.setenv(name, value)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    started = time.monotonic()
    done = run("profile", *models, *SMALL)
    assert time.monotonic() - started < 5
    assert done.code == 1
    [line] = done.err.splitlines()
    assert re.fullmatch(r"error: .* MASTER_ADDR is not; start them with torchrun, .*", line)


def test_a_process_that_dies_ends_the_run(
    run: Callable[..., Outcome], models: list[str], tmp_path: Path
) -> None:
    process = launch("profile", *models, *SMALL[:4], "--repeats", 10_000)
    deadline = time.monotonic() + ENDS_WITHIN
    # A round is recorded as soon as it is measured, below the line that names the measurement.
    while not any(
        path.read_text().count("\n") > 1 for path in tmp_path.glob("profiles/**/*.partial")
    ):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    workers = [child.pid for child in psutil.Process(process.pid).children()]
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    assert finish(process).code != 0
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)
    assert not list(tmp_path.glob("profiles/**/*.yaml"))
