"""What a node's guesses were, given the token that verification emitted: trials in hindsight.

Verification emits the target's own distribution, whatever the guesses. So a text may be drawn first
and the guesses of each of its nodes afterwards, given the text: together they are distributed as
drafting and verification make them. A draft that says something else depending on where its step
began has many such trials at each position of one text. Knows nothing of models or trees.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sequoia_opt.engine.sampling import draw, warp
from sequoia_opt.engine.verify.node_rules import Uniforms
from sequoia_opt.engine.verify.residual import Sequoia


def drawn_before(
    verifier: Sequoia,
    target_logits: Tensor,
    draft_logits: Tensor,
    tokens: Tensor,
    ranks: int,
    uniforms: Uniforms,
) -> tuple[Tensor, Tensor]:
    """Draw the guesses of some nodes, and which of them was accepted, given what was emitted.

    Let R be the residual target before the k-th test and D the draft's distribution of the k-th
    draw. If the token x is emitted, the k-th draw is x and passes with probability
    min(1, D[x] / R[x]); else it is one that failed, of probability proportional to max(D - R, 0).
    Draws behind the accepted one were not tested: they are of probability D.

    Args:
        target_logits, draft_logits: [nodes, vocabulary].
        tokens: [nodes], what was emitted behind each.
        ranks: guesses of a node.
        uniforms: gives random numbers.

    Returns:
        The guesses [nodes, ranks], and the accepted one's rank [nodes], 0 for none.
    """
    target = warp(target_logits.double(), verifier.temperature, *verifier.cuts)
    draft = warp(draft_logits.double(), verifier.temperature)
    tiny = torch.finfo(target.dtype).tiny
    undrawn = draft.clone()
    scale = torch.zeros_like(target[:, :1])  # c of the module `residual`, before the test
    accepted = torch.zeros_like(tokens)
    emitted = tokens[:, None]
    guesses = []
    for rank in range(1, ranks + 1):
        rest = (target - scale * draft).clamp_min(0)
        mass = rest.sum(dim=-1, keepdim=True).clamp_min(tiny)
        left = undrawn.sum(dim=-1, keepdim=True)
        chances = undrawn / left.clamp_min(tiny)
        residual = rest / mass
        ratio = chances.gather(1, emitted) / residual.gather(1, emitted).clamp_min(tiny)
        numbers = uniforms(2 * len(tokens)).view(2, -1).to(target)
        is_open = accepted == 0
        passes = is_open & (numbers[0] < ratio[:, 0])
        failed = (chances - residual).clamp_min(0)
        failed = torch.where(failed.sum(dim=-1, keepdim=True) > 0, failed, chances)
        others = draw(torch.where(is_open[:, None], failed, chances), numbers[1])
        guess = torch.where(passes, tokens, others)
        guesses.append(guess)
        accepted = torch.where(passes, rank, accepted)
        scale = torch.where(left > 0, scale + mass / left.clamp_min(tiny), scale)
        if not verifier.with_replacement:
            undrawn = undrawn.scatter(1, guess[:, None], 0)
    return torch.stack(guesses, dim=1), accepted
