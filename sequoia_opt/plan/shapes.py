"""The trees other tools use: what a solved tree is compared with."""

from __future__ import annotations

from sequoia_opt.plan.tree import TokenTree


def chain(size: int) -> TokenTree:
    """One sequence of `size` - 1 guesses: ordinary speculative decoding."""
    return TokenTree([node - 1 for node in range(size)], [0] + [1] * (size - 1))


def k_sequences(k: int, length: int) -> TokenTree:
    """`k` independent sequences of `length` guesses each (SpecInfer's shape)."""
    if length == 0:
        return chain(1)
    return TokenTree.from_paths([(first, *[1] * (length - 1)) for first in range(1, k + 1)])


def k_ary(k: int, depth: int) -> TokenTree:
    """Every node above `depth` has `k` children."""
    paths: list[tuple[int, ...]] = [()]
    for _ in range(depth):
        paths = [(*path, rank) for path in paths for rank in range(1, k + 1)]
    return TokenTree.from_paths(paths)
