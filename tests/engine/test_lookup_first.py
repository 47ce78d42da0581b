"""Decoding with a lookup before a draft model, on small pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from growing_texts import (
    PAUSES,
    assert_penalties_change_plain_decoding_alike,
    assert_text_follows_its_seed,
    missing_of_drafts_cache,
    taking_turns,
)
from lookup_pairs import looking_up, lookup_policy, plan, with_lookup, with_lookup_first
from policies import random_policy
from small_models import prompt_of

from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.drafters import FINGERPRINT, LookupDrafter
from sequoia_opt.engine.drafters.lookup_index import CorpusIndex
from sequoia_opt.engine.logits_processors import LogitsOptions
from sequoia_opt.engine.lookup_pair import with_lookup as named_lookup
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.pause import Pause
from sequoia_opt.plan.policy import Policy


def joint(pause: Pause | None = None, least: float = 0.3, seed: int = 1, depth: int = 6) -> Policy:
    return looking_up(random_policy((4, 3, 2), seed, pause), lookup_policy(depth), least)


def followed(pair: Any, prompt: list[int], tokens: list[int]) -> Any:
    """The pair with a lookup that knows how the text goes on, here and there."""
    parts = [tokens[start : start + 7] for start in range(0, len(tokens), 15)]
    return with_lookup_first(pair, LookupDrafter(CorpusIndex([prompt + tokens[:5], *parts])))


@pytest.mark.parametrize("pause", PAUSES, ids=str)
@pytest.mark.parametrize("least", [0.0, 0.4, 1.5])
def test_greedy_tokens_are_those_of_plain_decoding(
    pause: Pause | None, least: float, make_pair: Callable[..., Any]
) -> None:
    prompt = prompt_of(13)
    expected = Decoder(make_pair()).generate(prompt, 80, ignore_eos=True).tokens
    pair = followed(make_pair(), prompt, expected)
    looked_up = 0
    for seed in range(3):
        decoder = Decoder(pair, plan(joint(pause, least, seed)))
        generation = decoder.generate(prompt, 80, ignore_eos=True)
        assert generation.tokens == expected
        for counter in (generation.sizes, generation.levels, generation.ended):
            assert counter.total() == generation.steps
        assert 0 < generation.looked_up < generation.steps
        looked_up += generation.looked_up
    assert looked_up > 10


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("pause", [None, Pause(1, (3, 7))], ids=str)
def test_the_drafts_cache_and_the_index_are_those_of_the_text(
    temperature: float, pause: Pause | None, make_pair: Callable[..., Any]
) -> None:
    prompt = prompt_of(13)
    tokens = Decoder(make_pair()).generate(prompt, 80, ignore_eos=True).tokens
    pair = followed(make_pair(), prompt, tokens)
    decoder = Decoder(pair, plan(joint(pause, 0.1, depth=20)), temperature)
    session = decoder.session()
    lacks = set()
    for length in range(30, 80, 3):
        generation = session.generate(prompt, length, ignore_eos=True)
        text = [*prompt, *generation.tokens]
        lacks.add(missing_of_drafts_cache(pair.draft, session, text))
        state: Any = session._state
        index = session.caches.lookup
        assert index is not None
        assert index._tokens == text[: len(index)]
        assert len(index) == state.length + 1 - len(state.new)
    assert max(lacks) > 3


@pytest.mark.parametrize("pause", PAUSES, ids=str)
def test_a_conversation_goes_on_from_what_all_have(
    pause: Pause | None, make_pair: Callable[..., Any]
) -> None:
    pair = with_lookup_first(make_pair())
    plain, session = Decoder(pair), Decoder(pair, plan(joint(pause, 0.1))).session()
    text = prompt_of(9)
    looked_up = 0
    for turn in range(8):
        expected = plain.generate(text, 15, ignore_eos=True).tokens
        generation = session.generate(text, 15, ignore_eos=True)
        assert generation.tokens == expected
        looked_up += generation.looked_up
        index, whole = session.caches.lookup._tokens, [*text, *expected]
        assert index[: len(whole)] == whole[: len(index)]
        # Every other turn takes back a part of the text.
        text = [*whole[: None if turn % 2 else -7], *prompt_of(3, seed=turn)]
    assert looked_up


def test_sessions_take_turns_with_indices_of_their_own(make_pair: Callable[..., Any]) -> None:
    decoder = Decoder(with_lookup_first(make_pair()), plan(joint(Pause(1, (2, 4)), 0.1)))
    for generation, alone in taking_turns(decoder):
        assert generation.tokens == alone.tokens
        assert generation.looked_up == alone.looked_up


def test_penalties_give_the_tokens_of_plain_decoding(make_pair: Callable[..., Any]) -> None:
    pair, tree = with_lookup_first(make_pair()), plan(joint(least=0.1))
    options = LogitsOptions(1.2, {5: 3.0}, 0.5, 0.5, frozenset(range(20, 40)))
    assert_penalties_change_plain_decoding_alike(pair, [tree], options)


@pytest.mark.parametrize("verifier", ["topk", "sequoia", "specinfer"])
def test_the_same_seed_gives_the_same_text(verifier: str, make_pair: Callable[..., Any]) -> None:
    pair = with_lookup_first(make_pair())

    def decoder_of(seed: int) -> Decoder:
        return Decoder(pair, plan(joint(least=0.1)), 0.3, seed=seed, verifier=verifier)

    assert_text_follows_its_seed(decoder_of, 40)


def test_a_lookup_that_never_leaves_a_step_to_the_model_decodes_as_a_lookup(
    make_pair: Callable[..., Any],
) -> None:
    """The model then has no cache, and a conversation goes on from all that the target has."""
    policy = lookup_policy()
    silent = Policy(policy.confidence, 1, 1, ((1, 0.0),), 1.0, 0.0, (1,))
    pair, prompt = make_pair(), prompt_of(9)
    alone = Decoder(with_lookup(pair), plan(policy)).generate(prompt, 60, ignore_eos=True)
    session = Decoder(with_lookup_first(pair), plan(looking_up(silent, policy, 0.0))).session()
    generation = session.generate(prompt, 60, ignore_eos=True)
    assert generation.tokens == alone.tokens
    assert generation.sizes == alone.sizes
    assert session.caches.draft is None
    text = [*prompt, *generation.tokens]
    assert session._held == text[: len(session._held)]
    assert len(session._held) >= len(text) - 1
    again = [*text, *prompt_of(3)]
    expected = Decoder(pair).generate(again, 20, ignore_eos=True).tokens
    assert session.generate(again, 20, ignore_eos=True).tokens == expected


def test_a_pair_without_a_lookup_cannot_run_such_a_plan(make_pair: Callable[..., Any]) -> None:
    with pytest.raises(SequoiaError, match=r"has no lookup; load .* --draft lookup\+MODEL"):
        Decoder(make_pair(), plan(joint()))


def test_names_and_fingerprints_are_of_both(make_pair: Callable[..., Any]) -> None:
    pair = make_pair()
    both = named_lookup(pair, "lookup+small")
    assert both.draft_name == f"lookup+{pair.draft_name}"
    assert both.fingerprints["draft"] == f"{FINGERPRINT}+{pair.fingerprints['draft']}"
    assert both.fingerprints["target"] == pair.fingerprints["target"]
    assert both.drafter is pair.drafter
    assert named_lookup(pair, "small") is pair
