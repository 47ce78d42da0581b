"""Forward passes of llama.cpp over a tree that grows while it is drafted.

A token sees the earlier cells of its own first sequence. The text belongs to every sequence; a
node that is run without children continues one sequence, and where the tree branches below a node
that was run before, another sequence takes over that node's path. Only the cells' marks change.
Knows nothing of drafting or verifying.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sequoia_opt.engine.llama_cpp.cache import CHUNK, Batch, LlamaCache, Logits
from sequoia_opt.engine.llama_cpp.library import most_sequences
from sequoia_opt.engine.model import Likeliest
from sequoia_opt.engine.verify import likely_guesses
from sequoia_opt.errors import SequoiaError

KEPT_BATCHES = 256  # prepared batches, one for each shape and assignment of sequences


class LlamaGrowingPasses:
    """See `GrowingPasses`.

    The trunk, the nodes of the first pass above the first branch, belongs to every sequence, as
    the text does.
    """

    def __init__(self, nodes: int, branches: int) -> None:
        """Prepare steps.

        Args:
            nodes: the most nodes of a step.
            branches: the most leaves; one more where later passes branch off inside the trunk.

        Raises:
            SequoiaError: there are more leaves than sequences, or more nodes than a pass takes.
        """
        if branches > most_sequences():
            raise SequoiaError(
                f"tree: found up to {branches} leaves, but llama.cpp tells {most_sequences()} "
                "sequences apart; solve with a smaller --max-size"
            )
        if nodes > CHUNK:
            raise SequoiaError(
                f"tree: found up to {nodes} nodes in a step, but a forward pass of llama.cpp has "
                f"at most {CHUNK} here; solve with a smaller --max-size"
            )
        self._branches = branches
        self._all = tuple(range(branches))
        self._batches: dict[tuple[tuple[tuple[int, ...], ...], int], Batch] = {}

    def begin(self, cache: LlamaCache, length: int, bound: int) -> None:
        """See `GrowingPasses`."""
        cache.cut(length)
        cache.share(self._branches)
        self._cache, self._length = cache, length
        self._depths: list[int] = []
        self._sequences: list[tuple[int, ...]] = []  # of each node
        self._continues: list[bool] = []  # whether a child has taken over the node's sequence
        self._trunk = 0
        self._used = 0  # sequences that have a branch of their own

    def run(self, tokens: Sequence[int], parents: Sequence[int], rows: int) -> Tensor:
        """See `GrowingPasses`.

        Raises:
            SequoiaError: the tree has more leaves than were prepared, or the library failed.
        """
        return self._forward(tokens, parents, rows).tensor

    def likeliest(
        self, tokens: Sequence[int], parents: Sequence[int], rows: int, ranks: int
    ) -> Likeliest:
        """See `GrowingPasses`.

        Raises:
            SequoiaError: see `run`.
        """
        return Likeliest(*likely_guesses(self._forward(tokens, parents, rows).rows, ranks))

    def _forward(self, tokens: Sequence[int], parents: Sequence[int], rows: int) -> Logits:
        """One forward pass over new nodes."""
        cache, first = self._cache, len(self._depths)
        for parent in parents:
            self._depths.append(self._depths[parent] + 1 if parent >= 0 else 0)
        self._assign(parents, first)
        batch = self._batch(tuple(self._sequences[first:]), rows)
        batch.fill(list(tokens), [self._length + depth for depth in self._depths[first:]])
        logits = cache.forward(batch)
        cache.length = max(cache.length, self._length + 1 + max(self._depths[first:]))
        return logits

    def accept(self, path: Sequence[int]) -> None:
        """See `GrowingPasses`."""
        cache, end = self._cache, self._length + len(path)
        cache.cut(end)
        if self._used and path:
            kept = self._sequences[path[-1]][0]
            others = [number for number in range(cache.sharers) if number != kept]
            cache.keep(kept, others, self._length, end)

    def _assign(self, parents: Sequence[int], first: int) -> None:
        """Give the new nodes their sequences: those of the new leaves below each."""
        children: dict[int, list[int]] = {}
        for node, parent in enumerate(parents, start=first):
            children.setdefault(parent, []).append(node)
        count = first + len(parents)
        self._sequences += [()] * len(parents)
        self._continues += [node in children for node in range(first, count)]
        if first == 0:
            self._find_trunk(children)
        for node, parent in enumerate(parents, start=first):
            if node < self._trunk or parent >= max(first, self._trunk):
                continue  # the sequences of a new branch are given from its lowest node on
            for leaf in _leaves(node, children):
                sequence = self._sequence_below(parent)
                while leaf > parent and leaf >= first:
                    self._sequences[leaf] += (sequence,)
                    leaf = parents[leaf - first]

    def _find_trunk(self, children: dict[int, list[int]]) -> None:
        """Let every sequence hold the first pass's nodes above its first branch."""
        below = children.get(-1, [])
        while below == [self._trunk]:
            self._sequences[self._trunk] = self._all
            self._trunk += 1
            below = children.get(self._trunk - 1, [])

    def _sequence_below(self, parent: int) -> int:
        """A sequence for a new leaf below a node that was run before, which holds its path."""
        if parent >= self._trunk and not self._continues[parent]:
            self._continues[parent] = True
            return self._sequences[parent][0]
        self._used += 1
        if self._used > self._branches:
            raise SequoiaError(
                f"tree: found more than the {self._branches} leaves that it was prepared for"
            )
        sequence = self._branches - self._used
        cache, start = self._cache, self._length
        end = start + (self._depths[parent] + 1 if parent >= 0 else 0)
        if parent >= self._trunk:
            cache.keep(self._sequences[parent][0], [sequence], start, end)
        if end < start + self._trunk:  # the rest of the trunk is another branch, of sequence 0
            cache.cut_text(sequence, end)
        return sequence

    def _batch(self, sequences: tuple[tuple[int, ...], ...], rows: int) -> Batch:
        """A batch of nodes with these sequences, the last ones' logits wanted."""
        key = sequences, rows
        batch = self._batches.get(key)
        if batch is None:
            if len(self._batches) >= KEPT_BATCHES:
                self._batches.clear()
            unwanted = len(sequences) - rows
            batch = Batch(sequences, [number >= unwanted for number in range(len(sequences))])
            self._batches[key] = batch
        return batch


def _leaves(node: int, children: dict[int, list[int]]) -> list[int]:
    """The leaves below a node, itself if it has no children."""
    if node not in children:
        return [node]
    return [leaf for child in children[node] for leaf in _leaves(child, children)]
