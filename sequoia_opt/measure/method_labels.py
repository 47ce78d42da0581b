"""How results name the methods that `bench` compares."""

from __future__ import annotations

from sequoia_opt.measure.method_names import (
    BLIND,
    REVERIFIED,
    SERVER_GUESSES,
    SERVER_NGRAMS,
    STATIC,
)
from sequoia_opt.plan.tree import TokenTree

LABELS = {
    "generate": "transformers generate",
    "assisted": "assisted generation",
    "lookup": "prompt lookup",
    "server": "llama-server",
    "server-draft": "llama-server, its own number of guesses",
    **{
        name: f"llama-server, {guesses} guess{'es' if guesses > 1 else ''}"
        for name, guesses in SERVER_GUESSES.items()
    },
    **{name: f"llama-server, {kind}" for name, kind in SERVER_NGRAMS.items()},
    "chain": "best chain",
    "k-sequences": "best k sequences",
    STATIC: "best static tree",
    "tree": "solved tree",
    **dict.fromkeys(BLIND, "most tokens"),
    **{name: f"solved tree, {name}" for name in REVERIFIED},
}


def label_of(name: str, tree: TokenTree, plan: TokenTree) -> str:
    """How results name a method that decodes with a tree.

    Args:
        plan: the solved one; where it is static, the best static tree is the plan itself.
    """
    if tree.policy is not None:
        return f"adaptive plan (up to {tree.largest_size} nodes)"
    if name == STATIC and plan.policy is None:
        name = "tree"
    return f"{LABELS[name]} ({tree.size} nodes)" if name in LABELS else name
