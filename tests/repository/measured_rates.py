"""Acceptance rates that state their origins, shared by the tests of a repository."""

from __future__ import annotations

from typing import Any

import numpy as np

from sequoia_opt.plan.acceptance import Acceptance


def rates_of(**changes: Any) -> Acceptance:
    """Acceptance rates with known origins."""
    facts: dict[str, Any] = {"target": "big", "draft": "small", "dataset": "prompts"}
    extra = {
        "fingerprints": {"target": "t", "draft": "d", "dataset": "x"},
        "sources": {"dataset": "a/prompts.jsonl"},
        "documents": 10,
    }
    extra |= changes.pop("extra", {})
    return Acceptance(np.array([0.5, 0.2]), **{**facts, **changes}, extra=extra)
