"""Which layers of a model stay on its device, and where the others stay.

Embeddings, head and norms stay on the device, and as many decoder layers as a budget holds. The
others stay in host memory or on disk, and layer_stream.py loads them when they run. Knows sizes
and budgets. Knows nothing of when layers run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sequoia_opt.engine.torch.checkpoint import Checkpoint
from sequoia_opt.engine.torch.checkpoint_names import checkpoint_names
from sequoia_opt.engine.torch.layer_stream import (
    BUFFERS,
    DiskStore,
    HostStore,
    LayerStream,
    Store,
)
from sequoia_opt.engine.torch.layer_weights import (
    Layout,
    decoder_layers,
    named_weights,
    plain_tensors,
    set_weight,
)
from sequoia_opt.engine.torch.memory import GIGABYTE, check_fits, free_bytes
from sequoia_opt.errors import SequoiaError

PLACES = ("none", "cpu", "disk")
FREE_SHARE = 0.8  # of the free memory, if no budget is given
CACHED_TOKENS = 512  # tokens whose keys and values a budget holds besides the weights
# Tokens of a prompt in one forward pass, each of which loads all layers: as many as a share of the
# budget holds. The least number needs less memory than the keys and values above.
LEAST_CHUNK, LARGEST_CHUNK, CHUNK_SHARE = 256, 2048, 0.02


@dataclass(frozen=True)
class Offload:
    """How to offload a model.

    Attributes:
        place: where layers stay that exceed the budget: "cpu" (host memory) or "disk".
        budget: bytes that the model may take on the device with the KV cache of a short text, but
            without the two layer buffers; by default most of the free memory.
    """

    place: str
    budget: int | None = None


def place_model(
    model: nn.Module, device: torch.device, offload: Offload, checkpoint: Checkpoint | None = None
) -> LayerStream | None:
    """Move a model to its device, except for the layers that do not fit.

    Args:
        model: with its weights in host memory, or on the meta device.
        checkpoint: the files to read the weights from, if they are on the meta device.

    Returns:
        The stream that loads the other layers; None if all layers fit.

    Raises:
        SequoiaError: the model has no list of layers, the budget is too small, or the checkpoint
            does not have the model's weights.
    """
    prefix, layers = decoder_layers(model)
    names: dict[str, str] = {}
    if checkpoint is not None:
        names = checkpoint_names(checkpoint, model)
        _untie(model, checkpoint, names)
    layouts = [Layout(layer) for layer in layers]
    sizes = [layout.size for layout in layouts]
    outside = _weights_outside(model, layers)
    fixed = _distinct_bytes(outside.values()) + cache_bytes(model)
    budget = _budget(offload, fixed, sizes, device)
    chunk, activations = prompt_chunk(model, min(int(CHUNK_SHARE * budget), budget - fixed))
    streamed = choose_streamed(sizes, budget - fixed)
    if streamed:  # prompts are read in chunks only then
        streamed = choose_streamed(sizes, budget - fixed - activations)
    staying = [
        f"{prefix}{i}.{name}"
        for i, layout in enumerate(layouts)
        if i not in streamed
        for name in layout.names
    ]
    _move(model, [*outside, *staying], device, checkpoint, names)
    _move_unsaved_buffers(model, device)
    if not streamed:
        return None
    store = (
        _host_store(layers, layouts, streamed, device)
        if checkpoint is None
        else _disk_store(checkpoint, layouts, prefix, names)
    )
    return LayerStream(list(layers), layouts, streamed, store, device, budget, chunk)


def choose_streamed(sizes: Sequence[int], room: int) -> list[int]:
    """The layers to stream: as few as `room` bytes allow, spread evenly.

    The layers that stay between them compute while the streamed ones are loaded.
    """
    count = len(sizes)
    for streamed in range(count + 1):
        chosen = [i * count // streamed for i in range(streamed)]
        if sum(sizes) - sum(sizes[i] for i in chosen) <= room:
            break
    return chosen


def cache_bytes(model: Any) -> int:
    """Bytes of the keys and values of CACHED_TOKENS tokens, or of all the model's positions."""
    text = model.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    tokens = min(CACHED_TOKENS, getattr(text, "max_position_embeddings", None) or CACHED_TOKENS)
    per_token: int = 2 * text.num_hidden_layers * heads * head_dim * model.dtype.itemsize
    return tokens * per_token


