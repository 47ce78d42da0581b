from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_latency import make_profile

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.solve_options import SolveOptions


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"size": 0}, "size: found 0, expected at least 1"),
        ({"max_size": 0}, "max_size: found 0, expected at least 1"),
        ({"depth": -1}, "depth: found -1, expected at least 0"),
        ({"max_depth": -1}, "max_depth: found -1, expected at least 0"),
        ({"max_width": 0}, "max_width: found 0, expected at least 1"),
        ({"shape": "star"}, "shape: found 'star', expected tree, chain, k-sequences, k-ary"),
        ({"confidence": 0.0}, "confidence: found 0, expected more than 0, less than 1"),
        ({"context": {}}, "context: found no weights, expected weights above 0"),
        ({"context": {100.0: 1.0, 200.0: 0.0}}, "context: found a weight of 0, expected"),
    ],
)
def test_refuses_options_out_of_range(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(SequoiaError, match=complaint):
        SolveOptions(**options)


def test_contexts_are_those_asked_for_else_that_of_the_acceptance() -> None:
    profile = make_profile()  # contexts of 128 to 1024
    acceptance = Acceptance(np.array([0.5]), context=200.0)
    weights = {128.0: 3.0, 1024.0: 1.0}
    assert SolveOptions(context=weights).contexts(profile, acceptance) == weights
    assert SolveOptions(context=300).contexts(profile, acceptance) == {300.0: 1.0}
    assert SolveOptions().contexts(profile, acceptance) == {200.0: 1.0}
    with pytest.raises(SequoiaError, match="not for 4; profile with --batches"):
        SolveOptions(batch=4).contexts(profile, acceptance)
