from __future__ import annotations

from collections.abc import Callable
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
