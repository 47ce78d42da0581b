"""Streams layers onto the device just before they run, for a model larger than its device.

Two buffers on the device take turns: while the layer in one computes, the next layer is copied
into the other, also from the last layer of a forward pass to the first of the next. Knows when
layers run and where their weights come from. Which layers stay on the device was decided in
offload.py.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sequoia_opt.engine.torch.checkpoint import Checkpoint
from sequoia_opt.engine.torch.layer_weights import Layout
from sequoia_opt.engine.torch.memory import GIGABYTE
from sequoia_opt.errors import SequoiaError

BUFFERS = 2


class Store(Protocol):
    """Where the weights of the streamed layers stay."""

    def fetch(self, layer: int, memory: Tensor) -> Tensor:
        """A layer's bytes in host memory: the store's own, or `memory` filled with them."""


class HostStore:
    """Layers in host memory, pinned if a GPU reads it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._memories: dict[int, Tensor] = {}

    def add(self, layer: int, size: int) -> Tensor:
        """Memory for a layer's bytes."""
        memory = host_memory(size, self.device)
        self._memories[layer] = memory
        return memory

    def fetch(self, layer: int, memory: Tensor) -> Tensor:
        """See Store."""
        return self._memories[layer]


class DiskStore:
    """Layers in a model's safetensors files.

    Attributes:
        read_bytes: the bytes read so far.
    """

    def __init__(
        self, checkpoint: Checkpoint, layouts: Sequence[Layout], names: Sequence[Mapping[str, str]]
    ) -> None:
        """Read from a checkpoint.

        Args:
            names: for each layer, the checkpoint's names of its weights.
        """
        self.read_bytes = 0
        self._checkpoint, self._layouts, self._names = checkpoint, layouts, names

    def fetch(self, layer: int, memory: Tensor) -> Tensor:
        """See Store."""
        for span in self._layouts[layer].spans:
            name = self._names[layer][span.name]
            self.read_bytes += self._checkpoint.read(name, span.view(memory))
        return memory


class LayerBuffer:
    """A buffer on the device that some of the streamed layers use one after another.

    Attributes:
        layers: these layers, in the order in which they run.
        holds: the layer that is in the buffer or on its way there; -1 for none.
        memory: the buffer's bytes.
    """

    def __init__(
        self,
        layers: Sequence[int],
        size: int,
        store: Store,
        device: torch.device,
        copy_stream: Any,
    ) -> None:
        """Allocate the buffer.

        Args:
            copy_stream: the CUDA stream for the copies of all buffers, which arrive sooner one
                after another than at once; None on a CPU.
        """
        self.layers, self.holds = list(layers), -1
        self.memory = torch.empty(size, dtype=torch.uint8, device=device)
        self._store, self._host = store, self.memory
        self._loading: Future[None] | None = None
        self._copy_stream = copy_stream
        if copy_stream is not None:
            # A forward pass leaves copies under way. If the model is deleted then, nobody may get
            # this memory before they have arrived. On a CPU the worker holds the buffer instead.
            self.memory.record_stream(copy_stream)
            self._used, self._ready = torch.cuda.Event(), torch.cuda.Event()
            if isinstance(store, DiskStore):
                self._host = host_memory(size, device)

    def start_loading(self, layer: int, worker: ThreadPoolExecutor) -> None:
        """Load a layer's weights, after all work that the device has been given so far."""
        if self._copy_stream is not None:
            self._used.record(torch.cuda.current_stream(self.memory.device))
        self.holds = layer
        self._loading = worker.submit(self._load, layer)

    def wait(self) -> None:
        """Let the device's following work wait until the buffer's weights are loaded.

        Raises:
            SequoiaError: they could not be loaded.
        """
        assert self._loading is not None
        try:
            self._loading.result()
        except BaseException:
            self.holds = -1
            raise
        if self._copy_stream is not None:
            torch.cuda.current_stream(self.memory.device).wait_event(self._ready)

    def next_layer(self, layer: int) -> int:
        """The layer that uses the buffer after this one."""
        return self.layers[(self.layers.index(layer) + 1) % len(self.layers)]

    def _load(self, layer: int) -> None:
        if self._copy_stream is None:
            weights = self._store.fetch(layer, self.memory)
            if weights is not self.memory:
                self.memory[: len(weights)].copy_(weights)
            return
        self._ready.synchronize()  # the copy before this one may still read the host's memory
        weights = self._store.fetch(layer, self._host)
        with torch.cuda.stream(self._copy_stream):
            self._copy_stream.wait_event(self._used)
            self.memory[: len(weights)].copy_(weights, non_blocking=True)
            self._ready.record(self._copy_stream)


