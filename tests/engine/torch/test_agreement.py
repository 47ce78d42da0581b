"""What is checked when a model is loaded, past every length at which it may change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import VOCABULARY, pair_of
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama

from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.torch.agreement import CHECKED_TOKENS, LONGEST_CHECKED, usable_positions
from sequoia_opt.engine.torch.runner import Runner
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes

LATE = 100  # far past the text that is checked first, and before the last position, 256


def runner_of(make_model: Callable[..., Path], architecture: str, **changes: Any) -> Runner:
    folder = make_model(architecture, **changes)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    return Runner(model, architecture)


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
def test_windows_are_the_masks(
    make_model: Callable[..., Path],
    architecture: str,
    changes: dict[str, Any],
    windows: list[int | None],
) -> None:
    """PhiMoE's layers do not say what window they have."""
    changes = {"num_local_experts": 2} | changes if "moe" in architecture else changes
    folder = make_model(architecture, **changes)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, experts_implementation="eager"
    )
    assert [layer.window for layer in Runner(model, architecture).layers] == windows


def test_a_long_window_is_checked_with_few_tokens(make_model: Callable[..., Path]) -> None:
    folder = make_model("mistral", sliding_window=4096, max_position_embeddings=131072)
    model = AutoModelForCausalLM.from_pretrained(folder)
    run = []
    model.model.embed_tokens.register_forward_pre_hook(lambda _, inputs: run.append(inputs[0]))
    runner = Runner(model, "mistral")
    assert [layer.window for layer in runner.layers] == [4096] * 3
    assert sum(tokens.numel() for tokens in run) <= 6 * CHECKED_TOKENS


def masked(change: Callable[[torch.Tensor, int], torch.Tensor]) -> Callable[..., Any]:
    """The library's masks, changed by a function of them and of how many tokens came before."""
    own = modeling_llama.create_causal_mask

    def create(**arguments: Any) -> Any:
        mask, cache = own(**arguments), arguments.get("past_key_values")
        before = 0 if cache is None else cache.get_seq_length()
        return mask if mask is None else change(mask, before)

    return create


def hide_first(mask: torch.Tensor, before: int) -> torch.Tensor:
    """A window of 100 tokens whose masks begin where the text is longer."""
    if before < LATE:
        return mask
    hidden = torch.arange(mask.shape[-1]) < mask.shape[-1] - LATE
    return mask & ~hidden if mask.dtype == torch.bool else mask


def chunk(mask: torch.Tensor, before: int) -> torch.Tensor:
    """Chunks of 100 tokens."""
    hidden = torch.arange(mask.shape[-1]) < before // LATE * LATE
    return mask & ~hidden if mask.dtype == torch.bool else mask


def slope(mask: torch.Tensor, before: int) -> torch.Tensor:
    """Scores that fall with the distance."""
    falling = torch.arange(mask.shape[-1]) / 10 - mask.shape[-1] / 10
    return torch.where(mask, falling, -1e30) if mask.dtype == torch.bool else mask


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (hide_first, "sees? other tokens than all before or a sliding window"),
        (chunk, "sees? other tokens than all before or a sliding window"),
        (slope, "adds to the scores by position"),
    ],
)
def test_a_mask_that_is_no_window_is_refused(
    make_model: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[torch.Tensor, int], torch.Tensor],
    complaint: str,
) -> None:
    monkeypatch.setattr(modeling_llama, "create_causal_mask", masked(change))
    with pytest.raises(SequoiaError, match=f"architecture 'llama' cannot score.*{complaint}"):
        runner_of(make_model, "llama")


