"""Decisions in numpy against those in tensor operations, and their draws against chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from enumeration import without_replacement
from scipy.stats import chisquare

from sequoia_opt.engine.verify import host_rule, host_rules, make_verifier, node_rule
from sequoia_opt.engine.verify.exact_match import Greedy, TopK
from sequoia_opt.engine.verify.host_rules import Chances, HostMatchRule, HostResidualRule

TEMPERATURE = 0.8
NAMES = ["greedy", "topk", "sequoia", "specinfer"]


def random_logits(seed: int, vocabulary: int = 9) -> torch.Tensor:
    """Logits [2, 1, vocabulary] of a target and a draft that agree more or less."""
    generator = torch.Generator().manual_seed(seed)
    target, noise = torch.randn(2, vocabulary, generator=generator, dtype=torch.float64)
    return torch.stack([3 * target, 3 * target + seed % 4 * noise])[:, None]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cuts", [(), (0.8,), (1.0, 3), (1.0, 0, 0.2)])
@pytest.mark.parametrize("count", range(4))
def test_the_same_numbers_give_the_same_decision(
    name: str, cuts: tuple[float, ...], count: int
) -> None:
    verifier = make_verifier(name, 0 if name == "greedy" else TEMPERATURE, *cuts)  # type: ignore[arg-type]
    host, device = host_rule(verifier), node_rule(verifier)
    for seed in range(60):
        target, draft = random_logits(seed)
        generator = torch.Generator().manual_seed(seed)
        guesses = device.guess(draft, 3, lambda n: torch.rand(n, generator=generator))
        tokens = guesses.tokens[0].tolist()[:count]
        uniforms = torch.rand(device.uniform_count(3), generator=generator, dtype=torch.float64)
        drawn = None if guesses.draft is None else guesses.draft[0]
        expected = device.decide(target, tokens, drawn, uniforms)
        on_host = None if drawn is None else Chances(drawn[0].numpy())
        before = target.clone()
        assert host.decide(target, tokens, on_host, uniforms.tolist()) == expected
        assert torch.equal(target, before)


@pytest.mark.parametrize("name", NAMES)
def test_growth_goes_by_the_same_probabilities(name: str) -> None:
    verifier = make_verifier(name, 0 if name == "greedy" else TEMPERATURE)
    host, device = host_rule(verifier), node_rule(verifier)
    logits = torch.cat([random_logits(seed)[0] for seed in range(5)])
    before = logits.clone()
    ours, expected = (rule.guess(logits, 4, torch.zeros) for rule in (host, device))
    np.testing.assert_allclose(ours.probabilities, expected.probabilities, rtol=1e-12)
    assert torch.equal(logits, before)
    assert host.draws == device.draws
    if not host.draws:
        assert ours.tokens == expected.tokens.tolist()
    else:
        assert ours.draft is not None
        assert expected.draft is not None
        np.testing.assert_allclose(
            [chances.weights / chances.total for chances in ours.draft],
            [row[0].numpy() for row in expected.draft],
            rtol=1e-12,
        )


def test_choices_at_once_are_those_of_one_node_after_the_other() -> None:
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(3))
    logits[1, 7] = logits[1, 30] = 9.0  # alike: the first counts
    greedy, sampling = (HostMatchRule(verifier) for verifier in (Greedy(), TopK(0.5)))
    assert greedy.choices(logits) == [greedy.decide(r[None], [], None, [])[1] for r in logits]
    assert sampling.choices(logits) is None


def test_draws_without_replacement_are_distributed_as_one_after_another() -> None:
    rule = host_rule(make_verifier("sequoia", 1.0))
    assert isinstance(rule, HostResidualRule)
    draft, random = np.array([0.5, 0.3, 0.0, 0.2]), np.random.default_rng(1)
    chances = {order: chance for chance, order in without_replacement(draft, 2) if chance > 0}
    counts = dict.fromkeys(chances, 0)
    runs = 3000
    for _ in range(runs):
        counts[tuple(rule.draw_guesses(Chances(draft), random.random(2)))] += 1  # type: ignore[index]
    assert chisquare(list(counts.values()), [runs * c for c in chances.values()]).pvalue > 1e-3


def test_what_a_draft_cannot_draw_is_void() -> None:
    """More guesses than tokens of a probability above 0: the others never pass."""
    verifier = make_verifier("sequoia", 1.0)
    host = host_rule(verifier)
    draft = torch.tensor([[0.0, -torch.inf, 0.0, -torch.inf]], dtype=torch.float64)
    guesses = host.guess(draft, 4, lambda n: torch.full((n,), 0.7))
    assert guesses.draft is not None
    [tokens] = guesses.tokens
    assert tokens[:2] == [2, 0]
    assert all(guesses.draft[0][token] == 0 for token in tokens[2:])
    target = torch.tensor([[-torch.inf, 0.0, -torch.inf, -torch.inf]], dtype=torch.float64)
    for uniform in (0.0, 0.999):
        numbers = [uniform] * host.uniform_count(4)
        assert host.decide(target, tokens, guesses.draft[0], numbers) == (0, 1)


def test_very_low_temperatures_do_not_overflow() -> None:
    logits = np.array([3.0, 100.0, 99.0], np.float32)
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_array_equal(Chances.of(logits, 1e-38).weights, [0, 1, 0])


@pytest.mark.parametrize("largest", [-3e4, -90.0, -30.0, 0.0, 40.0, 90.0, 3e4])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0, 1.7])
def test_the_size_of_the_logits_changes_no_probability(largest: float, temperature: float) -> None:
    """Only differences count, also where a power of the logits themselves is no float32."""
    below = np.array([2.0, 0.0, 1.5, 30.0, np.inf, 0.25], np.float64)
    expected = np.exp(-below / temperature)
    with np.errstate(all="raise", under="ignore"):
        chances = Chances.of((largest - below).astype(np.float32), temperature)
    ours = [chances[token] for token in range(len(below))]
    # Logits of this size are rounded themselves.
    rounding = abs(largest) * np.finfo(np.float32).eps / temperature
    np.testing.assert_allclose(
        ours, expected / expected.sum(), rtol=1e-5 + 2 * rounding, atol=1e-30
    )
    assert chances[len(below)] == 0


@pytest.mark.parametrize("weights", [[0.0, 2.0, 0.0, 6.0, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
def test_draws_by_inversion(weights: list[float]) -> None:
    """A uniform u draws the first token whose cumulative share exceeds u."""
    row = np.array(weights, np.float32)
    shares = np.cumsum(row) / row.sum()
    for uniform in (0.0, 0.1, 0.249, 0.251, 0.6, 0.9999999):
        assert Chances(row).draw(uniform) == int(np.flatnonzero(shares > uniform)[0])


@pytest.mark.parametrize("count", [255, 256, 257, 1000])
def test_blocks_change_no_draw(count: int) -> None:
    random = np.random.default_rng(count)
    weights = random.random(count) * (random.random(count) < 0.3)
    shares = weights.cumsum() / weights.sum()
    for uniform in (0.0, *random.random(300), np.nextafter(1, 0)):
        drawn = Chances(weights).draw(float(uniform))
        assert weights[drawn] > 0
        assert drawn == min(int((shares <= uniform).sum()), int(np.flatnonzero(weights)[-1]))


@pytest.mark.parametrize("count", [1, 2, 16, 17, 40])
def test_the_most_likely_come_in_order(count: int) -> None:
    logits = np.random.default_rng(count).permutation(40).astype(np.float32)
    expected = np.argsort(-logits)[:count].tolist()
    assert host_rules.most_likely(logits, count) == expected
