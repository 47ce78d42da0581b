"""Where two greedy decodings of a prompt part, and how close the target's logits are there.

Knows prompts, tokens and the target's forward pass. Knows nothing of trees or times.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sequoia_opt.engine.logits_processors import LogitsOptions
from sequoia_opt.engine.model import reserved
from sequoia_opt.engine.pair import Pair


@dataclass(frozen=True)
class Divergence:
    """Where two greedy decodings part.

    Attributes:
        place: index of the first new token that differs.
        gap: difference between the two logits in question at that token, see the functions below.
    """

    place: int
    gap: float


@torch.inference_mode()
def divergence(
    pair: Pair,
    prompt: list[int],
    first: list[int],
    second: list[int],
    logits_options: LogitsOptions | None = None,
) -> Divergence | None:
    """Find where two greedy decodings of a prompt part.

    In float32 and below, two forward passes of different widths round differently, so they may
    part where the target's two best logits are closer than that rounding.

    Args:
        logits_options: logits processors that both decodings used.

    Returns:
        The first differing token and the gap between the target's two best logits there; None if
        the decodings agree.
    """
    differing = [i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b]
    if not differing:
        return None
    tokens = torch.tensor([[*prompt, *first[: differing[0]]]], device=pair.device)
    with reserved(pair.target, tokens.shape[1]) as cache:
        logits = pair.target.prefill(cache, tokens)[:1].double()
    if logits_options is not None and logits_options.change_anything:
        prepared = logits_options.processor(pair.device, pair.target.vocabulary)
        new = tokens[0, len(prompt) :]
        logits = prepared.apply(
            logits, prepared.seen(tokens[0]), prepared.counts(new), len(new) == 0
        )
    best = logits[0].topk(2).values
    return Divergence(differing[0], float(best[0] - best[1]))


@torch.inference_mode()
def library_divergence(
    pair: Pair, prompt: list[int], tokens: list[int], logits_options: LogitsOptions | None = None
) -> Divergence | None:
    """Find where the library's own forward pass prefers another token than a greedy decoding has.

    One forward pass over the whole text runs the target as transformers or llama.cpp does without
    this program, so it shares nothing with this program's forward passes but the weights.

    Args:
        tokens: the new tokens of the greedy decoding.
        logits_options: logits processors that the decoding used.

    Returns:
        The first such token and how far the library's best logit is above the decoded token's;
        None if there is no such token.
    """
    logits = pair.library.text_logits([*prompt, *tokens[:-1]], keep=len(tokens))
    if logits_options is not None and logits_options.change_anything:
        logits = _processed(logits, logits_options, prompt, tokens)
    decoded = torch.tensor(tokens, device=pair.device)
    gaps = logits.amax(dim=-1) - logits.gather(1, decoded[:, None])[:, 0]
    differing = gaps.gt(0).nonzero()
    if not len(differing):
        return None
    first = int(differing[0])
    return Divergence(first, float(gaps[first]))


def _processed(
    logits: Tensor, logits_options: LogitsOptions, prompt: list[int], tokens: list[int]
) -> Tensor:
    """Apply the logits processors to the logits [tokens, vocabulary] before each new token."""
    device = logits.device
    prepared = logits_options.processor(device, logits.shape[1])
    rows = []
    for index, row in enumerate(logits.split(1)):
        new = torch.tensor(tokens[:index], dtype=torch.long, device=device)
        seen = prepared.seen(torch.tensor([*prompt, *tokens[:index]], device=device))
        rows.append(prepared.apply(row, seen, prepared.counts(new), first=index == 0))
    return torch.cat(rows)
