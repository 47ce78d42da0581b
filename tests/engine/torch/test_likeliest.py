"""The likeliest tokens out of a compiled forward pass, against those that the host looks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sequoia_opt.engine.drafters import ModelDrafter
from sequoia_opt.engine.load import load_pair
from sequoia_opt.engine.model import Likeliest, reserved
from sequoia_opt.engine.torch.likeliest import RANKS, likely_tokens

STEPS = [
    ([5, 6], [-1, 0], 1),  # the root, behind a token that the cache lacks
    ([7], [1], 1),
    ([8, 9], [1, 2], 2),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_they_are_the_largest_probabilities(dtype: torch.dtype) -> None:
    logits = 3 * torch.randn(5, 50, generator=torch.Generator().manual_seed(1))
    likely = likely_tokens(logits.to(dtype))
    expected = logits.to(dtype).double().softmax(dim=-1).topk(RANKS, dim=-1)
    torch.testing.assert_close(likely.probabilities.double(), expected.values, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        expected.values, logits.to(dtype).double().softmax(dim=-1).gather(1, likely.tokens)
    )


def test_a_small_vocabulary_has_no_more() -> None:
    likely = likely_tokens(torch.tensor([[1.0, 2.0]]))
    assert likely.tokens[0, :2].tolist() == [1, 0]
    assert likely.probabilities[0, :2].sum() == pytest.approx(1)
    assert likely.probabilities[0, 2:].tolist() == [0, 0]


def likeliest_of(model: Any, ranks: int) -> list[Likeliest]:
    """What is found in three passes over a growing tree."""
    with reserved(model, 64) as cache:
        model.prefill(cache, torch.tensor([[3, 1, 4, 1, 5]]))
        passes = model.growing_passes(16, 4, likeliest=True)
        passes.begin(cache, 5, 5)
        return [passes.likeliest(*step, ranks) for step in STEPS]


@pytest.mark.parametrize("ranks", [1, 3, RANKS + 1])
@torch.inference_mode()
def test_compiled_passes_find_what_the_host_does(
    make_model: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    reset_compiler: None,
    ranks: int,
) -> None:
    """The same graphs serve all passes."""
    graphs: list[Any] = []

    def count(graph: Any, example: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compile_by_torch = torch.compile
    monkeypatch.setattr(
        torch,
        "compile",
        lambda forward, **options: compile_by_torch(forward, backend=count, fullgraph=True),
    )
    model = load_pair(make_model("llama", 0), make_model("llama", 1), "cpu", "float32").target
    expected = likeliest_of(model, ranks)
    assert model.likeliest is None  # nothing is compiled yet
    model.compile()
    for _ in range(2):
        before = len(graphs)
        compiled = likeliest_of(model, ranks)
        for ours, theirs in zip(compiled, expected, strict=True):
            assert ours.tokens == theirs.tokens
            np.testing.assert_allclose(ours.probabilities, theirs.probabilities, rtol=1e-5)
    assert model.likeliest is not None
    assert len(graphs) == before


@torch.inference_mode()
def test_a_draft_of_another_vocabulary(make_model: Callable[..., Any]) -> None:
    """Its logits are cut or padded to the target's before the likeliest are found."""
    model = load_pair(*[make_model("llama", 0, vocab_size=64)] * 2, "cpu", "float32").target
    with reserved(model, 64) as cache:
        model.prefill(cache, torch.tensor([[3, 1, 4, 1, 5]]))
        passes = ModelDrafter(model, vocabulary=60).growing_passes(16, 4, likeliest=True)
        passes.begin(cache, 5, 5)
        found = passes.likeliest([5], [-1], 1, 3)
        passes.begin(cache, 5, 5)
        logits = passes.run([5], [-1], 1)
    assert logits.shape == (1, 60)
    expected = logits.softmax(dim=-1).topk(3, dim=-1)
    assert found.tokens == expected.indices.tolist()
    np.testing.assert_allclose(found.probabilities, expected.values.numpy(), rtol=1e-5)