class LayerStream:
    """Loads a model's streamed layers as its forward passes need them.

    Attributes:
        streamed: the layers that do not stay on the device.
        store: where their weights stay.
        buffers: the buffers on the device.
        buffer_bytes: bytes of these buffers.
        moved_bytes: bytes that each forward pass moves onto the device.
        budget: bytes that the model may take on the device, without the buffers.
        chunk: tokens of a prompt in one forward pass.
        reads: whether a thread reads layers from the disk while the CPU computes.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        layouts: Sequence[Layout],
        streamed: Sequence[int],
        store: Store,
        device: torch.device,
        budget: int,
        chunk: int,
    ) -> None:
        self.streamed, self.store = list(streamed), store
        self.budget, self.chunk = budget, chunk
        self.moved_bytes, self.buffer_bytes = 0, 0
        self.reads = isinstance(store, DiskStore) and device.type == "cpu"
        self.buffers: list[LayerBuffer] = []
        copy_stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._worker = ThreadPoolExecutor(1, "layers")
        for first in range(min(BUFFERS, len(streamed))):
            sharing = streamed[first::BUFFERS]
            size = max(layouts[i].size for i in sharing)
            buffer = LayerBuffer(sharing, size, store, device, copy_stream)
            self.buffers.append(buffer)
            self.buffer_bytes += size
            if len(sharing) > 1:  # a layer that has a buffer to itself stays in it
                self.moved_bytes += sum(layouts[i].size for i in sharing)
            for i in sharing:
                layouts[i].bind(layers[i], buffer.memory)
                layers[i].register_forward_pre_hook(self._wait_for(i, buffer))
                layers[i].register_forward_hook(self._load_after(i, buffer))
            buffer.start_loading(sharing[0], self._worker)

    def _wait_for(self, layer: int, buffer: LayerBuffer) -> Callable[..., None]:
        """A hook that runs before the layer."""

        def hook(*_: object) -> None:
            if buffer.holds != layer:  # a forward pass was interrupted, or reading failed
                buffer.start_loading(layer, self._worker)
            buffer.wait()

        return hook

    def _load_after(self, layer: int, buffer: LayerBuffer) -> Callable[..., None]:
        """A hook that runs after the layer."""

        def hook(*_: object) -> None:
            following = buffer.next_layer(layer)
            if following != layer:
                buffer.start_loading(following, self._worker)

        return hook


def host_memory(size: int, device: torch.device) -> Tensor:
    """`size` bytes of host memory, pinned if the device is a GPU, which then reads it by itself.

    Pinned after allocation: torch's own pinned memory comes in powers of two, which is too much
    for a model of half the host's memory.

    Raises:
        SequoiaError: the system does not allow that much pinned memory.
    """
    memory = torch.empty(size, dtype=torch.uint8)
    if device.type == "cuda" and size:
        runtime: Any = torch.cuda.cudart()
        with torch.cuda.device(device):
            failed = int(runtime.cudaHostRegister(memory.data_ptr(), size, 0))
            if failed:
                with suppress(RuntimeError):  # clears the error, which the next kernel would raise
                    torch.ones(1, device=device)
                raise SequoiaError(
                    f"{size / GIGABYTE:.1f} GB of host memory could not be pinned (CUDA error "
                    f"{failed}); raise the limit of locked memory (ulimit -l)"
                )
        weakref.finalize(memory, _unpin, memory.data_ptr(), device)
    return memory


def _unpin(address: int, device: torch.device) -> None:
    """Release pinned memory, after all copies from it have finished."""
    runtime: Any = torch.cuda.cudart()
    with torch.cuda.device(device):
        torch.cuda.synchronize()
        runtime.cudaHostUnregister(address)
