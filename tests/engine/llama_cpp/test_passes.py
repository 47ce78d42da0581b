"""A tree's passes against the same paths read one by one into a fresh cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sequoia_opt.engine.model import reserved
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes
from sequoia_opt.plan.tree import TokenTree

TREES = [
    shapes.chain(4),
    shapes.k_ary(2, 3),
    shapes.k_sequences(3, 4),
    TokenTree([-1, 0, 0, 0, 1, 1, 3, 4, 6, 6], [0, 1, 2, 3, 1, 2, 1, 1, 1, 2]),
]
TOLERANCE = 1e-2  # sums in another order, and llama.cpp looks up GELU in a table of float16


def logits_after(model: Any, text: list[int]) -> torch.Tensor:
    """The logits after a text, read into a cache of its own."""
    with reserved(model, len(text)) as cache:
        return model.prefill(cache, torch.tensor([text]))[0]


def path_to(tree: TokenTree, node: int) -> list[int]:
    return np.flatnonzero(tree.ancestor_mask[node]).tolist()


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: f"{tree.size}-{tree.leaves}")
def test_a_tree_is_scored_and_accepted_as_its_paths_are(pair: Any, tree: TokenTree) -> None:
    """Over several steps: each starts from what the one before accepted."""
    model, random = pair.draft, np.random.default_rng(tree.size)
    text = random.integers(0, model.vocabulary, 9).tolist()
    tree_pass = model.tree_pass(tree)
    with reserved(model, 64, branches=tree.leaves) as cache:
        model.prefill(cache, torch.tensor([text]))
        for _ in range(5):
            tokens = random.integers(0, model.vocabulary, tree.size)
            length = torch.tensor([len(text)])
            scored = tree_pass.score(cache, torch.tensor(tokens), length, len(text)).clone()
            for node in range(tree.size):
                alone = logits_after(model, [*text, *tokens[path_to(tree, node)].tolist()])
                assert torch.allclose(scored[node], alone, atol=TOLERANCE, rtol=0)
            last = int(random.integers(tree.size))
            tree_pass.accept(cache, length, torch.tensor([last]))
            text += tokens[path_to(tree, last)].tolist()
            assert cache.length == len(text)


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: f"{tree.size}-{tree.leaves}")
def test_levels_are_run_and_accepted_as_paths_are(pair: Any, tree: TokenTree) -> None:
    """Also after an accepted leaf, whose token the cache lacks."""
    model, random = pair.draft, np.random.default_rng(tree.size)
    text = random.integers(0, model.vocabulary, 9).tolist()
    passes = model.level_passes(tree)
    leaves = [node for node in range(tree.size) if not tree.children[node]]
    with reserved(model, 64, branches=tree.leaves) as cache:
        model.prefill(cache, torch.tensor([text]))
        for turn in range(6):
            tokens = random.integers(0, model.vocabulary, tree.size)
            length = torch.tensor([len(text)])
            steps = passes.begin(cache, length, len(text))
            for nodes, level in zip(tree.internal_levels, steps, strict=True):
                given = tokens[nodes]
                if nodes == [0]:
                    given = np.array([text[-1], tokens[0]])
                scored = passes.run(cache, level, torch.tensor(given))
                for row, node in enumerate(nodes):
                    alone = logits_after(model, [*text, *tokens[path_to(tree, node)].tolist()])
                    assert torch.allclose(scored[row], alone, atol=TOLERANCE, rtol=0)
            last = int(random.choice(leaves)) if turn % 2 else int(random.integers(tree.size))
            passes.accept(cache, length, torch.tensor([last]))
            text += tokens[path_to(tree, last)].tolist()


def test_logits_of_one_level_outlive_the_next(pair: Any) -> None:
    model = pair.draft
    passes = model.level_passes(shapes.chain(4))
    with reserved(model, 64) as cache:
        model.prefill(cache, torch.tensor([[3, 4, 5]]))
        first, second, _ = passes.begin(cache, torch.tensor([3]), 3)
        before = passes.run(cache, first, torch.tensor([5, 6]))
        kept = before.clone()
        passes.run(cache, second, torch.tensor([7]))
        assert torch.equal(before, kept)


def test_a_pass_to_time_is_what_the_decoder_runs(pair: Any) -> None:
    """It has the logits of all its tokens, each context length its own number of cells."""
    model = pair.draft
    with reserved(model, 80) as cache:
        model.prefill(cache, torch.zeros(1, 40, dtype=torch.long))
        for context in (10, 40):
            for count in (1, 5):
                run = model.pass_to_time(cache, context, count, context)
                first, again = run().clone(), run()
                assert first.shape == (count, model.vocabulary)
                assert torch.allclose(first, again, atol=1e-5)
        assert cache.length == 40


def test_more_leaves_than_sequences_are_refused(pair: Any) -> None:
    wide = TokenTree([-1, *[0] * 300], [0, *range(1, 301)])
    with pytest.raises(SequoiaError, match=r"300 leaves, but llama.cpp tells 256 sequences apart"):
        pair.draft.tree_pass(wide)
    with pytest.raises(SequoiaError, match=r"300 leaves of a tree, but llama.cpp tells 256"):
        pair.draft.reserve(64, branches=wide.leaves)


def test_more_nodes_than_a_pass_takes_are_refused(pair: Any) -> None:
    with pytest.raises(SequoiaError, match=r"600 nodes, but a forward pass of llama.cpp has at mo"):
        pair.draft.tree_pass(shapes.chain(600))
