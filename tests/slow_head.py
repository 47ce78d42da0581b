"""An EAGLE-3 head written out slowly, from the paper: no cache, no trees, one text at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from small_heads import HEAD_DIM, HEADS, KV_HEADS
from torch import Tensor
from transformers import AutoModelForCausalLM


class SlowHead:
    """A head in SpecForge's names that recomputes its whole text for each token.

    Args:
        weights: with embeddings.
    """

    def __init__(self, weights: dict[str, Tensor], dtype: torch.dtype = torch.float64) -> None:
        self.weights = {
            name: value.to(dtype) if value.is_floating_point() else value
            for name, value in weights.items()
        }

    def path_logits(self, text: Sequence[int], states: Tensor, path: Sequence[int]) -> list[Tensor]:
        """Logits over the head's vocabulary behind a text's last token, and behind each of a path.

        Args:
            text: its tokens, two at least.
            states: [tokens - 1, 3 x hidden size], the target's hidden states at all but the last.
            path: tokens behind the text, one after the other.
        """
        tokens = list(text[1:])
        features = list(states @ self.weights["fc.weight"].T)
        logits = []
        for token in [*path, None]:
            output = self._outputs(tokens, torch.stack(features))[-1]
            logits.append(self._norm(output, "norm.weight") @ self.weights["lm_head.weight"].T)
            if token is not None:
                tokens.append(token)
                features.append(output)
        return logits

    def _outputs(self, tokens: list[int], features: Tensor) -> Tensor:
        count = len(tokens)
        embeddings = self.weights["embed_tokens.weight"][torch.tensor(tokens)]
        read = torch.cat(
            [
                self._norm(embeddings, "midlayer.input_layernorm.weight"),
                self._norm(features, "midlayer.hidden_norm.weight"),
            ],
            dim=1,
        )
        query, key, value = (
            (read @ self._layer(f"self_attn.{name}_proj").T).view(count, -1, HEAD_DIM)
            for name in "qkv"
        )
        query, key = self._rotated(query), self._rotated(key)
        shared = HEADS // KV_HEADS
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
        scores = torch.einsum("ihd,jhd->hij", query, key) / HEAD_DIM**0.5
        scores = scores.masked_fill(torch.ones(count, count).triu(1).bool(), -torch.inf)
        attended = torch.einsum("hij,jhd->ihd", scores.softmax(-1), value).reshape(count, -1)
        hidden = features + attended @ self._layer("self_attn.o_proj").T
        normed = self._norm(hidden, "midlayer.post_attention_layernorm.weight")
        gate = torch.nn.functional.silu(normed @ self._layer("mlp.gate_proj").T)
        up = normed @ self._layer("mlp.up_proj").T
        return hidden + (gate * up) @ self._layer("mlp.down_proj").T

    def _layer(self, name: str) -> Tensor:
        return self.weights[f"midlayer.{name}.weight"]

    def _norm(self, values: Tensor, name: str) -> Tensor:
        scale = (values.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt()
        return values * scale * self.weights[name]

    def _rotated(self, vectors: Tensor) -> Tensor:
        """Vectors [tokens, heads, size] turned by their positions."""
        half = HEAD_DIM // 2
        speeds = 10000.0 ** (-torch.arange(half, dtype=vectors.dtype) / half)
        angles = torch.arange(len(vectors), dtype=vectors.dtype)[:, None, None] * speeds
        first, second = vectors[..., :half], vectors[..., half:]
        return torch.cat(
            [
                first * angles.cos() - second * angles.sin(),
                second * angles.cos() + first * angles.sin(),
            ],
            dim=-1,
        )


def target_states(folder: Path, text: Sequence[int], layers: tuple[int, ...]) -> Tensor:
    """transformers' own hidden states [tokens, side by side]."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    with torch.no_grad():
        states = model(torch.tensor([list(text)]), output_hidden_states=True).hidden_states
    return torch.cat([states[layer][0] for layer in layers], dim=-1)
