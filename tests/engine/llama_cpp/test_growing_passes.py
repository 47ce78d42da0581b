"""Passes over growing trees against the same paths read one by one into a fresh cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from growing import grow_and_compare, logits_after

from sequoia_opt.engine.model import reserved
from sequoia_opt.errors import SequoiaError

TOLERANCE = 1e-2  # sums in another order, and llama.cpp looks up GELU in a table of float16


@pytest.mark.parametrize("seed", range(4))
def test_nodes_see_their_ancestors_alone(pair: Any, seed: int) -> None:
    with reserved(pair.draft, 128, branches=16) as cache:
        passes = pair.draft.growing_passes(64, 16)
        grow_and_compare(pair.draft, passes, cache, seed, steps=4, tolerance=TOLERANCE)


def test_branches_off_the_middle_of_the_trunk(pair: Any) -> None:
    """As recordings have them: a tree hangs from each of several tokens of the text."""
    model, text, trunk = pair.draft, [5, 6, 7], [8, 9, 10, 11]
    with reserved(model, 64, branches=5) as cache:
        passes = model.growing_passes(32, 5)
        for _ in range(2):
            model.prefill(cache, torch.tensor([text]))
            passes.begin(cache, len(text), len(text))
            passes.run(trunk, [-1, 0, 1, 2], 4)
            logits = passes.run([20, 21, 22], [0, 0, 2], 3).clone()
            deeper = passes.run([30, 31], [4, 6], 2)
            expected = [[8, 20], [8, 21], [8, 9, 10, 22]]
            for row, path in zip(logits, expected, strict=True):
                assert torch.allclose(row, logits_after(model, text + path), atol=TOLERANCE)
            for row, path in zip(deeper, ([8, 20, 30], [8, 9, 10, 22, 31]), strict=True):
                assert torch.allclose(row, logits_after(model, text + path), atol=TOLERANCE)
            passes.accept([0, 1, 2, 3])
            passes.begin(cache, len(text) + 4, len(text) + 4)
            after = passes.run([40], [-1], 1)[0]
            assert torch.allclose(after, logits_after(model, text + trunk + [40]), atol=TOLERANCE)


def test_more_leaves_than_sequences_are_refused(pair: Any) -> None:
    with pytest.raises(SequoiaError, match="tells 256 sequences apart"):
        pair.draft.growing_passes(400, 300)
    with reserved(pair.draft, 64, branches=2) as cache:
        passes = pair.draft.growing_passes(16, 2)
        passes.begin(cache, 0, 0)
        passes.run([1], [-1], 1)
        with pytest.raises(SequoiaError, match="more than the 2 leaves"):
            passes.run([1, 2, 3], [0, 0, 0], 3)
