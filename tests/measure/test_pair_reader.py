from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_models import VOCABULARY, pair_of
from torch import Tensor
from transformers import AutoModelForCausalLM

from sequoia_opt.engine.torch.runner import Runner
from sequoia_opt.measure.pair_reader import PairLogits, PairReader


@pytest.fixture
def rows() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(2, VOCABULARY, (n,), generator=generator).tolist() for n in (9, 5)]


def plain_logits(pair: Any, row: list[int]) -> PairLogits:
    """Logits [tokens, vocabulary] of both unmodified models after each token of a text."""
    with torch.no_grad(), pair.target.native() as target, pair.draft.native() as draft:
        tokens = torch.tensor([row])
        return PairLogits(*(m(tokens, use_cache=False).logits[0] for m in (target, draft)))


def close(actual: Tensor, expected: Tensor) -> bool:
    return torch.allclose(actual, expected, atol=1e-9)


@torch.inference_mode()
def test_padding_on_the_left_changes_nothing(number_pair: Any, rows: list[list[int]]) -> None:
    """Prompts of different lengths, then one token more of each."""
    padding = torch.tensor([0, 3])
    prompts = torch.tensor([rows[0][:-1], [0] * 3 + rows[1]])
    reader = PairReader(number_pair, batch=2, capacity=9)
    prefilled = reader.prefill(prompts, padding)
    extended = reader.extend(torch.tensor([rows[0][-1], 7]), 8, padding)
    first, second = (plain_logits(number_pair, row) for row in (rows[0], [*rows[1], 7]))
    for model in range(2):
        assert close(prefilled[model][0], first[model][-2])
        assert close(prefilled[model][1], second[model][-2])
        assert close(extended[model][0], first[model][-1])
        assert close(extended[model][1], second[model][-1])


@torch.inference_mode()
def test_texts_are_read_in_chunks(number_pair: Any, rows: list[list[int]]) -> None:
    tokens = torch.tensor([rows[0], rows[1] + [0] * 4])
    reader = PairReader(number_pair, batch=2, capacity=9)
    starts, chunks = zip(*reader.read(tokens, chunk=4), strict=True)
    assert starts == (0, 4, 8)
    for model in range(2):
        logits = torch.cat([chunk[model] for chunk in chunks], dim=1)
        assert close(logits[0], plain_logits(number_pair, rows[0])[model])
        assert close(logits[1, :5], plain_logits(number_pair, rows[1])[model])


def test_logits_are_float32_over_the_targets_vocabulary(make_model: Callable[..., Any]) -> None:
    folders = make_model("llama"), make_model("llama", 1, vocab_size=VOCABULARY - 3)
    pair = pair_of(
        *(
            Runner(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16), "m")
            for folder in folders
        )
    )
    with torch.inference_mode(), PairReader(pair, batch=1, capacity=8) as reader:
        logits = reader.prefill(torch.tensor([[5, 6, VOCABULARY - 1]]), torch.tensor([0]))
    assert logits.target.dtype == logits.draft.dtype == torch.float32
    assert logits.draft.shape == logits.target.shape
    assert torch.isneginf(logits.draft[:, -3:]).all()


def test_it_reads_outside_of_inference_mode_too(make_pair: Callable[..., Any]) -> None:
    """And whole texts give the logits that they give token by token."""
    pair, tokens = make_pair(), torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    padding = torch.tensor([0, 0])
    with PairReader(pair, batch=2, capacity=8) as reader:
        _, whole = next(reader.read(tokens, chunk=4))
    with PairReader(pair, batch=2, capacity=8) as reader:
        reader.prefill(tokens[:, :3], padding)
        stepwise = reader.extend(tokens[:, 3], 3, padding)
    for logits, last in zip(whole, stepwise, strict=True):
        torch.testing.assert_close(logits[:, -1], last)
