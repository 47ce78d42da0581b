"""Disturbances of a measurement: other processes, CPU steal, a throttled GPU clock, a slowdown.

Knows the machine's counters and the GPU's driver. Times nothing itself.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import psutil
import torch

from sequoia_opt.engine.cpu import processors
from sequoia_opt.engine.distributed import ALONE, World

# What is still too little to report.
MAX_CPU_SHARE = 0.1  # share of the CPU time that others may take
MAX_SLOWDOWN = 1.15  # time of the last rounds relative to the first
MIN_CLOCK_SHARE = 0.9  # GPU clock at the end relative to the beginning
# Fields of the CPU times that are not work, or that are counted in another field already.
NOT_WORK = ("idle", "iowait", "guest", "guest_nice")


@dataclass(frozen=True)
class MachineState:
    """The machine's counters at one moment.

    Attributes:
        wall_s: seconds on the clock.
        busy_s: seconds that the CPUs worked, summed over those that this process may run on.
        stolen_s: the part of `busy_s` that the host gave to other virtual machines (CPU steal).
        program_s: CPU seconds of this process and of those that run the pair together with it.
        clock_mhz: clock of the GPU; 0 where it is unknown.
    """

    wall_s: float
    busy_s: float = 0.0
    stolen_s: float = 0.0
    program_s: float = 0.0
    clock_mhz: float = 0.0


class DisturbanceMonitor:
    """Compares the machine before and after a measurement; starts when it is made."""

    def __init__(self, device: torch.device, world: World = ALONE) -> None:
        self._device, self._world = device, world
        self._start = self._state()

    def notes(self) -> list[str]:
        """What has disturbed the measurement until now, a line each."""
        notes = likely_causes(self._start, self._state(), len(processors()))
        if self._device.type == "cuda" and (count := _other_processes_on(self._device)):
            noun = "process" if count == 1 else "processes"
            notes.append(f"{count} other {noun} on the GPU")
        return notes

    def _state(self) -> MachineState:
        """The machine's counters now."""
        if self._device.type == "cuda":
            clocks = _query_gpu(self._device, "gpu", "clocks.sm")
            clock = _number(clocks[0]) if clocks else 0.0
            return MachineState(time.monotonic(), clock_mhz=clock)
        every_cpu = psutil.cpu_times(percpu=True)
        cpus = [every_cpu[number] for number in processors() if number < len(every_cpu)]
        process = psutil.Process().cpu_times()
        return MachineState(
            time.monotonic(),
            busy_s=sum(
                sum(cpu._asdict().values()) - sum(getattr(cpu, name, 0.0) for name in NOT_WORK)
                for cpu in cpus
            ),
            stolen_s=sum(getattr(cpu, "steal", 0.0) for cpu in cpus),
            program_s=sum(self._world.gather(process.user + process.system)),
        )


def likely_causes(before: MachineState, after: MachineState, cpus: int) -> list[str]:
    """Why times between two moments may be noisy, a line for each cause.

    Args:
        cpus: number of CPUs that the states are of.
    """
    notes = []
    available = (after.wall_s - before.wall_s) * cpus
    stolen = after.stolen_s - before.stolen_s
    program = after.program_s - before.program_s
    others = after.busy_s - before.busy_s - stolen - program
    if available and others > MAX_CPU_SHARE * available:
        notes.append(f"other processes used {others / available:.0%} of the CPU time")
    if available and stolen > MAX_CPU_SHARE * available:
        notes.append(f"the host took {stolen / available:.0%} of the CPU time (CPU steal)")
    if 0 < after.clock_mhz < MIN_CLOCK_SHARE * before.clock_mhz:
        notes.append(f"the GPU clock fell from {before.clock_mhz:.0f} to {after.clock_mhz:.0f} MHz")
    return notes


def slowdown(round_times: Sequence[float]) -> str:
    """A note if the last third of the rounds took clearly longer than the first, else "".

    Args:
        round_times: time of each round, in any unit.
    """
    third = len(round_times) // 3
    if not third:
        return ""
    ratio = float(np.median(round_times[-third:]) / np.median(round_times[:third]))
    if ratio <= MAX_SLOWDOWN:
        return ""
    return f"the last rounds took {ratio - 1:.0%} longer than the first"


def _other_processes_on(device: torch.device) -> int:
    """Number of processes that compute on a GPU besides this one.

    In a container the driver may list this process under another id; it is still one of them.
    """
    listed = {int(_number(line)) for line in _query_gpu(device, "compute-apps", "pid")}
    this = os.getpid()
    return max(0, len(listed - {this}) - (0 if this in listed else 1))


def _query_gpu(device: torch.device, what: str, quantity: str) -> list[str]:
    """Lines with a number that nvidia-smi prints for a query; none if it fails."""
    uuid = torch.cuda.get_device_properties(device).uuid
    query = f"--query-{what}={quantity}"
    command = ["nvidia-smi", f"--id=GPU-{uuid}", query, "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line for line in done.stdout.splitlines() if _number(line)]


def _number(text: str) -> float:
    """The number that a text is; 0 if it is none, as "[N/A]"."""
    try:
        return float(text)
    except ValueError:
        return 0.0
