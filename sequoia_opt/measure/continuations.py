"""Samples acceptance along the target's own continuations, as decoding would meet them.

Knows texts, batches and end tokens. Knows nothing of datasets or files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sequoia_opt.engine.pair import Pair
from sequoia_opt.measure.pair_reader import PairReader
from sequoia_opt.measure.sample_texts import SampleText
from sequoia_opt.measure.trials import Sampler, outcomes, positions_to_try
from sequoia_opt.plan.tree import BoolArray


@dataclass
class Continuation:
    """A text that was sampled behind a prompt.

    Attributes:
        ranks: guesses to keep of each trial.
        tokens: the new ones; the first comes from the prompt's forward pass.
        guesses: those of the trial behind each token but the last.
    """

    ranks: int
    tokens: list[int] = field(default_factory=list)
    guesses: list[list[int]] = field(default_factory=list)


def sample_continuations(
    pair: Pair,
    sampler: Sampler,
    texts: Sequence[SampleText],
    width: int,
    continuations: Sequence[Continuation] = (),
) -> Iterator[int]:
    """Continue a batch of prompts, verifying every position once at full width.

    The token that the verification emits becomes the next token of the text. The first new token
    is not tallied: decoding takes it from the prompt's forward pass, and its first step starts
    after it.

    Args:
        sampler: the verifier, and the tallies of these texts, which are added to.
        width: ranks to offer, W.
        continuations: of these texts, to be filled; none if nothing is to be kept.

    Yields:
        The number of tokens sampled since the last one.
    """
    longest = max(len(text.prompt) for text in texts)
    steps = 1 + max(text.new_tokens for text in texts)  # the first new token included
    padding = [longest - len(text.prompt) for text in texts]
    rows = [[0] * count + text.prompt for count, text in zip(padding, texts, strict=True)]
    padding_counts = torch.tensor(padding, device=pair.device)
    with PairReader(pair, batch=len(texts), capacity=longest + steps) as reader:
        logits = reader.prefill(torch.tensor(rows, device=pair.device), padding_counts)
        is_running = np.ones(len(texts), dtype=np.bool_)
        for step in range(steps):
            trial = sampler.verifier.trial(positions_to_try(logits, width))
            tokens = trial.emit()
            _keep(continuations, is_running, tokens, trial.guesses if step else None)
            if step:
                probabilities, ranks = outcomes(trial)
                for i in np.flatnonzero(is_running).tolist():
                    context = len(texts[i].prompt) + step
                    sampler.tallies[i].record(probabilities[i : i + 1], ranks[i : i + 1], [context])
                yield int(is_running.sum())
            is_running &= ~np.isin(tokens.cpu().numpy(), list(pair.end_tokens))
            if not is_running.any() or step + 1 == steps:
                break
            runs = torch.tensor([tally.run for tally in sampler.tallies], device=pair.device)
            logits = reader.extend(tokens, longest + step, padding_counts, runs)


def _keep(
    continuations: Sequence[Continuation],
    is_running: BoolArray,
    tokens: Tensor,
    guesses: Tensor | None,
) -> None:
    """Keep the tokens [texts] of the texts that are running, and their trial's guesses."""
    if not continuations:
        return
    new_tokens = tokens.tolist()
    rows = None if guesses is None else guesses[:, : continuations[0].ranks].tolist()
    for i in np.flatnonzero(is_running).tolist():
        continuations[i].tokens.append(new_tokens[i])
        if rows is not None:
            continuations[i].guesses.append(rows[i])
