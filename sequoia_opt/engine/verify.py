"""The verifiers: which path of a tree the target keeps, and the token that follows it.

Each is a drafting rule and a verification rule that together leave the output distribution
the target's own. All are functions of tensors without a branch on a value: uniforms in,
accepted path and next token out. Knows nothing of models, caches or text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from sequoia_opt.engine.sampling import draw, draw_without_replacement, tempered, warp
from sequoia_opt.plan.tree import TokenTree


def indices(values: ArrayLike, device: torch.device) -> Tensor:
    """Whole numbers as an index tensor, also when there are none."""
    return torch.as_tensor(np.asarray(values, dtype=np.int64), device=device)


class TreeIndex:
    """A tree's structure as tensors, prepared once.

    Internal nodes are kept in the order of falling child count, so that those with at least k
    children are the first few: each rank's test is then a slice.

    Attributes:
        internal: the internal nodes in that order.
        reach: how many of them have at least 1, 2, … children.
    """

    def __init__(self, tree: TokenTree, device: torch.device) -> None:
        self.size, self.depth = tree.size, tree.depth
        counts = tree.child_counts
        order = sorted((v for v in range(tree.size) if counts[v]), key=lambda v: -counts[v])
        self.internal = order
        self.reach = [
            sum(counts[v] >= rank for v in order) for rank in range(1, max(counts, default=0) + 1)
        ]
        row = {node: i for i, node in enumerate(order)}
        children = np.zeros((len(order), len(self.reach)), dtype=np.int64)
        for node in range(1, tree.size):
            children[row[tree.parents[node]], tree.ranks[node] - 1] = node

        self.internal_nodes = indices(order, device)
        # For each node its row among the internal ones; a leaf's is one past them.
        self.row = indices([row.get(v, len(order)) for v in range(tree.size)], device)
        self.child = indices(children, device)
        self.parent = indices([0, *tree.parents[1:]], device)
        # Where a node's own test stands in the flattened [internal, rank] table.
        self.test = indices(
            [
                row[tree.parents[v]] * len(self.reach) + tree.ranks[v] - 1
                for v in range(1, tree.size)
            ],
            device,
        )
        self.ancestors = torch.as_tensor(tree.ancestor_mask, device=device)
        self.nodes = torch.arange(tree.size, device=device)
        self.steps = torch.arange(tree.depth + 1, device=device)
        self.root = torch.ones(1, dtype=torch.bool, device=device)


@dataclass
class Verdict:
    """What verification decided.

    Attributes:
        path: [depth + 1], the accepted nodes from the root down; past them, the tree's size.
        count: [1], how many they are, the root included.
        last: [1], the last of them.
        next: [1], the token after them: correction or bonus.
    """

    path: Tensor
    count: Tensor
    last: Tensor
    next: Tensor


class Verifier(Protocol):
    """A drafting rule and the verification rule that belongs to it.

    Attributes:
        name: as in the files.
        reads_draft: whether `verify` looks at the draft's logits at all.
    """

    name: str
    reads_draft: bool

    def uniform_count(self, index: TreeIndex, vocabulary: int) -> int:
        """How many uniforms in [0, 1) one step takes: `draft` and `verify` share them."""
        ...

    def draft(
        self, logits: Tensor, ranks: int, nodes: slice, index: TreeIndex, uniforms: Tensor
    ) -> Tensor:
        """Guesses of the nodes: [nodes, ranks].

        Args:
            logits: [nodes, vocabulary], the draft's at these internal nodes.
            ranks: how many guesses each node needs at most.
            nodes: which of the internal nodes they are, counted breadth-first.
        """
        ...

    def verify(
        self,
        index: TreeIndex,
        tokens: Tensor,
        target_logits: Tensor,
        draft_logits: Tensor,
        uniforms: Tensor,
    ) -> Verdict:
        """Which path is kept.

        Args:
            tokens: [size], each node's token.
            target_logits: [size, vocabulary], the target's after each node.
            draft_logits: [internal, vocabulary], the draft's, in the order of `index.internal`.
        """
        ...

    def trial(self, target_logits: Tensor, draft_logits: Tensor, width: int) -> Trial:
        """Draft `width` guesses at each position and verify them: what `estimate` samples.

        Args:
            target_logits, draft_logits: [positions, vocabulary].
        """
        ...


@dataclass
class Trial:
    """One verification of full width at a single node, for each of many positions.

    Attributes:
        chances: [positions, width], probability that the rank-k draw is the accepted one.
        rank: [positions], the rank that was accepted, 0 for none.
        token: [positions], the token that verification emitted, the target's own in law.
    """

    chances: Tensor
    rank: Tensor
    token: Tensor


def follow(index: TreeIndex, accepted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The accepted path: from `accepted` [size - 1], whether each node but the root is the one
    child of its parent that passed.

    Returns:
        path [depth + 1], count [1] and last [1], as in Verdict.
    """
    rejected = torch.cat([index.root, accepted]).logical_not()
    reached = (index.ancestors & rejected).any(dim=1).logical_not()
    # Breadth-first order is depth order along a path, so sorting the reached nodes gives it.
    nodes = torch.where(reached, index.nodes, index.size)
    path = nodes.sort().values[: index.depth + 1]
    count = reached.sum(dim=0, keepdim=True)
    return path, count, path.gather(0, count - 1)


