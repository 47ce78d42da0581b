from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from test_acceptance import rate_tables

from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance


@given(table=rate_tables(depth=4, width=3))
def test_the_arrays_describe_the_trees(table: np.ndarray) -> None:
    acceptance = Acceptance(table[0], by_depth=table)
    by_shape = shapes.shaped_trees(table, max_size=20)
    assert list(by_shape) == ["chain", "k-sequences", "k-ary"]
    for shape in by_shape.values():
        for index in np.ndindex(shape.expected.shape):
            tree = shape.tree(*index)
            if tree.size > 20:
                assert np.isnan(shape.expected[index])
                continue
            assert shape.expected[index] == pytest.approx(acceptance.expected_tokens(tree))
            assert shape.sizes[index] == tree.size
            widths = [len(level) for level in tree.internal_levels]
            assert shape.widths[index].tolist() == widths + [0] * (4 - len(widths))
