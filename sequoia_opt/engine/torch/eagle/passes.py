"""The forward passes of an EAGLE-3 head in a step with a tree, prepared once for that tree.

The first pass takes the tokens that the last step committed, with the target's hidden states. It
has room for as many as a step can commit, whatever their number is. Each later pass takes one
level's internal nodes, with the outputs of their parents. What nodes leave in the cache is of no
use in the next step, which reads the accepted ones again with the target's hidden states.

Knows slots, masks and positions, see model.py. Knows nothing of drafting or verifying.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sequoia_opt.engine.drafters.base import Committed
from sequoia_opt.engine.torch.attention import KVCache, Masks, places
from sequoia_opt.engine.verify import indices
from sequoia_opt.plan.tree import TokenTree

if TYPE_CHECKING:
    from sequoia_opt.engine.torch.eagle.model import EagleModel


class EagleLevel(NamedTuple):
    """One level's forward pass in one step.

    Attributes:
        committed: of the first level, what it reads; else None.
        parents: of each node, its parent's row in the pass before.
    """

    positions: Tensor
    slots: Tensor
    masks: Masks
    committed: Committed | None
    parents: Tensor


class EagleLevelPasses:
    """The passes of one head and tree."""

    def __init__(self, model: EagleModel, tree: TokenTree) -> None:
        self._model = model
        device = model.device
        self._outputs: Tensor | None = None  # of the pass before, [its nodes, hidden size]
        most = tree.depth + 1
        order = list(range(most))
        self._reads = model.mask_table(np.tri(most, dtype=np.bool_), order)
        self._offsets = torch.arange(most, device=device)
        levels = tree.internal_levels
        self._parents = [
            indices([levels[depth - 1].index(int(tree.parents[node])) for node in nodes], device)
            for depth, nodes in enumerate(levels)
            if depth
        ]
        nodes = [node for level in levels[1:] for node in level]
        self._widths = [len(level) for level in levels[1:]]
        self._depths = indices(tree.depths[nodes], device)
        self._nodes = torch.arange(len(nodes), device=device)
        self._used = max(most, len(nodes))
        attends = tree.ancestor_mask[np.ix_(nodes, nodes)]
        self._table = None
        if nodes:
            depths = tree.depths[nodes].tolist()
            self._table = model.mask_table(attends, depths, self._widths)

    def begin(
        self, cache: KVCache, length: Tensor, bound: int, committed: Committed
    ) -> list[EagleLevel]:
        """What each level's pass needs in this step.

        Args:
            length: [1], tokens in the target's cache; the root's slot is the last one before.
            bound: at least `length`, known without asking the device.
            committed: what the last step committed; the root is the last of it.
        """
        slots = cache.read_slots(bound + self._used)
        start = length - committed.counted
        [masks] = self._reads.masks(places(start, slots))
        read = start + self._offsets
        passes = [EagleLevel(read, read, masks, committed, committed.counted - 1)]
        if self._table is None:
            return passes
        later = zip(
            (length - 1 + self._depths).split(self._widths),
            (length + self._nodes).split(self._widths),
            self._table.masks(places(length, slots)),
            self._parents,
            strict=True,
        )
        return passes + [
            EagleLevel(positions, node_slots, node_masks, None, parents)
            for positions, node_slots, node_masks, parents in later
        ]

    def run(self, cache: KVCache, level: EagleLevel, tokens: Tensor, keep: bool = True) -> Tensor:
        """Logits [nodes, head's vocabulary] at one level's internal nodes.

        Args:
            tokens: of the level's internal nodes; of the first, those that were committed.
            keep: see `LevelPasses`; they are always kept.
        """
        model = self._model
        where = level.positions[None], level.slots, level.masks
        if level.committed is not None:
            features = model.head.project(level.committed.states[None])
            logits, outputs = model.forward(cache, tokens[None], features, *where)
            self._outputs = outputs[0].index_select(0, level.parents)  # the root's
            return logits[0].index_select(0, level.parents)
        assert self._outputs is not None
        features = self._outputs.index_select(0, level.parents)
        logits, outputs = model.forward(cache, tokens[None], features[None], *where)
        self._outputs = outputs[0]
        return logits[0]
