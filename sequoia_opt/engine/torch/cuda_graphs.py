"""What CUDA does in its own way: work recorded as a graph, read-backs, and the time of work.

A step is hundreds of launches, each slower to issue than the kernel is to run. Recorded once,
on tensors that stay where they are, they are replayed with one. Knows nothing of text.
"""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sequoia_opt.engine.step import State, Step
from sequoia_opt.engine.torch.attention import KVCache
from sequoia_opt.engine.torch.runner import ALIGNED_SLOTS
from sequoia_opt.errors import SequoiaError

BUCKET = 256  # cached tokens: each graph serves so many lengths
WARM_UPS = 3  # runs before recording: libraries choose and compile their kernels in them

Work = Callable[[], object]
Record = Callable[[Work, torch.device], Callable[[], object]]


def bucketed(length: int) -> int:
    """The length that a recorded step reads, for a text of so many tokens."""
    return length + -length % BUCKET


def room(length: int) -> int:
    """Slots to reserve besides a tree's, for steps to read whole buckets and never all there is:
    that would be another shape to compiled forwards."""
    return bucketed(length) + ALIGNED_SLOTS + 1


def record(work: Work, device: torch.device) -> Callable[[], object]:
    """Work as a CUDA graph: what is returned does it again, on the same tensors.

    Args:
        work: can be done again and again, and changes only tensors that outlive it.

    Raises:
        SequoiaError: it does something that no graph can hold.
    """
    with torch.cuda.device(device):
        own = _own(torch.cuda.current_device())
        current = torch.cuda.current_stream()
        own.aside.wait_stream(current)
        with torch.cuda.stream(own.aside):
            for _ in range(WARM_UPS):
                work()
        current.wait_stream(own.aside)
        graph = torch.cuda.CUDAGraph()
        try:
            # A capture that fails leaves its stream the current one: the outer context does not.
            with (
                torch.cuda.stream(current),
                _no_garbage_collection(),
                # Other threads, which copy an offloaded model's layers, may go on meanwhile.
                torch.cuda.graph(
                    graph,
                    pool=own.pool(),
                    stream=own.capture,
                    capture_error_mode="thread_local",
                ),
            ):
                work()
        except RuntimeError as error:
            cause = error.__context__ or error  # ending the capture raises an error of its own
            reason = " ".join(str(cause).partition("\n")[0].split())[:200]
            raise SequoiaError(
                f"a step cannot be recorded as a CUDA graph ({reason}); use --no-graphs"
            ) from None
        own.alive.add(graph)
    return graph.replay


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keep Python from collecting cycles for a while.

    A model that was dropped may be part of a cycle, and giving up its pinned memory waits for the
    device, which spoils a capture that is under way.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Own:
    """What a device's graphs share.

    Streams are kept, since libraries keep a workspace for each; and two, since what is recorded
    must not meet the workspace of the warm-up. One memory pool serves all graphs, as none leaves
    a result in it that is read later; but a pool whose graphs have all gone takes no new one.
    """

    def __init__(self) -> None:
        self.aside, self.capture = torch.cuda.Stream(), torch.cuda.Stream()
        self.alive: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()
        self._pool: Any = None

    def pool(self) -> Any:
        """The pool for the next graph."""
        if not self.alive:
            self._pool = torch.cuda.graph_pool_handle()
        return self._pool


@cache
def _own(index: int) -> _Own:
    """What the graphs of the current device, of this number, share."""
    return _Own()


def recorded(work: Work, device: torch.device) -> Callable[[], object]:
    """The work, recorded when it is first done."""
    replay: Callable[[], object] | None = None

    def run() -> object:
        nonlocal replay
        if replay is None:
            replay = record(work, device)
        return replay()

    return run


class RecordedStep:
    """A step that is recorded, once for each bucket of lengths, and replayed.

    Called as the step itself. The state that it returns stands in tensors of its own, which the
    next call changes.

    Attributes:
        recording_seconds: what recording has taken so far; no part of decoding.
    """

    def __init__(self, step: Step, record: Record = record) -> None:
        self.step, self._record = step, record
        self._device = step.target.device
        self.uniform_count = step.uniform_count
        self.recording_seconds = 0.0
        # Of one kind, whoever calls: compiled forwards tell inference tensors from others.
        with torch.inference_mode():
            self._uniforms = torch.zeros(step.uniform_count, device=self._device)
            self._before, self._after = (self._blank(step) for _ in range(2))
            count = step.tree.depth + 3
            self._emitted = torch.zeros(count, dtype=torch.long, device=self._device)
        self._replays: dict[int, Callable[[], object]] = {}
        self._buffers: list[weakref.ref[KVCache]] = []

    def __call__(self, state: State, length: int, uniforms: Tensor) -> tuple[Tensor, State]:
        """Run one step; see Step."""
        target = self.step.target.cache
        assert target is not None
        used = [target, self.step.draft.cache][: 1 + (self.step.tree.size > 1)]
        buffers = [cache for cache in used if cache is not None]
        if [buffer() for buffer in self._buffers] != buffers:
            self._replays.clear()  # they read buffers that are no more
            self._buffers = [weakref.ref(buffer) for buffer in buffers]
        _copy(state, self._before)
        self._uniforms.copy_(uniforms)
        bucket = min(bucketed(length), target.capacity - self.step.tree.size)
        if bucket not in self._replays:
            started = time.perf_counter()
            self._replays[bucket] = self._record(lambda: self._work(bucket), self._device)
            self.recording_seconds += time.perf_counter() - started
        self._replays[bucket]()
        return self._emitted, self._after

    def _work(self, length: int) -> None:
        emitted, state = self.step(self._before, length, self._uniforms)
        self._emitted.copy_(emitted)
        _copy(state, self._after)

    def _blank(self, step: Step) -> State:
        """Memory for a state."""
        length, recent = (
            torch.zeros(count, dtype=torch.long, device=self._device) for count in (1, 2)
        )
        if step.rules is None:
            return State(length, recent)
        return State(length, recent, step.rules.seen(recent), step.rules.counts(recent))


def _copy(state: State, into: State) -> None:
    into.length.copy_(state.length)
    into.recent.copy_(state.recent)
    if into.seen is not None and state.seen is not None:
        into.seen.copy_(state.seen)
    if into.counts is not None and state.counts is not None:
        into.counts.copy_(state.counts)


class ReadBack:
    """Reads small tensors of whole numbers: into pinned memory where they come from CUDA."""

    def __init__(self, count: int, device: torch.device) -> None:
        self._host = None
        if device.type == "cuda":
            self._host = torch.empty(count, dtype=torch.long, pin_memory=True)
            self._device = device

    def __call__(self, values: Tensor) -> list[int]:
        """The values [count]; waits for what computes them, and for nothing else."""
        if self._host is None:
            return list(values.tolist())
        self._host.copy_(values, non_blocking=True)
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(self._device))
        done.synchronize()
        return list(self._host.tolist())


def elapsed_ms(work: Work, device: torch.device) -> float:
    """Time of the work on the device, done right behind itself as in a step: what it takes to
    issue it counts only where the device has to wait for it."""
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.device(device):
        work()
        started.record()
        work()
        ended.record()
        ended.synchronize()
    return float(started.elapsed_time(ended))
