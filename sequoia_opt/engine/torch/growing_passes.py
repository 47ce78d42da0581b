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

from sequoia_opt.engine.model import Likeliest
from sequoia_opt.engine.sampling import at_least_float32
from sequoia_opt.engine.torch.attention import KVCache, Masks
from sequoia_opt.engine.torch.likeliest import RANKS
from sequoia_opt.engine.verify import likely_guesses
from sequoia_opt.errors import SequoiaError

if TYPE_CHECKING:
    from sequoia_opt.engine.torch.runner import Runner

Record = Callable[[Callable[[], object], torch.device], Callable[[], object]]
"""Records work on tensors that stay where they are; returns what repeats it."""


class _Inputs(NamedTuple):
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
    def of(cls, numbers: np.ndarray, masks: dict[int | None, np.ndarray]) -> _Inputs:
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

    def on(self, device: torch.device, dtype: torch.dtype) -> _Inputs:
        """A copy on a device, with masks of this dtype."""
        return _Inputs(
            self.tokens.to(device, copy=True),
            self.positions.to(device, copy=True),
            self.slots.to(device, copy=True),
            {window: mask.to(device, dtype, copy=True) for window, mask in self.masks.items()},
        )

    def copy_(self, other: _Inputs) -> None:
        """Take over the values of inputs of the same sizes."""
        self.tokens.copy_(other.tokens)
        self.positions.copy_(other.positions)
        self.slots.copy_(other.slots)
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
        # Whether passes take arrays of the host as they are.
        self._on_host = runner.device.type == "cpu" and number(0).dtype.name in str(runner.dtype)
        self._nodes = nodes
        self._masks = np.empty((nodes, 0), number)  # of each node: 0 for a slot that it sees
        self._visible = 0  # slots that every node sees in there, the text's
        self._rows = self._masks  # the part of the masks that is the nodes' slots
        self._depths: list[int] = []
        self._windows = {layer.window for layer in runner.layers}
        self._groups = runner.layers[0].groups
        self._length = self._bound = 0
        self._recordings: weakref.WeakKeyDictionary[KVCache, _Recordings] = (
            weakref.WeakKeyDictionary()
        )

    def begin(self, cache: KVCache, length: int, bound: int) -> None:
        """See `GrowingPasses`."""
        self._cache, self._length, self._bound, self._depths = cache, length, bound, []
        if self._masks.shape[1] < cache.capacity:
            self._masks = np.full((self._nodes, cache.capacity), self._blocked)
            self._visible = 0
        # The last step's nodes, and what it saw of a longer text, are not visible any more.
        seen = max(self._visible + self._nodes, length)
        self._masks[:, self._visible : length] = 0
        self._masks[:, length:seen] = self._blocked
        self._visible = length
        self._rows = self._masks[:, length : length + self._nodes]

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
        if not self._on_host:
            inputs = inputs.on(self._runner.device, self._runner.dtype)
        return self._forward(self._cache, inputs, keep)

    def likeliest(
        self, tokens: Sequence[int], parents: Sequence[int], rows: int, ranks: int
    ) -> Likeliest:
        """See `GrowingPasses`.

        Raises:
            SequoiaError: see `run`.
        """
        runner = self._runner
        forward = runner.likeliest if runner.compiled and self._record is None else None
        if forward is None or ranks > RANKS:
            return Likeliest(*likely_guesses(self.run(tokens, parents, rows).numpy(), ranks))
        self._append(parents)
        inputs = self._inputs(tokens)
        if not self._on_host:
            inputs = inputs.on(runner.device, runner.dtype)
        probabilities, likely = forward(*inputs, self._cache)
        return Likeliest(probabilities[-rows:, :ranks].tolist(), likely[-rows:, :ranks].tolist())

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
        depths, rows = self._depths, self._rows
        count = len(depths) + len(parents)
        if count > self._nodes:
            raise SequoiaError(f"tree: found {count} nodes in a step, prepared for {self._nodes}")
        for node, parent in enumerate(parents, start=len(depths)):
            depths.append(0 if parent < 0 else depths[parent] + 1)
            if parent >= 0:
                rows[node] = rows[parent]
            rows[node, node] = 0

    def _inputs(self, tokens: Sequence[int]) -> _Inputs:
        """The inputs, on the host, of a pass over the last nodes, which have these tokens."""
        length, count, new = self._length, len(self._depths), len(tokens)
        first = count - new
        # One recording serves all steps of a bucket.
        used = self._bound + (count if self._record is None else self._nodes)
        used = self._cache.read_count(used)
        positions = [length + depth for depth in self._depths[first:]]
        numbers = np.array([tokens, positions, range(length + first, length + count)], np.int64)
        seen = self._masks[first:count, :used]
        if self._groups > 1:
            seen = np.tile(seen, (self._groups, 1))
        masks = {}
        for window in self._windows:
            mask = seen if window is None else self._windowed(seen, numbers[1], window)
            masks[window] = np.ascontiguousarray(mask).reshape(1, 1, -1, used)
        return _Inputs.of(numbers, masks)

    def _windowed(self, mask: np.ndarray, positions: np.ndarray, window: int) -> np.ndarray:
        """A mask [groups * nodes, slots] without what lies too far before these positions."""
        first, last = self._length, self._length + len(self._depths)
        slots = np.arange(mask.shape[-1])  # positions of the slots
        slots[first:last] = [first + depth for depth in self._depths]
        too_far = np.tile(positions, self._groups)[:, None] - slots >= window
        return np.where(too_far, self._blocked, mask)

    def _forward(self, cache: KVCache, inputs: _Inputs, keep: int) -> Tensor:
        """The logits [keep, or all nodes, vocabulary] after the last nodes."""
        logits = self._runner.forward(cache, *inputs, keep)
        return at_least_float32(logits[0])

    def _replayed(self, inputs: _Inputs, rows: int, keep: int, record: Record) -> Tensor:
        """The logits [rows, vocabulary] of a recorded pass, which is recorded the first time."""
        cache, runner = self._cache, self._runner
        recordings = self._recordings.get(cache)
        if recordings is None:
            dtype = torch.promote_types(runner.dtype, torch.float32)
            size = self._nodes, runner.vocabulary
            recordings = _Recordings(torch.empty(size, dtype=dtype, device=runner.device))
            self._recordings[cache] = recordings
        logits = recordings.logits[:rows]
        [new] = inputs.slots.shape
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
