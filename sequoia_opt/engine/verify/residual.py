"""Verifiers that test the draft's draws one by one against the residual of the target.

Sequoia (arXiv 2402.12374, algorithm 2) and SpecInfer (arXiv 2305.09781) in closed form. Before
the k-th test of a node the residual is R ∝ max(P - c Q, 0) with one scalar c. Let S be the sum of
that, and M the draft's mass that is not yet drawn (with replacement: 1). The draw s passes with
probability min(1, (P[s] - c Q[s]) M / (S Q[s])); if it fails, c grows by S / M.

Traversal (arXiv 2505.12398) tests whole paths. If the path to the node passes with chance A, the
draw passes with probability min(1, A R[s] M / (S Q[s])), and if it fails A becomes
A S' / (A S' + S (1 - A)) with the new sum S'. The deficit W = S (1 - A) / A is the same before and
after a test. So all of the above holds for paths too with S + W in place of S, and at the end
A = S / (S + W).
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
    Trial,
    Verdict,
    first_rank,
    last_reached,
)
from sequoia_opt.engine.verify.tree_index import TreeIndex


class Sequoia:
    """Draws without replacement, verified child by child against the residual target.

    Args:
        temperature: above 0, for both models.
        top_p, top_k, min_p: for the target alone, see `sampling.Cuts`: truncating the draft would
            leave nothing for its later ranks.
    """

    name = "sequoia"
    reads_draft = True
    with_replacement = False

    def __init__(
        self, temperature: float, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0
    ) -> None:
        self.temperature, self.cuts = temperature, Cuts(top_p, top_k, min_p)

    def node_uniforms(self, ranks: int, vocabulary: int, device: torch.device) -> int:
        """Number of uniforms that drafting at a node takes: one for each token, or a single one
        where the node draws once by inversion."""
        return 1 if inverts(ranks, device) else vocabulary

    def node_noise(self, uniforms: Tensor) -> Tensor:
        """Gumbel noise [nodes, vocabulary], of uniforms of this shape; uniforms [nodes, 1] to be
        inverted as they are."""
        return uniforms if uniforms.shape[1] == 1 else gumbel(uniforms)

    def uniform_count(self, index: TreeIndex, vocabulary: int) -> int:
        """Those of drafting, one for each child's test, and one for the next token."""
        ranks, device = len(index.children.row_counts), index.nodes.device
        drafting = self.node_uniforms(ranks, vocabulary, device)
        return len(index.internal) * drafting + index.size

    def noise(self, index: TreeIndex, uniforms: Tensor) -> Tensor:
        """The noise of each internal node, see `node_noise`."""
        return self.node_noise(uniforms[: -index.size].view(len(index.internal), -1))

    def draft(self, logits: Tensor, ranks: int, noise: Tensor) -> Tensor:
        """Draws without replacement from the draft at the temperature."""
        if noise.shape[1] == 1:
            return draw_with_replacement(warp(logits, self.temperature), noise)
        return draw_without_replacement(logits, ranks, noise, self.temperature)

    def verify(
        self,
        index: TreeIndex,
        tokens: Tensor,
        target_logits: Tensor,
        draft_logits: Tensor,
        uniforms: Tensor,
    ) -> Verdict:
        """Test all internal nodes' children at once, accept the path whose nodes passed, and draw
        its next token."""
        target = warp(target_logits, self.temperature, *self.cuts)
        if not index.internal:
            return Verdict(index.nodes, draw(target, uniforms))
        draft = warp(draft_logits, self.temperature)
        table = index.children
        parents = target[table.places]
        draws = gather_draws(
            parents, draft, tokens.take(table.children), table.exist, self.with_replacement
        )
        tests = residual_tests(parents, draft, draws, table.row_counts)
        passes = tests.passes.flatten().index_select(0, index.child_position)
        last = last_reached(index, uniforms[-index.size : -1] < passes)
        weights = next_token_weights(index, last, target, draft, [tests.scale], index.internal_row)
        return Verdict(last, draw(weights, uniforms[-1:]))

    def trial(self, positions: Positions) -> Trial:
        """Draw guesses and test them; the chances are exact given the draws."""
        target = warp(positions.target, self.temperature, *self.cuts)
        draft = warp(positions.draft, self.temperature)
        guesses = self._guesses(positions)
        draws = gather_draws(target, draft, guesses, None, self.with_replacement)
        tests = residual_tests(target, draft, draws, [len(guesses)] * positions.width)
        failed = (1 - tests.passes).cumprod(dim=1)
        chances = tests.passes * torch.cat([torch.ones_like(failed[:, :1]), failed[:, :-1]], dim=1)
        rank = first_rank(torch.rand_like(tests.passes) < tests.passes)

        def emit() -> Tensor:
            weights = residual(target, tests.scale, draft)
            correction = draw(weights, torch.rand_like(target[:, 0]))
            accepted = guesses.gather(1, (rank - 1).clamp_min(0)[:, None]).squeeze(1)
            return torch.where(rank > 0, accepted, correction)

        return Trial(guesses, chances, rank, emit)

    def _guesses(self, positions: Positions) -> Tensor:
        """A trial's guesses, [positions, width]."""
        return self.draft(positions.draft, positions.width, positions.noise)


