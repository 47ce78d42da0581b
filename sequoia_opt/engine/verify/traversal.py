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
from sequoia_opt.engine.verify.interface import TreeIndex, Verdict
from sequoia_opt.engine.verify.residual import Draws, Sequoia, residual_tests, what_is_left


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
        vocabulary = target_logits.shape[-1]
        target = warp(target_logits, self.temperature, self.top_p)
        draft = warp(draft_logits, self.temperature)
        own = target.new_ones(index.size)
        scale = target.new_zeros(len(index.internal))
        for level in index.levels:
            tests = residual_tests(
                target.index_select(0, level.nodes),
                draft.index_select(0, level.rows),
                Draws(tokens[level.children], level.exist, level.reach, self.replaced),
                own.index_select(0, level.nodes),
            )
            # A place without a child writes to the root, which passes whatever stands there.
            own = own.scatter(0, level.children.flatten(), tests.passes.flatten())
            own = own.scatter(0, level.nodes, tests.own)
            scale = scale.scatter(0, level.rows, tests.scale)
        before = self.draft_uniforms(index, vocabulary)
        passed = uniforms[before : before + index.size - 1] < own[1:]
        in_order = torch.cat([index.root, passed]).index_select(0, index.post_order)
        last = index.post_order.gather(0, in_order.int().argmax(dim=0, keepdim=True))
        rest = what_is_left(index, last, target, draft, scale)
        return Verdict(
            path=index.paths.index_select(0, last)[0],
            count=index.depths.gather(0, last) + 1,
            last=last,
            next=draw(rest, uniforms[-vocabulary:][None]),
        )
