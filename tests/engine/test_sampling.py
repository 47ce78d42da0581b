from __future__ import annotations

from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import (
    GenerationConfig,
    GenerationMixin,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from sequoia_opt.engine.sampling import (
    SORTED,
    Cuts,
    draw,
    draw_without_replacement,
    gumbel,
    likeliest,
    nucleus,
    warp,
)


@pytest.mark.parametrize("temperature", [0.2, 0.6, 1.0, 1.5])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 1.0])
def test_warping_is_that_of_transformers(temperature: float, top_p: float) -> None:
    logits = 3 * torch.randn(50, 40, generator=torch.Generator().manual_seed(0)).double()
    expected = TemperatureLogitsWarper(temperature)(torch.empty(0), logits)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(torch.empty(0), expected)
    assert torch.allclose(warp(logits, temperature, top_p), expected.softmax(-1), atol=1e-12)


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.95, 0.999])
@pytest.mark.parametrize("spread", [0.1, 1, 4])
def test_the_nucleus_of_a_large_vocabulary_is_that_of_transformers(
    top_p: float, spread: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = spread * torch.randn(4, 3 * SORTED, generator=generator).double()
    expected = TopPLogitsWarper(top_p)(torch.empty(0), logits)
    assert torch.equal(nucleus(logits.softmax(-1), top_p), expected > -torch.inf)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    vocabulary=st.integers(1, 300) | st.integers(SORTED - 1, 2 * SORTED),
    spread=st.floats(0, 20),
    top_p=st.floats(1e-6, 1 - 1e-6),
    digits=st.integers(0, 5),
)
def test_the_nucleus_of_any_probabilities_is_as_small_as_it_may_be(
    seed: int, vocabulary: int, spread: float, top_p: float, digits: int
) -> None:
    """What is kept reaches top-p, up to rounding, and no longer without its least likely token; no
    dropped token is likelier. Rounded logits make ties."""
    generator = torch.Generator().manual_seed(seed)
    logits = (spread * torch.randn(3, vocabulary, generator=generator)).round(decimals=digits)
    for row, kept in zip(p := logits.softmax(-1), nucleus(p, top_p), strict=True):
        assert kept.any()
        assert row[kept].sum(dtype=torch.float64) >= top_p - 1e-5
        assert row[kept].sum(dtype=torch.float64) - row[kept].min() <= top_p + 1e-5
        assert not (~kept).any() or row[~kept].max() <= row[kept].min()


@pytest.mark.parametrize("temperature", [0.2, 1.0, 1.5])
@pytest.mark.parametrize("cuts", [Cuts(1, 5), Cuts(1, 0, 0.3), Cuts(0.8, 7, 0.1), Cuts(0.5, 90, 1)])
def test_cuts_are_those_of_transformers_in_its_order(temperature: float, cuts: Cuts) -> None:
    """Rounded logits make ties, also with the last token that is kept."""
    logits = (3 * torch.randn(50, 40, generator=torch.Generator().manual_seed(0))).double()
    logits = torch.cat([logits, logits.round()])
    config = GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_k=cuts.top_k,
        top_p=float(cuts.top_p),
        min_p=cuts.min_p or None,
    )
    warpers = GenerationMixin()
    warpers.config = SimpleNamespace(is_encoder_decoder=False)
    expected = GenerationMixin._get_logits_processor(warpers, config, 1)(
        torch.zeros(100, 1, dtype=torch.long), logits
    )
    probabilities = warp(logits, temperature, *cuts)
    assert torch.allclose(probabilities, expected.softmax(-1), atol=1e-12)
    assert (probabilities == 0).any()


def test_draws_follow_the_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.tensor([0.5, 0.0, 0.3, 0.15, 0.05])
    uniforms = torch.rand(20000, generator=generator)
    counts = torch.bincount(draw(weights.expand(20000, 5), uniforms), minlength=5)
    assert counts[1] == 0
    possible = [0, 2, 3, 4]
    assert chisquare(counts[possible], weights[possible] * 20000).pvalue > 0.001


def test_draws_without_replacement_follow_plackett_luce() -> None:
    generator = torch.Generator().manual_seed(1)
    weights = np.array([0.6, 0.25, 0.1, 0.05])
    uniforms = torch.rand(40000, 4, generator=generator)
    logits = torch.tensor(weights).log().expand(40000, 4)
    drawn = draw_without_replacement(logits, 3, gumbel(uniforms)).tolist()
    orders = list(permutations(range(4), 3))
    counts = [drawn.count(list(order)) for order in orders]
    chances = [
        weights[a] * weights[b] / (1 - weights[a]) * weights[c] / (1 - weights[a] - weights[b])
        for a, b, c in orders
    ]
    assert chisquare(counts, np.array(chances) * 40000).pvalue > 0.001


def test_a_uniform_of_zero_is_harmless() -> None:
    weights = torch.tensor([0.5, 0.0, 0.5])
    assert draw(weights, torch.tensor(0.0)) == 0
    assert draw(weights[1:], torch.tensor(0.0)) == 1
    drawn = draw_without_replacement(weights.log(), 2, gumbel(torch.tensor([0.0, 0.9, 0.5])))
    assert drawn.tolist() == [2, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 3, 8, 9, 20])
def test_the_likeliest_tokens_are_in_order(count: int, dtype: torch.dtype) -> None:
    probabilities = torch.rand(5, 20, generator=torch.Generator().manual_seed(0), dtype=dtype)
    before = probabilities.clone()
    values, tokens = likeliest(probabilities, count)
    expected = before.sort(dim=-1, descending=True)
    assert torch.equal(values, expected.values[:, :count])
    assert torch.equal(tokens, expected.indices[:, :count])
    assert torch.equal(probabilities, before)
