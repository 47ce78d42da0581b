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
from sequoia_opt.measure.disturbance import (
    DisturbanceMonitor,
    MachineState,
    likely_causes,
    slowdown,
)

CUDA = torch.device("cuda")


def test_a_quiet_machine_gives_no_notes() -> None:
    before = MachineState(wall_s=10, busy_s=100, stolen_s=5, program_s=50)
    after = MachineState(wall_s=20, busy_s=119, stolen_s=5.5, program_s=68)
    assert likely_causes(before, after, cpus=2) == []
    assert slowdown([1.0, 1.1, 0.9] * 3) == ""
    assert slowdown([1.0, 9.0]) == ""  # too few rounds


def test_each_cause_is_named_with_its_share() -> None:
    before = MachineState(wall_s=10, busy_s=100, stolen_s=5, program_s=50, clock_mhz=1980)
    after = MachineState(wall_s=20, busy_s=117, stolen_s=9, program_s=58, clock_mhz=1500)
    assert likely_causes(before, after, cpus=2) == [
        "other processes used 25% of the CPU time",
        "the host took 20% of the CPU time (CPU steal)",
        "the GPU clock fell from 1980 to 1500 MHz",
    ]
    note = slowdown([1.0, 1.0, 1.2, 1.1, 1.4, 1.3])
    assert note == "the last rounds took 35% longer than the first"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_another_process_is_noticed() -> None:
    """It has the only CPU that both may run on to itself."""
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    try:
        monitor = DisturbanceMonitor(torch.device("cpu"))
        busy = "import time\nends = time.monotonic() + 30\nwhile time.monotonic() < ends: pass"
        with subprocess.Popen([sys.executable, "-c", busy]) as other:
            time.sleep(1.5)
            notes = monitor.notes()
            other.kill()
    finally:
        os.sched_setaffinity(0, cpus)
    assert any("of the CPU time" in note for note in notes)


def test_processes_that_run_the_same_pair_are_not_others() -> None:
    class TwoProcesses(World):
        def gather(self, value: float) -> list[float]:
            return [value, value + 1000]

    def program_s(monitor: DisturbanceMonitor) -> float:
        return monitor._state().program_s

    cpu = torch.device("cpu")
    together = program_s(DisturbanceMonitor(cpu, TwoProcesses(0, 2)))
    assert together >= 2 * program_s(DisturbanceMonitor(cpu)) + 999


@pytest.mark.parametrize(
    ("pids", "others"),
    [("{this}\n", 0), ("777\n", 0), ("{this}\n777\n", 1), ("{this}\n777\n778\n", 2), ("", 0),
     ("[N/A]\n", 0)],
)  # fmt: skip
def test_other_processes_on_a_gpu_are_counted(
    pids: str, others: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container this process may be listed under another id."""
    tool = tmp_path / "nvidia-smi"
    listed = pids.format(this=os.getpid())
    tool.write_text(f"#!/bin/sh\ncase $2 in *clocks*) echo 1980;; *) printf '{listed}';; esac\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="x")
    )
    notes = {0: [], 1: ["1 other process on the GPU"], 2: ["2 other processes on the GPU"]}
    assert DisturbanceMonitor(CUDA).notes() == notes[others]


def test_without_nvidia_smi_there_are_no_notes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="x")
    )
    assert DisturbanceMonitor(CUDA).notes() == []
