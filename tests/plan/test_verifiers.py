from __future__ import annotations

import pytest

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.verifiers import (
    DEFAULT_VERIFIER,
    VERIFIERS,
    check_verifier,
    has_rates,
    verifier_at,
)


def test_every_verifier_is_planned_as_one_that_has_rates() -> None:
    assert DEFAULT_VERIFIER in VERIFIERS
    for spec in VERIFIERS.values():
        assert VERIFIERS[spec.planned_as].has_rates
    assert [name for name in VERIFIERS if not has_rates(name)] == ["traversal"]
    assert has_rates("greedy")


def test_temperature_0_is_greedy() -> None:
    assert verifier_at(0, "topk") == "greedy"
    assert verifier_at(0.1, "topk") == "topk"


def test_refuses_unknown_names() -> None:
    check_verifier("topk")
    with pytest.raises(SequoiaError, match="verifier: found 'best', expected sequoia or specinfer"):
        check_verifier("best")
