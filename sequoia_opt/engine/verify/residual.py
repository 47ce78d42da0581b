"""Verifiers that test the draft's own draws one by one, against what is left of the target.

Sequoia (arXiv 2402.12374, algorithm 2) and SpecInfer (arXiv 2305.09781) in closed form: before
the k-th test of a node the residual is R ∝ max(P - c Q, 0) with one scalar c, S its sum, and M
the draft's mass that is not yet drawn (with replacement: 1). The draw s passes with probability
min(1, (P[s] - c Q[s]) M / (S Q[s])); if it fails, c grows by S / M.

Where whole paths are tested (arXiv 2505.12398) and the one to the node passes with chance A, the
draw passes with probability min(1, A R[s] M / (S Q[s])), and if it fails A becomes
A S' / (A S' + S (1 - A)) with the new sum S'. What A lacks, W = S (1 - A) / A, is then the same
before and after: with S + W in the place of S, all of the above holds for paths too, and at the
end A is S / (S + W).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sequoia_opt.engine.sampling import (
    Cuts,
    draw,
    draw_with_replacement,
    draw_without_replacement,
    gumbel,
    warp,
)
from sequoia_opt.engine.verify import fused
from sequoia_opt.engine.verify.base import (
    Positions,
    TreeIndex,
    Trial,
    Verdict,
    first_rank,
    last_reached,
)


class Sequoia:
    """Draws without replacement, verified child by child with the residual target.

    Args:
        temperature: above 0, for both models.
        top_p, top_k, min_p: see `sampling.Cuts`, of the target alone: truncating the draft would
            empty its later ranks.
    """

    name = "sequoia"
    reads_draft = True
    replaced = False

    def __init__(
        self, temperature: float, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0
    ) -> None:
        self.temperature, self.cuts = temperature, Cuts(top_p, top_k, min_p)

    def draft_uniforms(self, index: TreeIndex, vocabulary: int) -> int:
        """How many uniforms drafting takes: a race for each internal node."""
        return len(index.internal) * vocabulary

    def uniform_count(self, index: TreeIndex, vocabulary: int) -> int:
        """Those of drafting, one for each child's test, and one for the last token."""
        return self.draft_uniforms(index, vocabulary) + index.size

    def noise(self, index: TreeIndex, uniforms: Tensor) -> Tensor:
        """Gumbel noise for each internal node and token."""
        return gumbel(uniforms[: -index.size].view(len(index.internal), -1))

    def draft(self, logits: Tensor, ranks: int, noise: Tensor) -> Tensor:
        """Draws without replacement from the draft at the temperature."""
        return draw_without_replacement(logits, ranks, noise, self.temperature)

    def verify(
        self,
        index: TreeIndex,
        tokens: Tensor,
        target_logits: Tensor,
        draft_logits: Tensor,
        uniforms: Tensor,
    ) -> Verdict:
        """All internal nodes' tests at once, then the path that passed, then its next token."""
        target = warp(target_logits, self.temperature, *self.cuts)
        if not index.internal:
            return Verdict(index.nodes, draw(target, uniforms))
        draft = warp(draft_logits, self.temperature)
        families = index.families
        whole = target.index_select(0, families.nodes)
        draws = look_up(whole, draft, tokens.take(families.children), families.exist, self.replaced)
        tests = residual_tests(whole, draft, draws, families.reach)
        passes = tests.passes.flatten().index_select(0, index.tested)
        last = last_reached(index, uniforms[-index.size : -1] < passes)
        rest = what_is_left(index, last, target, draft, [tests.scale], index.row)
        return Verdict(last, draw(rest, uniforms[-1:]))

    def trial(self, positions: Positions) -> Trial:
        """Draws and their tests; chances are exact given the draws."""
        whole = warp(positions.target, self.temperature, *self.cuts)
        draft = warp(positions.draft, self.temperature)
        drawn = self._drawn(positions)
        draws = look_up(whole, draft, drawn, None, self.replaced)
        tests = residual_tests(whole, draft, draws, [len(drawn)] * positions.width)
        failed = (1 - tests.passes).cumprod(dim=1)
        chances = tests.passes * torch.cat([torch.ones_like(failed[:, :1]), failed[:, :-1]], dim=1)
        rank = first_rank(torch.rand_like(tests.passes) < tests.passes)

        def emit() -> Tensor:
            rest = draw(residual(whole, tests.scale, draft), torch.rand_like(whole[:, 0]))
            accepted = drawn.gather(1, (rank - 1).clamp_min(0)[:, None]).squeeze(1)
            return torch.where(rank > 0, accepted, rest)

        return Trial(chances, rank, emit)

    def _drawn(self, positions: Positions) -> Tensor:
        """Draws of a trial, [positions, width]."""
        return self.draft(positions.draft, positions.width, positions.noise)


