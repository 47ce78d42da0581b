from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from engine_fields import sglang_adaptive, tensorrt_llm, vllm
from test_schedule import RATES, machine

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.import_settings import read
from sequoia_opt.plan.schedule import Schedule, schedule
from sequoia_opt.plan.schedule_formats import COSTS, SCHEDULES, export_costs, export_schedule


def planned(**facts: Any) -> Schedule:
    return schedule(machine(), Acceptance(np.array([0.8]), context=100.0, **facts), replicates=10)


def test_every_engine_guesses_as_the_schedule_at_every_batch() -> None:
    plan = planned()
    expected = plan.guesses.tolist()
    texts = {to: export_schedule(plan, to)[0] for to in SCHEDULES}

    settings = vllm(texts["vllm"])
    ranges = settings["num_speculative_tokens_per_batch_size"]
    assert [k for first, last, k in ranges for _ in range(first, last + 1)] == expected
    assert settings["num_speculative_tokens"] == expected[0]

    largest = tensorrt_llm(texts["tensorrt-llm"])["draft_len_schedule"]
    batches = range(1, len(expected) + 1)
    assert [next((k for last, k in largest.items() if b <= last), 0) for b in batches] == expected

    steps = sglang_adaptive(texts["sglang"])  # of the largest key that is not above the batch
    assert [steps[max(key for key in steps if key <= b)][0] for b in batches] == expected


def test_notes_say_where_speculation_stops_paying() -> None:
    plan = planned()
    for to in SCHEDULES:
        notes = export_schedule(plan, to)[1]
        assert f"speculation stops paying at batch {plan.stops}" in notes[0]
        assert any("measured at batches 1, 4, 16, 64" in note for note in notes)
    small = schedule(machine(batches=(1, 2)), RATES, replicates=0)
    notes = export_schedule(small, "tensorrt-llm")[1]
    assert any("beyond batch 2, which was not measured" in note for note in notes)


@pytest.mark.parametrize(("verifier", "draws"), [("sequoia", True), ("topk", False)])
def test_a_schedule_above_temperature_0_says_whose_acceptance_holds(
    verifier: str, draws: bool
) -> None:
    profile = machine()
    profile.overhead[verifier] = profile.overhead["greedy"]
    rates = Acceptance(np.array([0.8]), context=100.0, temperature=0.6, verifier=verifier)
    plan = schedule(profile, rates, replicates=0)
    assert ("draft_sample_method" in vllm(export_schedule(plan, "vllm")[0])) == draws
    warned = any("does not hold" in note for note in export_schedule(plan, "tensorrt-llm")[1])
    assert warned == draws


def test_no_schedule_where_speculation_never_pays() -> None:
    never = schedule(machine(), Acceptance(np.array([0.01]), context=100.0), replicates=0)
    with pytest.raises(SequoiaError, match="does not pay at any batch from 1 to 64: leave vLLM"):
        export_schedule(never, "vllm")


def test_a_schedule_is_not_imported_as_one_chain() -> None:
    for to in ("vllm", "tensorrt-llm"):
        with pytest.raises(SequoiaError, match="depends on the number of sequences"):
            read(export_schedule(planned(), to)[0], "file")


def test_costs_of_sglang() -> None:
    """Its loader takes ascending numbers of tokens, with a speed for each."""
    text, notes = export_costs(machine(), RATES, None, "sglang-costs")
    table = json.loads(text)
    totals, speeds = table["sample_batch_tokens"], table["sample_steps_per_sec"]
    assert totals == sorted(set(totals))
    assert len(totals) == len(speeds)
    assert table["max_batch_tokens"] == totals[-1] == 64 * 9
    assert speeds[totals.index(64)] == pytest.approx(1000 / 20)
    assert notes[0] == "for 100 cached tokens"


def test_costs_of_llama_cpp() -> None:
    """The pull request's numbers: 1 for one token, half for two that take no longer."""
    text, notes = export_costs(machine(), RATES, {100.0: 1.0}, "llama.cpp-costs")
    assert text.startswith('export GGML_BATCH_COSTS="1.000,0.500,0.333,')
    assert "17034" in notes[-1]
    assert set(COSTS) == {"sglang-costs", "llama.cpp-costs"}
