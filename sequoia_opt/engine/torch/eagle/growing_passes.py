"""The forward passes of an EAGLE-3 head over a tree that grows while it is drafted.

A step's first pass takes what was committed since the head's last pass, with the target's hidden
states, however many tokens that are. Each later pass takes new nodes, with the outputs of their
parents. What nodes leave in the cache is of no use in the next step; see passes.py.

Knows slots, masks and positions. Knows nothing of drafting or verifying.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sequoia_opt.engine.model import Likeliest
from sequoia_opt.engine.sampling import at_least_float32
from sequoia_opt.engine.torch.attention import KVCache
from sequoia_opt.engine.torch.growing_inputs import GrowingInputs
from sequoia_opt.engine.verify import likely_guesses

if TYPE_CHECKING:
    from sequoia_opt.engine.torch.eagle.model import EagleModel


class EagleGrowingPasses:
    """See `HeadGrowingPasses`. Each token lies in the slot of the token before it."""

    def __init__(self, model: EagleModel, nodes: int) -> None:
        """Prepare steps of so many nodes at most, the committed tokens included."""
        self._model = model
        self._tree = GrowingInputs(model.layers, model.dtype, model.device, nodes)
        self._before: Tensor | None = None
        self._outputs: Tensor | None = None  # of the step's nodes so far, [nodes, hidden size]

    def begin(self, cache: KVCache, length: int, bound: int) -> None:
        """See `GrowingPasses`."""
        self._cache, self._before, self._outputs = cache, None, None
        self._tree.begin(cache, length - 1, bound)

    def take_states(self, before: Tensor) -> None:
        """See `HeadGrowingPasses`."""
        self._before = before

    def run(self, tokens: Sequence[int], parents: Sequence[int], rows: int) -> Tensor:
        """See `GrowingPasses`.

        Raises:
            SequoiaError: the step has more nodes than were prepared.
        """
        model, cache = self._model, self._cache
        inputs = self._tree.ready(tokens, parents)
        if self._outputs is None:
            assert self._before is not None
            features, outputs = model.head.project(self._before), []
        else:
            above = torch.tensor(parents, device=model.device)
            features, outputs = self._outputs.index_select(0, above), [self._outputs]
        logits, new = model.forward(
            cache, inputs.tokens, features[None], inputs.positions, inputs.slots, inputs.masks
        )
        self._outputs = torch.cat([*outputs, new[0]])
        return at_least_float32(logits[0, -rows:])

    def likeliest(
        self, tokens: Sequence[int], parents: Sequence[int], rows: int, ranks: int
    ) -> Likeliest:
        """See `GrowingPasses`."""
        return Likeliest(*likely_guesses(self.run(tokens, parents, rows).numpy(), ranks))

    def accept(self, path: Sequence[int]) -> None:
        """See `GrowingPasses`; only what was committed is kept, which lies where it should."""
