"""Turns tokens into text, and finds the strings that end it.

Text is decoded in the context of what precedes it: many tokenizers write a word's first token
differently at the beginning of a text, so that new tokens decoded alone lose their first space.
Special tokens are left out of a text, but strings that end it may contain them. Knows nothing of
models.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

CONTEXT = 16  # tokens before new ones that decide how these begin
LONGEST_CONTEXT = 256  # tokens, where the text before is one long run of bytes
SLACK = 8  # tokens beside those that a stop string may be spread over
UNKNOWN = "\ufffd"  # what a decoder makes of a part of a character
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class Detokenizer:
    """Decodes with one tokenizer.

    Attributes:
        hidden: ids of the special tokens, which are left out of a text.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {})
        ids = {*getattr(tokenizer, "all_special_ids", []), *added}
        self._spellings = {token: str(content) for token, content in added.items()}
        self.hidden = frozenset(
            token for token in ids if self.spelling(token) and not self._decode([token])
        )
        self._bytes: dict[int, bool] = {}
        self._begins_anew: bool | None = None

    def text(self, tokens: Sequence[int], context: Sequence[int] = ()) -> str:
        """What the tokens add to the text of the tokens before them, special ones left out."""
        return "".join(text for text, shown in self.pieces(tokens, context) if shown)

    def pieces(self, tokens: Sequence[int], context: Sequence[int] = ()) -> list[tuple[str, bool]]:
        """The text of each run of tokens, and whether it is shown: special ones are not."""
        before = self._shown_before(context)
        found: list[tuple[str, bool]] = []
        run: list[int] = []
        for token in tokens:
            if token in self.hidden:
                found += [(self._continued(run, before), True)] if run else []
                found.append((self.spelling(token), False))
                before, run = before + run, []
            else:
                run.append(token)
        return found + ([(self._continued(run, before), True)] if run else [])

    def spelling(self, token: int) -> str:
        """A special token's name in the tokenizer's own words."""
        if token not in self._spellings:
            self._spellings[token] = str(self.tokenizer.decode([token], skip_special_tokens=False))
        return self._spellings[token]

    def whole(self, tokens: Sequence[int]) -> int:
        """How many of the tokens have a text that no token after them can change.

        Tokens that stand for single bytes are decoded together: all of a run become unknown
        characters if one of them does not fit.
        """
        end = len(tokens)
        while end and self._is_byte(tokens[end - 1]):
            end -= 1
        return end

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def _continued(self, tokens: list[int], before: list[int]) -> str:
        """The text of shown tokens after others."""
        size = CONTEXT
        context = before[-size:]
        # Not from the middle of a character on.
        while self._decode(context).startswith(UNKNOWN) and size < len(before):
            size *= 2
            context = before[-size:]
        preceding, text = self._decode(context), self._decode([*context, *tokens])
        if text.startswith(preceding):
            return text[len(preceding) :]
        # It ends within a character, which the new tokens complete.
        whole = preceding.rstrip(UNKNOWN)
        pairs = enumerate(zip(whole, text, strict=False))
        return text[next((i for i, (a, b) in pairs if a != b), min(len(whole), len(text))) :]

    def _shown_before(self, context: Sequence[int]) -> list[int]:
        """The last tokens of the context that are part of its text."""
        if context and context[-1] in self.hidden and self._after_special_text_begins_anew(context):
            return []
        shown: list[int] = []
        for token in reversed(context):
            if len(shown) == LONGEST_CONTEXT:
                break
            if token not in self.hidden:
                shown.append(token)
        return shown[::-1]

    def _after_special_text_begins_anew(self, context: Sequence[int]) -> bool:
        """Whether the tokenizer writes what follows a special token as it writes a beginning."""
        if self._begins_anew is None:
            special = self.spelling(context[-1])
            tokens = self.tokenizer(f"{special}a", add_special_tokens=False)["input_ids"]
            alone = self.tokenizer("a", add_special_tokens=False)["input_ids"]
            self._begins_anew = (
                tokens[-len(alone) :] == alone
                and self._decode(alone) != self._continued(alone, alone)
            )  # fmt: skip
        return self._begins_anew

    def _is_byte(self, token: int) -> bool:
        if token not in self._bytes:
            convert = getattr(self.tokenizer, "convert_ids_to_tokens", None)
            spelled = convert(token) if convert is not None else None
            self._bytes[token] = isinstance(spelled, str) and bool(_BYTE.fullmatch(spelled))
        return self._bytes[token]


