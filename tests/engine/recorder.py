"""A stand-in for CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.step import Step
from sequoia_opt.engine.torch import cuda_graphs
from sequoia_opt.engine.torch.cuda_graphs import GraphRecorder, RecordedStep, Work


class Recorder(GraphRecorder):
    """Stands in for CUDA graphs: runs the work's warm-ups, then the work itself at each replay."""

    def __init__(self) -> None:
        super().__init__()
        self.recorded = 0

    def record(self, work: Work, device: torch.device) -> Callable[[], object]:
        self.recorded += 1
        for _ in range(cuda_graphs.WARM_UPS):
            work()
        return work


def recorded(decoder: Decoder) -> Recorder:
    """Have a decoder's steps recorded by a stand-in, which is returned."""
    assert isinstance(decoder.step, Step)
    machine: Any = decoder.pair.machine
    machine.recorder = recorder = Recorder()
    decoder.step = RecordedStep(decoder.step, recorder)
    return recorder
