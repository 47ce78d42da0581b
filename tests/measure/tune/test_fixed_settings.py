"""What a stand-in that keeps its settings tells of shorter chains, against decoding with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from llama_server_stand_in import StandIn, serving

from sequoia_opt.engine.llama_cpp.running_server import RunningServer
from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure.progress import no_progress_bar
from sequoia_opt.measure.tune.fixed_settings import _own_guesses, study_fixed_settings
from sequoia_opt.measure.tune.tuning import ChainStudy, TuneSpec
from sequoia_opt.plan.chain_replay import StepCounts
from sequoia_opt.plan.round_costs import RoundCosts

PROMPTS = [[1, seed, 7] for seed in range(3, 9)]
SPEC = TuneSpec(new_tokens=96)
COSTS = RoundCosts(10.0, (1, 8), np.array([13.0, 34.0]), 1.5)
"""With them the first guess adds a pass of the draft and nothing else."""

DEAR = RoundCosts(10.0, (1, 8), np.array([15.0, 36.0]), 1.5)
"""With them it adds 2 ms of the target's pass as well."""


def studied(costs: RoundCosts = COSTS, **options: Any) -> tuple[ChainStudy, StandIn]:
    with serving(StandIn(costs, takes_settings=False, **options)) as server:
        return study_fixed_settings(
            RunningServer(server.url), PROMPTS, SPEC, no_progress_bar
        ), server


def speedup(server: StandIn, guesses: int) -> float:
    """Of the texts decoded with this setting, over plain decoding without a draft."""
    server.takes_settings = True
    request = {"n_predict": 96, "speculative.n_max": guesses}
    taken = [server.rounds({**request, "prompt": p})[-1]["predicted_ms"] for p in PROMPTS]
    return 10.0 * 95 * len(PROMPTS) / sum(taken)


def test_shorter_chains_are_predicted_without_trying_them() -> None:
    study, server = studied(guesses=24)
    assert study.costs.plain_ms == pytest.approx(10.0, rel=0.01)
    assert len(study.predictions) == 24
    for prediction in study.predictions:
        expected = speedup(server, prediction.setting.guesses)
        assert prediction.speedup == pytest.approx(expected, rel=0.02)


def test_where_guesses_are_dear_more_can_be_had_than_is_predicted() -> None:
    study, server = studied(DEAR, guesses=24)
    assert study.costs.plain_ms == pytest.approx(8.0, rel=0.01)
    for prediction in study.predictions:
        expected = speedup(server, prediction.setting.guesses)
        assert 0.75 * expected < prediction.speedup < 0.85 * expected


def test_a_server_without_speculation_is_told_how_to_start() -> None:
    with pytest.raises(SequoiaError, match=r"found no guess .* start it with a draft, --spec-type"):
        studied(guesses=0)


def test_chains_that_end_early_are_not_to_be_replayed() -> None:
    with pytest.raises(SequoiaError, match="start the server with --spec-draft-p-min 0"):
        studied(guesses=8, threshold=0.6)


@pytest.mark.parametrize("ending", [[(0, 0)], [(3, 1), (0, 0)], [(5, 5)]])
def test_a_text_s_end_says_nothing_of_a_threshold(ending: list[tuple[int, int]]) -> None:
    """Near it chains are short, and a step whose token is half a character is not seen."""
    steps = [(8, 8), (8, 0), (8, 3), *ending]
    drafted, accepted = (list(counts) for counts in zip(*steps, strict=True))
    assert _own_guesses([StepCounts(drafted, accepted)]) == 8
    early = StepCounts([3, *drafted], [3, *accepted])
    with pytest.raises(SequoiaError, match="found chains of 3 and of 8 guesses"):
        _own_guesses([early])