class SpecInfer(Sequoia):
    """Independent draws, with replacement: siblings may be the same token."""

    name = "specinfer"
    replaced = True

    def draft_uniforms(self, index: TreeIndex, vocabulary: int) -> int:
        """How many uniforms drafting takes: one for each draw."""
        return len(index.internal) * len(index.families.reach)

    def noise(self, index: TreeIndex, uniforms: Tensor) -> Tensor:
        """The uniforms, as many for each internal node as any has children."""
        return uniforms[: -index.size].view(len(index.internal), -1)

    def draft(self, logits: Tensor, ranks: int, noise: Tensor) -> Tensor:
        """Draws with replacement from the draft at the temperature."""
        return draw_with_replacement(warp(logits, self.temperature), noise[:, :ranks])

    def _drawn(self, positions: Positions) -> Tensor:
        own = torch.rand_like(positions.draft[:, : positions.width])
        return self.draft(positions.draft, positions.width, own)


@dataclass
class Draws:
    """What the models give to the draws at some nodes.

    Attributes:
        table: [4, nodes, ranks], of each draw P, Q, M before it, and M / Q. Where there is no draw,
            and at void ones (the draft's support being exhausted), Q is 0, M the largest number
            and M / Q is 0: these never pass, and c, to which they add S / M, stays as it is.
    """

    table: Tensor

    def at(self, rows: slice | Tensor, ranks: int) -> Draws:
        """The first `ranks` draws at some of the nodes."""
        return Draws(self.table[:, rows, :ranks])


@dataclass
class Tests:
    """The tests of some nodes' draws, each given that all before it failed.

    Attributes:
        passes: [nodes, ranks], chance that a draw passes; 0 past a node's last.
        scale: [nodes, 1], c after the last: what is left of the target is max(P - c Q, 0);
            it means nothing where the path to the node cannot pass.
        own: [nodes, 1], chance that the path to the node passes, if it is tested after them; it
            means nothing where single draws are tested.
    """

    passes: Tensor
    scale: Tensor
    own: Tensor


def look_up(
    target: Tensor, draft: Tensor, tokens: Tensor, exist: Tensor | None, replaced: bool
) -> Draws:
    """What is to be known of the draws.

    Args:
        target, draft: [nodes, vocabulary], P and Q.
        tokens: [nodes, ranks]; the first again where there is no draw.
        exist: the same shape, where there are draws; by default everywhere.
        replaced: whether a token can be drawn again.
    """
    kept, chances = target.gather(1, tokens), draft.gather(1, tokens)
    if exist is not None:
        chances = chances * exist
    if replaced or tokens.shape[1] == 1:
        undrawn = draft.sum(dim=-1, keepdim=True).expand_as(chances)
    else:
        # Of the tokens that are never drawn and of the draws still to come. Sums alone: what is
        # left of nearly nothing would not survive a difference.
        never = draft.scatter(1, tokens, 0).sum(dim=-1, keepdim=True)
        undrawn = never + chances.flip(1).cumsum(dim=1).flip(1)
    there, largest = chances > 0, torch.finfo(draft.dtype).max
    gain = torch.where(there, undrawn / chances, 0).clamp_(max=largest)
    return Draws(torch.stack([kept, chances, torch.where(there, undrawn, largest), gain]))


