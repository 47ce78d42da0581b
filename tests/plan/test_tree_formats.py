from __future__ import annotations

from hypothesis import given
from test_tree import trees

from sequoia_opt.plan import shapes
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.plan.tree_formats import growmap, of_growmap, of_paths, paths


@given(tree=trees(max_size=20))
def test_both_notations_give_the_same_tree_back(tree: TokenTree) -> None:
    assert of_growmap(growmap(tree), "file") == tree
    if tree.size > 1:
        assert of_paths(paths(tree)[::-1], "file") == tree


def test_a_growmap_has_umbrellas_fields() -> None:
    """Two sequences of four, as in UMbreLLa's repository."""
    mapping = growmap(shapes.k_sequences(2, 4))
    assert mapping["roots"] == [[0], [1, 2], [3, 4], [5, 6], [7, 8]]
    assert mapping["branches"] == [[2], [1, 1], [1, 1], [1, 1], [0, 0]]
    assert mapping["Successors"] == [[1, 2], [3], [4], [5], [6], [7], [8], [], []]
    assert mapping["mask"][7] == [1, 1, 0, 1, 0, 1, 0, 1, 0]
    assert mapping["depth"] == [0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert mapping["size"] == 9
