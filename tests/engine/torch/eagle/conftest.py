from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from slow_head import SlowHead
from small_heads import specforge_head

from sequoia_opt.api import load_pair

VOCABULARY, DRAFT_VOCABULARY = 8, 6
"""So few tokens that a random head's guesses are often accepted."""


@pytest.fixture(scope="session")
def head_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head of SpecForge's format for a target of few tokens."""
    folder = tmp_path_factory.mktemp("head") / "head"
    return specforge_head(folder, DRAFT_VOCABULARY, VOCABULARY)


@pytest.fixture(scope="session")
def target_folder(make_model: Callable[..., Path]) -> Path:
    """A target of few tokens."""
    return make_model("llama", vocab_size=VOCABULARY)


@pytest.fixture(scope="session")
def head_pair(head_folder: Path, target_folder: Path) -> Any:
    """Both in float64."""
    return load_pair(target_folder, head_folder, "cpu", "float64")


@pytest.fixture
def slow(head_folder: Path, target_folder: Path) -> SlowHead:
    """The same head, written out slowly."""
    weights = load_file(head_folder / "model.safetensors")
    target = load_file(target_folder / "model.safetensors")
    return SlowHead(weights | {"embed_tokens.weight": target["model.embed_tokens.weight"]})
