"""Verifiers that test the draft's own draws one by one, against what is left of the target.

Sequoia (arXiv 2402.12374, algorithm 2) and SpecInfer (arXiv 2305.09781) in closed form: before
the k-th test of a node the residual is R ∝ max(P - c Q, 0) with one scalar c, S its sum, and M
the draft's mass that is not yet drawn (with replacement: 1). The draw s passes with probability
min(1, (P[s] - c Q[s]) M / (S Q[s])); if it fails, c grows by S / M.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sequoia_opt.engine.sampling import (
    draw,
    draw_with_replacement,
    draw_without_replacement,
    tempered,
    warp,
)
from sequoia_opt.engine.verify import fused
from sequoia_opt.engine.verify.interface import (
    TreeIndex,
    Trial,
    Verdict,
    first_rank,
    follow,
)


class Sequoia:
    """Draws without replacement, verified child by child with the residual target.

    Args:
        temperature: above 0, for both models.
        top_p: in (0, 1], for the target alone: truncating the draft would empty its later ranks.
    """

    name = "sequoia"
    reads_draft = True
    replaced = False

    def __init__(self, temperature: float, top_p: float = 1.0) -> None:
        self.temperature, self.top_p = temperature, top_p

    def draft_uniforms(self, index: TreeIndex, vocabulary: int) -> int:
        """How many uniforms drafting takes: a race for each internal node."""
        return len(index.internal) * vocabulary

    def uniform_count(self, index: TreeIndex, vocabulary: int) -> int:
        """Those of drafting, a number for each child, and a race for the last token."""
        return self.draft_uniforms(index, vocabulary) + index.size - 1 + vocabulary

    def draft(
        self, logits: Tensor, ranks: int, nodes: slice, index: TreeIndex, uniforms: Tensor
    ) -> Tensor:
        """Draws without replacement from the draft at the temperature."""
        own = _of_nodes(uniforms, nodes, logits.shape[-1])
        return draw_without_replacement(tempered(logits, self.temperature), ranks, own)

    def verify(
        self,
        index: TreeIndex,
        tokens: Tensor,
        target_logits: Tensor,
        draft_logits: Tensor,
        uniforms: Tensor,
    ) -> Verdict:
        """All internal nodes' tests at once, then the path that passed, then its next token."""
        vocabulary = target_logits.shape[-1]
        target = warp(target_logits, self.temperature, self.top_p)
        if not index.internal:
            path, count, last = follow(index, index.root[1:])
            return Verdict(path, count, last, draw(target, uniforms[-vocabulary:][None]))

        draft = warp(draft_logits, self.temperature)
        tests = residual_tests(
            target.index_select(0, index.internal_nodes),
            draft,
            Draws(tokens[index.child], index.exist, index.reach, self.replaced),
        )
        before = self.draft_uniforms(index, vocabulary)
        own = uniforms[before : before + index.size - 1]
        passed = torch.zeros_like(tests.passes, dtype=torch.bool)
        passed.view(-1)[index.test] = own < tests.passes.flatten().index_select(0, index.test)
        first = passed & (passed.cumsum(dim=1) == 1)
        path, count, last = follow(index, first.flatten().index_select(0, index.test))
        rest = what_is_left(index, last, target, draft, tests.scale)
        return Verdict(path, count, last, draw(rest, uniforms[-vocabulary:][None]))

    def trial(self, target_logits: Tensor, draft_logits: Tensor, width: int) -> Trial:
        """Draws, their tests, and the token that comes of it; chances are exact given the draws."""
        whole = warp(target_logits, self.temperature, self.top_p)
        draft = warp(draft_logits, self.temperature)
        drawn = self._drawn(draft_logits, width)
        every = torch.ones_like(drawn, dtype=torch.bool)
        draws = Draws(drawn, every, [len(drawn)] * width, self.replaced)
        tests = residual_tests(whole, draft, draws)
        failed = (1 - tests.passes).cumprod(dim=1)
        chances = tests.passes * torch.cat([torch.ones_like(failed[:, :1]), failed[:, :-1]], dim=1)
        rank = first_rank(torch.rand_like(tests.passes) < tests.passes)
        rest = draw(residual(whole - tests.scale[:, None] * draft, whole), torch.rand_like(whole))
        accepted = drawn.gather(1, (rank - 1).clamp_min(0)[:, None]).squeeze(1)
        return Trial(chances, rank, torch.where(rank > 0, accepted, rest))

    def _drawn(self, logits: Tensor, width: int) -> Tensor:
        """Draws of a trial, [positions, width]."""
        scaled = tempered(logits, self.temperature)
        return draw_without_replacement(scaled, width, torch.rand_like(scaled))


class SpecInfer(Sequoia):
    """Independent draws, with replacement: siblings may be the same token."""

    name = "specinfer"
    replaced = True

    def draft_uniforms(self, index: TreeIndex, vocabulary: int) -> int:
        """How many uniforms drafting takes: one for each draw."""
        return len(index.internal) * len(index.reach)

    def draft(
        self, logits: Tensor, ranks: int, nodes: slice, index: TreeIndex, uniforms: Tensor
    ) -> Tensor:
        """Draws with replacement from the draft at the temperature."""
        own = _of_nodes(uniforms, nodes, len(index.reach))
        return draw_with_replacement(warp(logits, self.temperature), own[:, :ranks])

    def _drawn(self, logits: Tensor, width: int) -> Tensor:
        draft = warp(logits, self.temperature)
        return draw_with_replacement(draft, draft.new_empty(len(draft), width).uniform_())