class SpecInfer(Sequoia):
    """Independent draws, with replacement: siblings may be the same token."""

    name = "specinfer"
    with_replacement = True

    def node_uniforms(self, ranks: int, vocabulary: int, device: torch.device) -> int:
        """Number of uniforms that drafting at a node takes: one for each draw."""
        return ranks

    def node_noise(self, uniforms: Tensor) -> Tensor:
        """The uniforms [nodes, ranks], as many for each node as any node has children."""
        return uniforms

    def draft(self, logits: Tensor, ranks: int, noise: Tensor) -> Tensor:
        """Draws with replacement from the draft at the temperature."""
        return draw_with_replacement(warp(logits, self.temperature), noise[:, :ranks])

    def _guesses(self, positions: Positions) -> Tensor:
        uniforms = torch.rand_like(positions.draft[:, : positions.width])
        return self.draft(positions.draft, positions.width, uniforms)


def inverts(ranks: int, device: torch.device) -> bool:
    """Whether nodes of so many draws make them by inversion: of one at most, on a CPU.

    On a CPU one random number is a few nanoseconds, a vocabulary of them longer than all else that
    drawing takes; on CUDA noise is cheap, and a cumulative sum is not.
    """
    return ranks == 1 and device.type == "cpu"


@dataclass
class Draws:
    """The models' probabilities of the draws at some nodes.

    Attributes:
        table: [4, nodes, ranks], of each draw P, Q, M before it, and M / Q. Where a node has no
            draw, or a void one (the draft's support is exhausted), Q is 0, M the largest number
            and M / Q is 0: the draw never passes, and c, which grows by S / M, does not change.
    """

    table: Tensor

    def select(self, rows: slice | Tensor, ranks: int) -> Draws:
        """The first `ranks` draws at some of the nodes."""
        return Draws(self.table[:, rows, :ranks])


@dataclass
class AcceptanceTests:
    """The tests of some nodes' draws, each given that the draws before it failed.

    Attributes:
        passes: [nodes, ranks], chance that a draw passes; 0 past a node's last draw.
        scale: [nodes, 1], c after the last test: the residual target is max(P - c Q, 0). It is
            meaningless where the path to the node cannot pass.
        path_chance: [nodes, 1], chance that the path to the node passes after all its draws
            failed. It is meaningless where single draws are tested.
    """

    passes: Tensor
    scale: Tensor
    path_chance: Tensor


def gather_draws(
    target: Tensor, draft: Tensor, tokens: Tensor, exist: Tensor | None, with_replacement: bool
) -> Draws:
    """Collect the models' probabilities of the draws.

    Args:
        target, draft: [nodes, vocabulary], P and Q.
        tokens: [nodes, ranks]; where a node has fewer draws, its first one again.
        exist: [nodes, ranks], where a node has a draw; by default everywhere.
        with_replacement: whether a token can be drawn again.
    """
    target_chance, draft_chance = target.gather(1, tokens), draft.gather(1, tokens)
    if exist is not None:
        draft_chance = torch.where(exist, draft_chance, 0)
    if with_replacement or tokens.shape[1] == 1:
        undrawn = torch.ones_like(draft_chance)
    else:
        # The mass of the tokens that are never drawn, and of this draw and those after it. Only
        # sums: the difference between 1 and nearly 1 would lose all its digits.
        never_drawn = draft.scatter(1, tokens, 0).sum(dim=-1, keepdim=True)
        undrawn = never_drawn + draft_chance.flip(1).cumsum(dim=1).flip(1)
    possible, largest = draft_chance > 0, torch.finfo(draft.dtype).max
    gain = torch.where(possible, undrawn / draft_chance, 0).clamp_(max=largest)
    undrawn = torch.where(possible, undrawn, largest)
    return Draws(torch.stack([target_chance, draft_chance, undrawn, gain]))


