"""A model's forward pass compiled, for the few tokens of a step.

On a CPU the whole model becomes one graph, since every call from Python costs time there. On CUDA
a step is recorded and replayed without Python, so layers are compiled one by one: all of a kind
share their code, which is made once, however many there are.

Either way one graph serves a single token, another any larger number, and two more several
sequences; the slots that are read and those that there are may be as many as they like. Knows
nothing of trees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sequoia_opt.engine.torch.attention import OPAQUE_ATTENTION, Attend, KVCache, Masks

# Code of one layer for each kind of layer, number of tokens and batch, of all models in a process;
# past torch's own limit of 8 it would quietly stop compiling.
RECOMPILE_LIMIT = 64
# Graphs need not look again, call by call, at what their guards have looked at: 3 to 5 % of a
# small model's forward.
OPTIONS: dict[str, Any] = {"size_asserts": False, "alignment_asserts": False}

Forward = Callable[[Tensor, Tensor, Tensor, Masks, KVCache], Tensor]
"""Tokens [batch, tokens], positions [1, tokens], slots [tokens], masks and buffers -> logits of
all tokens."""


def compiled(model: Any, last_position: int) -> Forward:
    """The model's forward, compiled when it is first called, in inference mode."""

    def forward(
        tokens: Tensor, positions: Tensor, slots: Tensor, masks: Masks, cache: KVCache
    ) -> Tensor:
        output = model(
            input_ids=tokens,
            position_ids=positions.clamp(max=last_position),
            **Attend(cache, slots, masks).arguments(),
        )
        logits: Tensor = output.logits
        return logits

    # Graphs are kept, and their number is limited, by code object: each model has its own.
    forward.__code__ = forward.__code__.replace()
    return torch.compile(forward, fullgraph=True, options=OPTIONS | {"guard_filter_fn": _varying})


def compiled_by_layer(model: Any, layers: Sequence[nn.Module], last_position: int) -> Forward:
    """The model's forward with its layers compiled, each when it is first called.

    Attention stays outside of what is compiled: it reads the buffers of its own layer, which
    would make each layer's code its own.

    Args:
        layers: of the model, which keep running eagerly where the model is called otherwise.
    """
    model.set_attn_implementation(OPAQUE_ATTENTION)
    switches = [_Switch(layer) for layer in layers]

    def forward(
        tokens: Tensor, positions: Tensor, slots: Tensor, masks: Masks, cache: KVCache
    ) -> Tensor:
        for switch in switches:
            switch.compiled = True
        try:
            with torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT):
                output = model(
                    input_ids=tokens,
                    position_ids=positions.clamp(max=last_position),
                    **Attend(cache, slots, masks).arguments(),
                )
        finally:
            for switch in switches:
                switch.compiled = False
        logits: Tensor = output.logits
        return logits

    return forward


class _Switch:
    """A layer's forward as it is and compiled.

    Attributes:
        compiled: which of the two a call runs.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.compiled = False
        eager = layer.forward
        fast = torch.compile(eager, options=OPTIONS)

        def forward(*arguments: Any, **options: Any) -> Any:
            return (fast if self.compiled else eager)(*arguments, **options)

        layer.forward = forward


def _varying(guards: Sequence[Any]) -> Sequence[bool]:
    """What each call looks at to choose its graph: its own arguments. Neither the weights nor the
    functions that a model is made of ever change; looking at each takes a tenth of a small
    model's forward."""
    own = torch.compiler.skip_guard_on_all_nn_modules_unsafe(guards)
    return [keep and not guard.is_global for keep, guard in zip(own, guards, strict=True)]


def vary_sizes(
    tokens: Tensor, positions: Tensor, slots: Tensor, masks: Masks, cache: KVCache
) -> None:
    """Have the graph that these arguments compile take any number of slots, read or there, and
    if they are for more than one token, or sequence, any larger number of these."""
    vary = torch._dynamo.mark_dynamic
    if cache.batch > 1:
        vary(tokens, 0)
    if tokens.shape[1] > 1:
        vary(tokens, 1)
        vary(positions, 1)
        vary(slots, 0)
    for mask in masks.values():
        vary(mask, [2, 3] if tokens.shape[1] > 1 else 3)
    for store in (*cache.keys, *cache.values):
        vary(store, [0, 2] if cache.batch > 1 else 2)
