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
    found = scaling(Acceptance(np.array(REFERENCE["acceptance"])))
    assert found.sizes == [2, 4, 8, 16, 32, 64, 128, 256, 512]
    gains = np.diff(found.trees)
    assert (gains > 0.3).all()
    assert found.error < 0.02
    assert found.per_doubling == pytest.approx(gains[2:].mean(), rel=0.05)
    assert (found.sequences < found.plateau).all()
    assert np.diff(found.sequences)[-1] < 0.05
    # With n nodes no more can be had than the published table says for its largest depth.
    published = np.array(REFERENCE["expected_tokens"], dtype=float)
    assert found.trees[6] >= np.nanmax(published[:, 127]) - 1e-5
    rates = np.array(REFERENCE["acceptance"])
    assert found.plateau == pytest.approx(1 + rates.sum() / (1 - rates[0]), rel=1e-6)


def test_the_best_of_a_size_have_the_most_tokens_of_their_shape() -> None:
    acceptance = Acceptance(np.array([0.6, 0.2, 0.1]))
    for size in (2, 5, 12):
        found = of_size(acceptance, size, max_depth=8)
        assert all(tree.size <= size for tree in found.values())
        tokens = {name: acceptance.expected_tokens(tree) for name, tree in found.items()}
        assert max(tokens.values()) == pytest.approx(tokens["tree"])
        assert found["chain"] == shapes.chain(min(size, 9))
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
