"""The target as a fast writer: 8-bit products on the CPU, for many texts at once.

Knows a Llama's layers. Knows nothing of what is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sequoia_opt.engine.torch.gguf_model import config_of, model_of


class Int8Linear:
    """Linear layers with the same input, their weights in 8 bits.

    A row of the weights has one scale, and so has each token's input.
    """

    def __init__(self, *weights: Tensor) -> None:
        joined = torch.cat(weights)
        scale = joined.abs().amax(1, keepdim=True) / 127
        self._weight = (joined / scale).round().to(torch.int8).t().contiguous()
        self._scale = scale.t().contiguous()

    def __call__(self, inputs: Tensor) -> Tensor:
        """The products [tokens, outputs] in float32, the layers' outputs side by side."""
        scale = inputs.abs().amax(1, keepdim=True).clamp_min(1e-9) / 127
        product = torch._int_mm((inputs / scale).round_().to(torch.int8), self._weight)
        return product.float().mul_(scale).mul_(self._scale)


class Target:
    """Forward passes of one token for each of several texts, all of the same position.

    Attributes:
        embedding: [vocabulary, width].
    """

    def __init__(
        self, path: Path, texts: int, length: int, kept_layers: tuple[int, ...] = ()
    ) -> None:
        """Load it.

        Args:
            length: tokens of each text for which the cache has room.
            kept_layers: the layers, from 1, whose outputs `forward` returns.
        """
        config = config_of(str(path))
        weights = model_of(str(path), config, torch.float32).state_dict()
        self.embedding = weights["model.embed_tokens.weight"]
        self._head = Int8Linear(self.embedding)
        self._norm, self._epsilon = weights["model.norm.weight"], config.rms_norm_eps
        self._heads, self._groups = config.num_attention_heads, config.num_key_value_heads
        self._size = config.hidden_size // self._heads
        self._layers = [_layer(weights, i) for i in range(config.num_hidden_layers)]
        self._kept = kept_layers
        shape = texts * self._groups, length, self._size
        self._keys = [torch.zeros(shape) for _ in self._layers]
        self._values = [torch.zeros(shape) for _ in self._layers]
        base = config.rope_parameters["rope_theta"]
        exponents = torch.arange(0, self._size, 2) / self._size
        angles = torch.outer(torch.arange(length), base**-exponents).repeat(1, 2)
        self._cos, self._sin = angles.cos(), angles.sin()

    @torch.inference_mode()
    def forward(self, tokens: Tensor, position: int, starts: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Read a token of each text.

        Args:
            tokens: [texts].
            position: of all of them.
            starts: from where on each sees, [texts].

        Returns:
            Logits [texts, vocabulary], and the outputs [texts, width] of the kept layers.
        """
        hidden = self.embedding[tokens]
        hidden_from_texts = torch.arange(position + 1) < starts[:, None]
        bias = torch.zeros(hidden_from_texts.shape).masked_fill_(hidden_from_texts, -1e9)
        bias = bias.repeat_interleave(self._groups, 0)[:, None]
        kept = []
        for i, (first, qkv, out, second, gate_up, down) in enumerate(self._layers):
            mixed = qkv(F.rms_norm(hidden, first.shape, first, self._epsilon))
            hidden = hidden + out(self._attention(i, mixed, position, bias))
            gate, up = gate_up(F.rms_norm(hidden, second.shape, second, self._epsilon)).chunk(2, 1)
            hidden = hidden + F.linear(F.silu(gate) * up, down)
            if i + 1 in self._kept:
                kept.append(hidden)
        logits = self._head(F.rms_norm(hidden, self._norm.shape, self._norm, self._epsilon))
        return logits, kept

    def _attention(self, layer: int, mixed: Tensor, position: int, bias: Tensor) -> Tensor:
        """Attention's output [texts, width] from queries, keys and values side by side."""
        texts, size, groups = len(mixed), self._size, self._groups
        query, key, value = mixed.split([self._heads * size, groups * size, groups * size], 1)
        query = self._turned(query.reshape(texts * groups, -1, size), position)
        keys, values = self._keys[layer], self._values[layer]
        keys[:, position] = self._turned(key.reshape(texts * groups, 1, size), position)[:, 0]
        values[:, position] = value.reshape(texts * groups, size)
        keys, values = keys[:, : position + 1], values[:, : position + 1]
        scores = torch.baddbmm(bias, query, keys.transpose(1, 2), alpha=size**-0.5)
        return torch.bmm(scores.softmax(-1), values).reshape(texts, -1)

    def _turned(self, vectors: Tensor, position: int) -> Tensor:
        """Queries or keys with the rotary embedding."""
        first, second = vectors.chunk(2, -1)
        swapped = torch.cat([-second, first], -1)
        return vectors * self._cos[position] + swapped * self._sin[position]


def _layer(weights: dict[str, Tensor], number: int) -> tuple[Any, ...]:
    """A layer's norms and products; the last, whose inputs have outliers, stays in 32 bits."""
    prefix = f"model.layers.{number}."
    part = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
    return (
        part["input_layernorm.weight"],
        Int8Linear(*(part[f"self_attn.{kind}_proj.weight"] for kind in "qkv")),
        Int8Linear(part["self_attn.o_proj.weight"]),
        part["post_attention_layernorm.weight"],
        Int8Linear(part["mlp.gate_proj.weight"], part["mlp.up_proj.weight"]),
        part["mlp.down_proj.weight"],
    )
