from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes
from sequoia_opt.plan.tree import TokenTree

TREE = TokenTree([-1, 0, 0, 0, 1, 1, 2, 4, 7], [0, 1, 2, 3, 1, 2, 1, 1, 1])
FIRST, SECOND = list(range(3, 20)), list(range(30, 24, -1))


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_sessions_of_one_pair_take_turns(temperature: float, make_pair: Callable[..., Any]) -> None:
    """Texts decoded in turn, a step each, are the same as when decoded alone."""
    pair = make_pair()
    decoders = [Decoder(pair, tree, temperature, seed=5) for tree in (TREE, shapes.chain(3))]
    alone = [
        decoder.generate(prompt, 40, ignore_eos=True).tokens
        for decoder, prompt in zip(decoders, (FIRST, SECOND), strict=True)
    ]
    for decoder in decoders:
        decoder.reseed(5)
    streams = [
        decoder.stream(prompt, 40, ignore_eos=True)
        for decoder, prompt in zip(decoders, (FIRST, SECOND), strict=True)
    ]
    running = [iter(stream) for stream in streams]
    while running:
        running = [steps for steps in running if next(steps, None) is not None]
    assert [stream.generation.tokens for stream in streams] == alone


def test_an_unfinished_text_does_not_change_others(make_pair: Callable[..., Any]) -> None:
    pair = make_pair()
    decoder = Decoder(pair, TREE)
    expected = decoder.generate(SECOND, 30, ignore_eos=True).tokens
    steps = iter(decoder.stream(FIRST, 30))
    next(steps)
    assert decoder.generate(SECOND, 30, ignore_eos=True).tokens == expected
    next(steps)
    assert decoder.generate(SECOND, 30, ignore_eos=True).tokens == expected


def test_each_session_has_a_random_generator(make_pair: Callable[..., Any]) -> None:
    """The draws of one session do not depend on how much another has decoded."""
    texts = []
    for before in (1, 9):
        decoder = Decoder(make_pair(), TREE, 1.0, seed=3)
        with decoder.session() as first, decoder.session() as second:
            first.generate(FIRST, before, ignore_eos=True)
            texts.append(second.generate(SECOND, 20, ignore_eos=True).tokens)
    assert texts[0] == texts[1]


def test_sessions_share_caches_one_after_another(make_pair: Callable[..., Any]) -> None:
    """A session reuses the caches of one that was closed or deleted, never of an open one."""
    pair = make_pair()
    decoder = Decoder(pair, TREE)
    session = decoder.session()
    session.reserve(50)
    caches = session.caches
    other = decoder.session()
    other.reserve(50)
    assert other.caches.target is not caches.target
    assert other.caches.draft is not caches.draft
    session.close()
    second = decoder.session()
    second.reserve(50)
    assert second.caches == caches
    del second
    gc.collect()
    last = decoder.session()
    last.reserve(50)
    assert last.caches == caches


@pytest.mark.parametrize("tree", [shapes.chain(1), shapes.chain(4), shapes.k_ary(2, 3)])
def test_a_conversation_continues_from_its_cache(
    make_pair: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tree: TokenTree
) -> None:
    """The tokens are those of a new session, but only the new part of the text is read."""
    pair = make_pair()
    session = Decoder(pair, tree).session()
    read_lengths: list[int] = []
    extend = pair.target.extend

    def recording(cache: object, tokens: torch.Tensor, *others: Any) -> torch.Tensor:
        read_lengths.append(tokens.shape[1])
        logits: torch.Tensor = extend(cache, tokens, *others)
        return logits

    text = list(range(5, 25))
    session.generate(text[:9], 15, ignore_eos=True)
    for turn, addition in enumerate(([], [3, 4, 5], [9], [])):
        text = text + addition if turn < 3 else [*text[:30], 8, 9]
        # Decoding in another session of the pair changes nothing.
        expected = Decoder(pair, tree).generate(text, 15, ignore_eos=True).tokens
        read_lengths.clear()
        monkeypatch.setattr(pair.target, "extend", recording)
        new = session.generate(text, 15, ignore_eos=True).tokens
        monkeypatch.setattr(pair.target, "extend", extend)
        assert new == expected
        assert 0 < sum(read_lengths) < len(text)
        text += new


def test_a_conversation_outgrows_its_caches(make_pair: Callable[..., Any]) -> None:
    """It continues in larger ones, after a prefill of the whole text."""
    pair = make_pair(max_position_embeddings=8192)
    tree = shapes.k_ary(2, 2)
    session = Decoder(pair, tree).session()
    text = [5, 6, 7] * 20
    text += session.generate(text, 12, ignore_eos=True).tokens
    before = session.caches.target.capacity
    text = text * 60
    new = session.generate(text, 12, ignore_eos=True).tokens
    assert session.caches.target.capacity > before
    assert new == Decoder(pair, tree).generate(text, 12, ignore_eos=True).tokens


def test_a_session_has_one_text_at_a_time(make_pair: Callable[..., Any]) -> None:
    decoder = Decoder(make_pair(), TREE)
    expected = decoder.generate(SECOND, 20, ignore_eos=True).tokens
    session = decoder.session()
    first = iter(session.stream(FIRST, 20, ignore_eos=True))
    next(first)
    stream = session.stream(SECOND, 20, ignore_eos=True)
    second = iter(stream)
    next(second)
    with pytest.raises(SequoiaError, match="another text has begun in this session; finish one"):
        next(first)
    for _ in second:
        pass
    assert stream.generation.tokens == expected


def test_a_closed_session_has_no_text_to_continue(make_pair: Callable[..., Any]) -> None:
    decoder = Decoder(make_pair(), TREE)
    session = decoder.session()
    steps = iter(session.stream(FIRST, 20, ignore_eos=True))
    next(steps)
    session.close()
    with pytest.raises(SequoiaError, match="session: found no text to continue"):
        next(steps)
    again = session.generate(FIRST, 20, ignore_eos=True)
    assert again.tokens == decoder.generate(FIRST, 20, ignore_eos=True).tokens


def test_a_stream_is_iterated_over_once(make_pair: Callable[..., Any]) -> None:
    stream = Decoder(make_pair(), TREE).stream(FIRST, 20, ignore_eos=True)
    for _ in stream:
        break
    with pytest.raises(SequoiaError, match="stream: found a second iteration, expected one"):
        stream.finish()
