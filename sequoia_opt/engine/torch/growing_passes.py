"""Forward passes over a tree that grows while it is drafted.

Knows what a pass computes, and how passes are recorded. Their inputs are in growing_inputs.py.
Knows nothing of drafting or verifying.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sequoia_opt.engine.model import Likeliest
from sequoia_opt.engine.sampling import at_least_float32
from sequoia_opt.engine.torch.attention import KVCache
from sequoia_opt.engine.torch.growing_inputs import GrowingInputs, PassInputs
from sequoia_opt.engine.torch.likeliest import RANKS
from sequoia_opt.engine.verify import likely_guesses

if TYPE_CHECKING:
    from sequoia_opt.engine.torch.runner import Runner

MOST_RECORDINGS = 256  # of a cache; a long text passes through many buckets of lengths

Record = Callable[[Callable[[], object], torch.device], Callable[[], object]]
"""Records work on tensors that stay where they are; returns what repeats it."""


class _Recordings:
    """The recorded passes over one cache.

    Attributes:
        logits: [nodes, vocabulary], where all of them leave their logits.
        states: [1, nodes, width], where they leave the hidden states that the model keeps.
        passes: inputs and replay, by the numbers of nodes, of slots that are read, and of rows;
            the one that was used last at the end.
    """

    def __init__(self, logits: Tensor, states: Tensor) -> None:
        self.logits, self.states = logits, states
        self.passes: dict[tuple[int, int, int], tuple[PassInputs, Callable[[], object]]] = {}


class TorchGrowingPasses:
    """See `GrowingPasses`."""

    def __init__(self, runner: Runner, nodes: int, record: Record | None = None) -> None:
        """Prepare steps.

        Args:
            nodes: the most nodes of a step.
            record: records a pass, once for each cache, number of nodes and bound; by default
                passes are not recorded.
        """
        self._runner, self._record = runner, record
        self._tree = GrowingInputs(
            runner.layers, runner.dtype, runner.device, nodes, same_slots=record is not None
        )
        self._recordings: weakref.WeakKeyDictionary[KVCache, _Recordings] = (
            weakref.WeakKeyDictionary()
        )

    def begin(self, cache: KVCache, length: int, bound: int) -> None:
        """See `GrowingPasses`."""
        self._cache = cache
        self._tree.begin(cache, length, bound)

    def run(self, tokens: Sequence[int], parents: Sequence[int], rows: int) -> Tensor:
        """See `GrowingPasses`.

        Raises:
            SequoiaError: the step has more nodes than were prepared.
        """
        keep = 0 if rows == len(tokens) else rows
        if self._record is not None:
            return self._replayed(self._tree.add(tokens, parents), rows, keep, self._record)
        return self._forward(self._cache, self._tree.ready(tokens, parents), keep)

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
        found = forward(*self._tree.ready(tokens, parents), self._cache)
        # Lists are cut in less time than tensors.
        probabilities, likely = ([row[:ranks] for row in part.tolist()[-rows:]] for part in found)
        return Likeliest(probabilities, likely)

    def accept(self, path: Sequence[int]) -> None:
        """See `GrowingPasses`."""
        if (slots := self._tree.path_slots(path)) is not None:
            self._cache.move(*slots)

    def _forward(self, cache: KVCache, inputs: PassInputs, keep: int) -> Tensor:
        """The logits [keep, or all nodes, vocabulary] after the last nodes."""
        logits = self._runner.forward(cache, *inputs, keep)
        return at_least_float32(logits[0])

    def _replayed(self, inputs: PassInputs, rows: int, keep: int, record: Record) -> Tensor:
        """The logits [rows, vocabulary] of a recorded pass, which is recorded the first time."""
        cache, runner = self._cache, self._runner
        recordings = self._recordings_of(cache)
        logits = recordings.logits[:rows]
        [new] = inputs.slots.shape
        used = next(iter(inputs.masks.values())).shape[-1]
        states = recordings.states[:, :new]
        recorded = recordings.passes.pop((new, used, rows), None)
        if recorded is None:
            kept = inputs.on(runner.device, runner.dtype)

            def run() -> None:
                logits.copy_(self._forward(cache, kept, keep))
                if runner.kept.width:
                    states.copy_(runner.kept.last())

            replay = record(run, runner.device)
            if len(recordings.passes) >= MOST_RECORDINGS:
                del recordings.passes[next(iter(recordings.passes))]
        else:
            kept, replay = recorded
            kept.copy_(inputs)
        recordings.passes[new, used, rows] = kept, replay
        replay()
        if runner.kept.width:  # those of this pass, not of the one that was recorded last
            runner.kept.states = (states,)
        return logits

    def _recordings_of(self, cache: KVCache) -> _Recordings:
        """The recorded passes over a cache."""
        recordings = self._recordings.get(cache)
        if recordings is None:
            runner, nodes = self._runner, self._tree.nodes
            dtype = torch.promote_types(runner.dtype, torch.float32)
            logits = torch.empty(nodes, runner.vocabulary, dtype=dtype, device=runner.device)
            states = logits.new_empty(1, nodes, runner.kept.width, dtype=runner.dtype)
            recordings = self._recordings[cache] = _Recordings(logits, states)
        return recordings
