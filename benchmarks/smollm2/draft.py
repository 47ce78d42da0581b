"""The draft: a small Llama whose embedding begins as a projection of the target's.

Knows the architecture. Knows nothing of data or files.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaModel

SIZES: dict[str, Any] = dict(
    vocab_size=49152,
    hidden_size=192,
    intermediate_size=512,
    num_hidden_layers=6,
    num_attention_heads=6,
    num_key_value_heads=3,
    head_dim=32,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=2,
    tie_word_embeddings=True,
)


def build(sizes: dict[str, Any]) -> LlamaModel:
    """A randomly initialised draft; its head is its embedding."""
    return LlamaModel(LlamaConfig(**sizes))


def begin_from(model: LlamaModel, embedding: Tensor, counts: Tensor) -> None:
    """Project the target's embedding to the draft's width.

    49,152 rows cannot be learned from a million tokens. The projection keeps the directions in
    which tokens differ, each token weighted with the root of how often it occurs.

    Args:
        embedding: the target's, [vocabulary, its width].
        counts: how often each token occurs, [vocabulary].
    """
    weights = (counts.double() + 0.1).sqrt()
    weights /= weights.sum()
    rows = embedding.double()
    _, directions = torch.linalg.eigh((rows * weights[:, None]).T @ rows)
    projected = rows @ directions[:, -model.config.hidden_size :]
    typical = (projected.square().sum(1) * weights).sum().sqrt()
    with torch.no_grad():
        model.embed_tokens.weight.copy_(projected / typical)


def hidden_states(model: LlamaModel, tokens: Tensor, starts: Tensor) -> Tensor:
    """Final hidden states [texts, length, width] of tokens that see their own conversation only.

    Args:
        tokens: [texts, length].
        starts: at each position, where its conversation begins, [texts, length].
    """
    places = torch.arange(tokens.shape[1])
    seen = (places <= places[:, None]) & (places >= starts[..., None])
    mask = torch.zeros(seen.shape).masked_fill_(~seen, torch.finfo(torch.float32).min)
    output = model(input_ids=tokens, attention_mask=mask[:, None], use_cache=False)
    return output.last_hidden_state
