"""The verifier that tests whole paths, from the leaves to the root (arXiv 2505.12398).

A path's chance to pass is the product along it of what the target gives over what the draft
gave, cut at 1 at every step, so that a token that the target favours makes up for one before it
that it does not. Where a leaf fails it is taken out, its parent's target becomes the residual
and the parent's own chance what is left of it, and the next path is tested; the root passes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sequoia_opt.engine.sampling import draw, warp
from sequoia_opt.engine.verify.base import TreeIndex, Verdict
from sequoia_opt.engine.verify.residual import Sequoia, look_up, residual_tests, what_is_left


class Traversal(Sequoia):
    """Drafts as Sequoia does. At a single node the two are the same, so is their acceptance by
    rank; over whole trees this one accepts at least as much."""

    name = "traversal"

    def verify(
        self,
        index: TreeIndex,
        tokens: Tensor,
        target_logits: Tensor,
        draft_logits: Tensor,
        uniforms: Tensor,
    ) -> Verdict:
        """Each node's chance given that all before it in post-order failed, level by level from
        the root; then the first in that order that passes."""
        if not index.internal:
            return super().verify(index, tokens, target_logits, draft_logits, uniforms)
        target = warp(target_logits, self.temperature, *self.cuts)
        draft = warp(draft_logits, self.temperature)
        families = index.families
        whole = target.index_select(0, families.nodes)
        draws = look_up(whole, draft, tokens.take(families.children), families.exist, self.replaced)
        passes, own, scales = [target.new_ones(1)], [], []
        for level in index.levels:
            reach = level.families.reach
            tests = residual_tests(
                whole[level.rows],
                draft[level.rows],
                draws.at(level.rows, len(reach)),
                reach,
                passes[-1].take(level.own),
            )
            passes.append(tests.passes.flatten())
            own.append(tests.own.flatten())
            scales.append(tests.scale)
        chances = torch.cat([*passes[1:], *own]).take(index.posted_tested)
        # The root passes whatever it draws.
        passed = torch.cat([uniforms[-index.size : -1] < chances, index.root])
        last = index.posted.gather(0, passed.int().argmax(dim=0, keepdim=True))
        rest = what_is_left(index, last, target, draft, scales, index.level_row)
        return Verdict(last, draw(rest, uniforms[-1:]))