class Greedy:
    """Temperature 0: the draft ranks its logits, the target's most likely token is kept."""

    name = "greedy"
    reads_draft = False

    def uniform_count(self, index: TreeIndex, vocabulary: int) -> int:
        """Nothing is random."""
        return 0

    def draft(
        self, logits: Tensor, ranks: int, nodes: slice, index: TreeIndex, uniforms: Tensor
    ) -> Tensor:
        """The `ranks` most likely tokens."""
        if ranks == 1:
            return logits.argmax(dim=-1, keepdim=True)
        return logits.topk(ranks, dim=-1).indices

    def verify(
        self,
        index: TreeIndex,
        tokens: Tensor,
        target_logits: Tensor,
        draft_logits: Tensor,
        uniforms: Tensor,
    ) -> Verdict:
        """A node is accepted if it is what the target says after its parent."""
        wanted = target_logits.argmax(dim=-1)
        accepted = tokens[1:] == wanted.index_select(0, index.parent)[1:]
        path, count, last = follow(index, accepted)
        return Verdict(path, count, last, wanted.gather(0, last))

    def trial(self, target_logits: Tensor, draft_logits: Tensor, width: int) -> Trial:
        """The target's most likely token, and its place among the draft's."""
        token = target_logits.argmax(dim=-1)
        hits = draft_logits.topk(width, dim=-1).indices == token[:, None]
        return Trial(hits.to(target_logits.dtype), first_rank(hits), token)


