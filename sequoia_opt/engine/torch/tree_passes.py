"""A tree's forward passes over preallocated caches, prepared once and run in every step.

Knows slots, masks and positions: a tree's nodes lie behind the text in the cache, one slot each,
and the mask lets each see its ancestors. Knows nothing of drafting or verifying.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sequoia_opt.engine.sampling import at_least_float32
from sequoia_opt.engine.torch.attention import KVCache, Masks
from sequoia_opt.engine.verify import indices
from sequoia_opt.plan.draft_passes import draft_passes
from sequoia_opt.plan.tree import TokenTree

if TYPE_CHECKING:
    from sequoia_opt.engine.torch.runner import Runner


class TorchTreePass:
    """One forward pass over all nodes of a tree; see `TreePass`.

    Node v lies in the slot `length + v`.
    """

    def __init__(self, runner: Runner, tree: TokenTree) -> None:
        self._runner, self._size = runner, tree.size
        depths = tree.depths.tolist()
        self._mask = runner.mask_table(tree.ancestor_mask, depths, depths)
        self._nodes = torch.arange(tree.size, device=runner.device)
        self._depths = indices(depths, runner.device)
        self._paths = _Paths.of(tree, {node: node for node in range(tree.size)}, runner.device)

    def score(self, cache: KVCache, tokens: Tensor, length: Tensor, bound: int) -> Tensor:
        """See `TreePass`."""
        [masks] = self._mask.masks(self._runner.places(cache, length, bound + self._size))
        logits = self._runner.forward(
            cache,
            tokens[None],
            (length + self._depths)[None],
            length + self._nodes,
            masks,
            keep=0,
        )[0]
        return at_least_float32(logits)

    def accept(self, cache: KVCache, length: Tensor, last: Tensor) -> None:
        """See `TreePass`."""
        self._paths.move(cache, length, last)


class Level(NamedTuple):
    """One level's forward pass in one step."""

    positions: Tensor
    slots: Tensor
    masks: Masks
    keep: int


class TorchLevelPasses:
    """Forward passes over the internal nodes, level by level; see `LevelPasses`.

    Internal nodes lie behind the text in breadth-first order, one slot each. The token before the
    root goes to its own slot again, which the cache may lack.
    """

    def __init__(self, runner: Runner, tree: TokenTree) -> None:
        self._runner = runner
        device = runner.device
        internal = [node for nodes in tree.internal_levels for node in nodes]
        slot = {node: i for i, node in enumerate(internal)}
        self._size = len(internal)
        self._keep = [1 if len(nodes) == 1 else 0 for nodes in tree.internal_levels]
        self._widths = list(draft_passes(tree))
        depths = tree.depths[internal].tolist()
        query_depths = [-1, *depths]  # the root's pass takes the token before it along
        attends = tree.ancestor_mask[np.ix_(internal, internal)]
        attends = np.vstack([np.zeros_like(attends[:1]), attends])
        self._mask = runner.mask_table(attends, query_depths, depths, self._widths)
        self._depths = indices(query_depths, device)
        self._slots = torch.arange(-1, len(internal), device=device)
        self._paths = _Paths.of(tree, slot, device)

    def begin(self, cache: KVCache, length: Tensor, bound: int) -> list[Level]:
        """See `LevelPasses`."""
        columns = self._runner.places(cache, length, bound + self._size)
        return [
            Level(*parts)
            for parts in zip(
                (length + self._depths).split(self._widths),
                (length + self._slots).split(self._widths),
                self._mask.masks(columns),
                self._keep,
                strict=True,
            )
        ]

    def run(self, cache: KVCache, level: Level, tokens: Tensor, keep: bool = True) -> Tensor:
        """See `LevelPasses`."""
        return self._runner.forward(
            cache, tokens[None], level.positions[None], level.slots, level.masks, level.keep
        )[0]

    def accept(self, cache: KVCache, length: Tensor, last: Tensor) -> None:
        """See `LevelPasses`."""
        self._paths.move(cache, length, last)


def chain_pass(
    runner: Runner, cache: KVCache, context: int, count: int, bound: int
) -> Callable[[], object]:
    """A forward pass over `count` tokens in a row, to be repeated; see `Model.pass_to_time`."""
    order = list(range(count))
    table = runner.mask_table(np.tri(count, dtype=np.bool_), order, order)
    length = torch.tensor([context], device=runner.device)
    offsets = torch.arange(count, device=runner.device)
    tokens = torch.zeros(cache.batch, count, dtype=torch.long, device=runner.device)

    def run() -> object:
        [masks] = table.masks(runner.places(cache, length, bound + count))
        slots = length + offsets
        return runner.forward(cache, tokens, slots[None], slots, masks, 0)

    return run


class _Paths:
    """Where the keys and values of each node's path lie, and where they go if it is accepted.

    Attributes:
        sources: [size, depth], slots of the path to each node, relative to the root's. A node
            that has no slot, and what is behind the path, are moved onto themselves.
        destinations: [depth], the slots that they go to.
    """

    def __init__(
        self, sources: list[list[int]], destinations: list[int], device: torch.device
    ) -> None:
        self.sources, self.destinations = indices(sources, device), indices(destinations, device)
        self._in_place = all(path == destinations for path in sources)  # as a chain's are

    @classmethod
    def of(cls, tree: TokenTree, slot: dict[int, int], device: torch.device) -> _Paths:
        """The paths of a tree.

        Args:
            slot: of each node that has one, relative to the root's.
        """
        destinations = list(range(1, tree.depth + 1))
        sources = []
        for node in range(tree.size):
            path = np.flatnonzero(tree.ancestor_mask[node])[1:].tolist()
            moved = [slot.get(v, end) for v, end in zip(path, destinations, strict=False)]
            sources.append(moved + destinations[len(path) :])
        return cls(sources, destinations, device)

    def move(self, cache: KVCache, length: Tensor, last: Tensor) -> None:
        """Move the path to the node `last` [1] to the end of the text."""
        if self._in_place:
            return
        cache.move(length + self.sources.index_select(0, last)[0], length + self.destinations)
