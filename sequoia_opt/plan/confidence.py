"""How far the draft's own probabilities can be believed: a calibration of them.

Raw draft probabilities are overconfident. What a step's tree grows by is the probability that the
target accepts a guess, by the guess's depth and rank and by what the draft said; measured on
recorded drafts, and monotone: more in the draft's probability, less in the rank. Knows nothing of
trees or times.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.fields import Fields
from sequoia_opt.types import FloatArray


@dataclass(frozen=True)
class Confidence:
    """Acceptance by depth, rank and the draft's probability.

    Attributes:
        edges: ascending, between 0 and 1, [bins - 1]: where one bin of draft probabilities ends
            and the next begins; a probability that equals an edge is in the upper bin.
        acceptance: [depths][ranks][bins], the probability that the guess is accepted, given that
            verification reached its parent. It does not fall from bin to bin, nor rise from rank
            to rank. Depths past the last one are like it.

    Raises:
        SequoiaError: the numbers are no such table.
    """

    edges: tuple[float, ...]
    acceptance: tuple[tuple[tuple[float, ...], ...], ...]

    def __post_init__(self) -> None:
        if any(not 0 < edge < 1 for edge in self.edges) or list(self.edges) != sorted(
            set(self.edges)
        ):
            raise SequoiaError(
                "confidence: edges: found numbers that are not ascending between 0 and 1"
            )
        if not self.acceptance or not self.acceptance[0]:
            raise SequoiaError("confidence: acceptance: found no rates")
        ranks, bins = len(self.acceptance[0]), len(self.edges) + 1
        for depth, table in enumerate(self.acceptance):
            where = f"confidence: acceptance[{depth}]"
            if len(table) != ranks or any(len(row) != bins for row in table):
                raise SequoiaError(f"{where}: expected {ranks} rows of {bins} rates")
            if any(not 0 <= rate <= 1 for row in table for rate in row):
                raise SequoiaError(f"{where}: found rates that are not between 0 and 1")
            if any(low > high for row in table for low, high in pairwise(row)):
                raise SequoiaError(f"{where}: found rates that fall as the probability rises")
            if any(
                low < high
                for row, later in pairwise(table)
                for low, high in zip(row, later, strict=True)
            ):
                raise SequoiaError(f"{where}: found rates that rise from a rank to the next")

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        return len(self.acceptance[0])

    def of(self, depth: int, probabilities: Sequence[float]) -> list[float]:
        """Acceptance of a node's guesses.

        Args:
            depth: of the guesses, from 1.
            probabilities: the draft's, in the order of rank; at most as many as there are ranks.
        """
        table, edges = self.acceptance[min(depth, len(self.acceptance)) - 1], self.edges
        rates = []
        bound = 1.0
        for row, probability in zip(table, probabilities, strict=False):
            # A later rank's probability is no larger, so its rate is not either: `bound` only
            # guards against probabilities that are not in order.
            bound = min(bound, row[bisect_right(edges, probability)])
            rates.append(bound)
        return rates

    def of_many(self, depth: int, probabilities: FloatArray) -> FloatArray:
        """What `of` says of many nodes at once, [..., ranks]; NaN where there is no guess.

        Args:
            depth: of the guesses, from 1.
            probabilities: [..., ranks], the draft's, in the order of rank; 0 where a node has
                fewer guesses.
        """
        table = self.acceptance[min(depth, len(self.acceptance)) - 1]
        bins = np.searchsorted(np.asarray(self.edges), probabilities, side="right")
        ranks = min(probabilities.shape[-1], self.ranks)
        by_rank = [np.asarray(table[rank])[bins[..., rank]] for rank in range(ranks)]
        rates = np.minimum.accumulate(np.stack(by_rank, axis=-1), axis=-1)
        return np.where(probabilities[..., :ranks] > 0, rates, np.nan)

    def document(self) -> dict[str, Any]:
        """As files have it."""
        return {
            "edges": list(self.edges),
            "acceptance": [[list(row) for row in table] for table in self.acceptance],
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Confidence:
        """Read it.

        Raises:
            SequoiaError: it is malformed; the message names file and field.
        """
        edges = fields.numbers("edges", 0.0, 1.0)
        tables = fields.mapping.get("acceptance")
        if not isinstance(tables, list) or not all(isinstance(table, list) for table in tables):
            raise fields.fail("acceptance", "a list of tables of rates, depth 1 first")
        acceptance = []
        for depth, table in enumerate(tables):
            rows = []
            for rank, row in enumerate(table):
                name = f"acceptance[{depth}][{rank}]"
                values = Fields({name: row}, fields.where).numbers(name, 0.0, 1.0)
                rows.append(tuple(values.tolist()))
            acceptance.append(tuple(rows))
        try:
            return cls(tuple(edges.tolist()), tuple(acceptance))
        except SequoiaError as error:
            raise SequoiaError(f"{fields.where}: {error}") from None
