"""Layers brought in just before they are used, for a model larger than its device.

Two buffers on the device take turns: while a layer computes in one, the next is on its way into
the other, also from the last layer of a forward to the first of the next. Knows how weights lie
in memory and when layers run; which layers stay on the device was decided in offload.py.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sequoia_opt.engine.torch.checkpoint import Checkpoint
from sequoia_opt.engine.torch.memory import GIGABYTE
from sequoia_opt.errors import SequoiaError

LANES = 2
ALIGNMENT = 256  # bytes, of each tensor in a buffer: as CUDA's own allocations


@dataclass(frozen=True)
class Placed:
    """Where one plain tensor of a layer lies in the bytes of all.

    Attributes:
        name: in the layer, like "mlp.up_proj.weight", or "mlp.up_proj.weight.scale" if it is a part
            of a quantised one.
    """

    name: str
    dtype: torch.dtype
    shape: torch.Size
    offset: int

    @property
    def end(self) -> int:
        """Behind its last byte."""
        return self.offset + self.shape.numel() * self.dtype.itemsize

    def of(self, memory: Tensor) -> Tensor:
        """The tensor in a layer's bytes."""
        return memory[self.offset : self.end].view(self.dtype).view(self.shape)


class Layout:
    """How a layer's weights lie one behind another.

    Attributes:
        names: of the parameters, and of the buffers that belong to the weights.
        tensors: what these are made of.
        size: bytes in all.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.tensors: list[Placed] = []
        self.size = 0
        weights = weights_of(layer)
        self.names = list(weights)
        for whole, tensor in weights.items():
            for name, part in parts_of(tensor, whole).items():
                placed = Placed(name, part.dtype, part.shape, self.size)
                self.tensors.append(placed)
                self.size = placed.end + -placed.end % ALIGNMENT

    def bind(self, layer: nn.Module, memory: Tensor) -> None:
        """Have the layer use the weights in these bytes."""
        parts = {placed.name: placed.of(memory) for placed in self.tensors}
        for name, tensor in weights_of(layer).items():
            put(layer, name, made_of(tensor, parts, name))

    def fill(self, memory: Tensor, layer: nn.Module) -> None:
        """Copy the layer's weights into these bytes."""
        parts: dict[str, Tensor] = {}
        for name, tensor in weights_of(layer).items():
            parts |= parts_of(tensor, name)
        for placed in self.tensors:
            placed.of(memory).copy_(parts[placed.name])


class Store(Protocol):
    """Where the weights of the streamed layers are."""

    def fetch(self, layer: int, memory: Tensor) -> Tensor:
        """A layer's bytes in host memory: the store's own, or `memory`, filled with them."""


class HostStore:
    """Layers in host memory, pinned where a GPU reads it."""

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
        read_bytes: what has been read so far.
    """

    def __init__(
        self, checkpoint: Checkpoint, layouts: Sequence[Layout], names: Sequence[Mapping[str, str]]
    ) -> None:
        """Read from a checkpoint.

        Args:
            names: for each layer, what the checkpoint calls its weights.
        """
        self.read_bytes = 0
        self._checkpoint, self._layouts, self._names = checkpoint, layouts, names

    def fetch(self, layer: int, memory: Tensor) -> Tensor:
        """See Store."""
        for placed in self._layouts[layer].tensors:
            name = self._names[layer][placed.name]
            self.read_bytes += self._checkpoint.read(name, placed.of(memory))
        return memory


class Lane:
    """A buffer on the device that some of the streamed layers use one after another.

    Attributes:
        layers: in the order in which they run.
        holds: the layer that it holds, or that is on its way.
    """

    def __init__(
        self, layers: Sequence[int], size: int, store: Store, device: torch.device, copying: Any
    ) -> None:
        """Make it.

        Args:
            copying: the CUDA stream of all lanes' copies, which one after another are there sooner
                than at once; None on a CPU.
        """
        self.layers, self.holds = list(layers), -1
        self.memory = torch.empty(size, dtype=torch.uint8, device=device)
        self._store, self._host = store, self.memory
        self._loading: Future[None] | None = None
        self._copying = copying
        if copying is not None:
            # A forward leaves copies under way: if the model goes, nobody gets this memory before
            # they have arrived. On a CPU, the worker holds on to the lane as long as it copies.
            self.memory.record_stream(copying)
            self._used, self._ready = torch.cuda.Event(), torch.cuda.Event()
            if isinstance(store, DiskStore):
                self._host = host_memory(size, device)

    def begin(self, layer: int, worker: ThreadPoolExecutor) -> None:
        """Have a layer's weights brought in, behind all work that the device has been given."""
        if self._copying is not None:
            self._used.record(torch.cuda.current_stream(self.memory.device))
        self.holds = layer
        self._loading = worker.submit(self._load, layer)

    def wait(self) -> None:
        """Until the weights that it holds are there, for the device's work from here on.

        Raises:
            SequoiaError: they could not be brought in.
        """
        assert self._loading is not None
        try:
            self._loading.result()
        except BaseException:
            self.holds = -1
            raise
        if self._copying is not None:
            torch.cuda.current_stream(self.memory.device).wait_event(self._ready)

    def after(self, layer: int) -> int:
        """The layer that comes next here."""
        return self.layers[(self.layers.index(layer) + 1) % len(self.layers)]

    def _load(self, layer: int) -> None:
        if self._copying is None:
            found = self._store.fetch(layer, self.memory)
            if found is not self.memory:
                self.memory[: len(found)].copy_(found)
            return
        self._ready.synchronize()  # of the copy before, which may still read the host's memory
        found = self._store.fetch(layer, self._host)
        with torch.cuda.stream(self._copying):
            self._copying.wait_event(self._used)
            self.memory[: len(found)].copy_(found, non_blocking=True)
            self._ready.record(self._copying)


