"""The bundled pair's tokenizer, and text as rows of tokens to train on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 2048
END_OF_TEXT = "<|endoftext|>"  # token 0, which also separates documents


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """A byte-level BPE tokenizer of `VOCABULARY` tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str], order: np.random.Generator) -> torch.Tensor:
    """The tokens [count] of all documents in a random order, each after a separator."""
    encodings = tokenizer.encode_batch([texts[i] for i in order.permutation(len(texts))])
    return torch.tensor([token for encoding in encodings for token in (0, *encoding.ids)])


def windows(tokens: torch.Tensor, length: int, count: int, seed: int) -> Iterator[torch.Tensor]:
    """Endless batches [count, length + 1] of windows; each pass has other offsets and order."""
    generator = np.random.default_rng(seed)
    length = min(length, (len(tokens) - 1) // 2)
    waiting: list[int] = []  # starts of windows
    while True:
        while len(waiting) < count:
            offset = int(generator.integers(length))
            starts = np.arange(offset, len(tokens) - length - 1, length)
            waiting.extend(int(start) for start in generator.permutation(starts))
        batch, waiting = waiting[:count], waiting[count:]
        yield torch.stack([tokens[start : start + length + 1] for start in batch])