def residual_tests(
    target: Tensor,
    draft: Tensor,
    draws: Draws,
    row_counts: list[int],
    path_chance: Tensor | None = None,
) -> AcceptanceTests:
    """The tests of the draws at each node; on CUDA one kernel computes all of them.

    Args:
        target, draft: [nodes, vocabulary], P and Q.
        row_counts: how many of the nodes, from the first, have at least 1, 2, … draws.
        path_chance: [nodes, 1], chance that the path to each node passes, where whole paths are
            tested; by default single draws are tested.
    """
    if fused.available(target):
        return AcceptanceTests(*fused.residual_tests(target, draft, draws.table, path_chance))
    return tests_by_rank(target, draft, draws, row_counts, path_chance)


def tests_by_rank(
    target: Tensor,
    draft: Tensor,
    draws: Draws,
    row_counts: list[int],
    path_chance: Tensor | None,
) -> AcceptanceTests:
    """`residual_tests` in tensor operations, all nodes' draws of one rank at once."""
    limits, nodes = torch.finfo(target.dtype), len(target)
    # S, the residual's sum, is 1 at first, so S + W is 1 / A.
    mass = target.new_ones(nodes, 1)
    total = mass if path_chance is None else mass / path_chance
    deficit = None if path_chance is None else total - mass
    scale, passes = None, []
    for rank, column in enumerate(draws.table.split(1, dim=2)):
        target_chance, draft_chance, undrawn, gain = column
        if scale is None:  # no draw has failed yet: c is 0
            scale = total / undrawn
        else:
            target_chance = positive_difference(target_chance, scale, draft_chance)
            scale = torch.addcdiv(scale, total, undrawn)
        scale.clamp_(max=limits.max)
        passes.append(target_chance * gain / total)
        # Sum again only for the nodes that need it: those with a draw of the next rank, or, for
        # paths, those with a draw of this rank.
        if deficit is not None:
            rows = row_counts[rank]
        else:
            rows = row_counts[rank + 1] if rank + 1 < len(row_counts) else 0
        if rows == 0:
            continue
        if rows == nodes:
            mass = positive_difference(target, scale, draft).sum(dim=-1, keepdim=True)
        else:
            rest = positive_difference(target[:rows], scale[:rows], draft[:rows])
            mass = torch.cat([rest.sum(dim=-1, keepdim=True), mass[rows:]])
        total = mass if deficit is None else mass + deficit
        total = total.clamp_min(limits.tiny)  # where no mass is left
    assert scale is not None
    return AcceptanceTests(torch.cat(passes, dim=1).clamp_(max=1), scale, mass / total)


def positive_difference(target: Tensor, scale: Tensor, draft: Tensor) -> Tensor:
    """max(P - c Q, 0), in two passes over the vocabulary."""
    return torch.addcmul(target, scale, draft, value=-1).clamp_min_(0)


def next_token_weights(
    index: TreeIndex,
    last: Tensor,
    target: Tensor,
    draft: Tensor,
    scales: list[Tensor],
    scale_row: Tensor,
) -> Tensor:
    """Weights [1, vocabulary] of the token after the node `last` [1], whose children all failed.

    Args:
        target: [size, vocabulary].
        draft: [internal, vocabulary].
        scales: of all internal nodes, see AcceptanceTests.
        scale_row: [size], each node's row in the concatenated scales; a leaf's is one past them.
    """
    leaf_scale = target.new_zeros(1, 1)
    scale = torch.cat([*scales, leaf_scale]).index_select(0, scale_row.gather(0, last))
    # A leaf has no row in the draft's; its c is 0, so any row does.
    row = index.internal_row.gather(0, last).clamp_(max=len(index.internal) - 1)
    return residual(target.index_select(0, last), scale, draft.index_select(0, row))


def residual(target: Tensor, scale: Tensor, draft: Tensor) -> Tensor:
    """max(P - c Q, 0) [nodes, vocabulary] for c [nodes, 1]; P where rounding leaves nothing."""
    rest = positive_difference(target, scale, draft)
    return torch.where(rest.sum(dim=-1, keepdim=True) > 0, rest, target)
