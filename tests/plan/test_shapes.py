from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from test_acceptance import rate_tables

from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance


@given(table=rate_tables(depth=4, width=3))
def test_shapes_as_numbers_are_the_trees(table: np.ndarray) -> None:
    acceptance = Acceptance(table[0], by_depth=table)
    families = shapes.families(table, max_size=20)
    assert list(families) == ["chain", "k-sequences", "k-ary"]
    for shape in families.values():
        for place in np.ndindex(shape.expected.shape):
            tree = shape.tree(*place)
            if tree.size > 20:
                assert np.isnan(shape.expected[place])
                continue
            assert shape.expected[place] == pytest.approx(acceptance.expected_tokens(tree))
            assert shape.sizes[place] == tree.size
            widths = [len(level) for level in tree.internal_levels]
            assert shape.widths[place].tolist() == widths + [0] * (4 - len(widths))
