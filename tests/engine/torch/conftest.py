from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from sequoia_opt.engine.torch.runner import Runner


@pytest.fixture
def make_runner(make_model: Callable[..., Path]) -> Callable[..., Runner]:
    """Makes a runner of a small float64 model: architecture and changes to its configuration."""

    def make(architecture: str, **changes: Any) -> Runner:
        folder = make_model(architecture, **changes)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
        return Runner(model, architecture)

    return make


@pytest.fixture
def folders(make_model: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path]:
    """Copies of a small target and draft, to be damaged."""
    for name, seed in (("target", 0), ("draft", 1)):
        shutil.copytree(make_model("llama", seed), tmp_path / name)
    return tmp_path / "target", tmp_path / "draft"


@pytest.fixture
def reset_compiler() -> Iterator[None]:
    """Forgets, after a test, what it compiled."""
    yield
    torch.compiler.reset()
