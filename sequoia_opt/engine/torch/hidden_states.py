"""Hidden states of chosen layers, collected while a model runs.

transformers' own `output_hidden_states` keeps those of all layers, and cannot be compiled. Knows
decoder layers; nothing of what the states are for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class KeptStates:
    """The hidden states that a model keeps of its last forward pass; see `HiddenStates`.

    Attributes:
        layers: whose states these are, by index.
        states: of each layer, [batch, tokens, hidden size].
        width: of all layers' states side by side.
    """

    def __init__(self, layers: tuple[int, ...] = (), hidden_size: int = 0) -> None:
        self.layers, self.width = layers, len(layers) * hidden_size
        self.states: tuple[Tensor, ...] = ()

    def last(self) -> Tensor:
        """The last forward pass's states, side by side: [batch, tokens, width]."""
        return torch.cat(self.states, dim=-1)


class HiddenStates:
    """Hooks on a model's decoder layers that keep the requested hidden states.

    Attributes:
        states: [batch, tokens, hidden size] by index: 0 for the embeddings, i for the output of
            the i-th layer, before the model's final norm.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.states: dict[int, Tensor] = {}
        self._asked: tuple[int, ...] = ()
        layers[0].register_forward_pre_hook(self._keep_input, with_kwargs=True)
        for number, layer in enumerate(layers, start=1):
            layer.register_forward_hook(self._keeper_of(number))

    @contextmanager
    def collect(self, indices: tuple[int, ...]) -> Iterator[None]:
        """Keep these hidden states of the model's forward passes meanwhile."""
        self._asked = indices
        try:
            yield
        finally:
            self._asked = ()
            self.states.clear()

    def _keep_input(self, _: nn.Module, arguments: Any, options: Any) -> None:
        if 0 in self._asked:
            self.states[0] = arguments[0] if arguments else options["hidden_states"]

    def _keeper_of(self, number: int) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if number in self._asked:
                self.states[number] = output[0] if isinstance(output, tuple) else output

        return hook
