"""A lookup's steps are lossless: every draw, decision and next token, in every course."""

from __future__ import annotations

from functools import partial

import pytest
from lookup_language import LookupGame, assert_a_bias_is_noticed, lookup_game
from lookup_pairs import lookup_policy
from policies import random_policy

from sequoia_opt.engine.logits_processors import LogitsOptions
from sequoia_opt.engine.sampling import Cuts
from sequoia_opt.plan.policy import Pause

NAMES = ["greedy", "topk"]
game = partial(lookup_game, LookupGame)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(3, 1, 1), (2, 2, 2), (1, 3, 1), (3, 2, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_a_step_with_a_corpus_is_lossless(
    name: str, shape: tuple[int, int, int], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = random_policy(shape, seed)
    assert game(name, policy, monkeypatch, seed).deviation(policy.depth + 1) < 1e-9


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pause", [None, Pause(1, (1,))])
def test_several_steps_in_a_row_are_lossless(
    name: str, pause: Pause | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In texts that repeat themselves, so that what one step commits is what the next one finds."""
    played = game(name, lookup_policy(2, 2, 2, 0.0, pause), monkeypatch, vocabulary=2)
    assert played.deviation(6, steps=6) < 1e-9
    assert len({size for size, _ in played.grown}) > (1 if name == "topk" else 0)


@pytest.mark.parametrize("name", NAMES)
def test_cuts_and_penalties_keep_it_lossless(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = LogitsOptions(1.3, {2: 0.7}, 0.5, -0.4)
    cuts = Cuts(0.95, min_p=0.05)
    policy = lookup_policy(2, 2, 1, 0.0)
    assert game(name, policy, monkeypatch, 4, 3, cuts, options).deviation(3) < 1e-9


def test_the_enumeration_notices_a_guess_that_is_accepted_too_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    played = game("topk", lookup_policy(1, 1, 1, 0.0), monkeypatch, corpus=1)
    assert_a_bias_is_noticed(played, played.step._drafter.rule, monkeypatch)
