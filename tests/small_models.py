"""Models of a few thousand parameters for the tests."""

from __future__ import annotations

from typing import Any

VOCABULARY = 61


def small_config(architecture: str, **changes: Any) -> Any:
    """The configuration of a model with a few thousand parameters."""
    from transformers import AutoConfig

    sizes = dict(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
    )
    by_architecture: dict[str, dict[str, Any]] = {
        "gpt2": dict(n_embd=32, n_layer=3, n_head=4, n_positions=256),
        "opt": dict(ffn_dim=48, word_embed_proj_dim=32),
        "gemma2": dict(head_dim=8, sliding_window=8, query_pre_attn_scalar=8),
        "mistral": dict(sliding_window=8),
        "qwen3": dict(head_dim=16),
    }
    return AutoConfig.for_model(
        architecture, **(sizes | by_architecture.get(architecture, {}) | changes)
    )


def prompt_of(length: int, seed: int = 0) -> list[int]:
    """Random tokens of these models, without those that begin or end a text."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCABULARY, (length,), generator=generator).tolist()


def pair_of(target: Any, draft: Any) -> Any:
    """A pair made of two runners, without tokenizer or files."""
    from sequoia_opt.engine.drafters import ModelDrafter
    from sequoia_opt.engine.pair import Pair
    from sequoia_opt.engine.torch.library import TransformersLibrary
    from sequoia_opt.engine.torch.machine import TorchMachine

    drafter = ModelDrafter(draft, target.vocabulary)
    machine = TorchMachine(target.device)
    library = TransformersLibrary({"target": target, "draft": draft})
    return Pair(target, drafter, machine, library, "t", "d", {}, None, frozenset())
