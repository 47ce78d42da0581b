"""Verifiers that accept a node if its token is the one that the target chose itself.

The guesses are the draft's most likely tokens. They need no test, so the draft's logits are not
read again after drafting.
"""

from __future__ import annotations

from torch import Tensor

from sequoia_opt.engine.sampling import Cuts, draw_with_replacement, largest, most_likely, warp
from sequoia_opt.engine.verify.base import (
    Positions,
    Trial,
    Verdict,
    first_rank,
    last_reached,
)
from sequoia_opt.engine.verify.tree_index import TreeIndex


class Greedy:
    """Temperature 0: the target's most likely token is accepted wherever the tree has it."""

    name = "greedy"
    reads_draft = False

    def uniform_count(self, index: TreeIndex, vocabulary: int) -> int:
        """0: nothing is random."""
        return 0

    def noise(self, index: TreeIndex, uniforms: Tensor) -> Tensor:
        """An empty tensor [internal, 0]: guesses are not drawn."""
        return uniforms[:0].view(len(index.internal), 0)

    def draft(self, logits: Tensor, ranks: int, noise: Tensor) -> Tensor:
        """The `ranks` most likely tokens."""
        return most_likely(logits, ranks)

    def verify(
        self,
        index: TreeIndex,
        tokens: Tensor,
        target_logits: Tensor,
        draft_logits: Tensor,
        uniforms: Tensor,
    ) -> Verdict:
        """Accept a node if its token is the target's most likely one after its parent."""
        return _match(index, tokens, largest(target_logits))

    def trial(self, positions: Positions) -> Trial:
        """Look for the target's most likely token among the draft's."""
        token = largest(positions.target)
        hits = positions.likely == token[:, None]
        chances = hits.to(positions.target.dtype)
        return Trial(positions.likely, chances, first_rank(hits), lambda: token)


class TopK(Greedy):
    """The target samples, and its draw is accepted wherever the tree has it.

    Engines with static trees verify like this (Medusa, EAGLE's choices). It is lossless for any
    draft.

    Args:
        temperature: above 0, for the target; the order of the draft's guesses does not depend on
            it.
        top_p, top_k, min_p: for the target, see `sampling.Cuts`.
    """

    name = "topk"
    reads_draft = False

    def __init__(
        self, temperature: float, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0
    ) -> None:
        self.temperature, self.cuts = temperature, Cuts(top_p, top_k, min_p)

    def uniform_count(self, index: TreeIndex, vocabulary: int) -> int:
        """One for the target's draw after each node."""
        return index.size

    def verify(
        self,
        index: TreeIndex,
        tokens: Tensor,
        target_logits: Tensor,
        draft_logits: Tensor,
        uniforms: Tensor,
    ) -> Verdict:
        """Accept a node if its token is the one that the target draws after its parent."""
        target = warp(target_logits, self.temperature, *self.cuts)
        return _match(index, tokens, draw_with_replacement(target, uniforms[:, None])[:, 0])

    def trial(self, positions: Positions) -> Trial:
        """Look for a draw of the target's among the draft's tokens; the chances are exact."""
        target = warp(positions.target, self.temperature, *self.cuts)
        token = (target.log() + positions.noise).argmax(dim=-1)
        hits = positions.likely == token[:, None]
        chances = target.gather(1, positions.likely)
        return Trial(positions.likely, chances, first_rank(hits), lambda: token)


def _match(index: TreeIndex, tokens: Tensor, choices: Tensor) -> Verdict:
    """Accept the path whose tokens are the target's choices [size], each after its parent."""
    if index.size == 1:
        return Verdict(index.nodes, choices)
    last = last_reached(index, tokens[1:] == choices.index_select(0, index.parent)[1:])
    return Verdict(last, choices.gather(0, last))
