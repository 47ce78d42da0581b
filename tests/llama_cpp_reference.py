"""llama.cpp through its bindings alone, for tests: logits and tokens of a GGUF file.

Shares nothing with the engine. Everything is in float32 and on one processor.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

lib = pytest.importorskip("llama_cpp").llama_cpp
MOST_TOKENS = 512


@lib.llama_log_callback
def _silent(level: int, text: bytes, data: Any) -> None:
    """The library's log is noise in a test."""


class Vocabulary:
    """A file's tokenizer."""

    def __init__(self, path: Path, alone: bool = True) -> None:
        lib.llama_log_set(_silent, ctypes.c_void_p(0))
        lib.llama_backend_init()
        options = lib.llama_model_default_params()
        options.n_gpu_layers, options.vocab_only = 0, alone
        self.model = lib.llama_model_load_from_file(str(path).encode(), options)
        assert self.model, f"llama.cpp cannot load {path}"
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.vocabulary = lib.llama_vocab_n_tokens(self.vocab)

    def close(self) -> None:
        lib.llama_model_free(self.model)

    def tokens(self, text: str, special: bool = True, beginning: bool = False) -> list[int]:
        """A text's tokens; names of special tokens become these tokens if `special`."""
        content = text.encode()
        found = (ctypes.c_int32 * (2 * len(content) + 8))()
        count = lib.llama_tokenize(
            self.vocab, content, len(content), found, len(found), beginning, special
        )
        assert count >= 0
        return list(found[:count])

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones left out.

        Token by token: `llama_detokenize` takes spaces before punctuation out of some texts.
        """
        content, piece = b"", ctypes.create_string_buffer(256)
        for token in tokens:
            count = lib.llama_token_to_piece(self.vocab, token, piece, len(piece), 0, False)
            content += piece.raw[:count]
        return content.decode("utf-8", "replace")

    def ends(self) -> list[int]:
        """The tokens that end a text."""
        return [i for i in range(self.vocabulary) if lib.llama_vocab_is_eog(self.vocab, i)]


class Reference(Vocabulary):
    """A model with a cache of one text."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, alone=False)
        context = lib.llama_context_default_params()
        context.n_ctx = context.n_batch = context.n_ubatch = MOST_TOKENS
        context.n_threads = context.n_threads_batch = 1
        context.type_k = context.type_v = lib.GGML_TYPE_F32
        context.flash_attn_type = 0
        self.context = lib.llama_init_from_model(self.model, context)
        self.length = 0

    def close(self) -> None:
        lib.llama_free(self.context)
        super().close()

    def logits(self, tokens: Sequence[int], keep: bool = False) -> NDArray[np.float32]:
        """Logits [count, vocabulary] after each token of a text; `keep` goes on with the last."""
        if not keep:
            lib.llama_memory_clear(lib.llama_get_memory(self.context), True)
            self.length = 0
        batch = lib.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = token, self.length + i, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        assert lib.llama_decode(self.context, batch) == 0
        lib.llama_batch_free(batch)
        self.length += len(tokens)
        rows = [lib.llama_get_logits_ith(self.context, i) for i in range(len(tokens))]
        return np.stack([np.ctypeslib.as_array(row, (self.vocabulary,)) for row in rows])

    def greedy(self, tokens: Sequence[int], count: int) -> list[int]:
        """The most likely continuation of a text."""
        logits, continuation = self.logits(tokens), []
        for _ in range(count):
            continuation.append(int(logits[-1].argmax()))
            logits = self.logits(continuation[-1:], keep=True)
        return continuation
