"""The machine as llama.cpp uses it: calls that return when they are done.

Knows the time, and what the library is and how it runs. Knows nothing of models.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sequoia_opt.engine.adaptive_step import AdaptiveStep
from sequoia_opt.engine.drafters import State
from sequoia_opt.engine.hardware import hardware, own_versions, slug
from sequoia_opt.engine.llama_cpp.host_step import HostStep
from sequoia_opt.engine.llama_cpp.library import gpu, versions
from sequoia_opt.engine.llama_cpp.settings import Settings
from sequoia_opt.engine.model import Caches
from sequoia_opt.engine.names import LLAMA_CPP
from sequoia_opt.engine.step import Step


class OneThreadStep:
    """A step during which torch has one thread.

    After a piece of work, its threads wait for the next one for a while, and would keep those of
    llama.cpp from the processors.

    Attributes:
        uniform_count: see `Step` and `AdaptiveStep`.
        mode: see `TensorStep`.
    """

    mode = torch.inference_mode

    def __init__(self, step: Step | AdaptiveStep) -> None:
        self.step: Any = step
        self.uniform_count = step.uniform_count

    def started(self, state: State) -> Any:
        """See `TensorStep`."""
        return self.step.started(state)

    def __call__(self, caches: Caches, state: Any, bound: int, uniforms: Any) -> tuple[Any, Any]:
        """See `Step` and `AdaptiveStep`."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return self.step(caches, state, bound, uniforms)
        finally:
            torch.set_num_threads(threads)


class LlamaMachine:
    """See `Machine`.

    Args:
        settings: how the models run.
    """

    engine = LLAMA_CPP
    first_pass_tokens = 1
    device = torch.device("cpu")  # of the logits, wherever the models are
    graphs = False
    queues = False
    rebuilds = True
    recording_seconds = 0.0
    # It reads whole blocks of 256 slots. Measured at the ends of blocks, every context length in
    # between would seem slower than it is; these lie in the middle of theirs.
    contexts: tuple[int, ...] = (128, 384, 896)

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @property
    def hardware(self) -> dict[str, Any]:
        """See `Machine`."""
        described = hardware(self.device, self._settings.threads)
        if self._settings.gpu_layers:
            name, memory = gpu()
            described = {
                "slug": slug(name), "device": "gpu", "name": name, "memory_gb": memory,
            }  # fmt: skip
        return described

    @property
    def software(self) -> dict[str, str]:
        """See `Machine`."""
        return own_versions() | versions()

    @property
    def settings(self) -> dict[str, Any]:
        """See `Machine`."""
        return {"name": self.engine, **self._settings.document()}

    def capacity_for(self, length: int) -> int:
        """See `Machine`."""
        return length

    def bound_for(self, length: int) -> int:
        """See `Machine`."""
        return length

    def prepared(self, step: Step | AdaptiveStep) -> OneThreadStep | HostStep:
        """See `Machine`."""
        if isinstance(step, Step) and (on_host := HostStep.of(step)) is not None:
            return on_host
        return OneThreadStep(step)

    def repeated(self, work: Callable[[], object]) -> Callable[[], object]:
        """See `Machine`."""
        return work

    def elapsed_ms(self, work: Callable[[], object], queued: bool = False) -> float:
        """See `Machine`."""
        started = time.perf_counter()
        work()
        return 1000 * (time.perf_counter() - started)

    def read_back(self, count: int) -> Callable[[Tensor | list[int]], list[int]]:
        """See `Machine`."""
        return lambda told: told if isinstance(told, list) else told.tolist()
