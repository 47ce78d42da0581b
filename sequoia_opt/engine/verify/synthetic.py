"""Acceptance drawn from given rates instead of the models' probabilities: for speed alone.

A step runs in full, with the work of its verifier; then the rates decide which path is accepted.
So a pair can be timed before it has weights, or at rates that were measured elsewhere. The text
is meaningless.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sequoia_opt.engine.verify.base import (
    Positions,
    Trial,
    Verdict,
    Verifier,
    last_reached,
)
from sequoia_opt.engine.verify.tree_index import TreeIndex
from sequoia_opt.errors import SequoiaError
from sequoia_opt.types import FloatArray


class Synthetic:
    """A verifier whose decisions are replaced by draws.

    Args:
        verifier: drafts, and does the work of verification.
        table: rates by depth, [depth, ranks]: at least as deep as the trees.
    """

    def __init__(self, verifier: Verifier, table: FloatArray) -> None:
        self.verifier = verifier
        self.name, self.reads_draft = verifier.name, verifier.reads_draft
        self._sums = torch.from_numpy(np.cumsum(table, axis=1))

    def uniform_count(self, index: TreeIndex, vocabulary: int) -> int:
        """The verifier's, and one for each node."""
        return self.verifier.uniform_count(index, vocabulary) + index.size

    def noise(self, index: TreeIndex, uniforms: Tensor) -> Tensor:
        """The verifier's noise."""
        return self.verifier.noise(index, self._verifiers_uniforms(index, uniforms))

    def draft(self, logits: Tensor, ranks: int, noise: Tensor) -> Tensor:
        """The verifier's guesses."""
        return self.verifier.draft(logits, ranks, noise)

    def verify(
        self,
        index: TreeIndex,
        tokens: Tensor,
        target_logits: Tensor,
        draft_logits: Tensor,
        uniforms: Tensor,
    ) -> Verdict:
        """Do the verifier's work and take its next token; accept a path drawn from the rates."""
        verdict = self.verifier.verify(
            index, tokens, target_logits, draft_logits, self._verifiers_uniforms(index, uniforms)
        )
        sums = self._sums.index_select(0, index.depths)  # cumulative rates of a node's children
        # The rank of each node's accepted child; 0 where no child with a rate is accepted.
        rank = ((uniforms[-index.size :, None] >= sums).sum(dim=1) + 1) % (sums.shape[1] + 1)
        accepted = rank.index_select(0, index.parent)[1:] == index.ranks[1:]
        return Verdict(last_reached(index, accepted), verdict.next)

    def trial(self, positions: Positions) -> Trial:
        """Refuse: the rates are an input.

        Raises:
            SequoiaError: always.
        """
        raise SequoiaError(
            "synthetic acceptance cannot be estimated: its rates are an input; estimate without it"
        )

    def to(self, device: torch.device) -> Synthetic:
        """Move the rates to the device; returns itself."""
        self._sums = self._sums.to(device)
        return self

    def _verifiers_uniforms(self, index: TreeIndex, uniforms: Tensor) -> Tensor:
        return uniforms[: len(uniforms) - index.size]
