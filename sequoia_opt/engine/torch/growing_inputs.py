"""The inputs of forward passes over a tree that grows: slots, masks and positions.

They follow from each node's parent as the nodes come. Knows nothing of what the passes compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sequoia_opt.engine.torch.attention import KVCache, LayerShape, Masks
from sequoia_opt.errors import SequoiaError


class PassInputs(NamedTuple):
    """What a forward pass over new nodes takes.

    Attributes:
        tokens, positions: [1, nodes].
        slots: [nodes].
        masks: what the nodes attend to.
    """

    tokens: Tensor
    positions: Tensor
    slots: Tensor
    masks: Masks

    @classmethod
    def of(cls, numbers: np.ndarray, masks: dict[int | None, np.ndarray]) -> PassInputs:
        """Inputs in the host's memory.

        Args:
            numbers: [3, nodes], tokens, positions and slots.
        """
        # Arrays are cut and shaped in less time than tensors.
        return cls(
            torch.from_numpy(numbers[:1]),
            torch.from_numpy(numbers[1:2]),
            torch.from_numpy(numbers[2]),
            {window: torch.from_numpy(mask) for window, mask in masks.items()},
        )

    def on(self, device: torch.device, dtype: torch.dtype) -> PassInputs:
        """A copy on a device, with masks of this dtype."""
        return PassInputs(
            self.tokens.to(device, copy=True),
            self.positions.to(device, copy=True),
            self.slots.to(device, copy=True),
            {window: mask.to(device, dtype, copy=True) for window, mask in self.masks.items()},
        )

    def copy_(self, other: PassInputs) -> None:
        """Take over the values of inputs of the same sizes."""
        self.tokens.copy_(other.tokens)
        self.positions.copy_(other.positions)
        self.slots.copy_(other.slots)
        for window, mask in self.masks.items():
            mask.copy_(other.masks[window])


class GrowingInputs:
    """The nodes of one step's tree, as they come. Node v lies in the slot `length + v`."""

    def __init__(
        self,
        layers: Sequence[LayerShape],
        dtype: torch.dtype,
        device: torch.device,
        nodes: int,
        same_slots: bool = False,
    ) -> None:
        """Prepare steps.

        Args:
            layers: the model's, see `LayerShape`.
            dtype: of the masks.
            nodes: the most nodes of a step.
            same_slots: whether all passes of a step read the slots of as many nodes.
        """
        self.nodes, self._same_slots = nodes, same_slots
        self._dtype, self._device = dtype, device
        # Numpy knows no bfloat16; its smallest number is one of float32's, too.
        number = np.float64 if dtype == torch.float64 else np.float32
        self._blocked = number(torch.finfo(dtype).min)
        # Whether passes take arrays of the host as they are.
        self._on_host = device.type == "cpu" and number(0).dtype.name in str(dtype)
        self._masks = np.empty((nodes, 0), number)  # of each node: 0 for a slot that it sees
        self._visible = 0  # slots that every node sees in there, the text's
        self._rows = self._masks  # the part of the masks that is the nodes' slots
        self._depths: list[int] = []
        self._windows = {layer.window for layer in layers}
        self._groups = layers[0].groups
        self._length = self._bound = 0

    @property
    def count(self) -> int:
        """Nodes of the step so far."""
        return len(self._depths)

    def begin(self, cache: KVCache, length: int, bound: int) -> None:
        """See `GrowingPasses`."""
        self._cache, self._length, self._bound, self._depths = cache, length, bound, []
        if self._masks.shape[1] < cache.capacity:
            self._masks = np.full((self.nodes, cache.capacity), self._blocked)
            self._visible = 0
        # The last step's nodes, and what it saw of a longer text, are not visible any more.
        seen = max(self._visible + self.nodes, length)
        self._masks[:, self._visible : length] = 0
        self._masks[:, length:seen] = self._blocked
        self._visible = length
        self._rows = self._masks[:, length : length + self.nodes]

    def add(self, tokens: Sequence[int], parents: Sequence[int]) -> PassInputs:
        """Add nodes to the tree.

        Args:
            tokens, parents: see `GrowingPasses.run`.

        Returns:
            The inputs, on the host, of a pass over them.

        Raises:
            SequoiaError: the step has more nodes than were prepared.
        """
        self._append(parents)
        length, count, new = self._length, len(self._depths), len(tokens)
        first = count - new
        # One recording serves all steps of a bucket.
        used = self._bound + (self.nodes if self._same_slots else count)
        used = self._cache.read_count(used)
        positions = [length + depth for depth in self._depths[first:]]
        numbers = np.array([tokens, positions, range(length + first, length + count)], np.int64)
        seen = self._masks[first:count, :used]
        if self._groups > 1:
            seen = np.concatenate([seen] * self._groups)
        masks = {}
        for window in self._windows:
            mask = seen if window is None else self._windowed(seen, numbers[1], window)
            masks[window] = np.ascontiguousarray(mask).reshape(1, 1, -1, used)
        return PassInputs.of(numbers, masks)

    def ready(self, tokens: Sequence[int], parents: Sequence[int]) -> PassInputs:
        """What `add` returns, where a forward pass takes it."""
        inputs = self.add(tokens, parents)
        return inputs if self._on_host else inputs.on(self._device, self._dtype)

    def path_slots(self, path: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        """The slots of an accepted path, and those that it moves to; None if it stays.

        Args:
            path: see `GrowingPasses.accept`.
        """
        length = self._length
        moved = [(length + node, length + i) for i, node in enumerate(path) if node != i]
        if not moved:
            return None
        sources, destinations = torch.tensor(moved, device=self._device).T
        return sources, destinations

    def _append(self, parents: Sequence[int]) -> None:
        """Add nodes to the masks."""
        depths, rows = self._depths, self._rows
        count = len(depths) + len(parents)
        if count > self.nodes:
            raise SequoiaError(f"tree: found {count} nodes in a step, prepared for {self.nodes}")
        for node, parent in enumerate(parents, start=len(depths)):
            depths.append(0 if parent < 0 else depths[parent] + 1)
            if parent >= 0:
                rows[node] = rows[parent]
            rows[node, node] = 0

    def _windowed(self, mask: np.ndarray, positions: np.ndarray, window: int) -> np.ndarray:
        """A mask [groups * nodes, slots] without what lies too far before these positions."""
        first, last = self._length, self._length + len(self._depths)
        slots = np.arange(mask.shape[-1])  # positions of the slots
        slots[first:last] = [first + depth for depth in self._depths]
        too_far = np.tile(positions, self._groups)[:, None] - slots >= window
        return np.where(too_far, self._blocked, mask)
