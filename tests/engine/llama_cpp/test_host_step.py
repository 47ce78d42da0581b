"""The step in numpy against the step that every engine shares, and against chance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch.utils._python_dispatch import TorchDispatchMode

from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.logits_processors import LogitsOptions
from sequoia_opt.engine.model import Caches
from sequoia_opt.engine.random_numbers import RandomNumbers
from sequoia_opt.engine.sampling import Cuts
from sequoia_opt.engine.step import Step
from sequoia_opt.engine.verify import Greedy, host_rule, make_verifier
from sequoia_opt.plan import shapes
from sequoia_opt.plan.tree import TokenTree

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

from sequoia_opt.engine.llama_cpp.host_step import HostDrafter, HostStep, Place
from sequoia_opt.engine.llama_cpp.machine import OneThreadStep

TREES = [
    shapes.chain(1),
    shapes.chain(6),
    shapes.k_ary(2, 3),
    shapes.k_sequences(3, 4),
    shapes.k_sequences(17, 2),
    TokenTree([-1, 0, 0, 0, 1, 1, 3, 4, 6, 6], [0, 1, 2, 3, 1, 2, 1, 1, 1, 2]),
]


ALL, SOME = Cuts(), Cuts(top_p=0.8, top_k=30, min_p=0.02)
CASES = [
    *[("greedy", tree, ALL) for tree in TREES],
    *[("topk", tree, cuts) for tree in TREES[:4] for cuts in (ALL, SOME)],
    *[("specinfer", tree, cuts) for tree in TREES[:4] for cuts in (ALL, SOME)],
    # The shared step draws siblings by other noise.
    *[("sequoia", tree, cuts) for tree in TREES[:2] for cuts in (ALL, SOME)],
]


@pytest.mark.parametrize(
    ("name", "tree", "cuts"),
    CASES,
    ids=[f"{name}{'-cut' * (cuts == SOME)}-{t.size}-{t.leaves}" for name, t, cuts in CASES],
)
def test_it_decides_as_the_shared_step(
    pair: Any, prompts: list[list[int]], name: str, tree: TokenTree, cuts: Cuts
) -> None:
    """In every step: the tokens, the last accepted node, their number, and the state behind.

    Where the two take random numbers in another order, all numbers of a step are the same.
    """
    temperature, verifier = (0, "sequoia") if name == "greedy" else (0.7, name)
    sampling = {"verifier": verifier, **cuts._asdict()}
    decoder, other = (Decoder(pair, tree, temperature, **sampling) for _ in range(2))
    step = Step(pair.target, pair.drafter, tree, make_verifier(verifier, temperature, *cuts))
    other.step = OneThreadStep(step)
    assert isinstance(decoder.step, HostStep)
    numbers = iter(np.random.default_rng(tree.size).random(12 * len(prompts)).tolist())
    for prompt in prompts:
        with decoder.session() as session, other.session() as reference:
            assert session.start(prompt, 64) == reference.start(prompt, 64)
            for _ in range(12):
                number = next(numbers)
                (told, place), (expected, state) = (
                    stepping.step(
                        texts.caches,
                        texts._state,
                        texts.length,
                        stepping.uniforms_for_step(Always(number)),
                    )
                    for stepping, texts in ((decoder, session), (other, reference))
                )
                assert told == expected.tolist()
                assert (place.length, *place.recent) == (int(state.length), *state.recent.tolist())
                for session_of, after in ((session, place), (reference, state)):
                    session_of._state, session_of.length = after, place.length
                for role in ("target", "draft"):
                    ours, theirs = getattr(session.caches, role), getattr(reference.caches, role)
                    assert ours is None or ours.length == theirs.length


class Always(RandomNumbers):
    """One number, again and again."""

    def __init__(self, number: float) -> None:
        super().__init__(torch.Generator(), torch.device("cpu"))
        self._number = number

    def _give(self, count: int) -> int:
        self._drawn, self._list = torch.full((count,), self._number), []
        return 0


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
        (make_verifier("traversal", 0.8), None),
        (Greedy(), options.processor(pair.device, pair.target.vocabulary)),
    ):
        step = Step(pair.target, pair.drafter, tree, verifier, processor=processor)
        assert HostStep.of(step) is None
    step = Step(pair.target, pair.drafter, tree, Greedy())
    step._drafter = object()  # type: ignore[assignment]
    assert HostStep.of(step) is None


@pytest.mark.parametrize("width", [5, 8])
def test_a_draft_of_another_vocabulary(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """It only guesses tokens that the target has, and only reads those that it has itself."""
    drafter = HostDrafter(shapes.chain(3), host_rule(Greedy()), vocabulary=8, width=width)
    read = []

    def forward(cache: object, level: int, tokens: list[int]) -> Any:
        read.append(tokens)
        return type("Logits", (), {"rows": [np.arange(8, dtype=np.float32)]})

    monkeypatch.setattr(drafter.passes, "start", lambda cache, length: None)
    monkeypatch.setattr(drafter.passes, "forward", forward)
    cache: Any = None
    assert drafter.draft(cache, 4, (9, 3), []) == ([3, width - 1, width - 1], {})
    assert read == [[7, 3], [width - 1]]


class SmallLanguage:
    """Stands in for a model's forward passes: logits that depend on a node and its token alone."""

    def __init__(self, seed: int, vocabulary: int) -> None:
        self.logits = 2 * np.random.default_rng(seed).standard_normal((vocabulary, vocabulary))

    def rows(self, tokens: list[int]) -> Any:
        """What a forward pass over tokens returns."""
        rows = [self.logits[token].astype(np.float32) for token in tokens]
        return type("Logits", (), {"rows": rows})

    def chances(self, token: int, temperature: float) -> np.ndarray:
        """Of the tokens behind one."""
        weights = np.exp(self.logits[token] / temperature)
        return np.asarray(weights / weights.sum())


