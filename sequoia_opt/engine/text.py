"""Turns tokens into text, and finds the stop strings that end a text.

New tokens are decoded together with the tokens before them: many tokenizers write a word's first
token differently at the beginning of a text, so new tokens decoded alone would lose their first
space. Special tokens are hidden in a text, but a stop string may contain them. Knows nothing of
models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

CONTEXT = 16  # tokens decoded before the new ones
LONGEST_CONTEXT = 256  # the same, if the text before is one long run of byte tokens
SLACK = 8  # tokens searched in addition to those that a stop string may extend over
UNKNOWN = "\ufffd"  # the decoder's result for an incomplete character
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class Tokenizer(Protocol):
    """What this program needs of a tokenizer: some of what transformers' have.

    Attributes:
        bos_token_id: the token that begins a text; None if there is none.
        chat_template: the Jinja template of conversations; None if there is none.
        all_special_ids: tokens that are not text.
        added_tokens_decoder: tokens with a name of their own, by id.
    """

    bos_token_id: Any
    chat_template: Any

    @property
    def all_special_ids(self) -> list[int]:
        """See above."""
        ...

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]:
        """See above."""
        ...

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> Any:
        """A mapping whose `input_ids` are the text's token ids."""
        ...

    def decode(self, tokens: Any, *, skip_special_tokens: bool = False) -> Any:
        """The text of token ids."""
        ...

    def get_chat_template(self) -> Any:
        """The template of conversations."""
        ...

    def apply_chat_template(self, messages: Any, **options: Any) -> Any:
        """The template's text of a conversation."""
        ...

    def convert_ids_to_tokens(self, token: int) -> Any:
        """A token as the vocabulary has it."""
        ...


class Detokenizer:
    """Decodes with one tokenizer.

    Attributes:
        hidden: ids of the special tokens, which are not part of a text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {})
        ids = {*getattr(tokenizer, "all_special_ids", []), *added}
        self._spellings = {token: str(content) for token, content in added.items()}
        self.hidden = frozenset(
            token for token in ids if self.spelling(token) and not self._decode([token])
        )
        self._bytes: dict[int, bool] = {}
        self._restarts: bool | None = None

    def text(self, tokens: Sequence[int], context: Sequence[int] = ()) -> str:
        """The text that the tokens add to that of the context, without special tokens.

        Args:
            context: the tokens before them.
        """
        return "".join(text for text, shown in self.pieces(tokens, context) if shown)

    def pieces(self, tokens: Sequence[int], context: Sequence[int] = ()) -> list[tuple[str, bool]]:
        """The text of each run of ordinary tokens and of each special token.

        Returns:
            Pairs of a text and whether it is shown; the names of special tokens are not.
        """
        before = self._shown_before(context)
        pieces: list[tuple[str, bool]] = []
        run: list[int] = []
        for token in tokens:
            if token not in self.hidden:
                run.append(token)
                continue
            if run:
                pieces.append((self._continued(run, before), True))
            pieces.append((self.spelling(token), False))
            before, run = before + run, []
        if run:
            pieces.append((self._continued(run, before), True))
        return pieces

    def spelling(self, token: int) -> str:
        """A special token's name in the tokenizer, like "<|im_end|>"."""
        if token not in self._spellings:
            self._spellings[token] = str(self.tokenizer.decode([token], skip_special_tokens=False))
        return self._spellings[token]

    def unchanging_count(self, tokens: Sequence[int]) -> int:
        """How many of the tokens have a text that no later token can change.

        Tokens for single bytes are decoded together: if one byte does not fit, all bytes of the
        run become unknown characters.
        """
        end = len(tokens)
        while end and self._is_byte(tokens[end - 1]):
            end -= 1
        return end

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def _continued(self, tokens: list[int], before: list[int]) -> str:
        """The text that shown tokens add to that of the shown tokens before them."""
        size = CONTEXT
        context = before[-size:]
        # The context must not begin within a character.
        while self._decode(context).startswith(UNKNOWN) and size < len(before):
            size *= 2
            context = before[-size:]
        preceding, text = self._decode(context), self._decode([*context, *tokens])
        if text.startswith(preceding):
            return text[len(preceding) :]
        # The context ends within a character, which the new tokens complete.
        complete = preceding.rstrip(UNKNOWN)
        pairs = enumerate(zip(complete, text, strict=False))
        return text[next((i for i, (a, b) in pairs if a != b), min(len(complete), len(text))) :]

    def _shown_before(self, context: Sequence[int]) -> list[int]:
        """The last tokens of the context that are shown and that decide how new text begins."""
        if context and context[-1] in self.hidden and self._restarts_after(context[-1]):
            return []
        shown: list[int] = []
        for token in reversed(context):
            if len(shown) == LONGEST_CONTEXT:
                break
            if token not in self.hidden:
                shown.append(token)
        return shown[::-1]

    def _restarts_after(self, special: int) -> bool:
        """Whether the tokenizer writes text after a special token as at the beginning of a text."""
        if self._restarts is None:
            text = f"{self.spelling(special)}a"
            tokens = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            alone = self.tokenizer("a", add_special_tokens=False)["input_ids"]
            same_tokens = tokens[-len(alone) :] == alone
            self._restarts = same_tokens and self._decode(alone) != self._continued(alone, alone)
        return self._restarts

    def _is_byte(self, token: int) -> bool:
        if token not in self._bytes:
            convert = getattr(self.tokenizer, "convert_ids_to_tokens", None)
            spelled = convert(token) if convert is not None else None
            self._bytes[token] = isinstance(spelled, str) and bool(_BYTE.fullmatch(spelled))
        return self._bytes[token]


