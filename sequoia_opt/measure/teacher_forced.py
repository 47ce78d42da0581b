"""Samples acceptance along the dataset's own text: one pass of the models serves all verifiers.

Knows texts, batches and chunks. Knows nothing of datasets or files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch

from sequoia_opt.engine.pair import Pair
from sequoia_opt.measure.pair_reader import PairLogits, PairReader
from sequoia_opt.measure.sample_texts import SampleText
from sequoia_opt.measure.trials import Sampler, outcomes, positions_to_try

MAX_CHUNK = 512  # tokens of a text in one forward pass
LOGITS_BUDGET = 2**24
"""Logits of one model held at once: 64 MB in float32."""

CPU_TRIAL_LOGITS = 2**19
"""Logits of one trial on a CPU: a trial passes over them many times, so they stay in its cache."""


def sample_teacher_forced(
    pair: Pair, samplers: Sequence[Sampler], texts: Sequence[SampleText], width: int
) -> Iterator[int]:
    """Read a batch of texts, verifying every position behind the prompts at full width.

    Args:
        samplers: verifiers, each with the tallies of these texts, which are added to. The
            samples of one do not depend on the others.
        width: ranks to offer, W.

    Yields:
        The number of tokens sampled since the last one.
    """
    rows = [text.prompt + text.text for text in texts]
    longest = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=pair.device)
    chunk = max(1, min(MAX_CHUNK, LOGITS_BUDGET // (len(texts) * pair.target.vocabulary)))
    with PairReader(pair, batch=len(texts), capacity=longest) as reader:
        for start, logits in reader.read(tokens, chunk):
            positions = _sampled_positions(texts, start, logits.target.shape[1])
            if positions:
                _tally_chunk(samplers, logits, positions, start, width)
                yield len(positions)


def _sampled_positions(
    texts: Sequence[SampleText], start: int, count: int
) -> list[tuple[int, int]]:
    """Positions of a chunk whose next token belongs to a text's sampled part.

    Args:
        start: position of the chunk's first token.
        count: tokens of the chunk.

    Returns:
        For each: the text's number, and the position in the chunk. Sorted.
    """
    return [
        (number, offset)
        for number, text in enumerate(texts)
        for offset in range(count)
        if 0 <= start + offset + 1 - len(text.prompt) < len(text.text)
    ]


def _tally_chunk(
    samplers: Sequence[Sampler],
    logits: PairLogits,
    positions: Sequence[tuple[int, int]],
    start: int,
    width: int,
) -> None:
    """Verify positions of a chunk with every verifier, in blocks of bounded memory.

    Args:
        logits: [texts, chunk, vocabulary].
        positions: see `_sampled_positions`.
        start: position of the chunk's first token.
    """
    device = logits.target.device
    numbers, offsets = (
        torch.tensor(column, device=device) for column in zip(*positions, strict=True)
    )
    budget = CPU_TRIAL_LOGITS if device.type == "cpu" else LOGITS_BUDGET
    size = max(1, budget // logits.target.shape[2])
    for first in range(0, len(positions), size):
        block = slice(first, first + size)
        selected = numbers[block], offsets[block]
        chosen = PairLogits(logits.target[selected], logits.draft[selected])
        to_try = positions_to_try(chosen, width)
        # The same seed for every verifier, whatever the others draw.
        seed = int(torch.randint(2**62, ()))
        for sampler in samplers:
            torch.manual_seed(seed)
            probabilities, ranks = outcomes(sampler.verifier.trial(to_try))
            for number, part in _runs([number for number, _ in positions[block]]):
                contexts = [start + offset for _, offset in positions[block][part]]
                sampler.tallies[number].record(probabilities[part], ranks[part], contexts)
        torch.manual_seed(seed + 1)


def _runs(values: Sequence[int]) -> Iterator[tuple[int, slice]]:
    """Each run of equal values, and the slice that it takes up."""
    start = 0
    for value, run in groupby(values):
        end = start + len(list(run))
        yield value, slice(start, end)
        start = end
