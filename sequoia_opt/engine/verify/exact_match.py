"""Verifiers that keep what the target says itself, if the tree has it.

The draft's most likely tokens are the guesses; they need no test, so its logits are not looked
at again.
"""

from __future__ import annotations

from torch import Tensor

from sequoia_opt.engine.sampling import Cuts, draw_with_replacement, most_likely, warp
from sequoia_opt.engine.verify.base import (
    Positions,
    TreeIndex,
    Trial,
    Verdict,
    first_rank,
    last_reached,
)


class Greedy:
    """Temperature 0: the draft ranks its logits, the target's most likely token is kept."""

    name = "greedy"
    reads_draft = False

    def uniform_count(self, index: TreeIndex, vocabulary: int) -> int:
        """Nothing is random."""
        return 0

    def noise(self, index: TreeIndex, uniforms: Tensor) -> Tensor:
        """Nothing: guesses are not drawn."""
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
        """A node is accepted if it is what the target says after its parent."""
        return _matched(index, tokens, target_logits.argmax(dim=-1))

    def trial(self, positions: Positions) -> Trial:
        """The target's most likely token, and its place among the draft's."""
        token = positions.target.argmax(dim=-1)
        hits = positions.likely == token[:, None]
        return Trial(hits.to(positions.target.dtype), first_rank(hits), lambda: token)


class TopK(Greedy):
    """Guesses are the draft's most likely tokens; the target samples, and what it drew is kept.

    What engines with static trees do (Medusa, EAGLE's choices): lossless whatever the draft.

    Args:
        temperature: above 0, for the target; the draft's order does not depend on it.
        top_p, top_k, min_p: of the target, see `sampling.Cuts`.
    """

    name = "topk"
    reads_draft = False

    def __init__(
        self, temperature: float, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0
    ) -> None:
        self.temperature, self.cuts = temperature, Cuts(top_p, top_k, min_p)

    def uniform_count(self, index: TreeIndex, vocabulary: int) -> int:
        """One for what the target draws after each node."""
        return index.size

    def verify(
        self,
        index: TreeIndex,
        tokens: Tensor,
        target_logits: Tensor,
        draft_logits: Tensor,
        uniforms: Tensor,
    ) -> Verdict:
        """A node is accepted if it is what the target draws after its parent."""
        target = warp(target_logits, self.temperature, *self.cuts)
        return _matched(index, tokens, draw_with_replacement(target, uniforms[:, None])[:, 0])

    def trial(self, positions: Positions) -> Trial:
        """A draw of the target's, and its place among the draft's; chances are exact."""
        target = warp(positions.target, self.temperature, *self.cuts)
        token = (target.log() + positions.noise).argmax(dim=-1)
        hits = positions.likely == token[:, None]
        return Trial(target.gather(1, positions.likely), first_rank(hits), lambda: token)


def _matched(index: TreeIndex, tokens: Tensor, wanted: Tensor) -> Verdict:
    """The path of nodes whose tokens are the `wanted` [size] ones after their parents."""
    last = last_reached(index, tokens[1:] == wanted.index_select(0, index.parent)[1:])
    return Verdict(last, wanted.gather(0, last))