class NewText:
    """The text of a generation that is still running.

    Args:
        prompt: the tokens before the generation.
        stop: strings that end the text; they are not part of it.
    """

    def __init__(
        self, detokenizer: Detokenizer, prompt: Sequence[int], stop: Sequence[str]
    ) -> None:
        self._detokenizer = detokenizer
        self._prompt = list(prompt[-LONGEST_CONTEXT:])
        self._stop = list(stop)
        self._longest = max((len(text.encode()) for text in stop), default=0)
        # The first tokens, whose text is final and not decoded again, and that text.
        self._final_count, self._final_text = 0, ""

    def stop_place(self, tokens: Sequence[int], before: int) -> int | None:
        """The number of tokens up to the end of the first stop string; None without one.

        Args:
            before: tokens in which no stop string ended.
        """
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

        It excludes an incomplete last character, and an end that may be the beginning of a stop
        string.
        """
        count, final = self._detokenizer.unchanging_count(tokens), self._final_count
        if count < final:
            return self._final_text
        before = [*self._prompt, *tokens[max(0, final - LONGEST_CONTEXT) : final]]
        pieces = self._detokenizer.pieces(tokens[final:count], before)
        shown = _shown(pieces)
        stopped = self._first_stop(pieces)
        if stopped is not None:
            return self._final_text + shown[:stopped]
        spelled = _spelled(pieces)
        end = min(
            len(shown.rstrip(UNKNOWN)),
            len(shown) - _stop_prefix(shown, self._stop),
            _index_in_shown(pieces, len(spelled) - _stop_prefix(spelled, self._stop)),
        )
        text = self._final_text + shown[:end]
        # Not after a special token, since some tokenizers restart there.
        is_plain = count > 0 and tokens[count - 1] not in self._detokenizer.hidden
        if is_plain and end == len(shown) and not _stop_prefix(spelled, self._stop):
            self._final_count, self._final_text = count, text
        return text

    def _stops(self, tokens: Sequence[int], before: int, end: int) -> bool:
        """Whether the first `end` tokens have a stop string that ends past `before` tokens."""
        # A stop string extends over at most as many shown tokens as it has bytes.
        start, shown_count = before, 0
        while start and shown_count < self._longest + SLACK:
            start -= 1
            if tokens[start] not in self._detokenizer.hidden:
                shown_count += 1
        context = [*self._prompt, *tokens[:start]] if start else self._prompt
        return self._first_stop(self._detokenizer.pieces(tokens[start:end], context)) is not None

    def _first_stop(self, pieces: Sequence[tuple[str, bool]]) -> int | None:
        """The index in the shown text at which the first stop string begins; None without.

        Stop strings are searched in the shown text, and in the text with special tokens spelled
        out.
        """
        shown, spelled = _shown(pieces), _spelled(pieces)
        starts = [shown.find(stop) for stop in self._stop if stop in shown]
        starts += [
            _index_in_shown(pieces, spelled.find(stop)) for stop in self._stop if stop in spelled
        ]
        return min(starts, default=None)


def _shown(pieces: Sequence[tuple[str, bool]]) -> str:
    """The text without special tokens."""
    return "".join(text for text, shown in pieces if shown)


def _spelled(pieces: Sequence[tuple[str, bool]]) -> str:
    """The text with its special tokens spelled out."""
    return "".join(text for text, _ in pieces)


def _index_in_shown(pieces: Sequence[tuple[str, bool]], index: int) -> int:
    """The index in the shown text of an index in the spelled text."""
    shown_index = 0
    for text, shown in pieces:
        if shown:
            shown_index += min(max(index, 0), len(text))
        index -= len(text)
    return shown_index


def _stop_prefix(text: str, stop: Sequence[str]) -> int:
    """How many characters at the end of the text may be the beginning of a stop string."""
    lengths = (
        length
        for string in stop
        for length in range(1, len(string))
        if text.endswith(string[:length])
    )
    return max(lengths, default=0)
