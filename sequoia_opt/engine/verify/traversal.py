"""The verifier that tests whole paths, from the leaves to the root (arXiv 2505.12398).

A path's chance to pass is the product along it of the target's over the draft's probability of
each token, capped at 1 at every node, so that a token that the target favours can make up for an
earlier one that it does not. When a leaf fails, it is removed: its parent's target becomes the
residual, its parent's own chance becomes the mass that is left, and the next path is tested. The
root always passes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sequoia_opt.engine.sampling import draw, warp
from sequoia_opt.engine.verify.base import Verdict
from sequoia_opt.engine.verify.residual import (
    Sequoia,
    gather_draws,
    next_token_weights,
    residual_tests,
)
from sequoia_opt.engine.verify.tree_index import TreeIndex


class Traversal(Sequoia):
    """Drafts as Sequoia does.

    At a single node it decides as Sequoia does, so both have the same acceptance by rank. Over
    whole trees it accepts at least as many tokens.
    """

    name = "traversal"

    def verify(
        self,
        index: TreeIndex,
        tokens: Tensor,
        target_logits: Tensor,
        draft_logits: Tensor,
        uniforms: Tensor,
    ) -> Verdict:
        """Accept the path to the first node, in post-order, that passes.

        Each node's chance, given that all nodes before it failed, is computed level by level from
        the root.
        """
        if not index.internal:
            return super().verify(index, tokens, target_logits, draft_logits, uniforms)
        target = warp(target_logits, self.temperature, *self.cuts)
        draft = warp(draft_logits, self.temperature)
        table = index.children
        parents = target[table.places]
        draws = gather_draws(
            parents, draft, tokens.take(table.children), table.exist, self.with_replacement
        )
        child_chances, parent_chances, scales = [target.new_ones(1)], [], []
        for level in index.levels:
            row_counts = level.children.row_counts
            tests = residual_tests(
                parents[level.rows],
                draft[level.rows],
                draws.select(level.rows, len(row_counts)),
                row_counts,
                child_chances[-1].take(level.position_above),
            )
            child_chances.append(tests.passes.flatten())
            parent_chances.append(tests.path_chance.flatten())
            scales.append(tests.scale)
        chances = torch.cat([*child_chances[1:], *parent_chances]).take(index.post_order_position)
        # The root passes whatever its uniform is.
        passed = torch.cat([uniforms[-index.size : -1] < chances, index.root])
        last = index.post_order.gather(0, passed.int().argmax(dim=0, keepdim=True))
        weights = next_token_weights(index, last, target, draft, scales, index.level_row)
        return Verdict(last, draw(weights, uniforms[-1:]))