class LayerStream:
    """Brings a model's streamed layers in as its forwards need them.

    Attributes:
        streamed: the layers that do not stay on the device.
        budget: bytes that the model may take on the device beside the buffers.
        chunk: tokens of a prompt to read at once.
        moved_bytes: that each forward brings in.
        reads: a thread reads layers from the disk into memory that the processors compute with.
        buffer_bytes: of the buffers on the device.
        lanes: these, and what is in them.
        store: where they are.
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
        self.lanes: list[Lane] = []
        copying = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._worker = ThreadPoolExecutor(1, "layers")
        for first in range(min(LANES, len(streamed))):
            own = streamed[first::LANES]
            lane = Lane(own, max(layouts[i].size for i in own), store, device, copying)
            self.lanes.append(lane)
            self.buffer_bytes += len(lane.memory)
            # A layer that has a buffer to itself stays in it.
            self.moved_bytes += sum(layouts[i].size for i in own) if len(own) > 1 else 0
            for i in own:
                layouts[i].bind(layers[i], lane.memory)
                layers[i].register_forward_pre_hook(self._before(i, lane))
                layers[i].register_forward_hook(self._behind(i, lane))
            lane.begin(own[0], self._worker)

    def _before(self, layer: int, lane: Lane) -> Callable[..., None]:
        def hook(*_: object) -> None:
            if lane.holds != layer:  # a forward was interrupted, or reading failed
                lane.begin(layer, self._worker)
            lane.wait()

        return hook

    def _behind(self, layer: int, lane: Lane) -> Callable[..., None]:
        def hook(*_: object) -> None:
            if (following := lane.after(layer)) != layer:
                lane.begin(following, self._worker)

        return hook


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and the buffers that are saved with them, by name; tied ones under each.

    Raises:
        SequoiaError: quantised weights of a kind whose bytes cannot be moved as they are.
    """
    found: dict[str, Tensor] = dict(module.state_dict(keep_vars=True))
    for name, tensor in found.items():
        if type(tensor) not in (Tensor, nn.Parameter) and not _is_made_of_parts(tensor):
            raise SequoiaError(
                f"{name} is a {type(tensor).__name__}, quantised weights that cannot be offloaded; "
                "load the model as it is, or another format"
            )
    return found


def parts_of(tensor: Tensor, name: str) -> dict[str, Tensor]:
    """The plain tensors that a weight is made of: itself, or what a quantised one is kept as."""
    if not _is_made_of_parts(tensor):
        return {name: tensor}
    found: dict[str, Tensor] = {}
    for inner in tensor.__tensor_flatten__()[0]:  # type: ignore[attr-defined]
        found |= parts_of(getattr(tensor, inner), f"{name}.{inner}")
    return found


def made_of(tensor: Tensor, parts: Mapping[str, Tensor], name: str) -> Tensor:
    """A weight like `tensor`, of other parts; see `parts_of`."""
    if not _is_made_of_parts(tensor):
        return parts[name]
    names, context = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    inner = {each: made_of(getattr(tensor, each), parts, f"{name}.{each}") for each in names}
    kind: Any = type(tensor)
    made: Tensor = kind.__tensor_unflatten__(inner, context, tensor.size(), tensor.stride())
    return made


def _is_made_of_parts(tensor: Tensor) -> bool:
    """Whether it is of a kind that says what plain tensors it wraps, by torch's own protocol."""
    return hasattr(type(tensor), "__tensor_flatten__")


def put(module: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """Replace a parameter or buffer; returns what is there now, to be put under other names too."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if leaf not in owner._parameters:
        owner._buffers[leaf] = tensor
        return tensor
    own = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)
    owner._parameters[leaf] = own
    return own


def host_memory(size: int, device: torch.device) -> Tensor:
    """So many bytes of host memory, pinned if the device is a GPU, which reads them by itself.

    Pinned in place: torch's own pinned memory comes in powers of two, which for a model of half
    the host's memory is too much.

    Raises:
        SequoiaError: the system does not allow that much.
    """
    memory = torch.empty(size, dtype=torch.uint8)
    if device.type == "cuda" and size:
        runtime: Any = torch.cuda.cudart()
        with torch.cuda.device(device):
            failed = int(runtime.cudaHostRegister(memory.data_ptr(), size, 0))
            if failed:
                with suppress(RuntimeError):  # the next kernel is told of it, and must not be ours
                    torch.ones(1, device=device)
                raise SequoiaError(
                    f"{size / GIGABYTE:.1f} GB of host memory could not be pinned (CUDA error "
                    f"{failed}); raise the limit of locked memory (ulimit -l)"
                )
        weakref.finalize(memory, _unpin, memory.data_ptr(), device)
    return memory


def _unpin(address: int, device: torch.device) -> None:
    """Give up pinned memory, once no copy from it is under way any more."""
    runtime: Any = torch.cuda.cudart()
    with torch.cuda.device(device):
        torch.cuda.synchronize()
        runtime.cudaHostUnregister(address)
