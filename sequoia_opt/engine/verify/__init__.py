"""The verifiers: which path of a token tree is accepted, and which token follows it.

A verifier is a drafting rule and a verification rule that together leave the output distribution
the target's own. Verifiers are functions of tensors without a branch on a value: uniforms in,
accepted path and next token out. Knows nothing of models, caches or text.

To add a verifier:

1. Add its `VerifierSpec` to `sequoia_opt/plan/verifiers.py`. Options, help texts, checks and file
   readers follow that list.
2. Write its class in this package, following `base.Verifier`, and add it to `VERIFIER_CLASSES`
   below. A test asserts that the two lists have the same names.
3. Add its step-by-step definition to `METHODS` in `tests/engine/verify/enumeration.py`. The tests
   with it enumerate every draft, decision and next token on small vocabularies, and prove that the
   output distribution is the target's to 1e-9.
"""

from __future__ import annotations

from collections.abc import Callable

from sequoia_opt.engine.verify.base import Positions, Trial, Verdict, Verifier
from sequoia_opt.engine.verify.exact_match import Greedy, TopK
from sequoia_opt.engine.verify.hindsight import drawn_before
from sequoia_opt.engine.verify.host_rules import (
    Chances,
    HostMatchRule,
    HostRule,
    host_rule,
    likely_guesses,
    takes_rows,
)
from sequoia_opt.engine.verify.node_rules import NodeRule, Uniforms, matching, node_rule
from sequoia_opt.engine.verify.residual import Sequoia, SpecInfer
from sequoia_opt.engine.verify.synthetic import Synthetic
from sequoia_opt.engine.verify.traversal import Traversal
from sequoia_opt.engine.verify.tree_index import TreeIndex, as_slice, indices

__all__ = [
    "VERIFIER_CLASSES",
    "Chances",
    "Greedy",
    "HostMatchRule",
    "HostRule",
    "NodeRule",
    "Positions",
    "Sequoia",
    "SpecInfer",
    "Synthetic",
    "TopK",
    "Traversal",
    "TreeIndex",
    "Trial",
    "Uniforms",
    "Verdict",
    "Verifier",
    "as_slice",
    "drawn_before",
    "host_rule",
    "indices",
    "likely_guesses",
    "make_verifier",
    "matching",
    "node_rule",
    "takes_rows",
]

VERIFIER_CLASSES: dict[str, Callable[[float, float, int, float], Verifier]] = {
    "sequoia": Sequoia,
    "specinfer": SpecInfer,
    "topk": TopK,
    "traversal": Traversal,
}
"""The verifiers for temperatures above 0, by the names in `plan/verifiers.py`."""


def make_verifier(
    name: str, temperature: float, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0
) -> Verifier:
    """The verifier of that name; at temperature 0 the greedy one, whatever the name.

    Args:
        name: a key of `VERIFIER_CLASSES`.
        top_p, top_k, min_p: for the target, see `sampling.Cuts`.
    """
    if temperature == 0:
        return Greedy()
    return VERIFIER_CLASSES[name](temperature, top_p, top_k, min_p)
