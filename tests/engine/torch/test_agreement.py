"""Logits on a tree are checked at the first and the last positions."""

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
from sequoia_opt.engine.torch.runner import Runner
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes

LATE = 100  # well past the first text that is checked, and before the last position, 256


def test_other_logits_at_late_positions_are_refused(
    make_runner: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The change depends on the length that the cache claims, not on the positions."""
    original = modeling_llama.LlamaModel.forward

    def forward(self: Any, *args: Any, past_key_values: Any = None, **options: Any) -> Any:
        output = original(self, *args, past_key_values=past_key_values, **options)
        if past_key_values is not None and past_key_values.get_seq_length() > LATE:
            output.last_hidden_state = 2 * output.last_hidden_state
        return output

    monkeypatch.setattr(modeling_llama.LlamaModel, "forward", forward)
    with pytest.raises(SequoiaError, match=r"gives other logits on a tree.*from position 240"):
        make_runner("llama")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("architecture", "seed"), [("mixtral", 1), ("phimoe", 0), ("jetmoe", 0), ("granitemoe", 0)]
)
def test_tokens_that_rounding_sends_to_other_experts_are_not_refused(
    make_model: Callable[..., Path], architecture: str, seed: int, dtype: torch.dtype
) -> None:
    changes = {"num_local_experts": 4, "num_experts_per_tok": 2}
    folder = make_model(architecture, seed, **changes)
    Runner(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype), architecture)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_wrong_positions_are_refused_in_half_precision_too(
    make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    original = modeling_llama.LlamaModel.forward

    def forward(self: Any, input_ids: Any = None, position_ids: Any = None, **options: Any) -> Any:
        if position_ids is not None:
            position_ids = position_ids[:, :1] + torch.arange(position_ids.shape[1])
        return original(self, input_ids=input_ids, position_ids=position_ids, **options)

    monkeypatch.setattr(modeling_llama.LlamaModel, "forward", forward)
    model = AutoModelForCausalLM.from_pretrained(make_model("llama"), dtype=dtype)
    with pytest.raises(SequoiaError, match="gives other logits on a tree"):
        Runner(model, "llama")


def test_nan_logits_end_decoding(make_runner: Callable[..., Runner]) -> None:
    runner = make_runner("llama")
    pair = pair_of(runner, runner)
    with torch.no_grad():
        runner.model.get_input_embeddings().weight[50] = torch.nan
    decoder = Decoder(pair, shapes.chain(3))
    decoder.generate([4, 5, 6], 1)
    with pytest.raises(SequoiaError, match="are not numbers in float64"):
        decoder.generate([4, 50, 6], 4)
