"""A head of few tokens, whose random guesses are often accepted, and prompts for it."""

from __future__ import annotations

import numpy as np

from sequoia_opt.measure.records import Document

VOCABULARY, DRAFT_VOCABULARY = 8, 6


def documents(count: int) -> list[Document]:
    """Prompts of random tokens, the first of a single one."""
    random = np.random.default_rng(1)
    lengths = [1, *range(5, 5 + 3 * count, 3)][:count]
    return [
        Document("", "", tokens=tuple(random.integers(2, VOCABULARY, length).tolist()))
        for length in lengths
    ]
