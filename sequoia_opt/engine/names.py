"""The names of the engines and of their options, as command lines and files have them.

Knows names only, so that help texts can list them without importing torch.
"""

from __future__ import annotations

from collections.abc import Iterable

TORCH, LLAMA_CPP = "torch", "llama.cpp"
ENGINES = (TORCH, LLAMA_CPP)
OPENVINO = "openvino"  # whose own speculation is tuned; it runs no plans

GGUF = ".gguf"
"""How the name of a file ends that llama.cpp runs."""


def engine_for(models: Iterable[str]) -> str:
    """The engine that runs these models where none is named: llama.cpp if one is a GGUF file."""
    return LLAMA_CPP if any(model.lower().endswith(GGUF) for model in models) else TORCH
