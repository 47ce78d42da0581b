"""Every architecture with softmax attention gives transformers' greedy tokens or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import VOCABULARY
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from sequoia_opt.api import load_pair
from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes

WINDOW = 20  # longer than the text whose logits are compared when a model is loaded
PROMPT, NEW = 3 * WINDOW + 3, 12  # tokens
SIZES: dict[str, Any] = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    initializer_range=0.3,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=0,
)
WINDOWED = dict(sliding_window=WINDOW)
SWITCHED = dict(sliding_window=WINDOW, use_sliding_window=True, max_window_layers=1)
EXPERTS = dict(num_experts=4, num_local_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
ROUTED = dict(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
LATENT = dict(
    num_key_value_heads=4,
    q_lora_rank=16,
    kv_lora_rank=8,
    qk_nope_head_dim=8,
    qk_rope_head_dim=4,
    v_head_dim=8,
    head_dim=4,
)
GPT = dict(n_embd=32, n_layer=3, n_head=4, n_positions=128, n_inner=48)
LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]

# Architectures that run, with the sizes of a small model.
RUN: dict[str, dict[str, Any]] = {
    "afmoe": WINDOWED | EXPERTS | dict(head_dim=8, layer_types=LAYERS),
    "apertus": {},
    "arcee": {},
    "biogpt": {},
    "cohere": {},
    "cohere2": WINDOWED | dict(layer_types=LAYERS),
    "cwm": WINDOWED | dict(layer_types=LAYERS, head_dim=8),
    "deepseek_v2": LATENT | ROUTED | dict(n_group=1, topk_group=1, topk_method="greedy"),
    "deepseek_v3": LATENT | ROUTED | dict(n_group=1, topk_group=1),
    "ernie4_5": {},
    "exaone4": WINDOWED | dict(layer_types=LAYERS),
    "flex_olmo": EXPERTS,
    "gemma": dict(head_dim=8),
    "gemma2": WINDOWED | dict(head_dim=8, query_pre_attn_scalar=8),
    "gemma3_text": WINDOWED | dict(head_dim=8, layer_types=LAYERS),
    "glm": dict(head_dim=8),
    "glm4": dict(head_dim=8),
    "glm4_moe": ROUTED | dict(head_dim=8, n_group=1, topk_group=1),
    "gpt2": GPT,
    "gpt_bigcode": GPT,
    "gpt_neox": {},
    "gpt_oss": WINDOWED | dict(head_dim=8, num_local_experts=4, layer_types=LAYERS),
    "granite": {},
    "granitemoe": EXPERTS,
    "helium": dict(head_dim=8),
    "hunyuan_v1_dense": dict(head_dim=8),
    "internlm3": {},
    "jetmoe": dict(kv_channels=8, num_local_experts=4, num_experts_per_tok=2),
    "llama": {},
    "minimax_m2": dict(head_dim=8) | EXPERTS,
    "ministral": WINDOWED | dict(layer_types=LAYERS, head_dim=8),
    "mistral": WINDOWED,
    "mixtral": WINDOWED | dict(num_local_experts=4),
    "modernbert-decoder": dict(local_attention=2 * WINDOW),
    "nemotron": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": WINDOWED | dict(layer_types=LAYERS),
    "olmoe": EXPERTS,
    "opt": dict(ffn_dim=48, word_embed_proj_dim=32),
    "persimmon": {},
    "phi": {},
    "phi3": WINDOWED,
    "phimoe": WINDOWED | dict(num_local_experts=4),
    "qwen2": SWITCHED,
    "qwen2_moe": SWITCHED | EXPERTS | dict(shared_expert_intermediate_size=16),
    "qwen3": SWITCHED | dict(head_dim=8),
    "qwen3_moe": SWITCHED | EXPERTS | dict(head_dim=8),
    "seed_oss": dict(head_dim=8),
    "smollm3": SWITCHED,
    "stablelm": {},
    "starcoder2": WINDOWED,
    "vaultgemma": WINDOWED | dict(head_dim=8, query_pre_attn_scalar=8, layer_types=LAYERS),
}
OWN_CODE = "its attention is written out in its own code"
# Architectures that are refused, with the sizes of a small model and the reason.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "bloom": (dict(n_layer=3, n_head=4), OWN_CODE),
    "codegen": (GPT | dict(rotary_dim=8), OWN_CODE),
    "diffllama": ({}, "gives other logits on a tree"),
    "doge": ({}, "its attention adds to the scores|its layers mask in a way of their own"),
    "falcon": (dict(alibi=False), OWN_CODE),
    "gpt_neo": (
        dict(attention_types=[[["global"], 1], [["local"], 2]], window_size=8),
        OWN_CODE,
    ),
    "gptj": (GPT | dict(rotary_dim=8), OWN_CODE),
    "llama4_text": (
        dict(attention_chunk_size=WINDOW, num_local_experts=2, intermediate_size_mlp=48),
        "has chunked_attention layers",
    ),
    "mamba": (dict(state_size=4), "has linear_attention layers"),
    "mpt": (dict(d_model=32, n_heads=4, n_layers=3, max_seq_len=128), OWN_CODE),
    "openai-gpt": (GPT, OWN_CODE),
}


@pytest.fixture(scope="module")
def draft(make_model: Any) -> Path:
    folder: Path = make_model("llama", 1)
    return folder


def save(architecture: str, changes: dict[str, Any], folder: Path) -> Path:
    """A random model's folder."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **(SIZES | changes))
    AutoModelForCausalLM.from_config(config, dtype=torch.float64).save_pretrained(folder)
    return folder


