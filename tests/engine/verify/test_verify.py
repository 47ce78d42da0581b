from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from enumeration import CPU, METHODS, TREES

from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.sampling import gumbel, warp
from sequoia_opt.engine.verify import (
    VERIFIER_CLASSES,
    Greedy,
    Positions,
    Sequoia,
    TopK,
    TreeIndex,
    make_verifier,
    residual,
)
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes
from sequoia_opt.plan.verifiers import GREEDY, VERIFIERS, VerifierSpec


def test_every_verifier_in_the_plans_list_has_a_class_and_a_definition() -> None:
    assert list(VERIFIER_CLASSES) == list(VERIFIERS)
    assert list(METHODS) == list(VERIFIERS)
    for name in VERIFIERS:
        assert make_verifier(name, 0.7).name == name
        assert make_verifier(name, 0.0).name == GREEDY


def test_a_verifier_added_to_both_lists_decodes(
    make_pair: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checks and the decoder know it without any other change."""

    class Another(TopK):
        name = "another"

    pair = make_pair()
    with pytest.raises(SequoiaError, match="verifier: found 'another', expected sequoia or"):
        Decoder(pair, shapes.chain(2), temperature=0.8, verifier="another")
    monkeypatch.setitem(VERIFIERS, "another", VerifierSpec("another", "does as topk", "topk"))
    monkeypatch.setitem(VERIFIER_CLASSES, "another", Another)
    decoder = Decoder(pair, shapes.chain(2), temperature=0.8, verifier="another")
    assert isinstance(decoder.verifier, Another)
    assert len(decoder.generate([3, 4, 5], 8, ignore_eos=True).tokens) == 8


def test_greedy_keeps_the_longest_path_of_the_targets_choices() -> None:
    generator = torch.Generator().manual_seed(0)
    for tree in TREES.values():
        index = TreeIndex(tree, CPU)
        for _ in range(40):
            logits = torch.randn(tree.size, 3, generator=generator)
            # Siblings have different tokens, as in a draft's ranking.
            tokens = torch.tensor(
                [(max(r, 1) + p) % 3 for p, r in zip(tree.parents, tree.ranks, strict=True)]
            )
            node = 0
            while True:
                children = [v for v in range(tree.size) if tree.parents[v] == node]
                matching = [v for v in children if tokens[v] == logits[node].argmax()]
                if not matching:
                    break
                node = matching[0]
            verdict = Greedy().verify(index, tokens, logits, logits[:0], torch.empty(0))
            assert int(verdict.last) == node
            assert int(verdict.next) == int(logits[node].argmax())


@pytest.mark.parametrize("name", ["sequoia", "specinfer", "topk"])
def test_trials_emit_the_targets_tokens_at_exact_chances(name: str) -> None:
    """Emitted tokens follow the target; the chances of a rank average to its frequency."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    target, draft = 2 * torch.randn(2, 1, 5, generator=generator).double()
    positions = 40000
    verifier = make_verifier(name, 0.8, 0.95)
    noise = gumbel(torch.rand(positions, 5, generator=generator))
    trial = verifier.trial(
        Positions(target.expand(positions, 5), draft.expand(positions, 5), 5, noise)
    )
    counts = torch.bincount(trial.emit(), minlength=5)
    expected = positions * warp(target, 0.8, 0.95)[0]
    possible = expected > 0
    statistic = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    assert statistic < 25
    assert not counts[~possible].any()
    for rank in range(1, 6):
        share = float((trial.rank == rank).double().mean())
        assert share == pytest.approx(float(trial.chances[:, rank - 1].mean()), abs=0.01)
    assert (trial.chances.sum(dim=1) <= 1 + 1e-9).all()


def test_rates_of_a_small_case_by_hand() -> None:
    """P = (.1, .9), Q = (.9, .1) gives p = (.2, .8)."""
    torch.manual_seed(0)
    p, q = torch.tensor([[0.1, 0.9]]).log(), torch.tensor([[0.9, 0.1]]).log()
    noise = gumbel(torch.rand(20000, 2))
    trial = Sequoia(1.0).trial(
        Positions(p.expand(20000, 2).double(), q.expand(20000, 2).double(), 2, noise)
    )
    assert trial.chances.mean(dim=0).tolist() == pytest.approx([0.2, 0.8], abs=0.01)


@pytest.mark.parametrize("name", ["sequoia", "specinfer", "traversal"])
def test_draws_at_the_limits_of_float32_are_decided(name: str) -> None:
    """With underflowing probabilities and residuals of almost no mass, no result is NaN and the
    next token is never an impossible one."""
    generator = torch.Generator().manual_seed(0)
    tree, vocabulary = shapes.k_ary(3, 2), 6
    index, verifier = TreeIndex(tree, CPU), make_verifier(name, 0.2)
    for _ in range(300):
        size = tree.size + len(index.internal)
        logits = 15 * torch.randn(size, vocabulary, generator=generator)
        target, draft = logits[: tree.size], logits[tree.size :]
        uniforms = torch.rand(verifier.uniform_count(index, vocabulary), generator=generator)
        guesses = verifier.draft(draft, 3, verifier.noise(index, uniforms))
        tokens = torch.zeros(tree.size, dtype=torch.long)
        table = index.children
        tokens[table.children] = guesses
        p, q = warp(target, 0.2)[table.places], warp(draft, 0.2)
        draws = residual.gather_draws(p, q, guesses, None, name == "specinfer")
        for path_chance in (None, torch.rand(len(q), 1, generator=generator).round(decimals=1)):
            tests = residual.residual_tests(p, q, draws, table.row_counts, path_chance)
            for part in (tests.passes, tests.scale, tests.path_chance):
                assert part.isfinite().all()
        verdict = verifier.verify(index, tokens, target, draft, uniforms)
        assert warp(target, 0.2)[verdict.last, verdict.next] > 0


@pytest.mark.parametrize("name", ["sequoia", "traversal"])
def test_a_chain_draws_by_inversion(name: str) -> None:
    """On a CPU each of its nodes takes one uniform, and the draws are the draft's."""
    index, verifier = TreeIndex(shapes.chain(4), CPU), make_verifier(name, 0.7)
    count = verifier.uniform_count(index, 6)
    assert count == 3 + index.size
    assert verifier.noise(index, torch.rand(count)).shape == (3, 1)
    logits = torch.randn(6, dtype=torch.float64)
    grid = (torch.arange(4000, dtype=torch.float64)[:, None] + 0.5) / 4000
    draws = verifier.draft(logits.expand(4000, 6), 1, grid)
    shares = draws.flatten().bincount(minlength=6) / 4000
    torch.testing.assert_close(shares.double(), warp(logits, 0.7), rtol=0, atol=1 / 4000)


def test_siblings_and_nodes_on_other_devices_are_drawn_with_noise() -> None:
    verifier = make_verifier("sequoia", 0.7)
    for tree, device in ((shapes.k_ary(2, 2), "cpu"), (shapes.chain(4), "meta")):
        index = TreeIndex(tree, torch.device(device))
        assert verifier.uniform_count(index, 6) == 3 * 6 + index.size
        uniforms = torch.rand(3 * 6 + index.size, device=device)
        assert verifier.noise(index, uniforms).shape == (3, 6)
