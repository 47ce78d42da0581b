from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sequoia_opt.engine.distributed import World
from sequoia_opt.measure.disturbance import Moment, Watch, disturbances, slowdown

CUDA = torch.device("cuda")


def test_a_quiet_machine_has_nothing_to_say() -> None:
    began = Moment(wall=10, busy=100, stolen=5, own=50)
    ended = Moment(wall=20, busy=119, stolen=5.5, own=68)
    assert disturbances(began, ended, processors=2) == []
    assert slowdown([1.0, 1.1, 0.9] * 3) == ""
    assert slowdown([1.0, 9.0]) == ""  # too few to say


def test_what_disturbs_is_named_with_its_share() -> None:
    began = Moment(wall=10, busy=100, stolen=5, own=50, clock=1980)
    ended = Moment(wall=20, busy=117, stolen=9, own=58, clock=1500)
    assert disturbances(began, ended, processors=2) == [
        "other processes took 25% of the processors",
        "the machine's host took 20% of the processors for others",
        "the GPU's clock fell from 1980 to 1500 MHz",
    ]
    assert slowdown([1.0, 1.0, 1.2, 1.1, 1.4, 1.3]) == "all became 35% slower from first to last"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_another_process_is_noticed() -> None:
    """It has the one processor that both may run on to itself."""
    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(processors)})
    try:
        watch = Watch(torch.device("cpu"))
        busy = "import time\nends = time.monotonic() + 30\nwhile time.monotonic() < ends: pass"
        with subprocess.Popen([sys.executable, "-c", busy]) as other:
            time.sleep(1.5)
            notes = watch.notes()
            other.kill()
    finally:
        os.sched_setaffinity(0, processors)
    assert any("processors" in note for note in notes)


def test_what_runs_together_with_this_process_is_no_other() -> None:
    class Two(World):
        def gather(self, value: float) -> list[float]:
            return [value, value + 1000]

    def own(watch: Watch) -> float:
        return watch._now().own

    cpu = torch.device("cpu")
    assert own(Watch(cpu, Two(0, 2))) >= 2 * own(Watch(cpu)) + 999


@pytest.mark.parametrize(
    ("pids", "others"), [("{own}\n", 0), ("777\n", 0), ("{own}\n777\n", 1), ("", 0), ("[N/A]\n", 0)]
)
def test_processes_on_a_gpu_are_counted(
    pids: str, others: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This one may have another number there, in a container."""
    tool = tmp_path / "nvidia-smi"
    listed = pids.format(own=os.getpid())
    tool.write_text(f"#!/bin/sh\ncase $2 in *clocks*) echo 1980;; *) printf '{listed}';; esac\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="x")
    )
    notes = Watch(CUDA).notes()
    assert notes == (["1 other process on the GPU"] if others else [])


def test_without_the_drivers_tool_nothing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="x")
    )
    assert Watch(CUDA).notes() == []
