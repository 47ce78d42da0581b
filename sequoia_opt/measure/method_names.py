"""The names of the methods that `bench` compares.

Knows names only, so that help texts can list them without importing torch.
"""

from __future__ import annotations

from sequoia_opt.plan.verifiers import VERIFIERS

ASSISTED = ("assisted", "assisted-best")
BLIND = {"blind-64": 64, "blind-128": 128}
"""Sizes of the trees that maximise tokens per step whatever a step costs."""

PLANNED = ("chain", "k-sequences", *BLIND)
"""Methods whose trees are solved for the comparison."""

REVERIFIED = tuple(VERIFIERS)
"""The solved tree with another verifier. At temperature 0 all of them are the same."""

METHODS = (
    "plain", "generate", *ASSISTED, "lookup", *PLANNED, "tree", *REVERIFIED
)  # fmt: skip

SYNTHETIC = ("plain", "generate", *PLANNED, "tree")
"""Methods that make sense when acceptance is simulated."""
