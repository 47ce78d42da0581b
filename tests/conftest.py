"""Test settings, and fixtures that make small models."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hypothesis import settings
from short_runs import shorten
from small_models import small_config

from sequoia_opt.engine.torch import onednn_linear

if not torch.cuda.is_available():  # have triton interpret kernels; it reads this on import
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The same cases in every run, so that a commit that passed passes again; `make fuzz` tries others.
settings.register_profile("suite", deadline=None, print_blob=True, derandomize=True)
settings.register_profile("search", deadline=None, print_blob=True)
settings.load_profile("search" if "FUZZ" in os.environ else "suite")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny matrices gain nothing from more threads, and tests run in parallel."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _short_runs() -> None:
    """Measure with as few runs as possible, since tests ignore the times."""
    shorten()


@pytest.fixture(scope="session", autouse=True)
def _graphs_of_every_cpu() -> Iterator[None]:
    """The same graphs on every CPU; the tests of sums over a few rows ask for those of AMD's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onednn_linear, "is_amd", lambda: False)
        yield


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Saves a random model and returns its folder; equal arguments share a folder."""
    folders: dict[str, Path] = {}

    def make(
        architecture: str = "llama", seed: int = 0, spread: float = 0.3, **changes: Any
    ) -> Path:
        from transformers import AutoModelForCausalLM

        key = repr((architecture, seed, spread, sorted(changes.items())))
        if key not in folders:
            torch.manual_seed(seed)
            config = small_config(architecture, initializer_range=spread, **changes)
            model = AutoModelForCausalLM.from_config(config)
            folders[key] = tmp_path_factory.mktemp(architecture)
            model.save_pretrained(folders[key])
        return folders[key]

    return make


@pytest.fixture(scope="session")
def make_pair(make_model: Callable[..., Path]) -> Callable[..., Any]:
    """Loads a pair of random models; the draft is a noisy target, so some guesses are accepted."""
    from sequoia_opt.api import load_pair

    pairs: dict[str, Any] = {}

    def make(
        target: str = "llama", draft: str = "llama", dtype: str = "float64", **changes: Any
    ) -> Any:
        key = repr((target, draft, dtype, sorted(changes.items())))
        if key not in pairs:
            pair = load_pair(make_model(target, 0, **changes), make_model(draft, 1), "cpu", dtype)
            if target == draft and not changes:
                torch.manual_seed(2)
                state = {
                    name: value + 0.15 * value.std() * torch.randn_like(value)
                    if value.is_floating_point() and value.numel() > 1
                    else value
                    for name, value in pair.target.model.state_dict().items()
                }
                pair.draft.model.load_state_dict(state)
            pairs[key] = pair
        return pairs[key]

    return make


@pytest.fixture(scope="session")
def bundled_gguf(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The bundled pair's GGUF files by role, in a cache of this session's."""
    from sequoia_opt.demo.gguf import gguf_of

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return {role: gguf_of(role) for role in ("target", "draft")}
