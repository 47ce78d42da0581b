"""Models with random weights in the shapes that people run, and published acceptance rates.

Latency depends only on a model's shape, so these measure a machine that cannot download models.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from transformers import LlamaConfig, PreTrainedConfig

from sequoia_opt.plan.acceptance import Acceptance

PUBLISHED = Path(__file__).parents[1] / "plan" / "sequoia_reference_table.json"
CONTEXT = 192  # mean context length: a prompt of 128 tokens and half of the text that follows
LLAMA_2 = dict(vocab_size=32000, max_position_embeddings=4096)
LLAMA_3 = dict(
    vocab_size=128256, max_position_embeddings=8192, num_key_value_heads=8, rope_theta=500000.0
)
TINY = dict(vocab_size=512, max_position_embeddings=1024, num_attention_heads=4)
SHAPES: dict[str, dict[str, Any]] = {
    "llama-2-7b": LLAMA_2 | dict(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
    ),
    "llama-2-13b": LLAMA_2 | dict(
        hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40
    ),
    "llama-68m": LLAMA_2 | dict(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=2, num_attention_heads=12
    ),
    "llama-3.1-8b": LLAMA_3 | dict(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32
    ),
    "llama-3.2-1b": LLAMA_3 | dict(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        head_dim=64, tie_word_embeddings=True,
    ),
    "tiny-target": TINY | dict(hidden_size=256, intermediate_size=512, num_hidden_layers=8),
    "tiny-draft": TINY | dict(hidden_size=64, intermediate_size=128, num_hidden_layers=1),
}  # fmt: skip


def config_of(shape: str) -> PreTrainedConfig:
    """The configuration of a model with the shape."""
    config = LlamaConfig(**SHAPES[shape])
    config.architectures = ["LlamaForCausalLM"]
    return config


def write_configs(folder: Path, *shapes: str) -> list[Path]:
    """Make a folder for each shape, named after it, with a configuration and no weights."""
    folders = [folder / shape for shape in shapes]
    for path in folders:
        config_of(path.name).save_pretrained(path)
    return folders


def published_rates() -> np.ndarray:
    """The acceptance rates [ranks] that the Sequoia research code publishes."""
    rates = np.array(json.loads(PUBLISHED.read_text())["acceptance"])
    return rates[: np.searchsorted(rates.cumsum(), 1 + 1e-6)]


def published_acceptance(target: str, draft: str) -> Acceptance:
    """The published rates as a greedy acceptance of the pair."""
    return Acceptance(
        published_rates(), target=target, draft=draft, dataset="published", context=CONTEXT
    )
