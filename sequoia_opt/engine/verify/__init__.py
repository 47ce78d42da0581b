"""The verifiers: which path of a tree the target keeps, and the token that follows it.

Each is a drafting rule and a verification rule that together leave the output distribution
the target's own. All are functions of tensors without a branch on a value: uniforms in,
accepted path and next token out. Knows nothing of models, caches or text.
"""

from __future__ import annotations

from collections.abc import Callable

from sequoia_opt.engine.verify.base import Positions, TreeIndex, Trial, Verdict, Verifier, indices
from sequoia_opt.engine.verify.exact_match import Greedy, TopK
from sequoia_opt.engine.verify.residual import Sequoia, SpecInfer
from sequoia_opt.engine.verify.synthetic import Synthetic
from sequoia_opt.engine.verify.traversal import Traversal

__all__ = [
    "VERIFIERS",
    "Greedy",
    "Positions",
    "Sequoia",
    "SpecInfer",
    "Synthetic",
    "TopK",
    "Traversal",
    "TreeIndex",
    "Trial",
    "Verdict",
    "Verifier",
    "indices",
    "make_verifier",
]

_MAKERS: dict[str, Callable[[float, float, int, float], Verifier]] = {
    kind.name: kind for kind in (Sequoia, SpecInfer, TopK, Traversal)
}
VERIFIERS = tuple(_MAKERS)
"""Verifiers for temperatures above 0; at 0 all of them are `greedy`."""


def make_verifier(
    name: str, temperature: float, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0
) -> Verifier:
    """The verifier of that name; at temperature 0, greedy.

    Args:
        top_p, top_k, min_p: of the target, see `sampling.Cuts`.
    """
    return Greedy() if temperature == 0 else _MAKERS[name](temperature, top_p, top_k, min_p)
