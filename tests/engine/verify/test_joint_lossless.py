"""Steps that look up first, and else draft with a model, are lossless in every course."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from lookup_language import JointGame, assert_a_bias_is_noticed, lookup_game
from lookup_pairs import looking_up, lookup_policy
from policies import random_policy

from sequoia_opt.engine.logits_processors import LogitsOptions
from sequoia_opt.engine.sampling import Cuts
from sequoia_opt.plan.pause import Pause

NAMES = ["greedy", "topk", "sequoia", "specinfer"]
pytestmark = pytest.mark.usefixtures("rules")
game = partial(lookup_game, JointGame)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(2, 1, 1), (1, 2, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_one_step_of_either_kind_is_lossless(
    name: str, shape: tuple[int, int, int], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = set()
    for least in (0.0, 99.0):
        policy = looking_up(random_policy(shape, seed), lookup_policy(2, 2, 1, 0.0), least)
        played = game(name, policy, monkeypatch, corpus=seed)
        assert played.deviation(3) < 1e-9
        kinds |= played.looked_up
    assert kinds == {True, False}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pause", [None, Pause(1, (1,))])
def test_steps_of_both_kinds_in_a_row_are_lossless(
    name: str, pause: Pause | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one kind commits, the other one reads before its next step."""
    model = replace(random_policy((1, 1, 1), 5, pause), offer=0.0)
    policy = looking_up(model, lookup_policy(2, 1, 1, 0.0), 0.4)
    played = game(name, policy, monkeypatch, vocabulary=2)
    assert played.deviation(5, steps=5) < 1e-9
    if name != "greedy":  # of whose texts there is only one
        assert played.looked_up == {True, False}


@pytest.mark.parametrize("name", NAMES)
def test_cuts_and_penalties_keep_them_lossless(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = LogitsOptions(1.3, {2: 0.7}, 0.5, -0.4)
    policy = looking_up(random_policy((1, 2, 1), 2), lookup_policy(1, 2, 1, 0.0), 0.2)
    played = game(name, policy, monkeypatch, 4, 3, Cuts(0.95, min_p=0.05), options)
    assert played.deviation(3, steps=2) < 1e-9


def test_the_enumeration_notices_a_guess_that_is_accepted_too_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = looking_up(random_policy((1, 1, 1), 1), lookup_policy(1, 1, 1, 0.0), 0.0)
    played = game("sequoia", policy, monkeypatch, corpus=1)
    lookup = played.step._lookup
    assert lookup is not None
    assert_a_bias_is_noticed(played, lookup.rule, monkeypatch)