def _of_nodes(uniforms: Tensor, nodes: slice, each: int) -> Tensor:
    """The uniforms of some internal nodes [nodes, each], if all have so many, from the first."""
    return uniforms[nodes.start * each : nodes.stop * each].view(-1, each)


@dataclass
class Draws:
    """What some nodes' tests are about.

    Attributes:
        tokens: [nodes, ranks]. Void ones (of probability 0 in the draft, its support being
            exhausted) never pass and change nothing.
        exist: [nodes, ranks], which of them there are; the first of each node always.
        reach: how many of the nodes, from the first, have at least 1, 2, … draws.
        replaced: whether a token can be drawn again.
    """

    tokens: Tensor
    exist: Tensor
    reach: list[int]
    replaced: bool


@dataclass
class Tests:
    """The tests of some nodes' draws, each given that all before it failed.

    Attributes:
        passes: [nodes, ranks], chance that a draw passes; 0 past a node's last.
        scale: [nodes], c after the last: what is left of the target is max(P - c Q, 0).
        own: [nodes], chance that the node itself passes, if it is tested after them.
    """

    passes: Tensor
    scale: Tensor
    own: Tensor


def residual_tests(target: Tensor, draft: Tensor, draws: Draws, own: Tensor | None = None) -> Tests:
    """The tests of the draws at each node; one kernel for all of them where it runs on CUDA.

    Args:
        target, draft: [nodes, vocabulary], P and Q.
        own: [nodes], chance that the path to each node passes, where whole paths are tested
            (see Traversal); by default it has passed.
    """
    kept = target.gather(1, draws.tokens)
    chances = draft.gather(1, draws.tokens) * draws.exist
    undrawn = undrawn_mass(draft, draws, chances)
    if fused.available(target):
        counts = draws.exist.sum(dim=1)
        return Tests(*fused.residual_tests(target, draft, kept, chances, undrawn, counts, own))
    return tests_by_rank(target, draft, draws.reach, kept, chances, undrawn, own)


def undrawn_mass(draft: Tensor, draws: Draws, chances: Tensor) -> Tensor:
    """M before each draw [nodes, ranks]: of the tokens that are never drawn and of the draws
    still to come. Sums alone: what is left of nearly nothing would not survive a difference."""
    if draws.replaced or chances.shape[1] == 1:
        return draft.sum(dim=-1, keepdim=True).expand_as(chances)
    drawn = torch.where(draws.exist, draws.tokens, draws.tokens[:, :1])
    never = draft.scatter(1, drawn, 0).sum(dim=-1, keepdim=True)
    return never + chances.flip(1).cumsum(dim=1).flip(1)


def tests_by_rank(
    target: Tensor,
    draft: Tensor,
    reach: list[int],
    kept: Tensor,
    chances: Tensor,
    undrawn: Tensor,
    own: Tensor | None,
) -> Tests:
    """`residual_tests`, all nodes' draws of a rank at once.

    Args:
        kept, chances: [nodes, ranks], P and Q at the draws; Q is 0 at void ones.
        undrawn: [nodes, ranks], M before each.
    """
    passes = torch.zeros_like(chances)
    scale = target.new_zeros(len(target), 1)
    passing = torch.ones_like(scale) if own is None else own[:, None].clone()
    masses = target.sum(dim=-1, keepdim=True)  # S, of what is left of the target
    for rank, count in enumerate(reach):
        here = slice(rank, rank + 1)
        chance, mass, reached = chances[:count, here], masses[:count], passing[:count]
        rest = (kept[:count, here] - scale[:count] * chance).clamp_min(0)
        limit = mass * chance
        ratio = reached * rest * undrawn[:count, here] / limit
        passes[:count, here] = torch.where(limit > 0, ratio, 0).clamp(max=1)
        tested = (chance > 0) & (reached > 0)
        scale[:count] += torch.where(tested, mass / (reached * undrawn[:count, here]), 0)
        # Summed again only for those who ask: the next rank's tests, or the nodes' own.
        asked = count if own is not None else sum(reach[rank + 1 : rank + 2])
        after = _rest(target[:asked], scale[:asked], draft[:asked]).sum(dim=-1, keepdim=True)
        if own is not None:
            more = torch.where(mass > 0, reached * after / mass, 0)
            fails = 1 - reached
            share = torch.where(more + fails > 0, more / (more + fails), 1)
            passing[:count] = torch.where(tested, share, reached)
        masses[:asked] = after
    return Tests(passes, scale.squeeze(1), passing.squeeze(1))


def _rest(target: Tensor, scale: Tensor, draft: Tensor) -> Tensor:
    """max(P - c Q, 0), in as few passes over the vocabulary as there can be."""
    return torch.addcmul(target, scale, draft, value=-1).clamp_min_(0)


def what_is_left(
    index: TreeIndex, last: Tensor, target: Tensor, draft: Tensor, scale: Tensor
) -> Tensor:
    """Weights [1, vocabulary] of the token after the node `last` [1], its children rejected.

    Args:
        target: [size, vocabulary].
        draft: [internal, vocabulary].
        scale: [internal], see Tests.
    """
    row = index.row.gather(0, last)
    taken = torch.cat([scale, scale.new_zeros(1)]).gather(0, row)
    inside = row.clamp(max=len(index.internal) - 1)  # a leaf's scale is 0
    whole = target.index_select(0, last)
    return residual(whole - taken[:, None] * draft.index_select(0, inside), whole)


def residual(rest: Tensor, whole: Tensor) -> Tensor:
    """max(`rest`, 0), and `whole` where that vanishes: rounding alone can lead there."""
    positive = rest.clamp_min(0)
    return torch.where(positive.sum(dim=-1, keepdim=True) > 0, positive, whole)
