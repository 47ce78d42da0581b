"""Texts that are numbers: a document's tokens can be read off it."""

from __future__ import annotations

import numpy as np
from small_models import VOCABULARY

from sequoia_opt.measure.records import Document


class NumberTokenizer:
    """Stands in for a tokenizer: a text is its token ids, separated by spaces."""

    bos_token_id = None

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": token_ids(text)}

    def decode(self, tokens: list[int], skip_special_tokens: bool = True) -> str:
        return " ".join(map(str, tokens))


def token_ids(text: str) -> list[int]:
    return [int(word) for word in text.split()]


def documents(count: int, prompt_length: int = 6, text_length: int = 0) -> list[Document]:
    """Random documents, each prompt three tokens longer than the one before."""
    generator = np.random.default_rng(0)

    def words(length: int) -> str:
        return " ".join(map(str, generator.integers(2, VOCABULARY, length)))

    return [Document(words(prompt_length + 3 * i), words(text_length)) for i in range(count)]
