from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sequoia_opt.api import load_pair

TEXT = torch.tensor([[5, 6, 7, 8, 9, 10, 11]])


def hidden_by_library(runner: Any, layers: tuple[int, ...]) -> list[torch.Tensor]:
    with runner.native() as model, torch.inference_mode():
        states = model(TEXT, output_hidden_states=True, use_cache=False).hidden_states
        return [states[layer] for layer in layers]


def norm_of(runner: Any) -> Any:
    """The model's final norm, which the library applies to its last hidden states."""
    inner = runner.model.base_model
    return inner.ln_f if hasattr(inner, "ln_f") else inner.norm


def hidden_in_two_passes(runner: Any, layers: tuple[int, ...]) -> list[torch.Tensor]:
    """Hidden states of the last two tokens, from a pass after the prefill of the others."""
    count = TEXT.shape[1]
    with torch.inference_mode():
        cache = runner.reserve(64)
        runner.prefill(cache, TEXT[:, :-2])
        order = [0, 1]
        table = runner.mask_table(np.tri(2, dtype=np.bool_), order, order)
        length = torch.tensor([count - 2])
        slots = length + torch.arange(2)
        [masks] = table.masks(runner.places(cache, length, count))
        kept = runner.keep_hidden(layers)
        logits = runner.forward(cache, TEXT[:, -2:], slots[None], slots, masks, 1)
        assert logits.shape == (1, 1, runner.vocabulary)
        runner.release(cache)
        runner.keep_hidden(())
        return list(kept.states)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_hidden_states_of_chosen_layers(architecture: str, make_pair: Callable[..., Any]) -> None:
    """They equal the library's at the embeddings, a layer in the middle, and the last layer."""
    runner = make_pair(architecture, architecture).target
    layers = (0, 2, 3)
    embeddings, middle, last = hidden_in_two_passes(runner, layers)
    states = (embeddings, middle, norm_of(runner)(last))
    for state, expected in zip(states, hidden_by_library(runner, layers), strict=True):
        torch.testing.assert_close(state, expected[:, -2:], rtol=0, atol=1e-10)


@pytest.mark.parametrize("whole", [True, False])
def test_compiled_forward_passes_return_the_same_hidden_states(
    whole: bool,
    make_model: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    reset_compiler: None,
) -> None:
    """The graphs are only traced; later passes ask for the hidden states of other layers."""
    compile_by_torch = torch.compile
    monkeypatch.setattr(
        torch,
        "compile",
        lambda forward, **options: compile_by_torch(
            forward, backend="eager", fullgraph=options.get("fullgraph", False)
        ),
    )
    pair = load_pair(make_model("llama", 0), make_model("llama", 1), "cpu", "float32")
    runner: Any = pair.target
    monkeypatch.setattr(type(runner), "device_compiles_whole", property(lambda _: whole))
    runner.compile()
    for layers in ((1, 2), (0,), ()):
        for state, expected in zip(
            hidden_in_two_passes(runner, layers), hidden_by_library(runner, layers), strict=True
        ):
            torch.testing.assert_close(state, expected[:, -2:], rtol=1e-4, atol=1e-5)


def test_released_caches_are_reused_if_they_are_large_enough(
    make_pair: Callable[..., Any],
) -> None:
    runner = make_pair().target
    cache = runner.reserve(100)
    runner.release(cache)
    assert runner.reserve(80) is cache
    other = runner.reserve(80)  # the first is in use
    assert other is not cache
    runner.release(cache)
    larger = runner.reserve(101)
    assert larger is not cache
    assert larger.capacity == 101
    runner.release(larger)
    assert runner.reserve(10, batch=2).batch == 2


def test_a_larger_cache_leaves_what_others_read(make_pair: Callable[..., Any]) -> None:
    """A recorded forward pass reads the slots' numbers where they were when it was recorded."""
    runner = make_pair().target
    cache = runner.reserve(64)
    slots = runner.read_slots(cache, 16)
    larger = runner.reserve(4096)
    assert larger is not cache
    assert runner.read_slots(cache, 16).data_ptr() == slots.data_ptr()
