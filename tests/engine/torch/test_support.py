"""Masks and configurations are checked at the last positions, past every possible change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import pair_of
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama

from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.torch.agreement import CHECKED_TOKENS
from sequoia_opt.engine.torch.runner import Runner
from sequoia_opt.engine.torch.support import LONGEST_CHECKED, usable_positions
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes

LATE = 100  # well past the first text that is checked, and before the last position, 256


@pytest.mark.parametrize(
    ("architecture", "changes", "windows"),
    [
        ("mistral", {"sliding_window": 100}, [100, 100, 100]),
        ("mistral", {"sliding_window": 1000}, [None, None, None]),  # longer than any text
        (
            "qwen2",
            {"sliding_window": 100, "use_sliding_window": True, "max_window_layers": 1},
            [None, 100, 100],
        ),
        ("qwen2", {"sliding_window": 100, "use_sliding_window": False}, [None, None, None]),
        ("phimoe", {"sliding_window": 100, "num_local_experts": 2}, [100, 100, 100]),
    ],
)
def test_windows_are_read_from_the_masks(
    make_model: Callable[..., Path],
    architecture: str,
    changes: dict[str, Any],
    windows: list[int | None],
) -> None:
    """PhiMoE's layers do not name their window."""
    changes = {"num_local_experts": 2} | changes if "moe" in architecture else changes
    folder = make_model(architecture, **changes)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, experts_implementation="eager"
    )
    assert [layer.window for layer in Runner(model, architecture).layers] == windows


def test_a_long_window_is_checked_with_few_tokens(make_model: Callable[..., Path]) -> None:
    folder = make_model("mistral", sliding_window=4096, max_position_embeddings=131072)
    model = AutoModelForCausalLM.from_pretrained(folder)
    inputs_seen = []
    model.model.embed_tokens.register_forward_pre_hook(
        lambda _, inputs: inputs_seen.append(inputs[0])
    )
    runner = Runner(model, "mistral")
    assert [layer.window for layer in runner.layers] == [4096] * 3
    assert sum(tokens.numel() for tokens in inputs_seen) <= 6 * CHECKED_TOKENS


def masked(change: Callable[[torch.Tensor, int], torch.Tensor]) -> Callable[..., Any]:
    """transformers' masks, changed by a function of them and of the number of tokens before."""
    original = modeling_llama.create_causal_mask

    def create(**arguments: Any) -> Any:
        mask, cache = original(**arguments), arguments.get("past_key_values")
        before = 0 if cache is None else cache.get_seq_length()
        return mask if mask is None else change(mask, before)

    return create


def hide_first(mask: torch.Tensor, before: int) -> torch.Tensor:
    """A window of 100 tokens that applies only once the text is longer."""
    if before < LATE:
        return mask
    hidden = torch.arange(mask.shape[-1]) < mask.shape[-1] - LATE
    return mask & ~hidden if mask.dtype == torch.bool else mask


def chunk(mask: torch.Tensor, before: int) -> torch.Tensor:
    """Chunks of 100 tokens."""
    hidden = torch.arange(mask.shape[-1]) < before // LATE * LATE
    return mask & ~hidden if mask.dtype == torch.bool else mask


def slope(mask: torch.Tensor, before: int) -> torch.Tensor:
    """Scores that decrease with the distance."""
    slopes = torch.arange(mask.shape[-1]) / 10 - mask.shape[-1] / 10
    return torch.where(mask, slopes, -1e30) if mask.dtype == torch.bool else mask


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (hide_first, "sees? other tokens than all before or a sliding window"),
        (chunk, "sees? other tokens than all before or a sliding window"),
        (slope, "adds to the scores by position"),
    ],
)
def test_a_mask_that_is_no_window_is_refused(
    make_runner: Callable[..., Runner],
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[torch.Tensor, int], torch.Tensor],
    complaint: str,
) -> None:
    monkeypatch.setattr(modeling_llama, "create_causal_mask", masked(change))
    with pytest.raises(SequoiaError, match=f"architecture 'llama' cannot score.*{complaint}"):
        make_runner("llama")


def test_a_window_that_only_the_librarys_cache_has_is_refused(
    make_runner: Callable[..., Runner],
) -> None:
    """transformers' `generate` would not see tokens that its plain forward pass sees."""
    with pytest.raises(SequoiaError, match=r"a window of 9 tokens.*take it out of config\.json"):
        make_runner("llama", sliding_window=9)


def test_a_configuration_that_the_librarys_cache_does_not_take(
    make_runner: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise ValueError("windows and chunks at once")

    monkeypatch.setattr("sequoia_opt.engine.torch.support.DynamicCache", refuse)
    with pytest.raises(SequoiaError, match=r"transformers has no cache for its config\.json"):
        make_runner("llama")


@pytest.mark.parametrize("positions", [1, 2, CHECKED_TOKENS, CHECKED_TOKENS + 1, 40])
def test_models_of_few_positions(make_runner: Callable[..., Runner], positions: int) -> None:
    runner = make_runner("llama", max_position_embeddings=positions)
    assert (runner.positions, runner.ends) == (positions, "")


def test_unlimited_positions_are_limited() -> None:
    class Unlimited:
        max_position_embeddings = 2**40

    assert usable_positions(Unlimited())[0] == LONGEST_CHECKED


def test_longrope_explains_its_limit(make_runner: Callable[..., Runner]) -> None:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
        "original_max_position_embeddings": 64,
    }
    runner = make_runner("phi3", rope_parameters=rope, original_max_position_embeddings=64)
    pair = pair_of(runner, runner)
    complaint = r"do not fit the 64 positions of phi3: its rotary embedding \(longrope\) changes"
    with pytest.raises(SequoiaError, match=complaint):
        Decoder(pair, shapes.chain(3)).generate(list(range(2, 60)), 20)
