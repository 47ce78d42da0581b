"""The names of the methods that `bench` compares.

Knows names only, so that help texts can list them without importing torch.
"""

from __future__ import annotations

from sequoia_opt.engine.names import LLAMA_CPP, TORCH
from sequoia_opt.plan.verifiers import VERIFIERS

ASSISTED = ("assisted", "assisted-best")
SERVER_GUESSES = {f"server-draft-{guesses}": guesses for guesses in range(1, 9)}
"""llama.cpp's server with the pair's draft, by the number of guesses in each step."""

SERVER_NGRAMS = {
    f"server-{kind}": kind
    for kind in ("ngram-simple", "ngram-map-k", "ngram-map-k4v", "ngram-mod", "ngram-cache")
}
"""llama.cpp's server with its own kinds of lookup in the text."""

LIBRARY_METHODS = {
    TORCH: ("generate", *ASSISTED, "lookup"),
    LLAMA_CPP: ("server", "server-draft", *SERVER_GUESSES, *SERVER_NGRAMS),
}
"""Methods of an engine's own library, by engine: transformers', and those of llama.cpp's server."""

BLIND = {"blind-64": 64, "blind-128": 128}
"""Sizes of the trees that maximise tokens per step whatever a step costs."""

PLANNED = ("chain", "k-sequences", *BLIND)
"""Methods whose trees are solved for the comparison."""

STATIC = "static"
"""The tree that an adaptive plan's file has for engines that cannot grow one: the best static one.
Of another plan it is the plan itself."""

REVERIFIED = tuple(VERIFIERS)
"""The best static tree with another verifier. At temperature 0 all of them are the same."""

METHODS = (
    "plain", *LIBRARY_METHODS[TORCH], *LIBRARY_METHODS[LLAMA_CPP], *PLANNED, STATIC, "tree",
    *REVERIFIED,
)  # fmt: skip

SYNTHETIC = ("plain", "generate", "server", *PLANNED, STATIC, "tree")
"""Methods that make sense when acceptance is simulated."""


def methods_of(engine: str) -> tuple[str, ...]:
    """The methods that an engine has: all but those of another engine's library."""
    others = {name for other, names in LIBRARY_METHODS.items() if other != engine for name in names}
    return tuple(name for name in METHODS if name not in others)


def engine_of(method: str) -> str:
    """The engine that alone has this method; "" for a method of all engines."""
    return next((engine for engine, names in LIBRARY_METHODS.items() if method in names), "")
