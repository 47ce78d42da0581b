"""Adaptive plans are lossless: every draw, decision and next token of their steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from enumeration import Language
from growing_language import Game, game_of
from policies import random_policy

from sequoia_opt.engine.drafters.growing import Drafted, GrowingDrafter
from sequoia_opt.engine.logits_processors import LogitsOptions
from sequoia_opt.engine.sampling import Cuts
from sequoia_opt.engine.verify.host_rules import Chances, HostResidualRule
from sequoia_opt.engine.verify.node_rules import Guesses, ResidualRule
from sequoia_opt.plan.confidence import Confidence
from sequoia_opt.plan.policy import Pause, Policy

NAMES = ["greedy", "topk", "sequoia", "specinfer"]
SHAPES = {"chain": (3, 1, 1), "tree": (2, 2, 2), "wide": (1, 3, 1), "deep": (3, 2, 1)}
"""Of a policy: the most levels, ranks and nodes of a level."""


pytestmark = pytest.mark.usefixtures("rules")
game = partial(game_of, Game)


def sharp_policy(shape: tuple[int, int, int], language: Language, temperature: float) -> Policy:
    """A policy that stops, widens and offers by what the last distribution is.

    The root's guesses are believed. Below, those of some tokens are and those of others are not:
    the likeliest one is where its probability is above that of the flattest distribution.
    """
    depth, ranks, width = shape
    language.draft((), temperature)
    drafts = [
        np.sort(language.draft((token,), temperature))[::-1] for token in range(language.vocabulary)
    ]
    edges = set()
    for rank in range(ranks):
        low, high, *_ = sorted(float(draft[rank]) for draft in drafts)
        edges.add((low + high) / 2)
    rates = (0.0, *(0.5 for _ in range(len(edges) - 1)), 1.0)
    believed = (1.0,) * len(rates)
    return Policy(
        confidence=Confidence(tuple(sorted(edges)), ((believed,) * ranks, (rates,) * ranks)),
        depth=depth,
        ranks=ranks,
        expand=((1, 0.6), (2, 1.0))[:width],
        first=0.5,
        offer=0.3,
        sizes=tuple(range(1, 2 + ranks + (depth - 1) * width * ranks)),
    )


# The two kinds of rules decide alike by the same numbers (test_host_rules.py), so the device's are
# tried on a third of these policies.
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("rules", "seed"), [("host", 0), ("host", 1), ("host", 2), ("device", 0)], indirect=["rules"]
)
def test_random_policies_are_lossless(
    name: str, shape: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = random_policy(SHAPES[shape], seed)
    assert game(name, policy, monkeypatch).deviation(policy.depth + 1) < 1e-9


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", ["chain", "tree", "deep"])
@pytest.mark.parametrize(
    ("rules", "kind"),
    [("host", "random"), ("host", "same"), ("host", "disjoint"), ("device", "random")],
    indirect=["rules"],
)
def test_policies_that_turn_on_the_last_distribution_are_lossless(
    name: str, shape: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    language = Language(3, seed=4, kind=kind)
    policy = sharp_policy(SHAPES[shape], language, 1.0 if name in ("greedy", "topk") else 0.8)
    played = game(name, policy, monkeypatch, language)
    assert played.deviation(policy.depth + 1) < 1e-9
    if name in ("sequoia", "specinfer") and kind != "disjoint":
        assert len(played.grown) > 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pause", [None, Pause(1, (1,)), Pause(2, (1, 2))])
def test_several_steps_in_a_row_are_lossless(
    name: str, pause: Pause | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what the draft lacks after a pause, and with what one step leaves to the next."""
    policy = replace(random_policy((1, 1, 1), 5, pause), offer=0.0)
    played = game(name, policy, monkeypatch, Language(2, seed=1))
    assert played.deviation(5, steps=5) < 1e-9
    if pause is not None and name != "greedy":
        assert (1, 0) in played.grown  # plain steps


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "options",
    [
        LogitsOptions(presence_penalty=1.5),
        LogitsOptions(1.3, {2: 0.7}, 0.5, -0.4),
        LogitsOptions(frequency_penalty=0.8, banned=frozenset([2])),
    ],
)
def test_logits_processors_keep_them_lossless(
    name: str, options: LogitsOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = random_policy((2, 2, 1), seed=1)
    language = Language(3, seed=2, options=options)
    played = game(name, policy, monkeypatch, language, 0.9, Cuts(0.95, min_p=0.05))
    assert played.deviation(3) < 1e-9


@pytest.mark.parametrize("name", ["topk", "sequoia", "specinfer"])
@pytest.mark.parametrize("cuts", [Cuts(0.7), Cuts(top_k=2), Cuts(min_p=0.4)])
def test_cuts_keep_them_lossless(name: str, cuts: Cuts, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = random_policy((2, 2, 1), seed=2)
    assert game(name, policy, monkeypatch, cuts=cuts).deviation(3) < 1e-9


Rule = Callable[[Drafted], bool]


def probabilities(draft: Any) -> Any:
    """Those of a node's draft [vocabulary], which steps keep as it comes on host and device."""
    return draft.weights / draft.total if isinstance(draft, Chances) else draft.reshape(-1)


def by_its_distribution(drafted: Drafted) -> bool:
    """A rule as it may be: the last guess stays by the distribution that it is drawn from."""
    draft = probabilities(drafted.draft[1])
    return bool(draft[0] > draft[1])


def by_its_own_probability(drafted: Drafted) -> bool:
    """As engines with a threshold on the drawn token's probability do."""
    return bool(probabilities(drafted.draft[1])[drafted.tokens[2]] > 0.3)


def by_its_token(drafted: Drafted) -> bool:
    return drafted.tokens[2] != 0


def by_what_is_drawn_below(drafted: Drafted) -> bool:
    return drafted.tokens[3] != 0


@pytest.mark.parametrize("name", ["sequoia", "specinfer"])
@pytest.mark.parametrize(
    ("rule", "is_lossless"),
    [
        (by_its_distribution, True),
        (by_its_own_probability, False),
        (by_its_token, False),
        (by_what_is_drawn_below, False),
    ],
)
def test_the_enumeration_notices_an_offer_that_depends_on_its_draw(
    name: str, rule: Rule, is_lossless: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chain of three guesses; the rule decides whether the second one, and the third, stay."""
    always = Confidence((), (((1.0,),),))
    policy = Policy(always, 3, 1, ((1, 0.0),), 0.0, 0.0, (1, 2, 3, 4))
    grow = GrowingDrafter.draft

    def grow_and_drop(*arguments: Any, **options: Any) -> Drafted:
        drafted = grow(*arguments, **options)
        if not rule(drafted):
            drafted.growth.is_offered[2:] = [False, False]
        return drafted

    monkeypatch.setattr(GrowingDrafter, "draft", grow_and_drop)
    played = game(name, policy, monkeypatch, Language(3, seed=9))
    deviation = played.deviation(4)
    assert {size for size, _ in played.grown} == {2, 4}
    assert deviation < 1e-9 if is_lossless else deviation > 1e-3


@pytest.mark.parametrize("name", ["sequoia", "specinfer"])
def test_the_enumeration_notices_growth_by_the_drawn_tokens(
    name: str, rules: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is lossless by the largest probabilities is not by those of the drawn tokens."""
    policy = Policy(Confidence((0.3,), (((0.0, 1.0),),)), 3, 1, ((1, 0.4),), 0.0, 0.3, (1, 2, 3, 4))
    assert game(name, policy, monkeypatch).deviation(4) < 1e-9
    rule = HostResidualRule if rules == "host" else ResidualRule
    guess = rule.guess

    def of_the_tokens(*arguments: Any) -> Guesses:
        guesses = guess(*arguments)
        assert guesses.draft is not None
        chances = [
            [float(probabilities(draft)[token]) for token in tokens]
            for draft, tokens in zip(guesses.draft, guesses.tokens, strict=True)
        ]
        return guesses._replace(probabilities=chances if rules == "host" else torch.tensor(chances))

    monkeypatch.setattr(rule, "guess", of_the_tokens)
    assert game(name, policy, monkeypatch).deviation(4) > 1e-3
