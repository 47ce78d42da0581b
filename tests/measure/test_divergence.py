from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sequoia_opt.engine.logits_processors import LogitsOptions
from sequoia_opt.engine.torch.causal_masks import CausalMasks
from sequoia_opt.measure import methods
from sequoia_opt.measure.divergence import divergence, library_divergence
from sequoia_opt.plan import shapes


def test_a_divergence_has_its_place_and_gap(make_pair: Callable[..., Any]) -> None:
    pair = make_pair()
    first = methods.with_tree(pair, "plain", shapes.chain(1)).run([5, 6, 7], 10).tokens
    assert divergence(pair, [5, 6, 7], first, first) is None
    other = [*first[:4], first[4] + 1, *first[5:]]
    found = divergence(pair, [5, 6, 7], first, other)
    assert found is not None
    assert found.place == 4
    assert found.gap > 0


def test_greedy_tokens_are_compared_with_transformers(make_pair: Callable[..., Any]) -> None:
    pair, prompt = make_pair(), [5, 6, 7]
    tokens = methods.with_tree(pair, "tree", shapes.k_ary(2, 3)).run(prompt, 10).tokens
    assert library_divergence(pair, prompt, tokens) is None
    other = [*tokens[:4], (tokens[4] + 1) % 61, *tokens[5:]]
    parted = library_divergence(pair, prompt, other)
    assert parted is not None
    assert (parted.place, parted.gap > 0) == (4, True)
    assert library_divergence(pair, prompt, tokens) is None  # the pair is as it was


def test_logits_processors_are_applied_to_transformers_logits(
    make_pair: Callable[..., Any],
) -> None:
    pair, prompt = make_pair(), [5, 6, 7]
    logits_options = LogitsOptions(1.5, {3: 2.0}, 0.5, 0.25, frozenset([9]), frozenset([11]))
    tree = shapes.k_ary(2, 3)
    tokens = (
        methods.with_tree(pair, "tree", tree, logits_options=logits_options).run(prompt, 30).tokens
    )
    assert library_divergence(pair, prompt, tokens, logits_options) is None
    assert library_divergence(pair, prompt, tokens) is not None


def test_transformers_finds_an_error_that_plain_decoding_shares(
    make_pair: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong attention window is in this program's plain decoding too."""
    pair, prompt = make_pair(), list(range(2, 30))
    narrow = [replace(layer, window=3) for layer in pair.target.layers]
    monkeypatch.setattr(pair.target, "layers", narrow)
    monkeypatch.setattr(pair.target._pool, "idle", None)
    monkeypatch.setattr(pair.target._pool, "_layers", narrow)
    causal = CausalMasks(narrow, pair.target.dtype, pair.target.device)
    monkeypatch.setattr(pair.target, "_causal", causal)
    plain, tree = (
        methods.with_tree(pair, "any", shape).run(prompt, 10).tokens
        for shape in (shapes.chain(1), shapes.k_ary(2, 3))
    )
    assert divergence(pair, prompt, plain, tree) is None
    assert library_divergence(pair, prompt, tree) is not None
