"""Tree attention over preallocated KV buffers, behind transformers' attention interface.

Knows how keys and values are stored and moved, which slots a token may attend to, and what
a model's attention may ask for (scaling, softcap, sliding window, sinks). Knows nothing of
acceptance, and calls no model.

A buffer's slots are filled in the order of the text; slots from `length` on hold the tree
that is being scored, one slot a node. Masks are additive and as wide as the used part of the
buffer, so a step's cost does not grow with the capacity.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache
from transformers.masking_utils import sdpa_mask

from sequoia_opt.errors import SequoiaError

TREE_ATTENTION = "sequoia_tree"
OPAQUE_ATTENTION = "sequoia_tree_opaque"  # the same, which no compiler looks into
PROBE_ATTENTION = "sequoia_probe"

Masks = dict[int | None, Tensor]
"""Additive masks [1 or batch, 1, groups · tokens, used], by sliding window (None: no window)."""


@dataclass(frozen=True)
class LayerShape:
    """What one attention layer stores and asks for, found by running it once.

    Attributes:
        window: the sliding window of the mask that the library gives it; None where every earlier
            token is seen.
        told: whether it gets the keyword arguments of its model's forward.
    """

    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None
    told: bool = True

    @property
    def groups(self) -> int:
        """Query heads for each key-value head."""
        return self.heads // self.kv_heads


class KVCache:
    """Keys and values of all layers, preallocated: [batch, kv_heads, capacity, dim] each.

    Lanes (a layer's keys, or its values) of one shape share one tensor, so moving an accepted
    path takes one gather and one scatter for the whole model.

    Attributes:
        windows: each layer's sliding window, or None.
        told: whether all layers get the keyword arguments of their model's forward.
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
        self.windows = [layer.window for layer in layers]
        self.told = all(layer.told for layer in layers)
        lanes: dict[tuple[int, int], list[tuple[str, int]]] = {}
        for index, layer in enumerate(layers):
            lanes.setdefault((layer.kv_heads, layer.key_dim), []).append(("key", index))
            lanes.setdefault((layer.kv_heads, layer.value_dim), []).append(("value", index))
        self.keys: list[Tensor] = [torch.empty(0)] * len(layers)
        self.values: list[Tensor] = [torch.empty(0)] * len(layers)
        self._stores = []
        for (heads, dim), members in lanes.items():
            # Zeros, since a slot that is masked but not yet written must still be finite.
            # Always of one kind: graphs tell inference tensors from others.
            with torch.inference_mode():
                store = torch.zeros(
                    len(members), batch, heads, capacity, dim, dtype=dtype, device=device
                )
            self._stores.append(store)
            for lane, (kind, index) in enumerate(members):
                (self.keys if kind == "key" else self.values)[index] = store[lane]

    def move(self, source: Tensor, destination: Tensor) -> None:
        """Copy the slots `source` to the slots `destination`, [count] each, in all layers."""
        for store in self._stores:
            store.index_copy_(3, destination, store.index_select(3, source))


def buffer_bytes(
    layers: Sequence[LayerShape], batch: int, capacity: int, dtype: torch.dtype
) -> int:
    """What a KVCache takes."""
    each = sum(layer.kv_heads * (layer.key_dim + layer.value_dim) for layer in layers)
    return batch * capacity * each * dtype.itemsize


@dataclass
class Attend:
    """What one forward's attention needs to know.

    Attributes:
        slots: [tokens], where the new keys and values go.
        masks: for each sliding window that the model's layers have, as wide as the slots that
            are read, from the first.
    """

    cache: KVCache
    slots: Tensor
    masks: Masks

    def arguments(self) -> dict[str, Any]:
        """How a forward of the library's is told of it."""
        if self.cache.told:
            return {"tree": self, "use_cache": False}
        return {
            "past_key_values": AttendCache(self),
            "attention_mask": self.masks[None],
            "use_cache": True,
        }

    def store(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Write a layer's new keys and values; those that are read, and the mask over them."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys.index_copy_(2, self.slots, key)
        values.index_copy_(2, self.slots, value)
        mask = self.masks[self.cache.windows[layer]]
        used = mask.shape[-1]
        return keys[:, :, :used], values[:, :, :used], mask


class AttendCache(Cache):
    """The same as a cache of the library's, for layers that pass no keyword arguments on.

    Such a layer still hands its new keys and values to its cache, and its mask to its attention.
    """

    def __init__(self, attend: Attend) -> None:
        super().__init__(layers=[])
        self._attend = attend

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the new keys and values; what is to be read."""
        keys, values, _mask = self._attend.store(layer_idx, key_states, value_states)
        return keys, values


@dataclass
class Probe:
    """Notes what a model's attention layers ask for, in a forward of the last few of its tokens.

    Attributes:
        before: how many tokens are said to come before.
        count: how many tokens the forward has.
        layers: by their index.
    """

    before: int
    count: int
    layers: dict[int, LayerShape] = field(default_factory=dict)

    def window(self, mask: Tensor | None) -> int | None:
        """The sliding window that a mask of the library's is; None if it shows all before.

        Raises:
            SequoiaError: it is any other mask, or there is none.
        """
        if mask is None:
            raise SequoiaError("its layers get no mask that could be checked")
        if mask.dtype != torch.bool:
            blocked = mask <= torch.finfo(mask.dtype).min / 2
            if not bool((blocked | (mask == 0)).all()):
                raise SequoiaError("its attention adds to the scores by position")
            mask = ~blocked
        used = self.before + self.count
        if mask.shape[-2:] != (self.count, used):
            raise SequoiaError(
                "its layers mask in a way of their own, perhaps by what the tokens are"
            )
        key = torch.arange(used, device=mask.device)
        distance = torch.arange(self.before, used, device=mask.device)[:, None] - key
        seen = int(mask.reshape(-1, used)[-1].sum())
        for window in (None, seen):
            shown = (distance >= 0) & (distance < (used if window is None else window))
            if bool((mask == shown).all()):
                return window
        raise SequoiaError(
            f"at position {used - 1} its layers see other tokens than all before or a sliding "
            "window of them"
        )


_probe: ContextVar[Probe | None] = ContextVar("probe", default=None)


@contextmanager
def probing(probe: Probe) -> Iterator[None]:
    """While a model is run to see what its layers ask for."""
    token = _probe.set(probe)
    try:
        yield
    finally:
        _probe.reset(token)


class MaskTable:
    """Which slots the nodes of a tree may attend to, for the queries of some forwards.

    Everything before the tree, and in the tree what `attends` says. Only the tree's place in
    the buffer changes from step to step, so all masks are one gather from a small table.
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
            query_depths: [queries], positions of the queries less `length`.
            depths: [nodes], positions of the tree's slots less `length`.
            layers: of the model, for their windows and query groups.
            forwards: how many of the queries each takes; by default one takes all.
        """
        groups = layers[0].groups
        counts = [len(attends)] if forwards is None else list(forwards)
        self._rows = [groups * count for count in counts]
        queries = np.split(np.arange(len(attends)), np.cumsum(counts)[:-1])
        order = np.concatenate([np.tile(own, groups) for own in queries])
        self._nodes = attends.shape[1]
        self._blocked = torch.finfo(dtype).min  # finite: a row with nothing to see stays finite
        # In its own dtype from the beginning: that of a prompt's chunk is megabytes.
        table = torch.full((len(attends), self._nodes + 2), self._blocked, dtype=dtype)
        table[:, 0] = 0.0  # before the tree; the last column is what lies after it
        table[:, 1:-1].masked_fill_(torch.tensor(attends), 0.0)
        self._table = table[torch.from_numpy(order)].to(device)
        self._windows = {layer.window for layer in layers}
        self._query_depths = torch.tensor(np.asarray(query_depths)[order], device=device)[:, None]
        self._depths = torch.tensor([0, *depths, 0], device=device)

    def masks(self, place: Tensor) -> list[Masks]:
        """Each forward's masks for a tree in its place.

        Args:
            place: from `places`: for each slot, its column in the table.
        """
        column = place.clamp(0, self._nodes + 1)
        mask = self._table.index_select(1, column)
        found: list[Masks] = [{} for _ in self._rows]
        for window in self._windows:
            windowed = mask
            if window is not None:
                depth = torch.where(place > 0, self._depths.index_select(0, column), place - 1)
                too_far = (self._query_depths - depth) >= window
                windowed = mask.masked_fill(too_far, self._blocked)
            for own, part in zip(found, windowed.split(self._rows), strict=True):
                own[window] = part[None, None]
        return found


def places(length: Tensor, slots: Tensor) -> Tensor:
    """Columns of `slots` [used] in a mask table: ≤ 0 before the tree, 1 its first node."""
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

    Query heads that share a key-value head are folded into its rows, so keys and values are
    read in place, never repeated.

    Args:
        query: [batch, heads, tokens, key_dim]; key, value: the same with kv_heads.
        s_aux: [heads], attention sinks: one more logit in each row's softmax.
        tree: where to write and what to read; a layer that does not get it has given its keys and
            values to an `AttendCache`, and its mask is in `attention_mask`.

    Returns:
        [batch, tokens, heads, value_dim], and no weights.
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
    # Kernels differ in the layout of what they return: not every one can be viewed.
    return output.reshape(batch, heads, tokens, -1).transpose(1, 2).contiguous(), None


def probe_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    position_bias: Tensor | None = None,
    tree: Probe | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Note what a layer asks for; the output is zeros of the right shape."""
    name = type(module).__name__
    layer = getattr(module, "layer_idx", None)
    probe = _probe.get()
    if probe is None:
        raise RuntimeError("layers are probed only through sequoia_opt.engine.torch.agreement")
    if layer is None or not getattr(module, "is_causal", True):
        raise SequoiaError(f"{name} is not a decoder's own attention")
    if position_bias is not None:
        raise SequoiaError(f"{name} adds to the scores by position")
    probe.layers[layer] = LayerShape(
        heads=query.shape[1],
        kv_heads=key.shape[1],
        key_dim=key.shape[3],
        value_dim=value.shape[3],
        window=probe.window(attention_mask),
        told=tree is not None,
    )
    batch, heads, tokens, _dim = query.shape
    return query.new_zeros(batch, tokens, heads, value.shape[3]), None


def probe_mask(**arguments: Any) -> Tensor | None:
    """The library's mask of True and False, also where it could be left out."""
    arguments |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    mask: Tensor | None = sdpa_mask(**arguments)
    return mask


AttentionInterface.register(TREE_ATTENTION, tree_attention)
AttentionInterface.register(OPAQUE_ATTENTION, torch.compiler.disable(tree_attention))
AttentionInterface.register(PROBE_ATTENTION, probe_attention)
AttentionMaskInterface.register(PROBE_ATTENTION, probe_mask)
