"""What else a machine did while it was measured: other work, clocks that fall, times that spread.

Says which times not to trust. Does no timing itself.
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

from sequoia_opt.engine.distributed import ALONE, World
from sequoia_opt.engine.torch.cpu_threads import processors

OTHERS = 0.1  # of the processors' time: what others may take
SLOWER = 1.15  # the last rounds than the first
FALLEN = 0.9  # of a GPU's clock at the beginning
IDLE = ("idle", "iowait", "guest", "guest_nice")  # guests' time is in user's already


@dataclass(frozen=True)
class Moment:
    """What a machine has done until a moment.

    Attributes:
        wall: seconds on the clock.
        busy, stolen: seconds of all processors that this process may run on: that they worked,
            and that their host took for others.
        own: seconds that this process worked, and those that run together with it.
        clock: MHz of the GPU; 0 where that is not known.
    """

    wall: float
    busy: float = 0.0
    stolen: float = 0.0
    own: float = 0.0
    clock: float = 0.0


class Watch:
    """What a device and its machine do besides what is measured, from now on."""

    def __init__(self, device: torch.device, world: World = ALONE) -> None:
        self._device, self._world = device, world
        self._began = self._now()

    def notes(self) -> list[str]:
        """What disturbed the measurement, a line each."""
        said = disturbances(self._began, self._now(), len(processors()))
        if self._device.type == "cuda" and (others := _others_on(self._device)):
            said.append(f"{others} other process{'es' * (others > 1)} on the GPU")
        return said

    def _now(self) -> Moment:
        if self._device.type == "cuda":
            clocks = _ask_gpu(self._device, "gpu", "clocks.sm")
            return Moment(time.monotonic(), clock=_number(clocks[0]) if clocks else 0.0)
        each = psutil.cpu_times(percpu=True)
        times = [each[number] for number in processors() if number < len(each)]
        own = psutil.Process().cpu_times()
        return Moment(
            time.monotonic(),
            busy=sum(
                sum(t._asdict().values()) - sum(getattr(t, i, 0.0) for i in IDLE) for t in times
            ),
            stolen=sum(getattr(t, "steal", 0.0) for t in times),
            own=sum(self._world.gather(own.user + own.system)),
        )


def disturbances(began: Moment, ended: Moment, processors: int) -> list[str]:
    """What happened between two moments that makes times longer."""
    said = []
    whole = (ended.wall - began.wall) * processors
    stolen = ended.stolen - began.stolen
    others = ended.busy - began.busy - stolen - (ended.own - began.own)
    if whole and others > OTHERS * whole:
        said.append(f"other processes took {others / whole:.0%} of the processors")
    if whole and stolen > OTHERS * whole:
        said.append(f"the machine's host took {stolen / whole:.0%} of the processors for others")
    if 0 < ended.clock < FALLEN * began.clock:
        said.append(f"the GPU's clock fell from {began.clock:.0f} to {ended.clock:.0f} MHz")
    return said


def slowdown(paces: Sequence[float]) -> str:
    """What to say where the last third of the rounds took longer than the first; else nothing.

    Args:
        paces: how long each round took, beside the others.
    """
    third = len(paces) // 3
    if not third:
        return ""
    ratio = float(np.median(paces[-third:]) / np.median(paces[:third]))
    return f"all became {ratio - 1:.0%} slower from first to last" if ratio > SLOWER else ""


def _others_on(device: torch.device) -> int:
    """Processes that compute on a GPU besides this one, whose number may be another there."""
    found = {int(_number(line)) for line in _ask_gpu(device, "compute-apps", "pid")}
    return max(0, len(found - {os.getpid()}) - (os.getpid() not in found))


def _ask_gpu(device: torch.device, what: str, quantity: str) -> list[str]:
    """Lines of the driver's own tool; none where it does not answer."""
    uuid = torch.cuda.get_device_properties(device).uuid
    query = f"--query-{what}={quantity}"
    command = ["nvidia-smi", f"--id=GPU-{uuid}", query, "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line for line in found.stdout.splitlines() if _number(line)]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:  # "[N/A]"
        return 0.0
