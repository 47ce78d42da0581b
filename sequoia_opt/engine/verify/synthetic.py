"""Acceptance drawn from given rates, whatever the models say: for speed alone.

A step runs in full, as its verifier would run it; then rates decide which path was accepted. So
a pair is timed before its weights are there, or at rates that somebody else measured. The text
that comes of it means nothing.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sequoia_opt.engine.verify.base import (
    Positions,
    TreeIndex,
    Trial,
    Verdict,
    Verifier,
    last_reached,
)
from sequoia_opt.errors import SequoiaError
from sequoia_opt.types import FloatArray


class Synthetic:
    """A verifier whose decisions are replaced by draws.

    Args:
        verifier: what drafts, and whose work is done.
        table: rates by depth, [depth, ranks]: at least as deep as the trees.
    """

    def __init__(self, verifier: Verifier, table: FloatArray) -> None:
        self.verifier = verifier
        self.name, self.reads_draft = verifier.name, verifier.reads_draft
        self._sums = torch.from_numpy(np.cumsum(table, axis=1))

    def uniform_count(self, index: TreeIndex, vocabulary: int) -> int:
        """The verifier's own, and one for each node."""
        return self.verifier.uniform_count(index, vocabulary) + index.size

    def noise(self, index: TreeIndex, uniforms: Tensor) -> Tensor:
        """The verifier's own."""
        return self.verifier.noise(index, self._own(index, uniforms))

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
        """The verifier's work, its next token, and a path drawn from the rates."""
        own = self._own(index, uniforms)
        verdict = self.verifier.verify(index, tokens, target_logits, draft_logits, own)
        sums = self._sums.index_select(0, index.depths)  # of each node's children
        # The rank of the accepted child; where it is none of those that have rates, 0.
        drawn = ((uniforms[-index.size :, None] >= sums).sum(dim=1) + 1) % (sums.shape[1] + 1)
        accepted = drawn.index_select(0, index.parent)[1:] == index.ranks[1:]
        return Verdict(last_reached(index, accepted), verdict.next)

    def trial(self, positions: Positions) -> Trial:
        """Nothing to sample: the rates are given."""
        raise SequoiaError("synthetic acceptance cannot be estimated: it is what was given")

    def to(self, device: torch.device) -> Synthetic:
        """Itself, its rates on that device."""
        self._sums = self._sums.to(device)
        return self

    def _own(self, index: TreeIndex, uniforms: Tensor) -> Tensor:
        return uniforms[: len(uniforms) - index.size]
