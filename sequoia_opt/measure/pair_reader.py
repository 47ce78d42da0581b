"""Both models of a pair on the same batch of texts, side by side.

Knows caches and forward passes. Knows nothing of acceptance.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sequoia_opt.engine.model import Caches
from sequoia_opt.engine.pair import Pair
from sequoia_opt.engine.reading import StatesBefore, prefill
from sequoia_opt.engine.sampling import at_least_float32


class PairLogits(NamedTuple):
    """Logits of both models at the same positions."""

    target: Tensor
    draft: Tensor


class PairReader:
    """Feeds a batch of texts to target and drafter, and returns the logits of both.

    All logits are at least float32 and over the target's vocabulary. Use it as a context manager:
    its caches are given back at the end.
    """

    def __init__(self, pair: Pair, batch: int, capacity: int) -> None:
        """Reserve both caches.

        Args:
            batch: number of texts.
            capacity: most tokens of a text, padding included.

        Raises:
            SequoiaError: the caches do not fit into memory.
        """
        self._target, self._drafter = pair.target, pair.drafter
        self._target_cache = pair.target.reserve(capacity, batch)
        self._draft_cache = pair.drafter.reserve(capacity, batch)
        self._states = StatesBefore(pair.drafter.hidden)

    def __enter__(self) -> PairReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._target.release(self._target_cache)
        self._drafter.release(self._draft_cache)

    @torch.inference_mode()
    def prefill(self, tokens: Tensor, padding: Tensor) -> PairLogits:
        """Read the prompts; logits [batch, vocabulary] after their last tokens.

        Args:
            tokens: [batch, count], padded on the left.
            padding: [batch], how many padding tokens each prompt begins with.
        """
        caches = Caches(self._target_cache, self._draft_cache)
        logits = prefill(self._target, self._drafter, caches, tokens, padding)
        assert logits.draft is not None
        self._states = logits.states
        return PairLogits(at_least_float32(logits.target), logits.draft)

    @torch.inference_mode()
    def extend(
        self, tokens: Tensor, length: int, padding: Tensor, runs: Tensor | None = None
    ) -> PairLogits:
        """Append one token to each text; logits [batch, vocabulary] after it.

        Args:
            tokens: [batch].
            length: cached tokens of each text, padding included.
            padding: as in `prefill`.
            runs: [batch], how many of each text's last tokens were accepted guesses in a row.
        """
        new = tokens[:, None]
        target = self._target.extend(self._target_cache, new, length, padding)
        before = next(self._states)
        draft = self._drafter.extend(self._draft_cache, new, length, padding, before, runs)
        return PairLogits(at_least_float32(target)[:, 0], draft[:, 0])

    @torch.inference_mode()
    def read(self, tokens: Tensor, chunk: int) -> Iterator[tuple[int, PairLogits]]:
        """Read whole texts in chunks.

        Args:
            tokens: [batch, count], padded on the right.
            chunk: tokens of a text in one forward pass.

        Yields:
            The position of the chunk's first token, and the logits [batch, chunk, vocabulary].
        """
        target = self._target.read(self._target_cache, tokens, keep=0, chunk=chunk)
        before = StatesBefore(self._drafter.hidden)
        draft = self._drafter.read(self._draft_cache, tokens, chunk, before)
        for (start, target_logits), (_, draft_logits) in zip(target, draft, strict=True):
            yield start, PairLogits(at_least_float32(target_logits), draft_logits)
