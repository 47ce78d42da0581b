"""The decision at a single node, as often as chance has it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from enumeration import softmax
from scipy.stats import chisquare

from sequoia_opt.engine.verify import host_rule, make_verifier, node_rule
from sequoia_opt.engine.verify.node_rules import first_passing

TEMPERATURE = 0.8


def test_the_first_guess_that_passes_is_accepted() -> None:
    chances = torch.tensor([0.5, 0.0, 0.7], dtype=torch.float64)
    for uniforms, rank in (
        ([0.4, 0.0, 0.0, 0.9], 1),
        ([0.5, 0.0, 0.6, 0.9], 3),  # a uniform is below 1, and a chance of 0 never passes
        ([0.9, 0.9, 0.9, 0.0], 0),
    ):
        assert first_passing(chances, torch.tensor(uniforms)) == rank


@pytest.mark.parametrize("name", ["topk", "sequoia", "specinfer"])
@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("on_host", [False, True])
def test_the_token_is_distributed_as_the_target(name: str, count: int, on_host: bool) -> None:
    """Whatever the guesses are, with random numbers as in decoding."""
    generator = torch.Generator().manual_seed(count)
    target, draft = 2 * torch.randn(2, 1, 5, generator=generator, dtype=torch.float64)
    rule = (host_rule if on_host else node_rule)(make_verifier(name, TEMPERATURE))

    def uniforms(number: int) -> torch.Tensor:
        return torch.rand(number, generator=generator)

    runs = 2000
    counts, accepted = np.zeros(5), 0
    for _ in range(runs):
        guesses = rule.guess(draft, 3, uniforms)
        tokens = [int(token) for token in guesses.tokens[0]][:count]
        drawn = None if guesses.draft is None else guesses.draft[0]
        numbers = uniforms(rule.uniform_count(3))
        rank, token = rule.decide(target, tokens, drawn, numbers.tolist() if on_host else numbers)
        if rank:
            assert tokens[rank - 1] == token
        accepted += rank > 0
        counts[token] += 1
    assert (accepted > 0) == (count > 0)
    assert chisquare(counts, runs * softmax(target[0].numpy() / TEMPERATURE)).pvalue > 1e-3


@pytest.mark.parametrize("name", ["greedy", "topk", "sequoia", "specinfer"])
def test_growth_goes_by_the_drafts_largest_probabilities(name: str) -> None:
    """At the temperature where guesses are drawn, at 1 where they are not."""
    logits = torch.randn(3, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    greedy = name == "greedy"
    rule = node_rule(make_verifier("topk" if greedy else name, 0 if greedy else TEMPERATURE))
    guesses = rule.guess(logits, 2, torch.zeros)
    temperature = TEMPERATURE if rule.draws else 1.0
    expected = [np.sort(softmax(row / temperature))[::-1][:2] for row in logits.numpy()]
    np.testing.assert_allclose(guesses.probabilities.numpy(), np.stack(expected), rtol=1e-12)
    assert (guesses.draft is not None) == rule.draws
