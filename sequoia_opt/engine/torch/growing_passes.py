"""Forward passes over a tree that grows while it is drafted.

Knows slots, masks and positions, which follow from each node's parent as the nodes come. Knows
nothing of drafting or verifying.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sequoia_opt.engine.sampling import at_least_float32
from sequoia_opt.engine.torch.attention import KVCache, Masks
from sequoia_opt.errors import SequoiaError

if TYPE_CHECKING:
    from sequoia_opt.engine.torch.runner import Runner

Record = Callable[[Callable[[], object], torch.device], Callable[[], object]]
"""Records work on tensors that stay where they are; returns what repeats it."""


class _Inputs(NamedTuple):
    """What a forward pass over new nodes takes.

    Attributes:
        numbers: [3, nodes], their tokens, positions and slots.
        masks: what they attend to.
    """

    numbers: Tensor
    masks: Masks

    def on(self, device: torch.device, dtype: torch.dtype) -> _Inputs:
        """The same on a device, with masks of this dtype."""
        masks = {window: mask.to(device, dtype) for window, mask in self.masks.items()}
        return _Inputs(self.numbers.to(device), masks)

    def copy_(self, other: _Inputs) -> None:
        """Take over the values of inputs of the same sizes."""
        self.numbers.copy_(other.numbers)
        for window, mask in self.masks.items():
            mask.copy_(other.masks[window])


class _Recordings:
    """The recorded passes over one cache.

    Attributes:
        logits: [nodes, vocabulary], where all of them leave their logits.
        passes: inputs and replay, by the numbers of nodes, of slots that are read, and of rows.
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self.passes: dict[tuple[int, int, int], tuple[_Inputs, Callable[[], object]]] = {}


class TorchGrowingPasses:
    """See `GrowingPasses`. Node v lies in the slot `length + v`."""

    def __init__(self, runner: Runner, nodes: int, record: Record | None = None) -> None:
        """Prepare steps.

        Args:
            nodes: the most nodes of a step.
            record: records a pass, once for each cache, number of nodes and bound; by default
                passes are not recorded.
        """
        self._runner, self._record = runner, record
        # Numpy knows no bfloat16; its smallest number is one of float32's, too.
        number = np.float64 if runner.dtype == torch.float64 else np.float32
        self._blocked = number(torch.finfo(runner.dtype).min)
        self._mask_rows = np.full((nodes, nodes), self._blocked)  # 0 where a node sees another
        self._depths = np.zeros(nodes, np.int64)
        self._windows = {layer.window for layer in runner.layers}
        self._groups = runner.layers[0].groups
        self._length = self._bound = self._count = 0
        self._recordings: weakref.WeakKeyDictionary[KVCache, _Recordings] = (
            weakref.WeakKeyDictionary()
        )

    def begin(self, cache: KVCache, length: int, bound: int) -> None:
        """See `GrowingPasses`."""
        self._cache, self._length, self._bound, self._count = cache, length, bound, 0

    def run(self, tokens: Sequence[int], parents: Sequence[int], rows: int) -> Tensor:
        """See `GrowingPasses`.

        Raises:
            SequoiaError: the step has more nodes than were prepared.
        """
        self._append(parents)
        inputs = self._inputs(tokens)
        keep = 0 if rows == len(tokens) else rows
        if self._record is not None:
            return self._replayed(inputs, rows, keep, self._record)
        return self._forward(self._cache, inputs.on(self._runner.device, self._runner.dtype), keep)

    def accept(self, path: Sequence[int]) -> None:
        """See `GrowingPasses`."""
        sources = np.asarray(path, np.int64)
        destinations = np.arange(len(path))
        moved = sources != destinations
        if moved.any():
            device = self._runner.device
            self._cache.move(
                torch.from_numpy(self._length + sources[moved]).to(device),
                torch.from_numpy(self._length + destinations[moved]).to(device),
            )

    def _append(self, parents: Sequence[int]) -> None:
        """Add nodes to the tree."""
        first, count = self._count, self._count + len(parents)
        if count > len(self._depths):
            raise SequoiaError(
                f"tree: found {count} nodes in a step, prepared for {len(self._depths)}"
            )
        for node, parent in enumerate(parents, start=first):
            root = parent < 0
            self._depths[node] = 0 if root else self._depths[parent] + 1
            self._mask_rows[node] = self._blocked if root else self._mask_rows[parent]
            self._mask_rows[node, node] = 0
        self._count = count

    def _inputs(self, tokens: Sequence[int]) -> _Inputs:
        """The inputs, on the host, of a pass over the last nodes, which have these tokens."""
        length, count, new = self._length, self._count, len(tokens)
        first = count - new
        used = self._bound + count
        if self._record is not None:  # one recording for all steps of a bucket
            used = min(self._bound + len(self._depths), self._cache.capacity)
        used = len(self._runner.read_slots(self._cache, used))
        numbers = np.empty((3, new), np.int64)
        numbers[0] = tokens
        np.add(self._depths[first:count], length, out=numbers[1])
        numbers[2] = np.arange(length + first, length + count)
        mask = np.full((self._groups, new, used), self._blocked)
        mask[..., :length] = 0
        mask[..., length : length + count] = self._mask_rows[first:count, :count]
        masks = {
            window: torch.from_numpy(
                mask if window is None else self._windowed(mask, numbers[1], window)
            ).view(1, 1, -1, used)
            for window in self._windows
        }
        return _Inputs(torch.from_numpy(numbers), masks)

    def _windowed(self, mask: np.ndarray, positions: np.ndarray, window: int) -> np.ndarray:
        """A mask without what lies too far before nodes at these positions."""
        length, count = self._length, self._count
        slots = np.arange(mask.shape[-1])  # positions of the slots
        slots[length : length + count] = length + self._depths[:count]
        return np.where(positions[:, None] - slots >= window, self._blocked, mask)

    def _forward(self, cache: KVCache, inputs: _Inputs, keep: int) -> Tensor:
        """The logits [keep, or all nodes, vocabulary] after the last nodes."""
        tokens, positions, slots = inputs.numbers.split(1)
        logits = self._runner.forward(cache, tokens, positions, slots[0], inputs.masks, keep)
        return at_least_float32(logits[0])

    def _replayed(self, inputs: _Inputs, rows: int, keep: int, record: Record) -> Tensor:
        """The logits [rows, vocabulary] of a recorded pass, which is recorded the first time."""
        cache, runner = self._cache, self._runner
        recordings = self._recordings.get(cache)
        if recordings is None:
            dtype = torch.promote_types(runner.dtype, torch.float32)
            size = len(self._depths), runner.vocabulary
            recordings = _Recordings(torch.empty(size, dtype=dtype, device=runner.device))
            self._recordings[cache] = recordings
        logits = recordings.logits[:rows]
        _, new = inputs.numbers.shape
        used = next(iter(inputs.masks.values())).shape[-1]
        recorded = recordings.passes.get((new, used, rows))
        if recorded is None:
            kept = inputs.on(runner.device, runner.dtype)
            replay = record(lambda: logits.copy_(self._forward(cache, kept, keep)), runner.device)
            recordings.passes[new, used, rows] = kept, replay
        else:
            kept, replay = recorded
            kept.copy_(inputs)
        replay()
        return logits
