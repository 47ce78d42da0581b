"""A lookup drafts for llama.cpp."""

from __future__ import annotations

from typing import Any

import pytest
from lookup_pairs import lookup_policy, plan, with_lookup

from sequoia_opt.engine.decoder import Decoder
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
