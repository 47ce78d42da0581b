"""The decoder, the drafter and the verifiers on llama.cpp."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from policies import random_policy

from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.model import reserved
from sequoia_opt.plan import shapes
from sequoia_opt.plan.policy import Pause
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.plan.verifiers import VERIFIERS

TREES = [
    shapes.chain(2),
    shapes.chain(7),
    shapes.k_ary(3, 2),
    shapes.k_sequences(4, 4),
    TokenTree([-1, 0, 0, 1, 1, 2, 3, 6], [0, 1, 2, 1, 2, 1, 1, 1]),
]
NEAR = 1e-3  # two best logits closer than this may change places in float32


def first_difference(first: list[int], second: list[int]) -> int | None:
    pairs = enumerate(zip(first, second, strict=True))
    return next((place for place, (a, b) in pairs if a != b), None)


def gap_after(pair: Any, text: list[int]) -> float:
    """Between the two best logits after a text."""
    with reserved(pair.target, len(text)) as cache:
        best = pair.target.prefill(cache, torch.tensor([text]))[0].topk(2).values
    return float(best[0] - best[1])


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: f"{tree.size}-{tree.leaves}")
def test_every_tree_decodes_the_text_of_plain_decoding(
    pair: Any, prompts: list[list[int]], tree: TokenTree
) -> None:
    plain, decoder = Decoder(pair), Decoder(pair, tree)
    for prompt in prompts:
        expected = plain.generate(prompt, 48, ignore_eos=True).tokens
        generation = decoder.generate(prompt, 48, ignore_eos=True)
        place = first_difference(generation.tokens, expected)
        if place is not None:
            assert gap_after(pair, [*prompt, *expected[:place]]) < NEAR
    assert generation.tokens_per_step > 1


def test_the_text_is_that_of_torch(pair: Any, prompts: list[list[int]]) -> None:
    from sequoia_opt import demo
    from sequoia_opt.engine.load import load_pair

    folders = [demo.resolve(name) for name in (demo.TARGET_NAME, demo.DRAFT_NAME)]
    other = load_pair(*folders, device="cpu", dtype="float32")
    assert (other.engine, pair.engine) == ("torch", "llama.cpp")
    for prompt in prompts:
        expected = Decoder(other).generate(prompt, 32, ignore_eos=True).tokens
        tokens = Decoder(pair, TREES[2]).generate(prompt, 32, ignore_eos=True).tokens
        place = first_difference(tokens, expected)
        if place is not None:
            assert gap_after(pair, [*prompt, *expected[:place]]) < NEAR


@pytest.mark.parametrize("verifier", list(VERIFIERS))
def test_every_verifier_draws_the_target_s_first_tokens(
    pair: Any, prompts: list[list[int]], verifier: str
) -> None:
    """At a temperature near 0 the draws are the most likely tokens, so the text is greedy's."""
    greedy = Decoder(pair).generate(prompts[0], 24, ignore_eos=True).tokens
    decoder = Decoder(pair, TREES[2], temperature=1e-3, verifier=verifier)
    tokens = decoder.generate(prompts[0], 24, ignore_eos=True).tokens
    place = first_difference(tokens, greedy)
    if place is not None:
        assert gap_after(pair, [*prompts[0], *greedy[:place]]) < 20 * NEAR


def test_a_conversation_is_read_on_from_where_it_parts(pair: Any, prompts: list[list[int]]) -> None:
    """Each turn has the tokens that it has in a session of its own."""
    decoder = Decoder(pair, TREES[3])
    with decoder.session() as session:
        text = prompts[0]
        for turn in range(3):
            generation = session.generate(text, 20, ignore_eos=True)
            fresh = decoder.generate(text, 20, ignore_eos=True)
            place = first_difference(generation.tokens, fresh.tokens)
            if place is not None:
                assert gap_after(pair, [*text, *fresh.tokens[:place]]) < NEAR
            text = [*text, *fresh.tokens, *prompts[1 + turn][:6]]


def test_two_sessions_take_turns(pair: Any, prompts: list[list[int]]) -> None:
    decoder = Decoder(pair, TREES[3])
    expected = [decoder.generate(p, 16, ignore_eos=True).tokens for p in prompts[:2]]
    streams = [decoder.stream(p, 16, ignore_eos=True) for p in prompts[:2]]
    iterators = [iter(stream) for stream in streams]
    while iterators:
        iterators = [iterator for iterator in iterators if next(iterator, None) is not None]
    for stream, tokens, prompt in zip(streams, expected, prompts, strict=False):
        place = first_difference(stream.generation.tokens, tokens)
        if place is not None:
            assert gap_after(pair, [*prompt, *tokens[:place]]) < NEAR


def test_text_goes_in_and_comes_out(pair: Any) -> None:
    prompt = pair.encode("def mean(values):\n    ")
    generation = Decoder(pair, TREES[1]).generate(prompt, 16, ignore_eos=True)
    assert pair.decode(prompt) == "def mean(values):\n    "
    assert generation.text == pair.decode(generation.tokens, prompt)
    assert generation.text.strip()


@pytest.mark.parametrize("pause", [None, Pause(1, (2, 5))], ids=str)
def test_adaptive_plans_decode_the_text_of_plain_decoding(
    pair: Any, prompts: list[list[int]], pause: Pause | None
) -> None:
    plain = Decoder(pair)
    accepted: set[int] = set()
    for seed, shape in enumerate([(6, 1, 1), (4, 3, 3), (3, 2, 2)]):
        decoder = Decoder(pair, TokenTree([-1], [0], policy=random_policy(shape, seed, pause)))
        with decoder.session() as session:
            for prompt in prompts[:3]:
                expected = plain.generate(prompt, 40, ignore_eos=True).tokens
                generation = session.generate(prompt, 40, ignore_eos=True)
                accepted |= set(generation.ended)
                place = first_difference(generation.tokens, expected)
                if place is not None:
                    assert gap_after(pair, [*prompt, *expected[:place]]) < NEAR
    assert max(accepted) > 1
