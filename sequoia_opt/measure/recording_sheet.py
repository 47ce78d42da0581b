"""What is noted of a document while its drafts are recorded, and the levels of its trees.

Knows positions, nodes and slots. Knows nothing of forward passes or draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sequoia_opt.measure.continuations import Continuation
from sequoia_opt.plan.recording import Envelope
from sequoia_opt.plan.tree import BoolArray, IntArray
from sequoia_opt.types import FloatArray


@dataclass(frozen=True)
class Sheet:
    """A document's text, and what is noted of it.

    Attributes:
        tokens: [positions], the root at each position.
        guesses: [positions, ranks], those of the position's trial.
        ranks: accepted at each position, with zeros behind the last one for all levels and roots.
        following: [positions], the token behind the root at each position.
        probabilities, origins, path_ranks: see `Recording`.
    """

    tokens: IntArray
    guesses: IntArray
    ranks: IntArray
    following: IntArray
    probabilities: NDArray[np.float16]
    origins: NDArray[np.uint8]
    path_ranks: NDArray[np.uint8]

    @classmethod
    def of(cls, text: Continuation, ranks: Sequence[int], envelope: Envelope, roots: int) -> Sheet:
        """An empty sheet for a text; `roots` positions are looked at together."""
        positions = len(ranks)
        return cls(
            np.array(text.tokens[:positions], np.int64),
            np.array(text.guesses, np.int64).reshape(positions, envelope.ranks),
            np.array([*ranks, *[0] * (envelope.levels + roots)], np.int64),
            np.array(text.tokens[1 : positions + 1], np.int64),
            np.zeros((positions, envelope.nodes, envelope.ranks), np.float16),
            np.zeros((positions, envelope.levels - 1, envelope.slots), np.uint8),
            np.zeros((positions, envelope.levels), np.uint8),
        )

    def on_text(self, first: int, level: Level) -> tuple[IntArray, IntArray]:
        """Root and slot of each of a level's nodes that the text reaches and goes on behind.

        Args:
            first: the position of the first root's node on the text's path; of the other roots,
                those that follow.
        """
        roots, slots = np.nonzero(level.on_text[: max(0, len(self.tokens) - first)])
        return roots, slots

    def note_probabilities(
        self, start: int, depth: int, probabilities: NDArray[np.float16]
    ) -> None:
        """Note a level's probabilities [roots, slots, ranks], of the roots from `start` on."""
        roots, slots, _ = probabilities.shape
        node = 1 + (depth - 1) * slots if depth else 0
        self.probabilities[start : start + roots, node : node + slots] = probabilities


@dataclass(frozen=True)
class Level:
    """The nodes of one level of several trees, each array [roots, slots].

    Attributes:
        numbers: in the order of the forward passes.
        products: of the draft's probabilities on the path to each node.
        on_text: whether the path is the text's own.
    """

    numbers: IntArray
    products: FloatArray
    on_text: BoolArray

    @classmethod
    def of_roots(cls, count: int) -> Level:
        """The trees' first level: a node each, one behind the other."""
        shape = (count, 1)
        return cls(np.arange(count)[:, None], np.ones(shape), np.ones(shape, np.bool_))

    def parents(self, origins: IntArray, ranks: int) -> IntArray:
        """The numbers of the next level's parents [roots, slots], see `Recording.origins`."""
        return np.take_along_axis(self.numbers, origins // ranks, axis=1)

    @property
    def count(self) -> int:
        """Trees."""
        return len(self.numbers)

    def next(
        self,
        origins: IntArray,
        likely: NDArray[np.float16],
        guesses: IntArray,
        accepted: IntArray,
    ) -> tuple[Level, IntArray]:
        """The next level, and its tokens.

        Args:
            origins: [roots, slots], which guesses its nodes are.
            likely, guesses: [roots, slots of this level, ranks].
            accepted: [roots], the rank that the text accepted at this level.
        """
        parents, ranks = np.divmod(origins, likely.shape[2])
        roots = np.arange(len(origins))[:, None]
        first = int(self.numbers[-1, -1]) + 1
        level = Level(
            np.arange(first, first + origins.size).reshape(origins.shape),
            self.products[roots, parents] * likely[roots, parents, ranks],
            self.on_text[roots, parents] & (ranks + 1 == accepted[:, None]),
        )
        return level, guesses[roots, parents, ranks]
