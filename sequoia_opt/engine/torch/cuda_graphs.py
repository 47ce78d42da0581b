"""Steps recorded as CUDA graphs and replayed.

A step is hundreds of kernel launches, each slower to issue than its kernel is to run. Recorded
once, on tensors that stay where they are, they are replayed with one launch. Knows nothing of
text.
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

from sequoia_opt.engine.drafters import State
from sequoia_opt.engine.model import Caches
from sequoia_opt.engine.step import TOLD, Step, TensorStep
from sequoia_opt.engine.torch.attention import ALIGNED_SLOTS, KVCache
from sequoia_opt.errors import SequoiaError

BUCKET = 256  # cached tokens: one graph serves so many lengths
WARM_UPS = 3  # runs before recording, in which libraries choose and compile their kernels

Work = Callable[[], object]
Record = Callable[[Work, torch.device], Callable[[], object]]


def bucketed(length: int) -> int:
    """The length that a recorded step reads for a text of `length` tokens."""
    return length + -length % BUCKET


def room(length: int) -> int:
    """Slots to reserve besides a tree's.

    Steps read whole buckets, and never all slots of the cache, which compiled forward passes
    would take for another shape.
    """
    return bucketed(length) + ALIGNED_SLOTS + 1


def record(work: Work, device: torch.device) -> Callable[[], object]:
    """Record work as a CUDA graph.

    Args:
        work: can be repeated, and changes only tensors that outlive it.

    Returns:
        A function that repeats the work on the same tensors.

    Raises:
        SequoiaError: a graph cannot hold the work.
    """
    with torch.cuda.device(device):
        shared = _shared_by(torch.cuda.current_device())
        current = torch.cuda.current_stream()
        shared.aside.wait_stream(current)
        with torch.cuda.stream(shared.aside):
            for _ in range(WARM_UPS):
                work()
        current.wait_stream(shared.aside)
        graph = torch.cuda.CUDAGraph()
        try:
            # A capture that fails leaves its own stream current; the outer context restores it.
            with (
                torch.cuda.stream(current),
                _no_garbage_collection(),
                # Other threads may go on copying an offloaded model's layers meanwhile.
                torch.cuda.graph(
                    graph,
                    pool=shared.pool(),
                    stream=shared.capture,
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
        shared.alive.add(graph)
    return graph.replay


class GraphRecorder:
    """Records work as CUDA graphs.

    Attributes:
        seconds: time spent on it so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, work: Work, device: torch.device) -> Callable[[], object]:
        """Record work; see `record`."""
        started = time.perf_counter()
        replay = self.record(work, device)
        self.seconds += time.perf_counter() - started
        return replay

    def record(self, work: Work, device: torch.device) -> Callable[[], object]:
        """Record work, whatever time it takes; see `record`."""
        return record(work, device)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keep Python from collecting cycles for a while.

    A dropped model may be part of a cycle. Freeing its pinned memory waits for the device, which
    spoils a capture in progress.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Shared:
    """Streams and memory that a device's graphs share.

    The streams are reused, since libraries keep a workspace for each; there are two, since
    recorded work must not use the workspace of the warm-up. One memory pool serves all graphs,
    as none leaves a result in it that is read later; but a pool whose graphs have all been
    dropped takes no new one.
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
def _shared_by(index: int) -> _Shared:
    """What the graphs of the current device, number `index`, share."""
    return _Shared()


def recorded(work: Work, device: torch.device, record: Record) -> Callable[[], object]:
    """The work, recorded when it first runs."""
    replay: Callable[[], object] | None = None

    def run() -> object:
        nonlocal replay
        if replay is None:
            replay = record(work, device)
        return replay()

    return run


class RecordedStep(TensorStep):
    """A step that is recorded, once for each cache and bucket of lengths, and replayed.

    Called as the step itself. The state that it returns stands in tensors that the next call with
    the same caches overwrites.
    """

    def __init__(self, step: Step, record: Record) -> None:
        self.step, self._record = step, record
        self._device = step.device
        self.uniform_count = step.uniform_count
        # Always inference tensors: compiled forward passes tell them from others.
        with torch.inference_mode():
            self._uniforms = torch.zeros(step.uniform_count, device=self._device)
            count = step.tree.depth + TOLD
            self._emitted = torch.zeros(count, dtype=torch.long, device=self._device)
        self._recordings: weakref.WeakKeyDictionary[KVCache, _Recording] = (
            weakref.WeakKeyDictionary()
        )

    def __call__(
        self, caches: Caches, state: State, bound: int, uniforms: Tensor
    ) -> tuple[Tensor, State]:
        """Run one step; see Step."""
        target: KVCache = caches.target
        recording = self._recordings.get(target)
        if recording is None or not recording.reads(caches.draft):
            recording = self._recordings[target] = self._blank_recording(caches.draft, state)
        before, after = recording.before, recording.after
        _copy(state, before)
        self._uniforms.copy_(uniforms)
        bucket = min(bucketed(bound), target.capacity - self.step.tree.size)
        if bucket not in recording.replays:
            recording.replays[bucket] = self._record(
                lambda: self._work(caches, before, after, bucket), self._device
            )
        recording.replays[bucket]()
        return self._emitted, after

    def _work(self, caches: Caches, before: State, after: State, bound: int) -> None:
        emitted, state = self.step(caches, before, bound, self._uniforms)
        self._emitted.copy_(emitted)
        _copy(state, after)

    def _blank_recording(self, draft: KVCache | None, state: State) -> _Recording:
        """A recording without replays, with memory for states of the kind of `state`."""
        with torch.inference_mode():
            return _Recording(draft, state.blank(), state.blank())


class _Recording:
    """The replays of a step on a pair of caches.

    Attributes:
        before, after: the state that the replays read, and the one that they write.
        replays: by bucket.
    """

    def __init__(self, draft: KVCache | None, before: State, after: State) -> None:
        self._draft = None if draft is None else weakref.ref(draft)
        self.before, self.after = before, after
        self.replays: dict[int, Callable[[], object]] = {}

    def reads(self, draft: KVCache | None) -> bool:
        """Whether this draft's cache is the one that the replays read."""
        return (None if self._draft is None else self._draft()) is draft


def _copy(state: State, into: State) -> None:
    """Copy a state into the tensors of another one of its kind."""
    for source, destination in zip(state.tensors, into.tensors, strict=True):
        destination.copy_(source)