def test_what_is_computed_otherwise_at_late_positions_is_refused(
    make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what the library's cache says, which no position tells."""
    own = modeling_llama.LlamaModel.forward

    def forward(self: Any, *args: Any, past_key_values: Any = None, **options: Any) -> Any:
        output = own(self, *args, past_key_values=past_key_values, **options)
        if past_key_values is not None and past_key_values.get_seq_length() > LATE:
            output.last_hidden_state = 2 * output.last_hidden_state
        return output

    monkeypatch.setattr(modeling_llama.LlamaModel, "forward", forward)
    with pytest.raises(SequoiaError, match=r"gives other logits on a tree.*from position 240"):
        runner_of(make_model, "llama")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("architecture", "seed"), [("mixtral", 1), ("phimoe", 0), ("jetmoe", 0), ("granitemoe", 0)]
)
def test_tokens_that_go_to_other_experts_are_no_wrong_architecture(
    make_model: Callable[..., Path], architecture: str, seed: int, dtype: torch.dtype
) -> None:
    changes = {"num_local_experts": 4, "num_experts_per_tok": 2}
    folder = make_model(architecture, seed, **changes)
    Runner(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype), architecture)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_wrong_places_are_noticed_in_half_precision_too(
    make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    own = modeling_llama.LlamaModel.forward

    def forward(self: Any, input_ids: Any = None, position_ids: Any = None, **options: Any) -> Any:
        if position_ids is not None:
            position_ids = position_ids[:, :1] + torch.arange(position_ids.shape[1])
        return own(self, input_ids=input_ids, position_ids=position_ids, **options)

    monkeypatch.setattr(modeling_llama.LlamaModel, "forward", forward)
    model = AutoModelForCausalLM.from_pretrained(make_model("llama"), dtype=dtype)
    with pytest.raises(SequoiaError, match="gives other logits on a tree"):
        Runner(model, "llama")


def test_a_window_of_the_librarys_cache_alone_is_refused(make_model: Callable[..., Path]) -> None:
    """Its `generate` forgets what its own forward sees."""
    with pytest.raises(SequoiaError, match=r"a window of 9 tokens.*take it out of config\.json"):
        runner_of(make_model, "llama", sliding_window=9)


def test_a_configuration_that_the_librarys_cache_does_not_take(
    make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise ValueError("windows and chunks at once")

    monkeypatch.setattr("sequoia_opt.engine.torch.agreement.DynamicCache", refuse)
    with pytest.raises(SequoiaError, match=r"transformers has no cache for its config\.json"):
        runner_of(make_model, "llama")


@pytest.mark.parametrize("positions", [1, 2, CHECKED_TOKENS, CHECKED_TOKENS + 1, 40])
def test_models_of_few_positions(make_model: Callable[..., Path], positions: int) -> None:
    runner = runner_of(make_model, "llama", max_position_embeddings=positions)
    assert (runner.positions, runner.ends) == (positions, "")


def test_endless_positions_end_where_masks_are_checked() -> None:
    class Endless:
        max_position_embeddings = 2**40

    assert usable_positions(Endless())[0] == LONGEST_CHECKED


@pytest.mark.parametrize("architecture", ["stablelm", "nemotron"])
def test_layers_that_pass_nothing_on_run_several_sequences(
    make_model: Callable[..., Path], architecture: str
) -> None:
    runner = runner_of(make_model, architecture)
    texts = torch.randint(2, VOCABULARY, (3, 40), generator=torch.Generator().manual_seed(0))
    pad = torch.tensor([0, 7, 3])
    cache = runner.reserve(64, 3)
    with torch.inference_mode():
        logits = runner.prefill(cache, texts, pad)
        with runner.native() as model:
            for text, padding, row in zip(texts, pad.tolist(), logits, strict=True):
                expected = model(input_ids=text[None, padding:], use_cache=False).logits[0, -1]
                torch.testing.assert_close(row, expected, rtol=0, atol=1e-5)


def test_longrope_says_why_it_ends(make_model: Callable[..., Path]) -> None:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
        "original_max_position_embeddings": 64,
    }
    runner = runner_of(
        make_model, "phi3", rope_parameters=rope, original_max_position_embeddings=64
    )
    pair = pair_of(runner, runner)
    complaint = r"do not fit the 64 positions of phi3: its rotary embedding \(longrope\) changes"
    with pytest.raises(SequoiaError, match=complaint):
        Decoder(pair, shapes.chain(3)).generate(list(range(2, 60)), 20)


def test_logits_that_become_no_numbers_end_decoding(make_model: Callable[..., Path]) -> None:
    runner = runner_of(make_model, "llama")
    pair = pair_of(runner, runner)
    with torch.no_grad():
        runner.model.get_input_embeddings().weight[50] = torch.nan
    decoder = Decoder(pair, shapes.chain(3))
    decoder.generate([4, 5, 6], 1)
    with pytest.raises(SequoiaError, match="are not numbers in float64"):
        decoder.generate([4, 50, 6], 4)
