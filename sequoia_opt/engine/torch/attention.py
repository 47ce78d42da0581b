"""Tree attention over preallocated KV buffers, behind transformers' attention interface.

Knows how keys and values are stored and moved, which slots a token may attend to, and the
features that a model's attention may have (scaling, softcap, sliding window, sinks). Knows nothing
of acceptance, and calls no model.

The slots of a buffer are filled in the order of the text. Slots from `length` on hold the tree
that is being scored, one slot for each node. Masks are additive and as wide as the used part of
the buffer, so a step's cost does not grow with the capacity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.cache_utils import Cache

TREE_ATTENTION = "sequoia_tree"
OPAQUE_ATTENTION = "sequoia_tree_opaque"  # the same, hidden from torch.compile
# On CUDA: attention kernels copy a mask whose rows do not begin at a multiple of this.
ALIGNED_SLOTS = 8

Masks = dict[int | None, Tensor]
"""Additive masks [1 or batch, 1, groups · tokens, used], by sliding window (None: no window)."""


@dataclass(frozen=True)
class LayerShape:
    """The sizes of one attention layer, measured by running it once.

    Attributes:
        heads: query heads.
        kv_heads: key-value heads.
        key_dim, value_dim: elements of a key and of a value.
        window: the sliding window of the mask that transformers gives the layer; None where it
            sees every earlier token.
        takes_arguments: whether the layer gets the keyword arguments of its model's forward pass.
    """

    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None
    takes_arguments: bool = True

    @property
    def groups(self) -> int:
        """Query heads for each key-value head."""
        return self.heads // self.kv_heads


class KVCache:
    """Keys and values of all layers, preallocated: [batch, kv_heads, capacity, dim] each.

    Keys and values of the same shape share one tensor, so moving an accepted path takes one
    gather and one scatter for the whole model.

    Attributes:
        batch: number of sequences.
        capacity: slots for each sequence.
        keys, values: of each layer.
        windows: each layer's sliding window, or None.
        takes_arguments: whether all layers get the keyword arguments of their model's forward pass.
        slots: [capacity], the slots' numbers, which recorded forward passes read as well.
    """

    def __init__(
        self,
        layers: Sequence[LayerShape],
        batch: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.batch, self.capacity = batch, capacity
        self._aligned = ALIGNED_SLOTS if device.type == "cuda" else 1
        self.windows = [layer.window for layer in layers]
        self.takes_arguments = all(layer.takes_arguments for layer in layers)
        self.keys: list[Tensor] = [torch.empty(0)] * len(layers)
        self.values: list[Tensor] = [torch.empty(0)] * len(layers)
        by_shape: dict[tuple[int, int], list[tuple[list[Tensor], int]]] = {}
        for index, layer in enumerate(layers):
            by_shape.setdefault((layer.kv_heads, layer.key_dim), []).append((self.keys, index))
            by_shape.setdefault((layer.kv_heads, layer.value_dim), []).append((self.values, index))
        with torch.inference_mode():
            self.slots = torch.arange(capacity, device=device)
        self._stores = []
        for (heads, dim), members in by_shape.items():
            # Zeros, since a masked slot that is not yet written must still be finite. Always
            # inference tensors, since compiled graphs distinguish them from others.
            with torch.inference_mode():
                store = torch.zeros(
                    len(members), batch, heads, capacity, dim, dtype=dtype, device=device
                )
            self._stores.append(store)
            for i, (tensors, index) in enumerate(members):
                tensors[index] = store[i]

    def read_count(self, used: int) -> int:
        """How many slots a forward pass reads if it needs the first `used`."""
        return min(used + -used % self._aligned, self.capacity)

    def read_slots(self, used: int) -> Tensor:
        """The slots that a forward pass reads if it needs the first `used`."""
        return self.slots[: self.read_count(used)]

    def move(self, source: Tensor, destination: Tensor) -> None:
        """Copy the slots `source` [count] to the slots `destination` [count] in all layers."""
        for store in self._stores:
            store.index_copy_(3, destination, store.index_select(3, source))


def buffer_bytes(
    layers: Sequence[LayerShape], batch: int, capacity: int, dtype: torch.dtype
) -> int:
    """The bytes that a KVCache takes."""
    elements = sum(layer.kv_heads * (layer.key_dim + layer.value_dim) for layer in layers)
    return batch * capacity * elements * dtype.itemsize


@dataclass
class Attend:
    """The input of the attention layers in one forward pass.

    Attributes:
        cache: the model's keys and values.
        slots: [tokens], where the new keys and values go.
        masks: one for each sliding window that the model's layers have, as wide as the slots
            that are read, starting at the first slot.
    """

    cache: KVCache
    slots: Tensor
    masks: Masks

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments that pass this to the model's forward."""
        if self.cache.takes_arguments:
            return {"tree": self, "use_cache": False}
        return {
            "past_key_values": AttendCache(self),
            "attention_mask": self.masks[None],
            "use_cache": True,
        }

    def store(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Write a layer's new keys and values; returns keys and values to read, and their mask."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys.index_copy_(2, self.slots, key)
        values.index_copy_(2, self.slots, value)
        mask = self.masks[self.cache.windows[layer]]
        used = mask.shape[-1]
        return keys[:, :, :used], values[:, :, :used], mask


class AttendCache(Cache):
    """An `Attend` as a transformers cache, for layers that pass no keyword arguments on.

    Such a layer still passes its new keys and values to its cache, and its mask to its attention
    function.
    """

    def __init__(self, attend: Attend) -> None:
        super().__init__(layers=[])
        self._attend = attend

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the new keys and values; returns the keys and values to read."""
        keys, values, _mask = self._attend.store(layer_idx, key_states, value_states)
        return keys, values


class MaskTable:
    """Which slots the nodes of a tree may attend to, for the queries of some forward passes.

    A query attends to every slot before the tree, and within the tree to those that `attends`
    marks. Only the tree's first slot changes from step to step, so all masks are one gather from
    a small table with a column for each node.
    """

    def __init__(
        self,
        attends: np.ndarray,
        query_depths: Sequence[int],
        depths: Sequence[int],
        layers: Sequence[LayerShape],
        dtype: torch.dtype,
        device: torch.device,
        forwards: Sequence[int] | None = None,
    ) -> None:
        """Prepare the table.

        Args:
            attends: bool [queries, nodes], which tree slots each query attends to.
            query_depths: [queries], positions of the queries minus `length`.
            depths: [nodes], positions of the tree's slots minus `length`.
            layers: the model's, for their windows and query groups.
            dtype: of the masks.
            forwards: the number of queries in each forward pass; by default one takes all.
        """
        groups = layers[0].groups
        counts = [len(attends)] if forwards is None else list(forwards)
        self._rows = [groups * count for count in counts]
        queries = np.split(np.arange(len(attends)), np.cumsum(counts)[:-1])
        order = np.concatenate([np.tile(rows, groups) for rows in queries])
        self._nodes = attends.shape[1]
        self._blocked = torch.finfo(
            dtype
        ).min  # finite, so that a row that sees nothing stays finite
        # In the final dtype from the start: the table of a prompt's chunk takes megabytes.
        table = torch.full((len(attends), self._nodes + 2), self._blocked, dtype=dtype)
        table[:, 0] = 0.0  # the slots before the tree; the last column is the slots after it
        table[:, 1:-1].masked_fill_(torch.tensor(attends), 0.0)
        self._table = table[torch.from_numpy(order)].to(device)
        self._windows = {layer.window for layer in layers}
        self._query_depths = torch.tensor(np.asarray(query_depths)[order], device=device)[:, None]
        self._depths = torch.tensor([0, *depths, 0], device=device)

    def masks(self, columns: Tensor) -> list[Masks]:
        """The masks of each forward pass, as wide as `columns`.

        Args:
            columns: [used], each slot's column in the table, from `places`.
        """
        column = columns.clamp(0, self._nodes + 1)
        mask = self._table.index_select(1, column)
        masks: list[Masks] = [{} for _ in self._rows]
        for window in self._windows:
            windowed = mask
            if window is not None:
                depth = torch.where(columns > 0, self._depths.index_select(0, column), columns - 1)
                too_far = (self._query_depths - depth) >= window
                windowed = mask.masked_fill(too_far, self._blocked)
            for by_window, rows in zip(masks, windowed.split(self._rows), strict=True):
                by_window[window] = rows[None, None]
        return masks


def places(length: Tensor, slots: Tensor) -> Tensor:
    """The columns of `slots` [used] in a mask table, for a tree whose first slot is `length` [1].

    0 or less: before the tree; 1: the tree's first node.
    """
    return slots - length + 1


def tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    tree: Attend | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of the new tokens over the used part of the buffer.

    Query heads that share a key-value head are folded into its rows, so keys and values are read
    where they are and never repeated.

    Args:
        query: [batch, heads, tokens, key_dim]; key, value: the same with kv_heads.
        attention_mask: the mask, if the layer does not get `tree`.
        scaling: by default key_dim ** -0.5.
        softcap: scores are capped smoothly at this, if given.
        s_aux: [heads], attention sinks: one more logit in each row's softmax.
        tree: where to write and what to read. A layer that does not get it has passed its keys
            and values to an `AttendCache`.

    Returns:
        [batch, tokens, heads, value_dim], and None in place of the weights.
    """
    if tree is not None:
        layer: int = module.layer_idx  # type: ignore[assignment]
        keys, values, mask = tree.store(layer, key, value)
    elif attention_mask is not None:
        keys, values, mask = key, value, attention_mask
    else:
        raise RuntimeError("tree attention runs only through sequoia_opt.engine.torch.runner")
    batch, heads, tokens, dim = query.shape
    rows = query.reshape(batch, keys.shape[1], -1, dim)
    if softcap is None and s_aux is None:
        output = F.scaled_dot_product_attention(rows, keys, values, attn_mask=mask, scale=scaling)
    else:
        scores = rows @ keys.transpose(-1, -2) * (dim**-0.5 if scaling is None else scaling)
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        scores = scores + mask
        if s_aux is not None:
            sinks = s_aux.view(1, keys.shape[1], -1, 1).repeat_interleave(tokens, dim=2)
            scores = torch.cat([scores, sinks.to(scores.dtype).expand(batch, -1, -1, -1)], dim=-1)
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(values.dtype)
        output = weights[..., : values.shape[2]] @ values
    # Kernels return different layouts, some of which cannot be viewed as this shape.
    return output.reshape(batch, heads, tokens, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register(TREE_ATTENTION, tree_attention)
AttentionInterface.register(OPAQUE_ATTENTION, torch.compiler.disable(tree_attention))