def residual_tests(
    target: Tensor, draft: Tensor, draws: Draws, reach: list[int], own: Tensor | None = None
) -> Tests:
    """The tests of the draws at each node; one kernel for all of them where it runs on CUDA.

    Args:
        target, draft: [nodes, vocabulary], P and Q.
        reach: how many of the nodes, from the first, have at least 1, 2, … draws.
        own: [nodes, 1], chance that the path to each node passes, where whole paths are tested; by
            default it has passed.
    """
    if fused.available(target):
        return Tests(*fused.residual_tests(target, draft, draws.table, own))
    return tests_by_rank(target, draft, draws, reach, own)


def tests_by_rank(
    target: Tensor, draft: Tensor, draws: Draws, reach: list[int], own: Tensor | None
) -> Tests:
    """`residual_tests`, all nodes' draws of a rank at once."""
    limits, nodes = torch.finfo(target.dtype), len(target)
    # S, of what is left of the target, is 1 at first, and S + W one over the path's chance.
    mass = target.new_ones(nodes, 1)
    total = mass if own is None else mass / own
    lacking = None if own is None else total - mass
    scale, passes = None, []
    for rank, column in enumerate(draws.table.split(1, dim=2)):
        rest, chance, undrawn, gain = column
        if scale is None:  # nothing has failed yet
            scale = total / undrawn
        else:
            rest = positive_difference(rest, scale, chance)
            scale = torch.addcdiv(scale, total, undrawn)
        scale.clamp_(max=limits.max)
        passes.append(rest * gain / total)
        # Summed again only for those who ask: the next rank's tests, or the nodes' own.
        asked = sum(reach[rank + 1 : rank + 2]) if lacking is None else reach[rank]
        if asked == 0:
            continue
        if asked == nodes:
            mass = positive_difference(target, scale, draft).sum(dim=-1, keepdim=True)
        else:
            rest = positive_difference(target[:asked], scale[:asked], draft[:asked])
            mass = torch.cat([rest.sum(dim=-1, keepdim=True), mass[asked:]])
        total = mass if lacking is None else mass + lacking
        total = total.clamp_min(limits.tiny)  # where nothing at all is left
    assert scale is not None
    return Tests(torch.cat(passes, dim=1).clamp_(max=1), scale, mass / total)


def positive_difference(target: Tensor, scale: Tensor, draft: Tensor) -> Tensor:
    """max(P - c Q, 0), in as few passes over the vocabulary as there can be."""
    return torch.addcmul(target, scale, draft, value=-1).clamp_min_(0)


def what_is_left(
    index: TreeIndex,
    last: Tensor,
    target: Tensor,
    draft: Tensor,
    scales: list[Tensor],
    place: Tensor,
) -> Tensor:
    """Weights [1, vocabulary] of the token after the node `last` [1], its children rejected.

    Args:
        target: [size, vocabulary].
        draft: [internal, vocabulary].
        scales: of all internal nodes, see Tests.
        place: [size], of each node in these; a leaf's is one past them.
    """
    taken = torch.cat([*scales, target.new_zeros(1, 1)]).index_select(0, place.gather(0, last))
    row = index.row.gather(0, last).clamp_(max=len(index.internal) - 1)  # a leaf's c is 0
    return residual(target.index_select(0, last), taken, draft.index_select(0, row))


def residual(target: Tensor, scale: Tensor, draft: Tensor) -> Tensor:
    """max(P - c Q, 0) [nodes, vocabulary] for c [nodes, 1]; P where that vanishes, which rounding
    alone can bring about."""
    rest = positive_difference(target, scale, draft)
    return torch.where(rest.sum(dim=-1, keepdim=True) > 0, rest, target)
