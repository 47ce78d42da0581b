from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.scaling import of_size, scaling

REFERENCE = json.loads((Path(__file__).parent / "sequoia_reference_table.json").read_text())


def test_trees_grow_with_every_doubling_and_sequences_do_not() -> None:
    grown = scaling(Acceptance(np.array(REFERENCE["acceptance"])))
    assert grown.sizes == [2, 4, 8, 16, 32, 64, 128, 256, 512]
    gains = np.diff(grown.trees)
    assert (gains > 0.3).all()
    assert grown.error < 0.02
    assert grown.per_doubling == pytest.approx(gains[2:].mean(), rel=0.05)
    assert (grown.sequences < grown.plateau).all()
    assert np.diff(grown.sequences)[-1] < 0.05
    # The published table has depth limits; without a limit the tokens are at least as many.
    published = np.array(REFERENCE["expected_tokens"], dtype=float)
    assert grown.trees[6] >= np.nanmax(published[:, 127]) - 1e-5
    rates = np.array(REFERENCE["acceptance"])
    assert grown.plateau == pytest.approx(1 + rates.sum() / (1 - rates[0]), rel=1e-6)


def test_the_best_trees_of_a_size_have_the_most_tokens_of_their_shape() -> None:
    acceptance = Acceptance(np.array([0.6, 0.2, 0.1]))
    for size in (2, 5, 12):
        best_by_shape = of_size(acceptance, size, max_depth=8)
        assert all(tree.size <= size for tree in best_by_shape.values())
        tokens = {name: acceptance.expected_tokens(tree) for name, tree in best_by_shape.items()}
        assert max(tokens.values()) == pytest.approx(tokens["tree"])
        assert best_by_shape["chain"] == shapes.chain(min(size, 9))
        if size > 2:
            rivals = [
                shapes.k_sequences(k, length)
                for k in (2, 3)
                for length in range(1, 9)
                if 1 + k * length <= size
            ]
            best = max(acceptance.expected_tokens(tree) for tree in rivals)
            assert tokens["k-sequences"] == pytest.approx(best)
    assert set(of_size(acceptance, 2)) == {"tree", "chain"}
    assert set(of_size(Acceptance(np.array([0.6])), 9)) == {"tree", "chain"}