class NewText:
    """The text of a generation under way.

    Args:
        prompt: the tokens before it.
        stop: strings that end it; they are not part of it.
    """

    def __init__(
        self, detokenizer: Detokenizer, prompt: Sequence[int], stop: Sequence[str]
    ) -> None:
        self._detokenizer = detokenizer
        self._prompt = list(prompt[-LONGEST_CONTEXT:])
        self._stop = list(stop)
        self._longest = max((len(text.encode()) for text in stop), default=0)
        # Tokens whose text is settled for good, and that text: it is not decoded again.
        self._done, self._written = 0, ""

    def stop_place(self, tokens: Sequence[int], before: int) -> int | None:
        """How many tokens it takes to write a stop string, if one ends after `before` of them."""
        if not self._stop or not self._stops(tokens, before, len(tokens)):
            return None
        ends = range(before + 1, len(tokens) + 1)
        return next((end for end in ends if self._stops(tokens, before, end)), None)

    def text(self, tokens: Sequence[int]) -> str:
        """The text of these tokens, up to the first stop string."""
        pieces = self._detokenizer.pieces(tokens, self._prompt)
        return _shown(pieces)[: self._first_stop(pieces)]

    def settled(self, tokens: Sequence[int]) -> str:
        """The text so far that later tokens cannot change.

        Without a last character that is incomplete, and without an end that may turn out to
        begin a stop string.
        """
        whole = self._detokenizer.whole(tokens)
        if whole < self._done:
            return self._written
        before = [*self._prompt, *tokens[max(0, self._done - LONGEST_CONTEXT) : self._done]]
        pieces = self._detokenizer.pieces(tokens[self._done : whole], before)
        shown = _shown(pieces)
        stopped = self._first_stop(pieces)
        if stopped is not None:
            return self._written + shown[:stopped]
        spelled = _spelled(pieces)
        end = min(
            len(shown.rstrip(UNKNOWN)),
            len(shown) - _waiting(shown, self._stop),
            _place_in_shown(pieces, len(spelled) - _waiting(spelled, self._stop)),
        )
        text = self._written + shown[:end]
        # Not behind a special token, where some tokenizers begin anew.
        is_plain = whole > 0 and tokens[whole - 1] not in self._detokenizer.hidden
        if is_plain and end == len(shown) and not _waiting(spelled, self._stop):
            self._done, self._written = whole, text
        return text

    def _stops(self, tokens: Sequence[int], before: int, end: int) -> bool:
        """Whether a stop string is in the last of so many tokens."""
        # As many tokens as bytes are enough to hold a string that ends after `before`.
        start, counted = before, 0
        while start and counted < self._longest + SLACK:
            start -= 1
            counted += tokens[start] not in self._detokenizer.hidden
        context = [*self._prompt, *tokens[:start]] if start else self._prompt
        return self._first_stop(self._detokenizer.pieces(tokens[start:end], context)) is not None

    def _first_stop(self, pieces: Sequence[tuple[str, bool]]) -> int | None:
        """Where in the shown text the first stop string begins; special tokens may be part of
        it, or be overlooked."""
        places = [_shown(pieces).find(text) for text in self._stop]
        spelled = _spelled(pieces)
        places += [
            _place_in_shown(pieces, place)
            for place in (spelled.find(text) for text in self._stop)
            if place >= 0
        ]
        return min((place for place in places if place >= 0), default=None)


def _shown(pieces: Sequence[tuple[str, bool]]) -> str:
    return "".join(text for text, shown in pieces if shown)


def _spelled(pieces: Sequence[tuple[str, bool]]) -> str:
    """The text with its special tokens spelled out."""
    return "".join(text for text, _ in pieces)


def _place_in_shown(pieces: Sequence[tuple[str, bool]], place: int) -> int:
    """Where in the shown text a place of the spelled one is."""
    found = 0
    for text, shown in pieces:
        found += min(max(place, 0), len(text)) * shown
        place -= len(text)
    return found


def _waiting(text: str, stop: Sequence[str]) -> int:
    """How many characters at the end may begin a stop string."""
    lengths = (
        length
        for string in stop
        for length in range(1, len(string))
        if text.endswith(string[:length])
    )
    return max(lengths, default=0)
