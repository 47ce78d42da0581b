from __future__ import annotations

import numpy as np
from hypothesis import given
from test_tree import trees

from sequoia_opt.plan.draft_passes import draft_passes
from sequoia_opt.plan.tree import TokenTree


@given(trees())
def test_a_draft_model_passes_over_the_internal_nodes_of_each_level(tree: TokenTree) -> None:
    internal = {parent for parent in tree.parents if parent >= 0}
    by_depth = np.bincount([tree.depths[v] for v in internal], minlength=1)
    expected = [int(n) for n in by_depth if n]
    if expected:
        expected[0] = 2
    assert list(draft_passes(tree)) == expected
