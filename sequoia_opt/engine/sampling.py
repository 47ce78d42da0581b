"""Logits to probabilities, and draws from them with uniforms that come from outside.

Knows warping (temperature, top-k, top-p, min-p) and how to draw with and without replacement.
Knows nothing of trees.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LOW = 0.2  # temperatures below it divide what has been made small first


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """Logits at a temperature; no temperature is too low to divide by."""
    if temperature < LOW:  # the largest becomes 0, and others keep their digits
        logits = logits - logits.amax(dim=-1, keepdim=True)
    return logits / temperature


class Cuts(NamedTuple):
    """Which tokens of a distribution are dropped.

    Attributes:
        top_p: in (0, 1], the mass of the most likely tokens that stay.
        top_k: how many of the most likely tokens stay; 0 for all.
        min_p: in [0, 1], a token's least probability, as a share of the most likely one's.
    """

    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0


def warp(
    logits: Tensor, temperature: float, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0
) -> Tensor:
    """Probabilities of the logits, warped as transformers' `generate` does it, in its order.

    Temperature first; then all but the `top_k` most likely tokens are dropped, with those that
    are as likely as the last of them; then the least likely ones whose joint mass is at most
    1 - top_p, the most likely one never; then those of less than `min_p` times the largest
    probability.

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
        ascending, order = scaled.sort(dim=-1)
        dropped = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
        dropped[..., -1] = False
        scaled = scaled.masked_fill(
            torch.zeros_like(dropped).scatter(-1, order, dropped), -torch.inf
        )
    probabilities = scaled.softmax(dim=-1)
    if min_p > 0:
        least = min_p * probabilities.amax(dim=-1, keepdim=True)
        scaled = scaled.masked_fill(probabilities < least, -torch.inf)
        probabilities = scaled.softmax(dim=-1)
    return probabilities


def gumbel(uniforms: Tensor) -> Tensor:
    """Standard Gumbel noise of uniforms in [0, 1), of the same shape.

    Added to logits, its descending order draws without replacement with their probabilities, and
    the first is a plain draw (the Gumbel-top-k trick, arXiv 1903.06059).
    """
    return uniforms.clamp_min(torch.finfo(uniforms.dtype).tiny).log_().neg_().log_().neg_()


def draw(weights: Tensor, uniforms: Tensor) -> Tensor:
    """One draw [...] from weights [..., vocabulary], not necessarily normalised.

    Args:
        uniforms: [...], in [0, 1).
    """
    return draw_with_replacement(weights, uniforms[..., None])[..., 0]


def draw_without_replacement(
    logits: Tensor, count: int, noise: Tensor, temperature: float = 1.0
) -> Tensor:
    """The first `count` draws without replacement, in order: [..., count].

    Where fewer tokens than `count` have any probability the rest are arbitrary tokens of
    probability 0.

    Args:
        noise: see `gumbel`.
        temperature: above 0, of the logits.
    """
    if temperature < LOW:
        return most_likely(tempered(logits, temperature) + noise, count)
    return most_likely(torch.add(noise, logits, alpha=1 / temperature), count)


def most_likely(logits: Tensor, count: int) -> Tensor:
    """The `count` largest [..., count], in order."""
    if count == 1:
        return logits.argmax(dim=-1, keepdim=True)
    return logits.topk(count, dim=-1).indices


def draw_with_replacement(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Independent draws [..., count] from weights [..., vocabulary], by the inverse of their sum.

    Summed in float64, so that no token's share is lost to rounding.

    Args:
        uniforms: [..., count], in [0, 1).
    """
    sums = weights.double().cumsum(dim=-1)
    places = torch.searchsorted(sums, uniforms.double() * sums[..., -1:], right=True)
    return places.clamp(max=weights.shape[-1] - 1)


def at_least_float32(logits: Tensor) -> Tensor:
    """Half-precision logits as float32; others as they are."""
    return logits if logits.dtype == torch.float64 else logits.float()
