"""What holds for the texts of every plan whose trees grow, whatever drafts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from small_models import prompt_of

from sequoia_opt.engine.adaptive_step import GrowingState
from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.logits_processors import LogitsOptions
from sequoia_opt.engine.session import Session
from sequoia_opt.engine.stream import Generation
from sequoia_opt.engine.torch.attention import KVCache
from sequoia_opt.plan.pause import Pause
from sequoia_opt.plan.tree import TokenTree

PAUSES = [None, Pause(1, (2, 5)), Pause(2, (1, 3, 9))]


def taking_turns(decoder: Decoder) -> Iterator[tuple[Generation, Generation]]:
    """Texts that streams of one decoder decode in turn, each with the same text decoded alone."""
    prompts = [prompt_of(5 + seed, seed) for seed in range(3)]
    alone = [decoder.generate(prompt, 30, ignore_eos=True) for prompt in prompts]
    streams = [decoder.stream(prompt, 30, ignore_eos=True) for prompt in prompts]
    iterators = [iter(stream) for stream in streams]
    while iterators:
        iterators = [iterator for iterator in iterators if next(iterator, None) is not None]
    yield from zip((stream.generation for stream in streams), alone, strict=True)


def assert_text_follows_its_seed(decoder_of: Callable[[int], Decoder], tokens: int) -> None:
    """The same seed gives the same text, and another one another.

    Args:
        decoder_of: a decoder of a seed.
    """
    first, again, other = (
        decoder_of(seed).generate(prompt_of(5), tokens).tokens for seed in (1, 1, 2)
    )
    assert first == again != other


def assert_penalties_change_plain_decoding_alike(
    pair: Any, trees: Sequence[TokenTree], options: LogitsOptions
) -> None:
    """Plans give the tokens of plain decoding with the same penalties."""
    expected = Decoder(pair, logits_options=options).generate(prompt_of(9), 40, ignore_eos=True)
    for tree in trees:
        decoder = Decoder(pair, tree, logits_options=options)
        assert decoder.generate(prompt_of(9), 40, ignore_eos=True).tokens == expected.tokens


def missing_of_drafts_cache(draft: Any, session: Session, text: list[int]) -> int:
    """How many tokens the draft's cache lacks; what it holds is checked.

    It equals the cache of a prefill; the text itself cannot show what the draft has wrong.

    Args:
        draft: the pair's draft model.
        text: the prompt and all new tokens.
    """
    state: Any = session._state
    assert isinstance(state, GrowingState)
    held = min(state.held, len(text) - 1)
    prefilled = draft.reserve(held)
    with torch.inference_mode():
        draft.prefill(prefilled, torch.tensor([text[:held]]))

    def stored(cache: KVCache) -> list[torch.Tensor]:
        return [tensor[:, :, :held] for tensor in (*cache.keys, *cache.values)]

    torch.testing.assert_close(stored(session.caches.draft), stored(prefilled), rtol=0, atol=1e-5)
    return len(state.lacking)
