"""Tuning a stand-in for a server whose acceptance and times are known, over HTTP."""

from __future__ import annotations

import numpy as np
import pytest
from llama_server_stand_in import StandIn, serving

from sequoia_opt.engine.library import DRAFT, NO_SPECULATION, Speculation
from sequoia_opt.engine.llama_cpp.running_server import RunningServer
from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure.tune.tuning import Tuned, TuneSpec, label_of, tune
from sequoia_opt.plan.chain_tuning import ChainSetting
from sequoia_opt.plan.round_costs import RoundCosts

PROMPTS = [[1, seed, 7] for seed in range(3, 7)]
NEW_TOKENS = 80
SPEC = TuneSpec(new_tokens=NEW_TOKENS, longest=32, repeats=1)
THRESHOLDS = SPEC.thresholds
# Rounds take longer by steps, as where a kernel computes 4 tokens as fast as 3.
STEPPED = (1, 2, 3, 4, 5, 6, 7, 8, 9)
COSTS = {
    "a fast draft": RoundCosts(10.0, (1, 8), np.array([11.5, 19.0]), 0.8),
    "a slow draft": RoundCosts(10.0, (1, 8), np.array([16.0, 58.0]), 5.0),
    "in steps": RoundCosts(
        10.0, STEPPED, np.array([13.0, 16.0, 16.5, 17.0, 26.0, 27.0, 28.0, 29.0, 44.0]), 1.5
    ),
    "it does not pay": RoundCosts(10.0, (1, 8), np.array([25.0, 120.0]), 11.0),
}


def tuned(server: StandIn, spec: TuneSpec = SPEC) -> Tuned:
    return tune(RunningServer(server.url), PROMPTS, spec)


def speedups(server: StandIn) -> dict[ChainSetting, float]:
    """Every setting decoded, and its speed over plain decoding."""
    plain_ms = server.costs.plain_ms * len(PROMPTS) * (NEW_TOKENS - 1)
    found = {}
    for guesses in range(1, SPEC.longest + 1):
        for threshold in THRESHOLDS:
            request = {"n_predict": NEW_TOKENS, "speculative.n_max": guesses}
            request |= {"speculative.p_min": threshold}
            taken = [server.rounds({**request, "prompt": p})[-1]["predicted_ms"] for p in PROMPTS]
            found[ChainSetting(guesses, threshold)] = plain_ms / sum(taken)
    return found


@pytest.mark.parametrize("easy", [0.6, 0.9])
@pytest.mark.parametrize("name", COSTS)
def test_the_fastest_setting_is_the_best_of_all(name: str, easy: float) -> None:
    with serving(StandIn(COSTS[name], easy=easy)) as server:
        found = tuned(server)
        every = speedups(server)
    best = max(every.values())
    if best <= 1:
        assert found.best == NO_SPECULATION
        return
    assert found.best.kind == DRAFT
    setting = ChainSetting(found.best.guesses or 0, found.best.threshold)
    assert every[setting] >= 0.99 * best
    assert found.study is not None
    prediction = found.study.of(found.best)
    assert prediction is not None
    assert prediction.speedup == pytest.approx(every[setting], rel=0.02)


def test_the_race_has_the_default_and_the_same_texts() -> None:
    with serving(StandIn(COSTS["a fast draft"], guesses=5, threshold=0.25)) as server:
        found = tuned(server)
    assert found.settings[:2] == [NO_SPECULATION, Speculation(DRAFT, 5, 0.25)]
    assert [result.name for result in found.results][:2] == [
        "plain", "draft, 5 guesses, p-min 0.25, the default",
    ]  # fmt: skip
    assert all(result.agreement == 1 for result in found.results)


def test_it_makes_few_runs() -> None:
    """Fewer than half of those that a grid of 8 lengths and 3 thresholds makes."""
    with serving(StandIn(COSTS["in steps"])) as server:
        tuned(server, SPEC)
        texts = [r for path, r in server.requests if r.get("n_predict") == NEW_TOKENS]
    assert len(texts) < 0.5 * 24 * len(PROMPTS) + 8 * len(PROMPTS)


def test_a_draft_that_is_never_used_is_an_error() -> None:
    with serving(StandIn(COSTS["a fast draft"])) as server:
        server.setting = lambda request: (0, 0.0)  # type: ignore[method-assign]
        engine = RunningServer(server.url)
        with pytest.raises(SequoiaError, match="found no guess in any step"):
            tune(engine, PROMPTS, SPEC)


def test_settings_in_words() -> None:
    assert label_of(Speculation(DRAFT, 1, 0.3)) == "draft, 1 guess, p-min 0.3"
    assert label_of(Speculation("ngram-mod")) == "ngram-mod"
    assert label_of(NO_SPECULATION) == "plain"
