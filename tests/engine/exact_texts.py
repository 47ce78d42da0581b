"""The exact distribution of a model's next tokens, by transformers alone, and samples against it.

A sample is compared with exact chances rather than with another sample, whose noise would come on
top: half as many texts tell as much.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import chisquare
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

LEAST_EXPECTED = 5  # texts of a cell; rarer tokens share one
SURPRISE = 1e-3  # probability of a sample so far off, or farther


class Next(NamedTuple):
    """A new token's distribution, given that the new text before it is one of some.

    Attributes:
        before: these texts.
        chances: [vocabulary].
    """

    before: set[tuple[int, ...]]
    chances: np.ndarray


def exact_chances(
    folder: Path,
    prompt: Sequence[int],
    count: int,
    temperature: float,
    top_p: float = 1.0,
    least: float = 0.0,
    process: Callable[[Tensor, Tensor], Tensor] = lambda texts, logits: logits,
) -> list[Next]:
    """The distributions of the next `count` tokens.

    Args:
        least: leave out texts of a smaller probability, of which a large vocabulary has too many.
        process: processes logits [texts, vocabulary] behind texts [texts, length].
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    texts, weights = torch.tensor([list(prompt)]), torch.ones(1, dtype=torch.float64)
    warpers = [TemperatureLogitsWarper(temperature)]
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    distributions = []
    for _ in range(count):
        with torch.no_grad():
            logits = process(texts, model(texts, use_cache=False).logits[:, -1])
        for warper in warpers:
            logits = warper(texts, logits)
        joint = weights[:, None] * logits.softmax(dim=-1)
        before = {tuple(text) for text in texts[:, len(prompt) :].tolist()}
        distributions.append(Next(before, (joint.sum(dim=0) / weights.sum()).numpy()))
        rows, tokens = (joint > least).nonzero(as_tuple=True)
        texts, weights = torch.cat([texts[rows], tokens[:, None]], dim=1), joint[rows, tokens]
    return distributions


def follows(texts: Sequence[Sequence[int]], distributions: Sequence[Next]) -> bool:
    """Whether sampled tokens have these chances: by chi-square, at each position."""
    for position, (before, chances) in enumerate(distributions):
        tokens = [text[position] for text in texts if tuple(text[:position]) in before]
        counts = np.bincount(tokens, minlength=len(chances))
        expected = len(tokens) * chances
        if counts[expected == 0].any():
            return False
        often = expected >= LEAST_EXPECTED
        cells = [np.append(of[often], of[~often].sum()) for of in (counts, expected)]
        if expected[~often].sum() == 0:
            cells = [of[:-1] for of in cells]
        if len(cells[0]) > 1 and chisquare(*cells).pvalue < SURPRISE:
            return False
    return True
