"""The index of a lookup against a search through the text, place by place."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from sequoia_opt.engine.drafters.lookup_index import (
    LENGTHS,
    NOTHING,
    OCCURRENCES,
    CorpusIndex,
    Match,
    TextIndex,
    as_bytes,
)

tokens = st.integers(0, 2) | st.integers(60000, 60001)
texts = st.lists(tokens, max_size=60) | st.lists(st.just(7), max_size=60)


def searched(texts: Sequence[list[int]], context: list[int], most: int = OCCURRENCES) -> Match:
    """What followed the longest ending, found by looking at every place."""
    for length in LENGTHS:
        ending = context[len(context) - length :] if length <= len(context) else None
        followers = [
            text[place]
            for text in texts
            for place in range(length, len(text))
            if text[place - length : place] == ending
        ][-most:][::-1]
        if followers:
            order = sorted(dict.fromkeys(followers), key=lambda token: -followers.count(token))
            return Match(length, order, [followers.count(token) for token in order])
    return NOTHING


def index_of(text: list[int]) -> TextIndex:
    index = TextIndex()
    index.extend(text)
    return index


@given(texts, st.lists(tokens, max_size=20))
def test_a_match_is_what_a_search_finds(text: list[int], path: list[int]) -> None:
    """Of the text, and of the text with guessed tokens behind it, which leave it as it is."""
    index = index_of(text)
    for guessed in (path, []):
        found = index.match(index.context + as_bytes(guessed))
        assert found == searched([text], text + guessed)
    assert len(index) == len(text)


@given(texts, st.integers(0, 60), texts)
def test_a_text_that_was_cut_is_as_if_it_had_been_short(
    text: list[int], kept: int, more: list[int]
) -> None:
    index = index_of(text)
    index.keep(kept)
    index.extend(more)
    whole = text[:kept] + more
    fresh = index_of(whole)
    assert len(index) == len(whole)
    assert index.match(index.context) == fresh.match(fresh.context) == searched([whole], whole)
    assert (index._last, index._before) == (fresh._last, fresh._before)
    index.keep(0)
    assert not any(index._last)


def test_memory_is_in_proportion_to_the_text() -> None:
    index = index_of([i * i % 97 for i in range(500)])
    assert sum(map(len, index._last)) <= len(LENGTHS) * 500
    assert sum(map(len, index._before)) == len(LENGTHS) * 500


@given(st.lists(texts, max_size=4), st.lists(tokens, max_size=20), st.sampled_from([0, 1, 4]))
def test_a_corpus_is_searched_text_by_text(
    corpus: list[list[int]], context: list[int], longer_than: int
) -> None:
    found = CorpusIndex(corpus).match(as_bytes(context), longer_than)
    every = searched(corpus, context, most=10**6)
    if every.length <= longer_than:
        assert found == NOTHING
    elif sum(every.counts) <= OCCURRENCES:
        assert found == every
    else:
        assert found.length == every.length
        assert sum(found.counts) == OCCURRENCES
        assert set(found.tokens) <= set(every.tokens)
        assert found.counts == sorted(found.counts, reverse=True)


def test_equally_frequent_tokens_are_ranked_by_who_followed_last() -> None:
    for text, ranked in (([5, 1, 5, 2, 5], [2, 1]), ([5, 2, 5, 1, 5], [1, 2])):
        index = index_of(text)
        assert index.match(index.context).tokens == ranked
