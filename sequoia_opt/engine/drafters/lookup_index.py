"""Where the end of a text occurred before, and what followed: the index of a lookup.

A context is the tokens before a place, as bytes. Of a context the longest ending that occurred
before counts, among endings of a few lengths; what followed it are the candidates. A text's index
grows with the text and shrinks with it; a corpus is sorted once. Both take memory in proportion
to their tokens, and both bound what a search looks at. Knows nothing of trees or models.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import NamedTuple

LENGTHS = (16, 8, 4, 3, 2, 1)
"""Lengths of the endings that are looked for, the longest first."""

OCCURRENCES = 8
"""The most occurrences of an ending that are looked at: in a text, the last ones."""

WIDTH = 4  # bytes of a token
MOST_BYTES = WIDTH * LENGTHS[0]  # of a context
BOUNDARY = 2**32 - 1  # stands between the texts of a corpus; no token


class Match(NamedTuple):
    """What followed the longest ending of a context that occurred before.

    Attributes:
        length: tokens of the ending; 0 if none occurred.
        tokens: that followed it, the most frequent first, of equally frequent ones the one that
            followed last.
        counts: how often each followed, among the occurrences that were looked at.
    """

    length: int
    tokens: list[int]
    counts: list[int]


NOTHING = Match(0, [], [])


def as_bytes(tokens: Iterable[int]) -> bytes:
    """Tokens as contexts have them."""
    return array("I", tokens).tobytes()


def behind(context: bytes, token: int) -> bytes:
    """The context behind a token that follows another context."""
    return context + token.to_bytes(WIDTH, sys.byteorder)


class TextIndex:
    """The index of a text that grows at its end.

    Of each length it keeps, for each ending, the place behind its last occurrence, and for each
    place, the place behind the occurrence before.
    """

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._context = b""
        self._last: list[dict[bytes, int]] = [{} for _ in LENGTHS]
        self._before = [array("i") for _ in LENGTHS]
        self._tables = [
            (WIDTH * length, last, before)
            for length, last, before in zip(LENGTHS, self._last, self._before, strict=True)
        ]

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def context(self) -> bytes:
        """The text's end, as `match` takes it."""
        return self._context

    def extend(self, tokens: Iterable[int]) -> None:
        """Add tokens to the text's end."""
        text, context, tables = self._tokens, self._context, self._tables
        for token in tokens:
            place = len(text)
            for count, last, before in tables:
                ending = context[-count:]
                if len(ending) == count:
                    before.append(last.get(ending, -1))
                    last[ending] = place
                else:
                    before.append(-1)
            text.append(token)
            context = behind(context, token)[-MOST_BYTES:]
        self._context = context

    def keep(self, length: int) -> None:
        """Drop all tokens behind the first `length` ones."""
        text = self._tokens
        while len(text) > length:
            text.pop()
            self._context = as_bytes(text[-LENGTHS[0] :])
            for count, last, before in self._tables:
                ending, place = self._context[-count:], before.pop()
                if place >= 0:
                    last[ending] = place
                elif len(ending) == count:
                    del last[ending]

    def match(self, context: bytes) -> Match:
        """What followed the longest ending of a context in this text.

        Args:
            context: its last tokens, at least as many as the longest ending has where it has so
                many; the text's own `context`, or that and guessed tokens behind it.
        """
        text = self._tokens
        for number, (count, last, before) in enumerate(self._tables):
            place = last.get(context[-count:], -1)
            if place >= 0:
                if before[place] < 0:
                    return Match(LENGTHS[number], [text[place]], [1])
                followers = []
                for _ in range(OCCURRENCES):
                    followers.append(text[place])
                    place = before[place]
                    if place < 0:
                        break
                return ranked(LENGTHS[number], followers)
        return NOTHING


def ranked(length: int, followers: Iterable[int]) -> Match:
    """The match of an ending that these tokens followed.

    Args:
        length: tokens of the ending.
        followers: one for each occurrence, the last one first.
    """
    counts: dict[int, int] = {}
    for token in followers:
        counts[token] = counts.get(token, 0) + 1
    tokens = list(counts)
    if len(tokens) > 1:
        tokens.sort(key=counts.__getitem__, reverse=True)  # a stable sort
    return Match(length, tokens, [counts[token] for token in tokens])


class CorpusIndex:
    """The index of texts that do not change: their places, sorted by what lies before each.

    Places with a common ending of their contexts are neighbours, so one binary search finds the
    longest.
    """

    def __init__(self, texts: Iterable[Sequence[int]]) -> None:
        """Sort the places of the texts' tokens; no ending reaches from one text into another."""
        tokens = array("I")
        for text in texts:
            tokens.extend([*text, BOUNDARY])
        self._tokens = tokens
        self._backwards = tokens[::-1].tobytes()
        places = [place for place, token in enumerate(tokens) if token != BOUNDARY]
        self._sorted = array("i", sorted(places, key=self._before))

    def match(self, context: bytes, longer_than: int = 0) -> Match:
        """See `TextIndex.match`.

        Of many occurrences those are looked at whose contexts are the nearest in order.

        Args:
            longer_than: tokens that an ending must exceed to count.
        """
        backwards = array("I", context)[::-1].tobytes()
        right = bisect_left(self._sorted, backwards, key=self._before)
        beside = [self._before(place) for place in self._sorted[max(right - 1, 0) : right + 1]]
        for length in LENGTHS:
            if length <= longer_than:
                break
            ending = backwards[: WIDTH * length]
            if len(ending) == WIDTH * length and any(b.startswith(ending) for b in beside):
                return ranked(length, self._followers(ending, right))
        return NOTHING

    def _before(self, place: int) -> bytes:
        """The context of a place, backwards."""
        start = WIDTH * (len(self._tokens) - place)
        return self._backwards[start : start + MOST_BYTES]

    def _followers(self, ending: bytes, right: int) -> list[int]:
        """The tokens behind occurrences of an ending, those of the last places first.

        Args:
            right: the number of a place in order next to which they are.
        """
        below = self._sorted[max(right - OCCURRENCES, 0) : right][::-1]
        above = self._sorted[right : right + OCCURRENCES]
        places = [
            place
            for side in (above, below)
            for place in takewhile(lambda place: self._before(place).startswith(ending), side)
        ]
        return [self._tokens[place] for place in sorted(places[:OCCURRENCES], reverse=True)]
