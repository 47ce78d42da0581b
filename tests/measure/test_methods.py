from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sequoia_opt.engine.library import DRAFT, LOOKUP, NONE, Speculation
from sequoia_opt.measure import methods
from sequoia_opt.plan import shapes
from sequoia_opt.plan.sampling import Sampling

PROMPTS = [[5, 6, 7], [9, 8, 9, 8, 9, 8, 9]]


@pytest.mark.parametrize(
    "make",
    [
        lambda pair: methods.with_tree(pair, "tree", shapes.k_ary(2, 2)),
        lambda pair: methods.with_library(pair, "generate"),
        lambda pair: methods.with_library(pair, "lookup", Speculation(LOOKUP)),
        lambda pair: methods.with_library(pair, "assistant", Speculation(DRAFT)),
        lambda pair: methods.with_library(pair, "assistant", Speculation(DRAFT, 4)),
    ],
    ids=["tree", "generate", "lookup", "assistant", "four-guesses"],
)
@pytest.mark.parametrize("prompt", PROMPTS, ids=["short", "repeating"])
def test_every_method_decodes_the_targets_greedy_tokens(
    make: Callable[..., methods.Method], prompt: list[int], make_pair: Callable[..., Any]
) -> None:
    pair = make_pair()
    plain = methods.with_tree(pair, "plain", shapes.chain(1)).run(prompt, 24)
    run = make(pair).run(prompt, 24)
    assert run.tokens == plain.tokens
    assert run.seconds > 0
    # Every step yields a token or more, and the token that prefill yields is not timed.
    assert 1 <= run.steps <= run.timed <= 23
    assert run.verified >= run.timed


def test_only_speculation_yields_more_than_one_token_per_step(
    make_pair: Callable[..., Any],
) -> None:
    pair = make_pair()
    plain = methods.with_library(pair, "generate").run(PROMPTS[0], 24)
    assert plain.steps == plain.timed == 23
    assisted = methods.with_library(pair, "assisted", Speculation(DRAFT, 6)).run(PROMPTS[0], 24)
    assert assisted.steps < assisted.timed


def test_the_models_are_left_as_they_were(make_pair: Callable[..., Any]) -> None:
    pair = make_pair()
    configs = [runner.model.generation_config for runner in (pair.target, pair.draft)]
    first = methods.with_tree(pair, "tree", shapes.k_ary(2, 2))
    before = first.run(PROMPTS[0], 20).tokens
    methods.with_library(pair, "assisted", Speculation(DRAFT)).run(PROMPTS[0], 20)
    assert [runner.model.generation_config for runner in (pair.target, pair.draft)] == configs
    assert not pair.target.model._forward_pre_hooks
    assert first.run(PROMPTS[0], 20).tokens == before


@pytest.mark.parametrize("kind", [NONE, DRAFT])
def test_transformers_methods_sample(kind: str, make_pair: Callable[..., Any]) -> None:
    sampling = Sampling(temperature=0.8, top_p=0.9)
    method = methods.with_library(make_pair(), kind, Speculation(kind), sampling)
    run = method.run([4, 5], 6)
    assert len(run.tokens) == 6
    assert 1 <= run.steps <= 5


def test_the_best_number_of_guesses_is_the_fastest(
    make_pair: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def of(pair: object, name: str, way: Speculation, sampling: Sampling) -> methods.Method:
        assert way.kind == DRAFT
        assert way.guesses is not None
        seconds = abs(way.guesses - 5) + 1.0
        return methods.Method(
            "m", lambda prompt, count: methods.Run([1] * count, 3, 9, seconds, count - 1)
        )

    monkeypatch.setattr(methods, "with_library", of)
    reports: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        reports.append((done, total))

    assert methods.best_guesses(make_pair(), PROMPTS, 10, progress) == 5
    count = len(methods.ASSISTED_GUESSES)
    assert reports == [(number, count) for number in range(1, count + 1)]