@pytest.mark.parametrize("known", [4, 3], ids=["same-vocabulary", "smaller-draft"])
@pytest.mark.parametrize("name", ["sequoia", "specinfer", "topk"])
def test_texts_are_distributed_as_the_target_says(name: str, known: int) -> None:
    """The first two tokens; where a step has committed only one, the target draws the second."""
    tree, temperature = TokenTree([-1, 0, 0, 1, 1], [0, 1, 2, 1, 2]), 0.8
    rule = host_rule(make_verifier(name, temperature))
    target, draft = SmallLanguage(0, 4), SmallLanguage(1, known)
    drafter: Any = HostDrafter(tree, rule, vocabulary=known, width=4)
    step: Any = HostStep(tree, rule, drafter)
    for passes in (step._target_pass, drafter.passes):
        passes.keep = passes.start = lambda *arguments: None
    step._target_pass.forward = lambda cache, tokens, length: target.rows(tokens)
    drafter.passes.forward = lambda cache, level, tokens: draft.rows(tokens[-1:])
    random, runs = np.random.default_rng(2), 4000
    numbers = RandomNumbers(torch.Generator().manual_seed(2), torch.device("cpu"))
    seen = np.zeros((4, 4))
    for _ in range(runs):
        told, _ = step(Caches(None, None), Place(5, (0, 1)), 5, numbers)
        first, second = told[0], told[1]
        if told[-1] == 1:
            second = random.choice(4, p=target.chances(first, temperature))
        seen[first, second] += 1
    expected = np.array(
        [
            chance * target.chances(first, temperature)
            for first, chance in enumerate(target.chances(1, temperature))
        ]
    )
    likely = expected * runs >= 5
    pooled = [np.append(table[likely], table[~likely].sum()) for table in (seen, runs * expected)]
    assert chisquare(*pooled).pvalue > 1e-3
