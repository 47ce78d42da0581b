"""Tuning a stand-in for a server whose acceptance and times are known, over HTTP."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import pytest
from llama_server_stand_in import StandIn, serving

from sequoia_opt.engine.library import DRAFT, NO_SPECULATION, Speculation
from sequoia_opt.engine.llama_cpp.running_server import RunningServer
from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure.tune.tuning import Tuned, TuneSpec, label_of, tune
from sequoia_opt.plan.chain_replay import StepCounts
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
        assert len(found.settings) == 2  # the default alone, which no other chain is raced with
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


@dataclass(frozen=True)
class NoisyText:
    """A text and its time."""

    tokens: list[int]
    steps: int
    predicted_ms: float


class NoisyEngine:
    """An engine without a draft whose times are random, but for a gain that some settings have.

    Prompts take different times, each with a noise of 10% that a few outliers make wider.
    """

    has_draft = False
    default_chain = ChainSetting(3)
    ends_unsure_chains = True
    others = tuple(Speculation(f"ngram-{number}") for number in range(7))

    def __init__(self, seed: int, gains: dict[str, float]) -> None:
        self._random, self._gains = np.random.default_rng(seed), gains

    def answer(self, speculation: Speculation, prompt: list[int], new_tokens: int) -> NoisyText:
        noise = float(self._random.normal(0, 0.1))
        noise += 0.5 * (self._random.random() < 0.02)
        ms = 100 * (1 + sum(prompt) % 3) * np.exp(noise) / self._gains.get(speculation.kind, 1.0)
        return NoisyText([7] * new_tokens, new_tokens - 1, float(ms))

    def counted(self, speculation: Speculation, prompt: list[int], new_tokens: int) -> StepCounts:
        raise AssertionError("it has no draft")


def tuned_by_chance(
    seed: int, gains: dict[str, float] | None = None, prompts: int = 8, fresh: int = 0
) -> Tuned:
    spec = TuneSpec(new_tokens=16, repeats=1, minutes=60)
    texts = [[1, number] for number in range(prompts + fresh)]
    engine = NoisyEngine(seed, gains or {})
    return tune(engine, texts[:prompts], spec, fresh=texts[prompts:])


@pytest.mark.parametrize(("prompts", "fresh"), [(2, 0), (8, 0), (8, 24)])
def test_where_nothing_differs_a_setting_is_called_faster_in_few_runs(
    prompts: int, fresh: int
) -> None:
    """Though one of 7 settings often has a 95% interval of its own above 1."""
    runs = [tuned_by_chance(seed, prompts=prompts, fresh=fresh) for seed in range(150)]
    assert sum(run.best != NO_SPECULATION for run in runs) <= 0.05 * len(runs)
    own = [[r.speedup_low for r in run.results if r.speedup_low is not None] for run in runs]
    assert sum(max(lows[1:]) > 1 for lows in own) > 0.1 * len(runs)


def test_a_setting_that_is_faster_is_found() -> None:
    runs = [tuned_by_chance(seed, {"ngram-4": 2.0}) for seed in range(20)]
    assert all(run.best == Speculation("ngram-4") for run in runs)
    assert all(run.settings[run.fastest] == run.best for run in runs)


def test_fresh_prompts_prove_what_the_race_leaves_in_doubt() -> None:
    """A gain of 15%, which is found in few races of 8 prompts and 7 settings."""
    gains = {"ngram-4": 1.15}
    alone = [tuned_by_chance(seed, gains) for seed in range(30)]
    proved = [tuned_by_chance(seed, gains, fresh=24) for seed in range(30)]
    setting = Speculation("ngram-4")
    assert sum(run.best == setting for run in alone) < 20
    assert sum(run.best == setting for run in proved) > 24
    for run in proved:
        if run.proof is not None:
            assert run.proof.prompts == 24
            name = run.results[run.fastest].name
            assert run.proof.result.name == name


def test_one_prompt_proves_nothing() -> None:
    run = tuned_by_chance(1, {"ngram-4": 9.0}, prompts=1)
    assert run.best == NO_SPECULATION
    assert run.settings[run.fastest] == Speculation("ngram-4")


class TickingEngine(NoisyEngine):
    """An engine on whose clock each answer takes a second."""

    seconds = 0.0

    def answer(self, speculation: Speculation, prompt: list[int], new_tokens: int) -> NoisyText:
        self.seconds += 1
        return super().answer(speculation, prompt, new_tokens)


def test_a_race_without_end_leaves_time_for_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rounds of 8 prompts and 8 settings need 192 seconds; there are two minutes."""
    texts = [[1, number] for number in range(32)]
    found = []
    for seed in range(10):
        engine = TickingEngine(seed, {"ngram-4": 1.25})
        monkeypatch.setattr(time, "monotonic", lambda engine=engine: engine.seconds)
        found.append(tune(engine, texts[:8], TuneSpec(new_tokens=16, minutes=2), fresh=texts[8:]))
        assert engine.seconds <= 120
    assert sum(run.best == Speculation("ngram-4") for run in found) >= 8
    proofs = [run.proof for run in found if run.proof is not None]
    assert proofs
    assert all(proof.prompts >= 16 for proof in proofs)
