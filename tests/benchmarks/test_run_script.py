"""benchmarks/run.sh finds the machine's files, and its command lines are this program's."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import torch
import typer

from sequoia_opt import demo
from sequoia_opt.cli.app import application
from sequoia_opt.engine.hardware import hardware

ROOT = Path(__file__).parents[2]
PAIR = f"{demo.TARGET_NAME}--{demo.DRAFT_NAME}"
TEMPERATURES = ("0", "0.3", "0.6", "1", "1.2")


def executable(path: Path, script: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)


def repository(folder: Path, dataset: str) -> Path:
    """A repository with the script and this machine's files, which are empty; its trees' folder."""
    slug = str(hardware(torch.device("cpu"), threads=1)["slug"])
    trees = Path("trees") / slug
    files = [Path("profiles") / slug / f"{PAIR}--float32{mark}.yaml" for mark in ("", "+compiled")]
    for temperature in TEMPERATURES:
        verifier = "greedy" if temperature == "0" else "sequoia"
        files.append(trees / f"{PAIR}--float32+compiled--{dataset}-{verifier}-T{temperature}.json")
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    (folder / "benchmarks").mkdir()
    shutil.copy(ROOT / "benchmarks" / "run.sh", folder / "benchmarks")
    return trees


def test_its_command_lines_are_the_programs(tmp_path: Path) -> None:
    """The program is a stand-in that notes its arguments."""
    trees = repository(tmp_path, "numbers")
    (tmp_path / "numbers.jsonl").touch()
    noted = tmp_path / "noted"
    note = f"import json, sys; print(json.dumps(sys.argv[1:]), file=open({str(noted)!r}, 'a'))"
    start = shlex.quote(sys.executable)
    executable(tmp_path / "bin" / "sequoia-opt", f'{start} -S -c {shlex.quote(note)} "$@"')
    executable(tmp_path / "bin" / "python", f'exec {start} "$@"')
    path = os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]])
    settings = {"PATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        ["bash", "benchmarks/run.sh", "numbers.jsonl"],
        cwd=tmp_path,
        env=os.environ | settings | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = [json.loads(line) for line in noted.read_text().splitlines()]
    program = typer.main.get_command(application())
    assert isinstance(program, typer.core.TyperGroup)
    for name, *arguments in lines:
        program.commands[name].make_context(name, list(arguments))
    decoded = [words[1] for words in lines if words[0] == "bench" and "64-nodes" not in words[1]]
    assert len(decoded) == len(TEMPERATURES)
    named = {words[1] for words in lines if words[1].startswith("trees")}
    assert named == {file.relative_to(tmp_path).as_posix() for file in (tmp_path / trees).iterdir()}
    assert {words[0] for words in lines} == {"calibrate", "bench", "bench-sizes", "solve", "plot"}
