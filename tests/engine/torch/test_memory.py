from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import small_config
from transformers import AutoModelForCausalLM

from sequoia_opt.api import load_pair
from sequoia_opt.engine.torch import loading, memory
from sequoia_opt.engine.torch.attention import buffer_bytes
from sequoia_opt.engine.torch.memory import free_bytes, weight_bytes
from sequoia_opt.errors import SequoiaError

CPU = torch.device("cpu")


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gpt2", "opt", "gemma2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weight_bytes_are_those_of_the_model(architecture: str, dtype: torch.dtype) -> None:
    config = small_config(architecture)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    taken = sum(p.numel() * p.element_size() for p in model.parameters())
    assert weight_bytes(config, dtype) == taken


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_buffer_bytes_are_those_of_the_cache(
    architecture: str, make_pair: Callable[..., Any]
) -> None:
    runner = make_pair(architecture, architecture).target
    cache = runner.reserve(96, batch=3)
    taken = sum(store.numel() * store.element_size() for store in cache._stores)
    assert buffer_bytes(runner.layers, 3, 96, runner.dtype) == taken


def test_some_memory_is_free() -> None:
    free = free_bytes(CPU)
    assert free is None or 2**20 < free < 2**50


def test_models_that_do_not_fit_are_not_loaded(
    make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    monkeypatch.setattr(
        loading, "_load_model", lambda *_: pytest.fail("loaded although it does not fit")
    )
    with pytest.raises(SequoiaError, match=r"the weights of .* GB of cpu memory are free; use"):
        load_pair(make_model("llama"), make_model("llama", 1), "cpu")


def test_buffers_that_do_not_fit_are_not_allocated(
    make_pair: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = make_pair().target
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**6)
    with pytest.raises(SequoiaError, match=r"for 1 x 1000000 tokens take .* GB"):
        runner.reserve(10**6)
    runner.reserve(64)  # smaller buffers can still be allocated


@pytest.mark.parametrize(("limit", "left"), [("max\n", None), ("5000\n", 5000 - 3000 + 1200)])
def test_a_containers_limit(
    limit: str, left: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.current").write_text("3000\n")
    (tmp_path / "memory.stat").write_text("anon 1800\nfile 1200\n")
    monkeypatch.setattr(memory, "Path", lambda _: tmp_path)
    assert memory._bytes_left_in_group() == left
