"""EAGLE-3 heads of a few thousand parameters for the tests, in the formats that people publish."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from small_models import VOCABULARY

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE = 32, 4, 2, 8, 48
DRAFT_VOCABULARY = 40
SAFE = "model.safetensors"


def layer_fields(**changes: Any) -> dict[str, Any]:
    """The decoder layer's settings in a config.json."""
    fields = dict(
        model_type="llama",
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        hidden_act="silu",
        attention_bias=False,
        mlp_bias=False,
    )
    return fields | changes


def vocabulary_map(draft_vocabulary: int, vocabulary: int) -> torch.Tensor:
    """The target's tokens that a head has, in order."""
    generator = torch.Generator().manual_seed(7)
    return torch.randperm(vocabulary, generator=generator)[:draft_vocabulary].sort().values


def head_weights(
    draft_vocabulary: int = DRAFT_VOCABULARY,
    layer: str = "midlayer.",
    embeddings: bool = True,
    vocabulary: int = VOCABULARY,
) -> dict[str, torch.Tensor]:
    """Random weights under their published names."""
    generator = torch.Generator().manual_seed(3)

    def matrix(*shape: int) -> torch.Tensor:
        return 0.3 * torch.randn(*shape, generator=generator)

    def norm(size: int = HIDDEN) -> torch.Tensor:
        return 1 + 0.1 * torch.randn(size, generator=generator)

    weights = {
        "fc.weight": matrix(HIDDEN, 3 * HIDDEN),
        "norm.weight": norm(),
        "lm_head.weight": matrix(draft_vocabulary, HIDDEN),
        f"{layer}hidden_norm.weight": norm(),
        f"{layer}input_layernorm.weight": norm(),
        f"{layer}post_attention_layernorm.weight": norm(),
        f"{layer}self_attn.q_proj.weight": matrix(HEADS * HEAD_DIM, 2 * HIDDEN),
        f"{layer}self_attn.k_proj.weight": matrix(KV_HEADS * HEAD_DIM, 2 * HIDDEN),
        f"{layer}self_attn.v_proj.weight": matrix(KV_HEADS * HEAD_DIM, 2 * HIDDEN),
        f"{layer}self_attn.o_proj.weight": matrix(HIDDEN, HEADS * HEAD_DIM),
        f"{layer}mlp.gate_proj.weight": matrix(INTERMEDIATE, HIDDEN),
        f"{layer}mlp.up_proj.weight": matrix(INTERMEDIATE, HIDDEN),
        f"{layer}mlp.down_proj.weight": matrix(HIDDEN, INTERMEDIATE),
    }
    if embeddings:
        weights["embed_tokens.weight"] = matrix(vocabulary, HIDDEN)
    if draft_vocabulary < vocabulary:
        ids = vocabulary_map(draft_vocabulary, vocabulary)
        weights["d2t"] = ids - torch.arange(draft_vocabulary)
        weights["t2d"] = torch.zeros(vocabulary, dtype=torch.bool).index_fill(0, ids, True)
    return weights


def save_head(folder: Path, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> Path:
    """Write a head's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / SAFE)
    return folder


def specforge_config(draft_vocabulary: int = DRAFT_VOCABULARY, **changes: Any) -> dict[str, Any]:
    """The config.json of a head as SpecForge saves it."""
    return layer_fields(
        architectures=["LlamaForCausalLMEagle3"], draft_vocab_size=draft_vocabulary, **changes
    )


def specforge_head(
    folder: Path, draft_vocabulary: int = DRAFT_VOCABULARY, vocabulary: int = VOCABULARY
) -> Path:
    """A head as SpecForge saves it; it uses the target's embeddings."""
    config = specforge_config(draft_vocabulary, vocab_size=vocabulary)
    weights = head_weights(draft_vocabulary, embeddings=False, vocabulary=vocabulary)
    return save_head(folder, config, weights)


def speculators_config(
    layers: list[int] | None = None,
    draft_vocabulary: int = DRAFT_VOCABULARY,
    layer: dict[str, Any] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """The config.json of a head as vLLM's speculators saves it."""
    return {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "transformer_layer_config": layer_fields(**(layer or {})),
        "draft_vocab_size": draft_vocabulary,
        "eagle_aux_hidden_state_layer_ids": layers,
        "norm_before_residual": False,
        **changes,
    }


def speculators_head(folder: Path, **changes: Any) -> Path:
    """A head as vLLM's speculators saves it, with embeddings of its own."""
    config = speculators_config(**changes)
    return save_head(folder, config, head_weights(config["draft_vocab_size"], "layers.0."))