def prompt() -> list[int]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(2, VOCABULARY, (PROMPT,), generator=generator).tolist()


def tokens_of_generate(folder: Path) -> list[int]:
    """transformers' greedy tokens, with its own cache and attention."""
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager"
    )
    model.generation_config = GenerationConfig()
    tokens = torch.tensor([prompt()])
    output = model.generate(tokens, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    new: list[int] = output[0, PROMPT:].tolist()
    return new


@pytest.mark.parametrize("architecture", RUN)
def test_greedy_tokens_are_the_librarys(architecture: str, draft: Path, tmp_path: Path) -> None:
    folder = save(architecture, RUN[architecture], tmp_path / architecture)
    expected = tokens_of_generate(folder)
    tree = shapes.k_ary(2, 3)
    for offload in ("none", "disk"):
        budget = None if offload == "none" else _least_budget(folder)
        pair = load_pair(folder, draft, "cpu", "float64", offload=offload, memory_budget=budget)
        assert (pair.target.stream is None) == (offload == "none")
        tokens = Decoder(pair, tree).generate(prompt(), NEW, ignore_eos=True).tokens
        assert tokens == expected, offload


def _least_budget(folder: Path) -> int:
    """The budget that leaves at most one layer in memory, in bytes."""
    from sequoia_opt.engine.torch.empty_model import empty_model
    from sequoia_opt.engine.torch.layer_weights import Layout, decoder_layers, named_weights
    from sequoia_opt.engine.torch.offload import cache_bytes

    model: Any = empty_model(AutoConfig.from_pretrained(folder), torch.float64)
    layers = decoder_layers(model)[1]
    inside = {id(t) for layer in layers for t in named_weights(layer).values()}
    outside = {id(t): t.nbytes for t in named_weights(model).values() if id(t) not in inside}
    return sum(outside.values()) + cache_bytes(model) + max(Layout(layer).size for layer in layers)


@pytest.mark.parametrize("architecture", REFUSED)
def test_unsupported_architectures_are_refused_by_name(
    architecture: str, draft: Path, tmp_path: Path
) -> None:
    changes, reason = REFUSED[architecture]
    folder = save(architecture, changes, tmp_path / architecture)
    kind = AutoConfig.from_pretrained(folder).model_type
    for offload in ("none", "disk"):
        with pytest.raises(SequoiaError, match=f"architecture '{kind}'.*({reason})"):
            load_pair(folder, draft, "cpu", "float64", offload=offload)


def test_at_least_forty_architectures_run() -> None:
    assert len(RUN) >= 40
