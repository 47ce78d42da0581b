from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sequoia_opt.engine.torch.attention import KVCache
from sequoia_opt.plan import shapes
from sequoia_opt.plan.tree import TokenTree

TREE = TokenTree([-1, 0, 0, 0, 1, 1, 2, 4, 7], [0, 1, 2, 3, 1, 2, 1, 1, 1])
TEXT = [5, 6, 7, 8, 9, 10]
TOKENS = torch.tensor([11, 12, 13, 14, 15, 16, 17, 18, 19])
ARCHITECTURES = ["llama", "mistral", "gpt2"]


def path_to(node: int) -> list[int]:
    return np.flatnonzero(TREE.ancestor_mask[node]).tolist()


def logits_by_library(runner: Any) -> torch.Tensor:
    """Each node's logits, from the library's forward pass over the text and the node's path."""
    with runner.native() as model, torch.inference_mode():
        return torch.stack(
            [
                model(torch.tensor([[*TEXT, *TOKENS[path_to(node)].tolist()]])).logits[0, -1]
                for node in range(TREE.size)
            ]
        )


def next_logits(runner: Any, cache: Any, node: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of one more token after an accepted path: from the cache and from the library."""
    text = [*TEXT, *TOKENS[path_to(node)].tolist(), 20]
    with torch.inference_mode():
        logits = runner.extend(cache, torch.tensor([[20]]), len(text) - 1)[0, -1]
        with runner.native() as model:
            return logits, model(torch.tensor([text])).logits[0, -1]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("accepted", [0, 1, 3, 8])
def test_a_tree_pass_scores_every_path_and_keeps_one(
    architecture: str, accepted: int, make_pair: Callable[..., Any]
) -> None:
    runner = make_pair(architecture, architecture).target
    tree_pass, length = runner.tree_pass(TREE), torch.tensor([len(TEXT)])
    with torch.inference_mode():
        cache = runner.reserve(64)
        runner.prefill(cache, torch.tensor([TEXT]))
        logits = tree_pass.score(cache, TOKENS, length, len(TEXT) + 3)  # a bound, not the length
        torch.testing.assert_close(logits, logits_by_library(runner), rtol=0, atol=1e-10)
        tree_pass.accept(cache, length, torch.tensor([accepted]))
    torch.testing.assert_close(*next_logits(runner, cache, accepted), rtol=0, atol=1e-10)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("accepted", [0, 1, 4, 7])  # internal nodes: a leaf is not in the cache
def test_level_passes_score_internal_nodes_and_keep_a_path(
    architecture: str, accepted: int, make_pair: Callable[..., Any]
) -> None:
    runner = make_pair(architecture, architecture).target
    passes, length = runner.level_passes(TREE), torch.tensor([len(TEXT)])
    expected = logits_by_library(runner)
    with torch.inference_mode():
        cache = runner.reserve(64)
        runner.prefill(cache, torch.tensor([TEXT[:-1]]))  # the first pass reads the last token
        inputs = torch.tensor([TEXT[-1], int(TOKENS[0])])
        levels = passes.begin(cache, length, len(TEXT))
        for level, nodes in zip(levels, TREE.internal_levels, strict=True):
            inputs = inputs if nodes == [0] else TOKENS[nodes]
            logits = passes.run(cache, level, inputs)
            torch.testing.assert_close(logits, expected[nodes], rtol=0, atol=1e-10)
        passes.accept(cache, length, torch.tensor([accepted]))
    torch.testing.assert_close(*next_logits(runner, cache, accepted), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("tree", "moves"), [(TREE, TREE.size), (shapes.chain(4), 0)])
def test_a_chain_is_not_moved(
    tree: TokenTree,
    moves: int,
    make_pair: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its paths lie where they belong; which path of a tree does, no step may ask."""
    runner = make_pair().target
    length, cache, moved = torch.tensor([2]), runner.reserve(64), []
    monkeypatch.setattr(KVCache, "move", lambda *_: moved.append(1))
    for node in range(tree.size):
        runner.tree_pass(tree).accept(cache, length, torch.tensor([node]))
    assert len(moved) == moves
