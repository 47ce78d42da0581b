"""Losslessness by exact enumeration of every draft, every decision and every next token."""

from __future__ import annotations

import pytest
from enumeration import TREES, Language, check_lossless

from sequoia_opt.engine.logits_processors import LogitsOptions
from sequoia_opt.engine.sampling import Cuts
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.plan.verifiers import VERIFIERS


@pytest.mark.parametrize("name", VERIFIERS)
@pytest.mark.parametrize("tree", TREES.values(), ids=TREES.keys())
@pytest.mark.parametrize(("temperature", "top_p"), [(0.2, 1.0), (0.6, 0.9), (1.0, 1.0), (1.5, 0.9)])
@pytest.mark.parametrize("kind", ["random", "same", "one-hot", "disjoint"])
def test_every_verifier_is_lossless(
    name: str,
    tree: TokenTree,
    temperature: float,
    top_p: float,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    language = Language(4 if tree.size < 4 else 3, seed=tree.size, kind=kind)
    check_lossless(name, tree, language, temperature, Cuts(top_p), monkeypatch)


@pytest.mark.parametrize("name", VERIFIERS)
@pytest.mark.parametrize(("temperature", "top_p"), [(0.2, 0.9), (0.6, 1.0), (1.0, 0.9), (1.5, 1.0)])
@pytest.mark.parametrize(("shape", "vocabulary"), [("chain", 8), ("wide", 6), ("uneven", 4)])
def test_losslessness_over_more_tokens(
    name: str,
    shape: str,
    vocabulary: int,
    temperature: float,
    top_p: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    language = Language(vocabulary, seed=vocabulary)
    check_lossless(name, TREES[shape], language, temperature, Cuts(top_p), monkeypatch)


CUTS = [Cuts(top_k=2), Cuts(top_k=1), Cuts(min_p=0.4), Cuts(0.9, 2, 0.3), Cuts(0.7, 3, 0.1)]


@pytest.mark.parametrize("name", VERIFIERS)
@pytest.mark.parametrize("tree", TREES.values(), ids=TREES.keys())
@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize("temperature", [0.6, 1.5])
def test_every_verifier_is_lossless_with_top_k_and_min_p(
    name: str,
    tree: TokenTree,
    temperature: float,
    cuts: Cuts,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    language = Language(4 if tree.size < 4 else 3, seed=tree.size)
    check_lossless(name, tree, language, temperature, cuts, monkeypatch)


@pytest.mark.parametrize("name", VERIFIERS)
@pytest.mark.parametrize("shape", ["chain", "wide", "binary", "uneven"])
@pytest.mark.parametrize(
    "options",
    [
        LogitsOptions(presence_penalty=1.5),
        LogitsOptions(frequency_penalty=0.8),
        LogitsOptions(1.3, {2: 0.7}, 0.5, -0.4),
        LogitsOptions(presence_penalty=1.0, banned=frozenset([2])),
    ],
)
def test_every_verifier_is_lossless_with_logits_processors(
    name: str, shape: str, options: LogitsOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = TREES[shape]
    language = Language(4 if tree.size < 4 else 3, seed=tree.size, options=options)
    check_lossless(name, tree, language, 0.9, Cuts(0.95, min_p=0.05), monkeypatch)
