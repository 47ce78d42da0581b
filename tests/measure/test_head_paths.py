"""A head's acceptance by depth, against a slow head and against decoding with trees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from head_texts import documents
from safetensors.torch import load_file
from slow_head import SlowHead, target_states

from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.measure.estimator import EstimateOptions, estimate
from sequoia_opt.measure.head_paths import HeadPaths
from sequoia_opt.measure.records import Document
from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.recording import Envelope
from sequoia_opt.plan.sampling import Sampling
from sequoia_opt.plan.tree import IntArray, TokenTree

OPTIONS = EstimateOptions(max_new_tokens=30, width=5, batch=2)
TREES = {
    "chain": shapes.chain(5),
    "binary": shapes.k_ary(2, 3),
    "wide": shapes.k_ary(5, 2),
}
SAMPLINGS = [
    Sampling(0.9, 0.95, "topk"),
    Sampling(0.9),
    Sampling(0.9, 1.0, "specinfer"),
]


@pytest.mark.parametrize("roots", [(16, 1), (1,)], ids=["together", "alone"])
def test_ranks_are_those_that_a_slow_head_gives_the_text(
    roots: tuple[int, ...],
    head_pair: Any,
    head_folders: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Greedy, at full width; up to the first depth that is not accepted."""
    monkeypatch.setattr("sequoia_opt.measure.roots_together.ROOTS", roots)
    texts: list[tuple[list[int], list[int], IntArray]] = []
    original = HeadPaths.follow

    def follow_and_keep(self: Any, prompt: Any, tokens: Any) -> IntArray:
        paths = original(self, prompt, tokens)
        texts.append((list(prompt), list(tokens), paths))
        return paths

    monkeypatch.setattr(HeadPaths, "follow", follow_and_keep)
    estimate(head_pair, documents(3), "tokens", [Sampling()], OPTIONS)
    target, head = (load_file(folder / "model.safetensors") for folder in head_folders)
    slow = SlowHead(head | {"embed_tokens.weight": target["model.embed_tokens.weight"]})
    ids = head_pair.drafter.model.token_ids.tolist()
    deep = 0
    for prompt, tokens, paths in texts:
        text = [*prompt, *tokens]
        states = target_states(head_folders[0], text, (2, 1, 0))
        for position in range(paths.shape[1]):
            length = len(prompt) + position + 1
            following = text[length : length + len(paths)]
            logits = slow.path_logits(text[:length], states[: length - 1], following[:-1])
            expected = []
            for said, token in zip(logits, following, strict=True):
                guesses = [ids[index] for index in said.argsort(descending=True)[:5].tolist()]
                expected.append(guesses.index(token) + 1 if token in guesses else 0)
                if not expected[-1]:
                    break
            expected += [0] * (len(paths) - len(expected))
            assert paths[:, position].tolist() == expected
            deep += sum(rank > 0 for rank in expected[1:])
    assert deep > 10


@pytest.mark.parametrize("name", TREES)
def test_replay_is_what_decoding_with_a_tree_does(name: str, head_pair: Any) -> None:
    """Greedy: tokens and steps of each document."""
    tree = TREES[name]
    (acceptance,) = estimate(head_pair, documents(4), "tokens", [Sampling()], OPTIONS)
    tokens, steps = acceptance.replay([tree])
    decoder, most = Decoder(head_pair, tree), 0
    for document, one in enumerate(documents(4)):
        length, start, count = len(acceptance.traces[document]), 0, 0
        with decoder.session(conversing=False) as session:
            session.start(one.tokens, 60)
            while start + tree.depth + 1 <= length:
                new = session.advance()
                start, count, most = start + len(new), count + 1, max(most, len(new))
        assert (tokens[0, document], steps[0, document]) == (start, count)
    assert most > 1


def first_steps(head_pair: Any, prompt: Document, tree: TokenTree, sampling: Sampling) -> list[int]:
    """Tokens of the first step of many texts behind one prompt."""
    decoder = Decoder(
        head_pair,
        tree,
        sampling.temperature,
        top_p=sampling.top_p,
        verifier=sampling.verifier,
        seed=1,
    )
    counts = []
    for _ in range(400):
        with decoder.session(conversing=False) as session:
            session.start(prompt.tokens, 9)
            counts.append(len(session.advance()))
    return counts


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=lambda one: one.verifier)
def test_replay_of_sampled_text_yields_as_much_as_decoding(
    sampling: Sampling, head_pair: Any
) -> None:
    """Tokens per step, within four standard errors."""
    tree, prompt = TREES["binary"], documents(6)[5]
    options = replace(OPTIONS, max_new_tokens=tree.depth + 1, batch=50)
    (acceptance,) = estimate(head_pair, [prompt] * 400, "tokens", [sampling], options)
    tokens, steps = acceptance.replay([tree])
    replayed = tokens[0, steps[0] == 1]
    decoded = first_steps(head_pair, prompt, tree, sampling)
    error = np.sqrt(np.var(replayed) / len(replayed) + np.var(decoded) / len(decoded))
    assert np.mean(decoded) > 1.3
    assert abs(np.mean(replayed) - np.mean(decoded)) < 4 * error


def test_depths_are_told_apart_and_kept_in_the_file(head_pair: Any, tmp_path: Path) -> None:
    """By depth without being asked; as deep as drafts are recorded, or as `depths` says, or 8."""
    sampled = [
        estimate(head_pair, documents(6), "tokens", [Sampling()], options)[0]
        for options in (
            OPTIONS,
            replace(OPTIONS, envelope=Envelope(10, 2, 2)),
            replace(OPTIONS, depths=9),
        )
    ]
    assert [len(one.traces_by_depth[0]) for one in sampled] == [8, 10, 9]
    first = sampled[0]
    assert first.by_depth is not None
    paths = np.concatenate([np.array(rows) for rows in first.traces_by_depth], axis=1)
    assert first.measured is not None
    np.testing.assert_allclose(first.measured, [np.mean(paths[0] == rank) for rank in range(1, 6)])
    first.save(tmp_path / "acceptance.yaml")
    loaded = Acceptance.load(tmp_path / "acceptance.yaml")
    assert loaded.replay([TREES["chain"]])[0].tolist() == first.replay([TREES["chain"]])[0].tolist()


def test_a_model_has_no_ranks_by_depth(make_pair: Callable[..., Any]) -> None:
    (acceptance,) = estimate(make_pair("llama"), documents(2), "tokens", [Sampling()], OPTIONS)
    assert acceptance.traces_by_depth == []
    assert acceptance.by_depth is None
