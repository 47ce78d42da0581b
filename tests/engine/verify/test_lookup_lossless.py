"""A lookup's steps are lossless: every draw, decision and next token, in every course."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from enumeration import Language
from growing_language import PROMPT, Game, LanguageModel
from lookup_pairs import lookup_policy
from policies import random_policy

from sequoia_opt.engine.drafters import LookupDrafter
from sequoia_opt.engine.drafters.lookup_index import CorpusIndex, TextIndex
from sequoia_opt.engine.logits_processors import LogitsOptions
from sequoia_opt.engine.sampling import Cuts
from sequoia_opt.plan.policy import Pause, Policy

NAMES = ["greedy", "topk"]


class LookupGame(Game):
    """A game in which a lookup drafts, in the text and in a corpus."""

    corpus: CorpusIndex | None = None

    def drafter(self, draft: LanguageModel) -> LookupDrafter:
        return LookupDrafter(self.corpus)

    def draft_cache(self) -> TextIndex:
        index = TextIndex()
        index.extend([PROMPT])
        return index

    def held_tokens(self, cache: TextIndex) -> list[int]:
        return cache._tokens


def game(
    name: str,
    policy: Policy,
    monkeypatch: pytest.MonkeyPatch,
    corpus: int | None = None,
    vocabulary: int = 3,
    cuts: Cuts = Cuts(),  # noqa: B008
    options: LogitsOptions | None = None,
) -> LookupGame:
    """A game, with a random corpus of that seed."""
    kind: Any = LookupGame
    if corpus is not None:
        text = np.random.default_rng(corpus).integers(0, vocabulary, 40).tolist()
        kind = type("CorpusGame", (LookupGame,), {"corpus": CorpusIndex([text])})
    language = Language(vocabulary, seed=policy.depth, options=options)
    temperature = 0.0 if name == "greedy" else 0.8
    played: LookupGame = kind(
        "topk", policy, language, temperature, lambda *_: [], monkeypatch, cuts
    )
    return played


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
    rule = played.step._drafter.rule
    decide = rule.decide

    def biased(logits: Any, tokens: Any, draft: Any, uniforms: Any) -> tuple[int, int]:
        rank, token = decide(logits, tokens, draft, uniforms)
        is_beside = bool(tokens) and token == (tokens[0] + 1) % 3
        return (1, tokens[0]) if is_beside else (rank, token)

    assert played.deviation(2) < 1e-9
    monkeypatch.setattr(rule, "decide", biased)
    assert played.deviation(2) > 1e-3
