"""A model's compiled forward pass that ends with the likeliest next tokens.

A tree that grows is decided about by a few probabilities. Found within the compiled graph, while
the logits are in the processor's cache, they take less time than the host takes to look for them
afterwards. Knows nothing of trees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from sequoia_opt.engine.sampling import at_least_float32
from sequoia_opt.engine.torch.attention import Attend, KVCache, Masks
from sequoia_opt.engine.torch.compile import check_compiled, compiled_as_one, compiled_output

if TYPE_CHECKING:
    from sequoia_opt.engine.torch.runner import Runner

RANKS = 4
"""As many are found, whatever a plan asks for: one graph serves all plans."""


class LikelyTokens(NamedTuple):
    """The likeliest next tokens, in order.

    Attributes:
        probabilities, tokens: [rows, RANKS].
    """

    probabilities: Tensor
    tokens: Tensor


LikeliestForward = Callable[[Tensor, Tensor, Tensor, Masks, KVCache], LikelyTokens]
"""Tokens [1, tokens], positions [1, tokens], slots [tokens], masks and cache -> likely tokens."""


def compiled_likeliest(model: Any, last_position: int, fewest: Sequence[int]) -> LikeliestForward:
    """The model's forward pass over one text; see `compile.compiled`."""

    def forward(
        tokens: Tensor, positions: Tensor, slots: Tensor, masks: Masks, cache: KVCache
    ) -> tuple[Tensor, ...]:
        output = model(
            input_ids=tokens,
            position_ids=positions.clamp(max=last_position),
            **Attend(cache, slots, masks).arguments(),
        )
        return tuple(likely_tokens(output.logits[0]))

    graphs = compiled_as_one(forward, fewest)
    return lambda *arguments: LikelyTokens(*graphs(*arguments))


def likely_tokens(logits: Tensor) -> LikelyTokens:
    """The `RANKS` likeliest tokens after each row of logits [rows, vocabulary].

    One pass over the vocabulary for each rank: what is found is left out of the next one, without
    a copy of the logits.
    """
    rest = at_least_float32(logits)
    numbers = torch.arange(rest.shape[-1], device=rest.device)
    highest = rest.amax(dim=-1, keepdim=True)
    total = (rest - highest).exp().sum(dim=-1, keepdim=True)
    values, tokens = [], []
    for _ in range(RANKS):
        values.append(rest.amax(dim=-1, keepdim=True))
        tokens.append(rest.argmax(dim=-1, keepdim=True))
        rest = torch.where(numbers == tokens[-1], -torch.inf, rest)
    probabilities = (torch.cat(values, dim=-1) - highest).exp() / total
    return LikelyTokens(probabilities, torch.cat(tokens, dim=-1))


def compile_likeliest(runner: Runner, cache: KVCache, length: int) -> LikeliestForward:
    """Compile it for each kind of number of tokens, and compare with the eager logits.

    Args:
        cache: of one text, of which it holds `length` tokens.

    Raises:
        SequoiaError: it cannot be compiled, or computes something else.
    """
    forward = compiled_likeliest(runner.model, runner.positions - 1, runner.graph_sizes)
    for count in runner.graph_sizes:
        likely, logits = compiled_output(runner, forward, cache, count, length)
        expected = likely_tokens(logits[0])
        found, wanted = likely.probabilities[-1], expected.probabilities[-1]
        check_compiled(runner.name, runner.dtype, found, wanted)
    return forward
