"""Turns logits into probabilities, and draws from them with uniforms that the caller provides.

Knows warping (temperature, top-k, top-p, min-p) and how to draw with and without replacement.
Knows nothing of trees.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

FEW = 8  # largest numbers that are looked for one by one on a CPU
SORTED = 4096  # tokens of a vocabulary that is sorted as a whole
LOW = 0.2  # below this temperature the logits are shifted before the division


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """Logits divided by a temperature, without overflow at very low ones."""
    if temperature == 1:
        return logits
    if temperature < LOW:  # the largest becomes 0, so none overflows
        logits = logits - logits.amax(dim=-1, keepdim=True)
    return logits / temperature


class Cuts(NamedTuple):
    """Which tokens of a distribution are dropped.

    Attributes:
        top_p: in (0, 1], the mass of the most likely tokens that are kept.
        top_k: how many of the most likely tokens are kept; 0 for all.
        min_p: in [0, 1], the least probability of a token, as a share of the most likely one's.
    """

    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0


def warp(
    logits: Tensor, temperature: float, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0
) -> Tensor:
    """Probabilities [..., vocabulary] of the logits, warped as in transformers' `generate`.

    In its order: temperature first. Then top-k keeps the `top_k` most likely tokens, and those
    exactly as likely as the last of them. Then top-p drops the least likely tokens with a joint
    mass of at most 1 - top_p, but never the most likely one. Then min-p drops tokens of less than
    `min_p` times the largest probability.

    Args:
        logits: [..., vocabulary].
        temperature: above 0.
        top_p, top_k, min_p: see `Cuts`.
    """
    scaled = tempered(logits, temperature)
    if 0 < top_k < scaled.shape[-1]:
        least = scaled.topk(top_k, dim=-1).values[..., -1:]
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    if top_p < 1.0:
        is_kept = nucleus(scaled.softmax(dim=-1), top_p)
        scaled = scaled.masked_fill(~is_kept, -torch.inf)
    probabilities = scaled.softmax(dim=-1)
    if min_p > 0:
        least = min_p * probabilities.amax(dim=-1, keepdim=True)
        scaled = scaled.masked_fill(probabilities < least, -torch.inf)
        probabilities = scaled.softmax(dim=-1)
    return probabilities


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Whether top-p keeps a token, [..., vocabulary]; see `warp`.

    On a CPU, sorting a large vocabulary takes 6 to 20 ms. But tokens less probable than
    (1 - top_p) / vocabulary are always dropped, since all of them together have less than
    1 - top_p; mostly some hundred are left to be sorted. Which of several equally likely tokens
    is dropped first is arbitrary.

    Args:
        probabilities: [..., vocabulary].
        top_p: in (0, 1).
    """
    vocabulary = probabilities.shape[-1]
    if vocabulary <= SORTED or not _in_numpy(probabilities):
        ascending, order = probabilities.sort(dim=-1)
        dropped = ascending.cumsum(dim=-1) <= 1 - top_p
        dropped[..., -1] = False
        return torch.zeros_like(dropped).scatter(-1, order, ~dropped)
    is_kept = np.zeros(probabilities.shape, np.bool_)
    rows = probabilities.numpy().reshape(-1, vocabulary)
    for row, row_kept in zip(rows, is_kept.reshape(-1, vocabulary), strict=True):
        candidates = np.flatnonzero(row >= (1 - top_p) / vocabulary)
        ascending_candidates = candidates[np.argsort(row[candidates], kind="stable")]
        sums = np.add.accumulate(row[ascending_candidates], dtype=np.float64)
        below = np.maximum(1 - sums[-1:], 0)  # the mass of the other tokens
        first = np.searchsorted(sums + below, 1 - top_p, side="right")
        row_kept[ascending_candidates[min(first, len(candidates) - 1) :]] = True
    return torch.from_numpy(is_kept)


def gumbel(uniforms: Tensor) -> Tensor:
    """Standard Gumbel noise made from uniforms in [0, 1), of the same shape.

    The descending order of logits plus this noise is a draw without replacement with the logits'
    probabilities; its first token is an ordinary draw (the Gumbel-top-k trick, arXiv 1903.06059).
    """
    return uniforms.clamp_min(torch.finfo(uniforms.dtype).tiny).log_().neg_().log_().neg_()


def draw(weights: Tensor, uniforms: Tensor) -> Tensor:
    """One draw [...] from weights [..., vocabulary], which need not be normalised.

    Args:
        uniforms: [...], in [0, 1).
    """
    return draw_with_replacement(weights, uniforms[..., None])[..., 0]


def draw_without_replacement(
    logits: Tensor, count: int, noise: Tensor, temperature: float = 1.0
) -> Tensor:
    """The first `count` draws without replacement, in order: [..., count].

    If fewer than `count` tokens have a probability above 0, the others are arbitrary tokens.

    Args:
        noise: see `gumbel`.
        temperature: above 0, of the logits.
    """
    if temperature < LOW:
        return most_likely(tempered(logits, temperature) + noise, count)
    return most_likely(torch.add(noise, logits, alpha=1 / temperature), count)


def largest(logits: Tensor) -> Tensor:
    """The index [...] of the largest of the logits [..., vocabulary]; of several, the first.

    On a CPU numpy finds it twenty times as fast as torch.
    """
    if _in_numpy(logits):
        return torch.from_numpy(np.asarray(logits.numpy().argmax(axis=-1)))
    return logits.argmax(dim=-1)


def most_likely(logits: Tensor, count: int) -> Tensor:
    """The indices [..., count] of the `count` largest logits, in order."""
    if count == 1:
        return largest(logits)[..., None]
    return logits.topk(count, dim=-1).indices


def likeliest(probabilities: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of the probabilities [rows, vocabulary], in order, and their tokens.

    Looking for the largest again and again is several times as fast on a CPU as `topk`, for a few.
    """
    if probabilities.device.type != "cpu" or count > FEW:
        best = probabilities.topk(count, dim=-1)
        return best.values, best.indices
    rows = probabilities.numpy()
    numbers = np.arange(len(rows))
    tokens = np.empty((len(rows), count), np.int64)
    values = np.empty((len(rows), count), rows.dtype)
    for rank in range(count):
        index = rows.argmax(axis=-1)
        tokens[:, rank], values[:, rank] = index, rows[numbers, index]
        rows[numbers, index] = -1  # so that the next one is found
    rows[numbers[:, None], tokens] = values
    return torch.from_numpy(values), torch.from_numpy(tokens)


def draw_with_replacement(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Independent draws [..., count] from weights [..., vocabulary].

    By inversion of the cumulative sum, in float64 so that rounding loses no token's share.

    Args:
        uniforms: [..., count], in [0, 1).
    """
    sums = weights.double().cumsum(dim=-1)
    tokens = torch.searchsorted(sums, uniforms.double() * sums[..., -1:], right=True)
    return tokens.clamp(max=weights.shape[-1] - 1)


def _in_numpy(numbers: Tensor) -> bool:
    """Whether numpy can have these numbers where they stand."""
    return numbers.device.type == "cpu" and numbers.dtype in (torch.float32, torch.float64)


def at_least_float32(logits: Tensor) -> Tensor:
    """Half-precision logits as float32; others unchanged."""
    return logits if logits.dtype == torch.float64 else logits.float()
