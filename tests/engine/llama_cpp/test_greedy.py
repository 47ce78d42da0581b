"""The greedy step in whole numbers against the step that every engine shares."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.logits_processors import LogitsOptions
from sequoia_opt.engine.step import Step
from sequoia_opt.engine.verify import Greedy, make_verifier
from sequoia_opt.plan import shapes
from sequoia_opt.plan.tree import TokenTree

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

from sequoia_opt.engine.llama_cpp.greedy import (
    FEW,
    GreedyDrafter,
    GreedyStep,
    most_likely,
)
from sequoia_opt.engine.llama_cpp.machine import OneThreadStep

TREES = [
    shapes.chain(1),
    shapes.chain(6),
    shapes.k_ary(2, 3),
    shapes.k_sequences(3, 4),
    shapes.k_sequences(FEW + 1, 2),
    TokenTree([-1, 0, 0, 0, 1, 1, 3, 4, 6, 6], [0, 1, 2, 3, 1, 2, 1, 1, 1, 2]),
]


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: f"{tree.size}-{tree.leaves}")
def test_it_decides_as_the_shared_step(
    pair: Any, prompts: list[list[int]], tree: TokenTree
) -> None:
    """In every step: the tokens, the last accepted node, their number, and the state behind."""
    decoder, other = Decoder(pair, tree), Decoder(pair, tree)
    step = Step(pair.target, pair.drafter, tree, Greedy())
    other.step = OneThreadStep(step)
    assert isinstance(decoder.step, GreedyStep)
    for prompt in prompts:
        with decoder.session() as session, other.session() as reference:
            assert session.start(prompt, 64) == reference.start(prompt, 64)
            for _ in range(12):
                told, place = decoder.step(
                    session.caches, session._state, session.length, torch.empty(0)
                )
                expected, state = other.step(
                    reference.caches, reference._state, reference.length, torch.empty(0)
                )
                assert told == expected.tolist()
                assert (place.length, *place.recent) == (int(state.length), *state.recent.tolist())
                for session_of, after in ((session, place), (reference, state)):
                    session_of._state, session_of.length = after, place.length
                for role in ("target", "draft"):
                    ours, theirs = getattr(session.caches, role), getattr(reference.caches, role)
                    assert ours is None or ours.length == theirs.length


class NoTensors(TorchDispatchMode):
    """Refuses every tensor operation."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        raise AssertionError(f"{func} is a tensor operation")


@pytest.mark.parametrize("tree", TREES[:3], ids=lambda tree: f"{tree.size}-{tree.leaves}")
def test_a_step_has_no_tensor_operation(
    pair: Any, prompts: list[list[int]], tree: TokenTree
) -> None:
    decoder = Decoder(pair, tree)
    stream = decoder.stream(prompts[0], 64, ignore_eos=True)
    steps = iter(stream)
    for _ in range(12):  # the prompt's, and steps that make their views of the logits
        next(steps)
    with NoTensors():
        next(steps)
    with NoTensors(), pytest.raises(AssertionError, match="tensor operation"):
        torch.ones(2) + 1


def test_it_only_takes_over_what_it_computes(pair: Any) -> None:
    tree = shapes.chain(3)
    options = LogitsOptions(repetition_penalty=1.3)
    for verifier, processor in (
        (make_verifier("topk", 0.8), None),
        (make_verifier("sequoia", 0.8), None),
        (Greedy(), options.processor(pair.device, pair.target.vocabulary)),
    ):
        step = Step(pair.target, pair.drafter, tree, verifier, processor=processor)
        assert GreedyStep.of(step) is None
    step = Step(pair.target, pair.drafter, tree, Greedy())
    step._drafter = object()  # type: ignore[assignment]
    assert GreedyStep.of(step) is None


@pytest.mark.parametrize("width", [5, 8])
def test_a_draft_of_another_vocabulary(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """It only guesses tokens that the target has, and only reads those that it has itself."""
    drafter = GreedyDrafter(shapes.chain(3), width=width, vocabulary=8)
    read = []

    def forward(cache: object, level: int, tokens: list[int]) -> Any:
        read.append(tokens)
        return type("Logits", (), {"rows": [np.arange(8, dtype=np.float32)]})

    monkeypatch.setattr(drafter.passes, "start", lambda cache, length: None)
    monkeypatch.setattr(drafter.passes, "forward", forward)
    cache: Any = None
    assert drafter.draft(cache, 4, (9, 3)) == [3, width - 1, width - 1]
    assert read == [[7, 3], [width - 1]]


@pytest.mark.parametrize("count", [1, 2, FEW, FEW + 1, 40])
def test_the_most_likely_come_in_order(count: int) -> None:
    logits = np.random.default_rng(count).permutation(40).astype(np.float32)
    expected = np.argsort(-logits)[:count].tolist()
    assert most_likely(logits, count) == expected
