from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.scaling import scaling

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
