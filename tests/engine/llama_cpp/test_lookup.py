"""A lookup drafts for llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lookup_pairs import looking_up, lookup_policy, plan, with_lookup, with_lookup_first
from policies import random_policy

from sequoia_opt.api import load_pair
from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.drafters import LookupDrafter
from sequoia_opt.plan.policy import Pause


@pytest.mark.parametrize("pause", [None, Pause(2, (2, 4))], ids=str)
@pytest.mark.parametrize("shape", [(10, 1, 1), (5, 3, 2)])
def test_the_text_is_that_of_plain_decoding(
    pair: Any, prompts: list[list[int]], shape: tuple[int, int, int], pause: Pause | None
) -> None:
    lookup = with_lookup(pair)
    plain = Decoder(lookup)
    decoder = Decoder(lookup, plan(lookup_policy(*shape, pause=pause)))
    for prompt in prompts:
        expected = plain.generate(prompt, 48, ignore_eos=True)
        generation = decoder.generate(prompt, 48, ignore_eos=True)
        assert generation.tokens == expected.tokens
    assert generation.tokens_per_step > 1


def test_sampled_text_follows_the_seed(pair: Any, prompts: list[list[int]]) -> None:
    lookup = with_lookup(pair)
    texts = [
        Decoder(lookup, plan(lookup_policy()), 0.7, seed=seed, verifier="topk")
        .generate(prompts[0], 24)
        .tokens
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("pause", [None, Pause(2, (2, 4))], ids=str)
def test_a_lookup_before_the_draft_gives_the_text_of_plain_decoding(
    pair: Any, prompts: list[list[int]], pause: Pause | None
) -> None:
    both, plain = with_lookup_first(pair), Decoder(pair)
    policy = looking_up(random_policy((4, 2, 2), 1, pause), lookup_policy(10), 0.2)
    decoder, looked_up = Decoder(both, plan(policy)), 0
    for prompt in prompts:
        expected = plain.generate(prompt, 48, ignore_eos=True)
        generation = decoder.generate(prompt, 48, ignore_eos=True)
        assert generation.tokens == expected.tokens
        looked_up += generation.looked_up
    assert looked_up


def test_pairs_with_a_lookup_are_loaded_by_name(bundled_gguf: dict[str, Path]) -> None:
    alone = load_pair(bundled_gguf["target"], "lookup")
    assert isinstance(alone.drafter, LookupDrafter)
    both = load_pair(bundled_gguf["target"], f"lookup+{bundled_gguf['draft']}")
    assert isinstance(both.lookup, LookupDrafter)
    assert both.engine == "llama.cpp"
    assert both.draft_name == f"lookup+{bundled_gguf['draft'].stem}"
