"""Pairs with an offloaded target of seven layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sequoia_opt.api import load_pair
from sequoia_opt.engine.torch.empty_model import empty_model
from sequoia_opt.engine.torch.layer_weights import Layout, decoder_layers, named_weights
from sequoia_opt.engine.torch.offload import cache_bytes

CPU = torch.device("cpu")


LAYERS = {"num_hidden_layers": 7}


ARCHITECTURES = ["llama", "qwen3", "gpt_neox", "mistral", "gemma2", "phi3", "gpt2", "opt"]


def deep(make_model: Callable[..., Path], architecture: str = "llama", **changes: Any) -> Path:
    """A model of seven layers."""
    gpt2_layers = {"n_layer": 7} if architecture == "gpt2" else {}
    return make_model(architecture, 0, **LAYERS, **gpt2_layers, **changes)


def sizes(folder: Path, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes of the weights outside the layers with the KV cache, and of one layer."""
    from transformers import AutoConfig

    model = empty_model(AutoConfig.from_pretrained(folder), dtype)
    layers = decoder_layers(model)[1]
    inside = {id(t) for layer in layers for t in named_weights(layer).values()}
    outside = {id(t): t.nbytes for t in named_weights(model).values() if id(t) not in inside}
    return sum(outside.values()) + cache_bytes(model), Layout(layers[0]).size


def offloaded(make_model: Callable[..., Path], folder: Path | None = None) -> Any:
    """A pair whose target has two of its seven layers in memory."""
    folder = folder or deep(make_model)
    fixed, layer = sizes(folder, torch.float64)
    draft = make_model("llama", 1)
    budget = fixed + 2 * layer
    return load_pair(folder, draft, "cpu", "float64", offload="disk", memory_budget=budget)
