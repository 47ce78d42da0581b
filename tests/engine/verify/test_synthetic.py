from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sequoia_opt.api import load_pair
from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.verify import Greedy, Positions, Sequoia, Synthetic, TreeIndex, Verifier
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.tree import AUTOREGRESSIVE, TokenTree

TREE = TokenTree([-1, 0, 0, 0, 1, 1, 2, 4], [0, 1, 2, 3, 1, 2, 1, 1])
BY_DEPTH = np.array([[0.5, 0.2, 0.1], [0.3, 0.3, 0.0], [0.9, 0.0, 0.0], [0.1, 0.1, 0.1]])
VOCABULARY = 7


@pytest.mark.parametrize("verifier", [Greedy(), Sequoia(0.8)], ids=["greedy", "sequoia"])
def test_paths_are_accepted_at_the_given_rates(verifier: Verifier) -> None:
    index = TreeIndex(TREE, torch.device("cpu"))
    synthetic = Synthetic(verifier, BY_DEPTH)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.arange(TREE.size) % VOCABULARY
    count = 4000
    reached = np.zeros(TREE.size)
    for _ in range(count):
        logits = torch.randn(TREE.size + len(index.internal), VOCABULARY, generator=generator)
        uniforms = torch.rand(synthetic.uniform_count(index, VOCABULARY), generator=generator)
        verdict = synthetic.verify(
            index, tokens, logits[: TREE.size], logits[TREE.size :], uniforms
        )
        assert 0 <= int(verdict.next) < VOCABULARY
        reached[TREE.ancestor_mask[int(verdict.last)]] += 1
    expected = np.ones(TREE.size)
    for node in range(1, TREE.size):
        rate = BY_DEPTH[TREE.depths[node] - 1, TREE.ranks[node] - 1]
        expected[node] = expected[TREE.parents[node]] * rate
    deviation = np.sqrt(expected * (1 - expected) / count)
    assert (abs(reached / count - expected) <= 4 * deviation + 1e-9).all()


def test_ranks_without_a_rate_are_never_accepted() -> None:
    """The third children of a node have no rate: the table has two columns."""
    index = TreeIndex(TREE, torch.device("cpu"))
    synthetic = Synthetic(Greedy(), np.tile([0.1, 0.1], (4, 1)))
    generator = torch.Generator().manual_seed(0)
    tokens, logits = torch.zeros(TREE.size, dtype=torch.long), torch.randn(TREE.size, VOCABULARY)
    last = set()
    for _ in range(200):
        uniforms = torch.rand(synthetic.uniform_count(index, VOCABULARY), generator=generator)
        verdict = synthetic.verify(index, tokens, logits, logits[: len(index.internal)], uniforms)
        last.add(int(verdict.last))
    assert 0 in last
    assert not any(TREE.ranks[node] > 2 for node in last)


def test_decoding_yields_the_expected_tokens_of_the_rates(make_pair: Callable[..., Any]) -> None:
    acceptance = Acceptance(np.array([0.6, 0.2]))
    decoder = Decoder(make_pair(dtype="float32"), TREE, rates=acceptance.table(TREE.depth + 1))
    runs = [decoder.generate([3, 4, 5], 200, ignore_eos=True) for _ in range(5)]
    measured = sum(run.verified for run in runs) / sum(run.steps for run in runs)
    assert measured == pytest.approx(acceptance.expected_tokens(TREE), rel=0.1)
    plain = Decoder(decoder.pair, AUTOREGRESSIVE, rates=acceptance.table(1))
    assert plain.generate([3, 4, 5], 20, ignore_eos=True).tokens_per_step == 1


def test_synthetic_acceptance_cannot_be_estimated() -> None:
    positions = Positions(*torch.zeros(2, 1, 3), 2, torch.zeros(1, 3))
    with pytest.raises(SequoiaError, match="cannot be estimated"):
        Synthetic(Greedy(), BY_DEPTH).trial(positions)


def test_random_weights_are_the_same_every_time(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    folders = []
    for role, architecture in (("target", "qwen3"), ("draft", "gpt_neox")):
        folder = tmp_path / role
        folder.mkdir()
        config = (make_model(architecture) / "config.json").read_text()
        (folder / "config.json").write_text(config)
        folders.append(folder)
    with pytest.raises(SequoiaError, match="no weights"):
        load_pair(*folders, "cpu", "float32")
    state = torch.random.get_rng_state()
    pairs = [load_pair(*folders, "cpu", "float32", random_weights=True) for _ in range(2)]
    assert torch.equal(torch.random.get_rng_state(), state)
    first, second = (pair.target.model.state_dict() for pair in pairs)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert pairs[0].random_weights


def test_a_mixture_of_experts_cannot_have_random_weights(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers import MixtralConfig

    config = MixtralConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=4,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    with pytest.raises(SequoiaError, match="mixture of 4 experts"):
        load_pair(tmp_path, make_model("llama", 1), "cpu", "float32", random_weights=True)
