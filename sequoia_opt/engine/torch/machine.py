"""The device that the models run on: how work is prepared, timed, and read back.

Knows CUDA's queue of work and its graphs from a CPU's plain calls. Knows nothing of models.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sequoia_opt.engine.adaptive_step import AdaptiveStep
from sequoia_opt.engine.hardware import hardware, software
from sequoia_opt.engine.names import TORCH
from sequoia_opt.engine.step import Step
from sequoia_opt.engine.torch.cuda_graphs import (
    GraphRecorder,
    RecordedStep,
    bucketed,
    recorded,
    room,
)
from sequoia_opt.plan.draft_passes import FIRST_WIDTH


class TorchMachine:
    """A device of torch's; see `Machine`.

    Attributes:
        graphs: whether steps are recorded as CUDA graphs and replayed.
        recorder: records them.
    """

    engine = TORCH
    rebuilds = False
    first_pass_tokens = FIRST_WIDTH
    contexts: tuple[int, ...] = (128, 512, 1024)

    def __init__(self, device: torch.device, graphs: bool = False) -> None:
        self.device, self.graphs = device, graphs
        self.recorder = GraphRecorder()
        self.queues = device.type == "cuda"

    @property
    def hardware(self) -> dict[str, Any]:
        """See `Machine`."""
        return hardware(self.device)

    @property
    def software(self) -> dict[str, str]:
        """See `Machine`."""
        return software(self.device)

    @property
    def settings(self) -> dict[str, Any]:
        """See `Machine`."""
        return {"threads": torch.get_num_threads()}

    @property
    def recording_seconds(self) -> float:
        """See `Machine`."""
        return self.recorder.seconds

    def capacity_for(self, length: int) -> int:
        """See `Machine`."""
        return room(length) if self.graphs else length

    def bound_for(self, length: int) -> int:
        """See `Machine`."""
        return bucketed(length) if self.graphs else length

    def prepared(self, step: Step | AdaptiveStep) -> Step | AdaptiveStep | RecordedStep:
        """See `Machine`; the host decides within an adaptive step, which no graph can hold."""
        if not self.graphs or not isinstance(step, Step):
            return step
        return RecordedStep(step, self.recorder)

    def repeated(self, work: Callable[[], object]) -> Callable[[], object]:
        """See `Machine`."""
        return recorded(work, self.device, self.recorder) if self.graphs else work

    def elapsed_ms(self, work: Callable[[], object], queued: bool = False) -> float:
        """See `Machine`."""
        if queued:
            return queued_ms(work, self.device)
        self._synchronize()
        started = time.perf_counter()
        work()
        self._synchronize()
        return 1000 * (time.perf_counter() - started)

    def read_back(self, count: int) -> ReadBack:
        """See `Machine`."""
        return ReadBack(count, self.device)

    def _synchronize(self) -> None:
        """Wait until the device has done all work that was issued."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class ReadBack:
    """Reads small tensors of whole numbers, into pinned memory where they come from CUDA."""

    def __init__(self, count: int, device: torch.device) -> None:
        self._host = None
        if device.type == "cuda":
            self._host = torch.empty(count, dtype=torch.long, pin_memory=True)
            self._device = device

    def __call__(self, values: Tensor) -> list[int]:
        """The values [count]; waits for the work that computes them, and for nothing else."""
        if self._host is None:
            return list(values.tolist())
        self._host.copy_(values, non_blocking=True)
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(self._device))
        done.synchronize()
        return list(self._host.tolist())


def queued_ms(work: Callable[[], object], device: torch.device) -> float:
    """Milliseconds that the work takes on a CUDA device, right behind itself, as in a step.

    Issuing it counts only where the device has to wait for it.
    """
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.device(device):
        work()
        started.record()
        work()
        ended.record()
        ended.synchronize()
    return float(started.elapsed_time(ended))
