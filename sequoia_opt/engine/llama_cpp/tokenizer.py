"""A GGUF model's own tokenizer, as llama.cpp has it, and its chat template.

Has the methods of a transformers tokenizer that this program calls, so that text is handled alike
on both engines. Knows nothing of how tokens are decoded.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

from sequoia_opt.engine.llama_cpp.library import bindings

UNKNOWN, CONTROL, USER_DEFINED = 1 << 0, 1 << 3, 1 << 4  # of llama.cpp's token attributes
LONGEST_PIECE = 64  # bytes; there is another call for longer ones
NO_VOCABULARY = 0  # llama.cpp's kind of vocabulary that is none
NONE = -1  # llama.cpp's token that is none


class LlamaTokenizer:
    """The tokenizer of a loaded model.

    Attributes:
        bos_token_id: the token that begins a text; None if there is none.
        chat_template: the Jinja template of conversations; None if there is none.
        added_tokens_decoder: texts of the control tokens and of those that were added, by id.
        all_special_ids: the control tokens, and the one for unknown text.
        end_tokens: tokens that end a text.
    """

    def __init__(self, model: Any) -> None:
        """Take the tokenizer of a model of llama.cpp's, which has to live as long."""
        lib = self._lib = bindings()
        self._vocab = lib.llama_model_get_vocab(model)
        size = lib.llama_vocab_n_tokens(self._vocab)
        attributes = {token: lib.llama_vocab_get_attr(self._vocab, token) for token in range(size)}
        self.all_special_ids = [
            token for token, attr in attributes.items() if attr & (CONTROL | UNKNOWN)
        ]
        self.added_tokens_decoder = {
            token: self.convert_ids_to_tokens(token)
            for token, attr in attributes.items()
            if attr & (CONTROL | USER_DEFINED)
        }
        self.end_tokens = frozenset(
            token for token in range(size) if lib.llama_vocab_is_eog(self._vocab, token)
        )
        self.bos_token_id = _token(lib.llama_vocab_bos(self._vocab))
        self._eos = _token(lib.llama_vocab_eos(self._vocab))
        template = lib.llama_model_chat_template(model, None)
        self.chat_template = template.decode(errors="replace") if template else None
        self._pieces: dict[tuple[int, bool], bytes] = {}
        # Tokenizers of pieces put a space before a text, which is not part of it.
        first = self("a", add_special_tokens=False)["input_ids"][:1]
        self._adds_space = any(self._piece(token, False).startswith(b" ") for token in first)

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """Token ids of a text, by the name `input_ids`.

        Args:
            add_special_tokens: put the tokens around it that begin and end texts.
        """
        encoded = text.encode()
        room = len(encoded) + 16
        while True:
            tokens = (ctypes.c_int32 * room)()
            count = self._lib.llama_tokenize(
                self._vocab, encoded, len(encoded), tokens, room, add_special_tokens, True
            )
            if count >= 0:
                return {"input_ids": tokens[:count]}
            room = -count

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Text of token ids, with a replacement character where one is incomplete.

        Token by token: `llama_detokenize` takes spaces before punctuation out of some texts.
        """
        text = b"".join(self._piece(token, not skip_special_tokens) for token in tokens)
        if self._adds_space and text.startswith(b" "):
            text = text[1:]
        return text.decode(errors="replace")

    def _piece(self, token: int, special: bool) -> bytes:
        """The bytes that a token stands for; of a special one its name, or none."""
        key = token, special
        if key not in self._pieces:
            room = LONGEST_PIECE
            while True:
                piece = ctypes.create_string_buffer(room)
                count = self._lib.llama_token_to_piece(self._vocab, token, piece, room, 0, special)
                if count >= 0:
                    break
                room = -count
            self._pieces[key] = piece.raw[:count]
        return self._pieces[key]

    def convert_ids_to_tokens(self, token: int) -> str:
        """A token as the vocabulary has it."""
        return str(self._lib.llama_vocab_get_text(self._vocab, token).decode(errors="replace"))

    def get_chat_template(self) -> str:
        """The chat template; empty if there is none."""
        return self.chat_template or ""

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tokenize: bool = False,
        add_generation_prompt: bool = True,
        **options: Any,
    ) -> str:
        """The chat template's text of a conversation, rendered as transformers renders it."""
        from transformers.utils.chat_template_utils import render_jinja_template

        marks = {"bos_token": self.bos_token_id, "eos_token": self._eos}
        variables: dict[str, Any] = {name: self._spelling(token) for name, token in marks.items()}
        rendered: Any = render_jinja_template(
            conversations=[[dict(message) for message in messages]],
            chat_template=self.get_chat_template(),
            add_generation_prompt=add_generation_prompt,
            **variables,
            **options,
        )
        return str(rendered[0][0])

    def _spelling(self, token: int | None) -> str:
        return "" if token is None else self.convert_ids_to_tokens(token)


def tokenizer_of(model: Any) -> LlamaTokenizer | None:
    """The tokenizer of a loaded model of llama.cpp's; None if its file has none."""
    lib = bindings()
    kind = lib.llama_vocab_type(lib.llama_model_get_vocab(model))
    return None if kind == NO_VOCABULARY else LlamaTokenizer(model)


def _token(token: int) -> int | None:
    return None if token == NONE else token
