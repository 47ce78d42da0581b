"""Decoding with a lookup on small models: plain decoding's tokens, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from growing_texts import (
    assert_penalties_change_plain_decoding_alike,
    assert_text_follows_its_seed,
    taking_turns,
)
from lookup_pairs import lookup_policy, plan, with_lookup
from policies import random_policy
from small_models import prompt_of

from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.distributed import ALONE
from sequoia_opt.engine.drafters import LookupDrafter
from sequoia_opt.engine.drafters.growing import GrowingDrafter
from sequoia_opt.engine.drafters.lookup import confidence
from sequoia_opt.engine.drafters.lookup_index import LENGTHS, OCCURRENCES, CorpusIndex, TextIndex
from sequoia_opt.engine.logits_processors import LogitsOptions
from sequoia_opt.engine.verify import make_verifier, node_rule
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes
from sequoia_opt.plan.policy import Pause

PAUSES = [None, Pause(1, (2, 5)), Pause(3, (1, 3))]


@pytest.fixture
def pair(make_pair: Callable[..., Any]) -> Any:
    return with_lookup(make_pair())


@pytest.mark.parametrize("pause", PAUSES, ids=str)
def test_greedy_tokens_are_those_of_plain_decoding(pair: Any, pause: Pause | None) -> None:
    expected = Decoder(pair).generate(prompt_of(13), 80, ignore_eos=True).tokens
    sizes: set[int] = set()
    accepted = 0
    policies = [random_policy((6, 3, 2), seed, pause) for seed in range(3)]
    policies += [lookup_policy(pause=pause), lookup_policy(12, 1, 1, pause=pause)]
    for policy in policies:
        generation = Decoder(pair, plan(policy)).generate(prompt_of(13), 80, ignore_eos=True)
        assert generation.tokens == expected
        assert set(generation.sizes) <= set(policy.sizes)
        sizes |= set(generation.sizes)
        accepted = max(accepted, *generation.ended)
    assert len(sizes) > 3
    assert accepted > 0


@pytest.mark.parametrize(
    ("text", "root", "nodes", "size"),
    [
        ([1, 2, 3], 9, [], 1),  # no match: a plain step
        ([5, 1], 5, [1, 2], 4),  # 1, then the root again, whose guess the text does not have yet
        ([5, 1, 5, 2, 6], 5, [1, 2, 3, 4], 8),
    ],
)
def test_only_guesses_that_there_are_are_offered(
    text: list[int], root: int, nodes: list[int], size: int
) -> None:
    """However little the policy asks for, and with the pass filled up."""
    policy = lookup_policy(2, offer=0.0)
    rule = node_rule(make_verifier("topk", 0.0))
    drafter = GrowingDrafter(LookupDrafter(), policy, rule, ALONE, torch.device("cpu"))
    index = TextIndex()
    index.extend(text)
    drafted = drafter.draft(index, [root], len(text), 99, torch.rand, lambda logits: logits)
    grown = drafted.growth.finish(fill=True)
    assert (grown.nodes, grown.size) == (nodes, size)
    assert drafter.accept(drafted, []) == 1
    assert len(index) == len(text) + 1


@pytest.mark.parametrize("pause", PAUSES, ids=str)
def test_a_conversation_goes_on_from_the_text_that_both_turns_have(
    pair: Any, pause: Pause | None
) -> None:
    session = Decoder(pair, plan(lookup_policy(pause=pause))).session()
    plain, text = Decoder(pair), prompt_of(9)
    for turn in range(6):
        expected = plain.generate(text, 15, ignore_eos=True).tokens
        assert session.generate(text, 15, ignore_eos=True).tokens == expected
        index = session.caches.draft
        state: Any = session._state
        whole = [*text, *expected]
        assert index._tokens[: state.held] == (whole + state.lacking)[: state.held]
        # Every other turn takes back a part of the text.
        text = [*whole[: None if turn % 2 else -7], *prompt_of(3, seed=turn)]


def test_sessions_take_turns_with_indices_of_their_own(pair: Any) -> None:
    decoder = Decoder(pair, plan(lookup_policy()))
    for generation, alone in taking_turns(decoder):
        assert generation.tokens == alone.tokens
        assert generation.sizes == alone.sizes


@pytest.mark.parametrize(
    "options",
    [LogitsOptions(1.4), LogitsOptions(1.2, {5: 3.0}, 0.5, 0.5, frozenset(range(20, 40)))],
)
def test_penalties_give_the_tokens_of_plain_decoding(pair: Any, options: LogitsOptions) -> None:
    assert_penalties_change_plain_decoding_alike(pair, [plan(lookup_policy())], options)


def test_a_corpus_that_has_the_text_is_followed(make_pair: Callable[..., Any]) -> None:
    pair, prompt = make_pair(), prompt_of(9)
    expected = Decoder(pair).generate(prompt, 60, ignore_eos=True).tokens
    policy = lookup_policy(8, 1, 1)
    steps = {}
    for name, corpus in (("text", None), ("corpus", CorpusIndex([[3, 4], prompt + expected]))):
        decoder = Decoder(with_lookup(pair, LookupDrafter(corpus)), plan(policy))
        generation = decoder.generate(prompt, 60, ignore_eos=True)
        assert generation.tokens == expected
        steps[name] = generation.steps
    assert steps["corpus"] < min(steps["text"], 12)


def test_the_same_seed_gives_the_same_text(pair: Any) -> None:
    def decoder_of(seed: int) -> Decoder:
        return Decoder(pair, plan(lookup_policy()), 1.0, seed=seed, verifier="topk")

    assert_text_follows_its_seed(decoder_of, 20)


def test_a_guess_is_believed_by_the_length_and_the_share_of_its_match() -> None:
    for length in LENGTHS:
        for total in range(1, OCCURRENCES + 1):
            believed = [confidence(length, count, total) for count in range(1, total + 1)]
            assert all(0 < rate < 1 for rate in believed)
            assert believed == sorted(set(believed))
            assert [float(np.float16(rate)) for rate in believed] == believed
            assert believed[-1] <= confidence(length, total + 1, total + 1)
    for longer, shorter in pairwise(LENGTHS):
        assert confidence(longer, 2, 3) > confidence(shorter, 2, 3)


def test_candidates_are_the_match_s_and_no_more_than_asked_for() -> None:
    index = TextIndex()
    index.extend([5, 1, 5, 2, 5, 1, 5, 3, 5])
    rates, tokens = LookupDrafter().candidates(index, index.context, 4)
    assert tokens == [1, 3, 2]
    assert rates == [confidence(1, count, 4) for count in (2, 1, 1)]
    assert LookupDrafter().candidates(index, index.context, 2) == (rates[:2], tokens[:2])
    assert LookupDrafter().candidates(index, b"", 4) == ([], [])


@pytest.mark.parametrize("verifier", ["sequoia", "specinfer"])
def test_a_verifier_of_draws_is_refused(pair: Any, verifier: str) -> None:
    with pytest.raises(SequoiaError, match="use --verifier topk") as refusal:
        Decoder(pair, plan(lookup_policy()), 1.0, verifier=verifier)
    assert "\n" not in str(refusal.value)


def test_a_static_tree_is_refused(pair: Any) -> None:
    with pytest.raises(SequoiaError, match="not by static trees"):
        Decoder(pair, shapes.chain(3))
    assert Decoder(pair, shapes.chain(1)).generate(prompt_of(3), 4).tokens