class Sequoia:
    """Draws without replacement, verified child by child with the residual target.

    Sequoia, algorithm 2, in closed form: before the k-th test the residual is
    R ∝ max(P - c Q, 0) with one scalar c a node, S its sum, and M the draft's mass that is not
    yet drawn. The draw s passes with probability min(1, (P[s] - c Q[s]) M / (S Q[s])); if it
    fails, c grows by S / M.

    Args:
        temperature: above 0, for both models.
        top_p: in (0, 1], for the target alone: truncating the draft would empty its later ranks.
    """

    name = "sequoia"
    reads_draft = True

    def __init__(self, temperature: float, top_p: float = 1.0) -> None:
        self.temperature, self.top_p = temperature, top_p

    def uniform_count(self, index: TreeIndex, vocabulary: int) -> int:
        """A race for each internal node and for the last token, and a number for each child."""
        return (len(index.internal) + 1) * vocabulary + index.size - 1

    def draft(
        self, logits: Tensor, ranks: int, nodes: slice, index: TreeIndex, uniforms: Tensor
    ) -> Tensor:
        """Draws without replacement from the draft at the temperature."""
        vocabulary = logits.shape[-1]
        own = uniforms[nodes.start * vocabulary : nodes.stop * vocabulary].view(-1, vocabulary)
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
        passes, scale = pass_probabilities(
            target.index_select(0, index.internal_nodes), draft, tokens[index.child], index.reach
        )
        races = len(index.internal) * vocabulary
        own = uniforms[races : races + index.size - 1]
        passed = torch.zeros_like(passes, dtype=torch.bool)
        passed.view(-1)[index.test] = own < passes.flatten().index_select(0, index.test)
        first = passed & (passed.cumsum(dim=1) == 1)
        path, count, last = follow(index, first.flatten().index_select(0, index.test))

        row = index.row.gather(0, last)
        taken = torch.cat([scale, scale.new_zeros(1)]).gather(0, row)
        inside = row.clamp(max=len(index.internal) - 1)  # a leaf's scale is 0
        whole = target.index_select(0, last)
        rest = residual(whole - taken[:, None] * draft.index_select(0, inside), whole)
        return Verdict(path, count, last, draw(rest, uniforms[-vocabulary:][None]))

    def trial(self, target_logits: Tensor, draft_logits: Tensor, width: int) -> Trial:
        """Draws, their tests, and the token that comes of it; chances are exact given the draws."""
        whole = warp(target_logits, self.temperature, self.top_p)
        draft = warp(draft_logits, self.temperature)
        drawn = draw_without_replacement(
            tempered(draft_logits, self.temperature), width, torch.rand_like(draft)
        )
        passes, scale = pass_probabilities(whole, draft, drawn, [len(drawn)] * width)
        failed = (1 - passes).cumprod(dim=1)
        chances = passes * torch.cat([torch.ones_like(failed[:, :1]), failed[:, :-1]], dim=1)
        rank = first_rank(torch.rand_like(passes) < passes)
        rest = draw(residual(whole - scale[:, None] * draft, whole), torch.rand_like(whole))
        accepted = drawn.gather(1, (rank - 1).clamp_min(0)[:, None]).squeeze(1)
        return Trial(chances, rank, torch.where(rank > 0, accepted, rest))


def first_rank(passed: Tensor) -> Tensor:
    """Rank of the first that passed, from 1, along the last dimension; 0 if none did."""
    return (passed.int().argmax(dim=-1) + 1) * passed.any(dim=-1)


def residual(rest: Tensor, whole: Tensor) -> Tensor:
    """max(`rest`, 0), and `whole` where that vanishes: rounding alone can lead there."""
    positive = rest.clamp_min(0)
    return torch.where(positive.sum(dim=-1, keepdim=True) > 0, positive, whole)


def pass_probabilities(
    target: Tensor, draft: Tensor, tokens: Tensor, reach: list[int]
) -> tuple[Tensor, Tensor]:
    """Sequoia's test of each draw, given that all before it failed.

    Args:
        target, draft: [nodes, vocabulary], P and Q.
        tokens: [nodes, ranks], the draws without replacement; void ones (of probability 0 in
            the draft, its support being exhausted) never pass and change nothing.
        reach: how many of the nodes, from the first, have at least 1, 2, … draws.

    Returns:
        passes: [nodes, ranks], 0 past a node's last draw.
        scale: [nodes], c after the last draw: the residual is max(P - c Q, 0).
    """
    passes = target.new_zeros(tokens.shape)
    scale = target.new_zeros(len(target), 1)
    left = draft.clone()  # Q on the tokens not yet drawn
    for rank, count in enumerate(reach):
        drawn = tokens[:count, rank : rank + 1]
        rest = (target[:count] - scale[:count] * draft[:count]).clamp_min(0)
        mass = rest.sum(dim=-1, keepdim=True)
        undrawn = left[:count].sum(dim=-1, keepdim=True)
        chance = left[:count].gather(1, drawn)  # 0 for a void draw
        limit = mass * chance
        ratio = (rest.gather(1, drawn) * undrawn) / limit
        passes[:count, rank : rank + 1] = torch.where(limit > 0, ratio, 0).clamp(max=1)
        scale[:count] += torch.where(chance > 0, mass / undrawn, 0)
        left[:count].scatter_(1, drawn, 0)
    return passes, scale.squeeze(1)


VERIFIERS = ("sequoia",)
"""Verifiers for temperatures above 0; at 0 all of them are `greedy`."""


def make_verifier(name: str, temperature: float, top_p: float = 1.0) -> Verifier:
    """The verifier of that name; at temperature 0, greedy."""
    if temperature == 0:
        return Greedy()
    return {"sequoia": Sequoia}[name](temperature, top_p)