def prompt_chunk(model: Any, room: int) -> tuple[int, int]:
    """Tokens of a prompt in one forward pass, and the bytes of `room` that they take."""
    text = model.config.get_text_config()
    inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    # Alive at a time, of each token: six vectors of the hidden size, four of the feed-forward's.
    per_token = (6 * text.hidden_size + 4 * inner) * model.dtype.itemsize
    tokens = min(LARGEST_CHUNK, room // per_token)
    return (tokens, tokens * per_token) if tokens > LEAST_CHUNK else (LEAST_CHUNK, 0)


def _weights_outside(model: nn.Module, layers: nn.ModuleList) -> dict[str, Tensor]:
    """The weights that belong to no layer."""
    inside = {id(tensor) for layer in layers for tensor in named_weights(layer).values()}
    return {name: t for name, t in named_weights(model).items() if id(t) not in inside}


def _distinct_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of these tensors, each counted once."""
    distinct = {id(tensor): tensor for tensor in tensors}
    return sum(
        plain.nbytes for tensor in distinct.values() for plain in plain_tensors(tensor, "").values()
    )


def _budget(offload: Offload, fixed: int, sizes: Sequence[int], device: torch.device) -> int:
    """Bytes that the model may take on the device, without the layer buffers.

    Args:
        fixed: bytes of the weights outside the layers, and of a short text's KV cache.
        sizes: bytes of each layer.

    Raises:
        SequoiaError: that is less than the model needs.
    """
    largest = max(sizes)
    buffers = BUFFERS * largest
    budget = offload.budget
    if budget is None:
        budget = max(0, int(FREE_SHARE * (free_bytes(device) or 0)) - buffers)
    least = max(fixed, largest)
    if budget < least:
        raise SequoiaError(
            f"memory budget: found {budget / GIGABYTE:.3g} GB, expected at least "
            f"{least / GIGABYTE:.3g} GB; embeddings, head and a short text's KV cache take "
            f"{fixed / GIGABYTE:.3g} GB, a layer {largest / GIGABYTE:.3g} GB"
        )
    check_fits(
        min(budget, fixed + sum(sizes)) + buffers,
        device,
        "the weights that stay on the device and the two layer buffers",
        "lower --memory-budget",
    )
    return budget


def _untie(model: nn.Module, checkpoint: Checkpoint, names: Mapping[str, str]) -> None:
    """Separate weights that the configuration ties and the checkpoint does not, as transformers
    does.

    Args:
        names: the checkpoint's name of each weight.
    """
    first_names: dict[int, str] = {}
    for name, tensor in named_weights(model).items():
        first = first_names.setdefault(id(tensor), name)
        if not checkpoint.same(names[name], names[first]):
            set_weight(model, name, torch.empty_like(tensor))


def _move(
    model: Any,
    names: Iterable[str],
    device: torch.device,
    checkpoint: Checkpoint | None,
    checkpoint_name: Mapping[str, str],
) -> None:
    """Move these weights to the device, each once, under all its names."""
    weights = named_weights(model)
    moved: dict[int, Tensor] = {}
    for name in names:
        tensor = weights[name]
        if id(tensor) in moved:
            set_weight(model, name, moved[id(tensor)])
            continue
        values = tensor.detach()
        if checkpoint is not None:
            values = torch.empty(tensor.shape, dtype=tensor.dtype)
            checkpoint.read(checkpoint_name[name], values)
        moved[id(tensor)] = set_weight(model, name, values.to(device))


def _move_unsaved_buffers(model: nn.Module, device: torch.device) -> None:
    """Move the buffers that all layers compute with and that no file has."""
    weights = named_weights(model)
    for name, buffer in list(model.named_buffers()):
        if name not in weights:
            set_weight(model, name, buffer.to(device))


def _host_store(
    layers: nn.ModuleList, layouts: Sequence[Layout], streamed: Sequence[int], device: torch.device
) -> Store:
    """Copy the streamed layers to host memory that the device can read."""
    store = HostStore(device)
    for i in streamed:
        memory = store.add(i, layouts[i].size)
        layouts[i].fill(memory, layers[i])
        layouts[i].bind(layers[i], memory)  # frees the memory that the layer was loaded into
    return store


def _disk_store(
    checkpoint: Checkpoint, layouts: Sequence[Layout], prefix: str, names: Mapping[str, str]
) -> Store:
    by_layer = [
        {name: names[f"{prefix}{i}.{name}"] for name in layout.names}
        for i, layout in enumerate(layouts)
    ]
    return DiskStore(checkpoint, layouts, by_layer)
