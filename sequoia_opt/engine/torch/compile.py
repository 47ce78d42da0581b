"""A model's forward pass, compiled for the few tokens of a step.

On a CPU the whole model becomes one graph, since every call from Python costs time there. On CUDA
a step is recorded and replayed without Python, so layers are compiled one by one: all layers of a
kind share their code, which is generated once.

Either way one graph serves a single token, another any larger number, and two more several texts;
where a few tokens are multiplied in another way (see onednn_linear.py), they have their own graph.
The number of slots that are read, and the cache's capacity, may vary. Knows nothing of trees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from sequoia_opt.engine.torch.agreement import difference
from sequoia_opt.engine.torch.attention import OPAQUE_ATTENTION, Attend, KVCache, Masks
from sequoia_opt.engine.torch.graph_calls import GraphCalls
from sequoia_opt.engine.torch.hidden_states import HiddenStates
from sequoia_opt.engine.torch.layer_weights import decoder_layers
from sequoia_opt.errors import SequoiaError

if TYPE_CHECKING:
    from sequoia_opt.engine.torch.runner import Runner

# A layer is compiled for each kind of layer, number of tokens and batch in a process;
# past torch's own limit of 8 it would quietly stop compiling.
RECOMPILE_LIMIT = 64
# Asserts repeat, in each call, what the guards have checked: 3 to 5% of a small model's forward
# pass.
OPTIONS: dict[str, Any] = {"size_asserts": False, "alignment_asserts": False}

Output = tuple[Tensor, tuple[Tensor, ...]]
"""Logits [batch, tokens, vocabulary], and the hidden states [batch, tokens, hidden size] of the
layers that were asked for."""

Forward = Callable[[Tensor, Tensor, Tensor, Masks, KVCache], Output]
"""Tokens [batch, tokens], positions [1, tokens], slots [tokens], masks and cache -> output."""


def compiled(
    model: Any,
    last_position: int,
    fewest: Sequence[int],
    hidden_layers: tuple[int, ...] = (),
    hidden_states: HiddenStates | None = None,
) -> Forward:
    """The model's forward pass, compiled when it is first called, in inference mode.

    Args:
        last_position: of the model; later ones are cut to it.
        fewest: see `GraphCalls`.
        hidden_layers: whose hidden states it returns, see `Runner.keep_hidden`.
        hidden_states: what collects these; it is collecting them whenever this is called.
    """

    def forward(
        tokens: Tensor, positions: Tensor, slots: Tensor, masks: Masks, cache: KVCache
    ) -> tuple[Tensor, ...]:
        output = model(
            input_ids=tokens,
            position_ids=positions.clamp(max=last_position),
            **Attend(cache, slots, masks).arguments(),
        )
        return output.logits, *_collected(hidden_states, hidden_layers)

    graphs = compiled_as_one(forward, fewest)

    def run(
        tokens: Tensor, positions: Tensor, slots: Tensor, masks: Masks, cache: KVCache
    ) -> Output:
        logits, *states = graphs(tokens, positions, slots, masks, cache)
        return logits, tuple(states)

    return run


def compiled_as_one(
    forward: Callable[..., tuple[Tensor, ...]], fewest: Sequence[int]
) -> GraphCalls:
    """A model's forward pass, each kind of number of tokens as one graph; see `GraphCalls`."""
    return GraphCalls(forward, OPTIONS, _varying, fewest)


def compiled_by_layer(
    model: Any,
    layers: Sequence[nn.Module],
    last_position: int,
    hidden_layers: tuple[int, ...] = (),
    hidden_states: HiddenStates | None = None,
) -> Forward:
    """The model's forward pass with its layers compiled, each when it is first called.

    Attention stays outside of the compiled code: it reads the cache of its own layer, so each
    layer would need code of its own.

    Args:
        layers: of the model; they run eagerly where the model is called in another way.
        last_position, hidden_layers, hidden_states: see `compiled`.
    """
    model.set_attn_implementation(OPAQUE_ATTENTION)
    switches = [_switch_of(layer) for layer in layers]

    def forward(
        tokens: Tensor, positions: Tensor, slots: Tensor, masks: Masks, cache: KVCache
    ) -> Output:
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
        return output.logits, _collected(hidden_states, hidden_layers)

    return forward


