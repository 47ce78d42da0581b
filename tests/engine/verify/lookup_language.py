"""Games in which a lookup guesses: in the text, and in a random corpus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from enumeration import Language
from growing_language import PROMPT, Game, LanguageModel, Played, game_of

from sequoia_opt.engine.drafters import LookupDrafter
from sequoia_opt.engine.drafters.lookup_index import CorpusIndex, TextIndex
from sequoia_opt.engine.logits_processors import LogitsOptions
from sequoia_opt.engine.sampling import Cuts
from sequoia_opt.plan.policy import Policy

CORPUS_TOKENS = 40


class LookupGame(Game):
    """A game in which a lookup drafts."""

    corpus: CorpusIndex | None = None

    def drafter(self, draft: LanguageModel) -> LookupDrafter:
        return LookupDrafter(self.corpus)

    def draft_cache(self) -> TextIndex:
        return prompts_index()

    def held_tokens(self, cache: TextIndex) -> list[int]:
        return cache._tokens

    def _draw_guesses(self, draft: np.ndarray, ranks: int) -> list[int]:
        raise AssertionError("a lookup draws no guesses")


class JointGame(Game):
    """A game in which a lookup comes before the draft."""

    corpus: CorpusIndex | None = None

    def lookup(self) -> LookupDrafter:
        return LookupDrafter(self.corpus)

    def index(self) -> TextIndex:
        return prompts_index()


def prompts_index() -> TextIndex:
    index = TextIndex()
    index.extend([PROMPT])
    return index


def lookup_game(
    kind: type[Played],
    name: str,
    policy: Policy,
    monkeypatch: pytest.MonkeyPatch,
    corpus: int | None = None,
    vocabulary: int = 3,
    cuts: Cuts = Cuts(),  # noqa: B008
    options: LogitsOptions | None = None,
) -> Played:
    """A game, with a random corpus of that seed."""
    chosen: Any = kind
    if corpus is not None:
        text = np.random.default_rng(corpus).integers(0, vocabulary, CORPUS_TOKENS).tolist()
        chosen = type("CorpusGame", (kind,), {"corpus": CorpusIndex([text])})
    language = Language(vocabulary, seed=policy.depth, options=options)
    played: Played = game_of(chosen, name, policy, monkeypatch, language, cuts=cuts)
    return played


def assert_a_bias_is_noticed(
    played: Game, lookups_rule: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The enumeration sees it if a lookup's first guess is accepted in another token's place."""
    decide = lookups_rule.decide

    def biased(logits: Any, tokens: Sequence[int], draft: Any, uniforms: Any) -> tuple[int, int]:
        rank, token = decide(logits, tokens, draft, uniforms)
        is_beside = bool(tokens) and token == (tokens[0] + 1) % 3
        return (1, tokens[0]) if is_beside else (rank, token)

    assert played.deviation(2) < 1e-9
    monkeypatch.setattr(lookups_rule, "decide", biased)
    assert played.deviation(2) > 1e-3