def _collected(hidden_states: HiddenStates | None, layers: tuple[int, ...]) -> tuple[Tensor, ...]:
    """The hidden states of these layers, in this order."""
    if hidden_states is None:
        return ()
    return tuple(hidden_states.states[layer] for layer in layers)


class _Switch:
    """A layer's forward method, eager and compiled.

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
        layer.sequoia_switch = self  # type: ignore[assignment]


def _switch_of(layer: nn.Module) -> _Switch:
    """The layer's switch: one, however many forward passes are compiled of its model."""
    switch = getattr(layer, "sequoia_switch", None)
    return switch if isinstance(switch, _Switch) else _Switch(layer)


def _varying(guards: Sequence[Any]) -> Sequence[bool]:
    """Which guards choose a graph at each call: those on the call's own arguments.

    Neither the weights nor the functions that a model is made of ever change; checking each of
    them takes a tenth of a small model's forward pass.
    """
    selected = torch.compiler.skip_guard_on_all_nn_modules_unsafe(guards)
    return [keep and not guard.is_global for keep, guard in zip(selected, guards, strict=True)]


def vary_sizes(
    tokens: Tensor, positions: Tensor, slots: Tensor, masks: Masks, cache: KVCache
) -> None:
    """Let the graph that these arguments compile take any number of slots.

    If they are for more than one token, or text, the graph takes any larger number of these too.
    """
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


def compiled_for_device(
    model: Any,
    last_position: int,
    whole: bool,
    fewest: Sequence[int],
    hidden_layers: tuple[int, ...] = (),
    hidden_states: HiddenStates | None = None,
) -> Forward:
    """The model's forward pass, compiled as one graph or layer by layer; see `compiled`."""
    if whole:
        return compiled(model, last_position, fewest, hidden_layers, hidden_states)
    layers = list(decoder_layers(model)[1])
    return compiled_by_layer(model, layers, last_position, hidden_layers, hidden_states)


def compile_and_check(
    runner: Runner, forward: Forward, cache: KVCache, count: int, length: int
) -> None:
    """Compile a model's forward pass over `count` tokens, and compare its logits with eager ones.

    Args:
        forward: as `compiled_for_device` returns it.
        cache: holds `length` tokens of a text.

    Raises:
        SequoiaError: it cannot be compiled, or computes something else.
    """
    (logits, _), expected = compiled_output(runner, forward, cache, count, length)
    check_compiled(runner.name, runner.dtype, logits[0, -1], expected[0, -1])


def compiled_output(
    runner: Runner, forward: Callable[..., Any], cache: KVCache, count: int, length: int
) -> tuple[Any, Tensor]:
    """What a forward pass over `count` tokens returns once it is compiled, and the eager logits.

    Args:
        forward: takes what `Forward` takes.
        cache: holds `length` tokens of a text.

    Raises:
        SequoiaError: it cannot be compiled.
    """
    place = torch.tensor([length], device=runner.device)
    order = list(range(count))
    table = runner.mask_table(np.tri(count, dtype=np.bool_), order, order)
    offsets = torch.arange(count, device=runner.device)
    masks, wider = (
        table.masks(runner.places(cache, place, used))[0]
        for used in (length + count, cache.capacity - 1)
    )
    tokens = (offsets % runner.vocabulary).repeat(cache.batch, 1)
    arguments = tokens, (place + offsets)[None], place + offsets
    expected, _ = runner.eager(cache, *arguments, masks, keep=0)
    vary_sizes(*arguments, masks, cache)
    try:
        forward(*arguments, masks, cache)
        # The first call of a graph is not as the others, see graph_calls.py.
        return forward(*arguments, wider, cache), expected
    except Exception as error:  # the compiler's own, of many kinds
        # After an empty line it says how to debug the compiler.
        reason = " ".join(str(error).partition("\n\n")[0].split())[:200]
        raise SequoiaError(
            f"{runner.name}: cannot be compiled ({reason}); use --no-compile"
        ) from None


def check_compiled(name: str, dtype: torch.dtype, compiled: Tensor, eager: Tensor) -> None:
    """Compare what a compiled forward pass computes with what the eager one does.

    Args:
        name: of the model.
        dtype: in which it computes.

    Raises:
        SequoiaError: they differ by more than rounding.
    """
    if off := difference(compiled.double(), eager.double(), dtype):
        raise SequoiaError(f"{name}: gives other logits when compiled ({off}); use --no-compile")
