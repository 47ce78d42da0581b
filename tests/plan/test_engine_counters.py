"""Counts as engines print them, of chains whose acceptance by depth is known."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.engine_counters import read

STEPS, GUESSES = 4000, 4
RATES = [0.9, 0.75, 0.6, 0.5]  # of each depth, given that it was reached
HISTOGRAM = [400, 900, 1080, 810, 810]  # steps that accepted 0, 1, 2, 3 and 4 guesses
PER_POSITION = [sum(HISTOGRAM[k:]) for k in range(1, GUESSES + 1)]
ACCEPTED = sum(PER_POSITION)
SHARES = ", ".join(f"{count / STEPS:.3f}" for count in PER_POSITION)


def vllm_metrics(engines: int = 1, model: str = "big", drafted: int = STEPS * GUESSES) -> str:
    """As prometheus_client prints vLLM's counters."""
    counters = {
        "drafts": [STEPS],
        "draft_tokens": [drafted],
        "accepted_tokens": [ACCEPTED],
        "accepted_tokens_per_pos": PER_POSITION,
    }
    lines = []
    for name, counts in counters.items():
        metric = f"vllm:spec_decode_num_{name}"
        lines += [f"# HELP {metric}_total Number.", f"# TYPE {metric}_total counter"]
        for ending, value in (("_total", None), ("_created", 1.79e9)):
            for engine in range(engines):
                for position, count in enumerate(counts):
                    label = f',position="{position}"' if len(counts) > 1 else ""
                    number = count / engines if value is None else value
                    labels = f'{{engine="{engine}",model_name="{model}"{label}}}'
                    lines.append(f"{metric}{ending}{labels} {number}")
    return "\n".join(["vllm:num_requests_running 2.0", *lines])


VLLM_LOG = f"""\
(APIServer pid=1) INFO 11-20 10:00:01 [metrics.py:101] SpecDecoding metrics: Mean acceptance \
length: {1 + ACCEPTED / STEPS:.2f}, Accepted throughput: 10.00 tokens/s, Drafted throughput: 20.00 \
tokens/s, Accepted: {ACCEPTED} tokens, Drafted: {STEPS * GUESSES} tokens, Per-position acceptance \
rate: {SHARES}, Avg Draft acceptance rate: 57.1%
(APIServer pid=1) INFO 11-20 10:00:11 [metrics.py:101] SpecDecoding metrics: Mean acceptance \
length: 1.00, Accepted throughput: 0.00 tokens/s, Drafted throughput: 0.00 tokens/s, Accepted: 0 \
tokens, Drafted: 0 tokens, Per-position acceptance rate: 0.000, 0.000, 0.000, 0.000, Avg Draft \
acceptance rate: nan%
"""
LLAMA_CPP_METRICS = "\n".join(
    f"llamacpp:spec_decode_num_{name} {count}"
    for name, count in [
        ("draft_tokens_total", STEPS * GUESSES),
        ("accepted_tokens_total", ACCEPTED),
        ("drafts_total", STEPS),
        *(
            (f'accepted_tokens_per_pos_total{{position="{position}"}}', count)
            for position, count in enumerate(PER_POSITION)
        ),
    ]
)
LLAMA_CPP_REQUEST = f"""\
slot print_timing: id  0 | task 0 | draft acceptance = {ACCEPTED / STEPS / GUESSES:.5f} \
({ACCEPTED:5d} accepted / {STEPS * GUESSES:5d} generated), mean len = {1 + ACCEPTED / STEPS:5.2f}
"""
LLAMA_CPP_POSITIONS = f"slot print_timing: id  0 | task 0 |      acc per pos = ({SHARES})\n"
LLAMA_CPP_STATISTICS = "".join(
    f"0.01 I spec statistics     draft-simple: #calls(b,g,a) =    1 {steps:6d} {steps:6d}, #gen "
    f"drafts = {steps:6d}, #acc drafts =  3600, #gen tokens = {steps * GUESSES:6d}, #acc tokens = "
    f"{ACCEPTED:5d}, #mean acc len = 3.29, #acc rate/pos = ({shares}), dur(b,g,a) = 0.1, 1.0, 0.1 "
    "ms\n"
    for steps, shares in ((10, "1.000, 1.000, 1.000, 0.000"), (STEPS, SHARES))
)
SGLANG = json.dumps(
    [
        {"text": "a", "meta_info": {"spec_correct_drafts_histogram": HISTOGRAM[:3]}},
        {"text": "b", "meta_info": {"spec_correct_drafts_histogram": [0, 0, 0, *HISTOGRAM[3:]]}},
    ]
)
ONNXRUNTIME = json.dumps(
    {"rounds": STEPS, "draft_tokens_proposed": STEPS * GUESSES,
     "acceptance_length_histogram": {str(k): steps for k, steps in enumerate(HISTOGRAM)}}
)  # fmt: skip


def rates_of(text: str) -> list[float]:
    counts = read(text, "file")
    assert counts is not None
    return counts.rates("file")[:, 0].tolist()


@pytest.mark.parametrize(
    ("text", "engine", "verifier"),
    [
        (vllm_metrics(), "vLLM", "topk"),
        (vllm_metrics(engines=2), "vLLM", "topk"),
        (VLLM_LOG, "vLLM", "topk"),
        (LLAMA_CPP_REQUEST + LLAMA_CPP_POSITIONS, "llama.cpp", "topk"),
        (LLAMA_CPP_STATISTICS, "llama.cpp", "topk"),
        (LLAMA_CPP_METRICS, "llama.cpp", "topk"),
        (SGLANG, "SGLang", "topk"),
        ("\n".join(json.dumps(answer) for answer in json.loads(SGLANG)), "SGLang", "topk"),
        ("".join(json.dumps(answer) for answer in json.loads(SGLANG)), "SGLang", "topk"),
        (ONNXRUNTIME, "ONNX Runtime GenAI", "sequoia"),
        (ONNXRUNTIME.replace("{", "[{", 1) + "]", "ONNX Runtime GenAI", "sequoia"),
    ],
)
def test_rates_by_depth_are_recovered(text: str, engine: str, verifier: str) -> None:
    counts = read(text, "file")
    assert counts is not None
    assert (counts.engine, counts.verifier) == (engine, verifier)
    assert counts.rates("file")[:, 0] == pytest.approx(RATES, abs=0.003)
    assert counts.steps == pytest.approx(STEPS, rel=0.01)
    assert not any("lower bounds" in line for line in counts.warnings())


TIMINGS = {"predicted_n": 1 + STEPS + ACCEPTED, "draft_n": 4 * STEPS, "draft_n_accepted": ACCEPTED}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"content": "x", "timings": TIMINGS}),
        LLAMA_CPP_REQUEST,
        f"Decode batch, #running-req: 1, accept len: {1 + ACCEPTED / STEPS:.2f}, accept rate: "
        f"{ACCEPTED / STEPS / GUESSES:.2f}, cuda graph: True",
    ],
)
def test_of_totals_one_rate_that_accepts_as_many_guesses(text: str) -> None:
    counts = read(text, "file")
    assert counts is not None
    [[rate]] = counts.rates("file").tolist()
    assert sum(rate**k for k in range(1, GUESSES + 1)) == pytest.approx(ACCEPTED / STEPS, abs=0.006)
    assert any("same at every depth" in line for line in counts.warnings())


def test_totals_of_chains_that_ended_early_have_no_rate_of_1_while_guesses_were_rejected() -> None:
    """126 of 140 guesses in 100 steps: p + 0.4 p² = 1.26."""
    timings = {"draft_n": 140, "draft_n_accepted": 126, "predicted_n": 227}
    counts = read(json.dumps({"timings": timings}), "file")
    assert counts is not None
    assert counts.rates("file").item() == pytest.approx((math.sqrt(1 + 4 * 0.4 * 1.26) - 1) / 0.8)
    assert any("ended early" in line for line in counts.warnings())
    short = {"draft_n": 50, "draft_n_accepted": 40, "predicted_n": 141}
    assert rates_of(json.dumps({"timings": short})) == pytest.approx([0.8])


@pytest.mark.parametrize(
    "text",
    [
        # 30 requests with 10 steps of 4 guesses each and none accepted, and 10 such with 20.
        "draft acceptance = 0.0 ( 0 accepted / 1200 generated), mean len = 1.00\n"
        "draft acceptance = 0.5 ( 200 accepted / 400 generated), mean len = 3.00\n",
        "accept len: 1.00, accept rate: 0.00\n" * 3 + "accept len: 3.00, accept rate: 0.50\n",
    ],
)
def test_steps_without_an_accepted_guess_count(text: str) -> None:
    """A quarter of the steps accepts two guesses of four, the others none."""
    [rate] = rates_of(text)
    assert sum(rate**k for k in range(1, 5)) == pytest.approx(0.5)


def test_depths_that_were_never_reached_are_left_out() -> None:
    counts = read(json.dumps({"acceptance_length_histogram": [5, 5, 0, 0]}), "file")
    assert counts is not None
    assert counts.rates("file").tolist() == [[0.5], [0.0]]


def test_a_histogram_ends_at_the_most_that_were_accepted() -> None:
    """Four guesses were drafted, and never more than two accepted: the third is measured too."""
    answer = {"spec_correct_drafts_histogram": [1, 1, 2], "spec_verify_ct": 4}
    counts = read(json.dumps(answer | {"spec_num_proposed_drafts": 16}), "file")
    assert counts is not None
    assert counts.rates("file")[:, 0].tolist() == pytest.approx([3 / 4, 2 / 3, 0])


def test_statistics_of_llama_cpp_end_there_too() -> None:
    shorter = LLAMA_CPP_STATISTICS.replace(f"({SHARES})", "(0.500, 0.250)")
    assert rates_of(shorter) == pytest.approx([0.5, 0.5, 0])


def test_a_request_of_which_nothing_was_accepted_counts() -> None:
    """Half of the steps, of two requests of equal length."""
    refused = LLAMA_CPP_REQUEST.replace(f"{ACCEPTED:5d} accepted", "    0 accepted")
    refused += LLAMA_CPP_POSITIONS.replace(SHARES, "0.000, 0.000, 0.000, 0.000")
    text = LLAMA_CPP_REQUEST + LLAMA_CPP_POSITIONS + refused
    assert rates_of(text) == pytest.approx([RATES[0] / 2, *RATES[1:]], abs=0.003)


def test_shorter_chains_are_warned_of() -> None:
    counts = read(vllm_metrics(drafted=3 * STEPS), "file")
    assert counts is not None
    assert any("3.00 guesses on average, not 4" in line for line in counts.warnings())


def test_one_of_several_is_chosen_by_name() -> None:
    both = vllm_metrics() + "\n" + vllm_metrics(model="other")
    with pytest.raises(
        SequoiaError, match="found counts of big and other, expected one; choose with"
    ):
        read(both, "file")
    assert read(both, "file", "other") is not None
    kinds = LLAMA_CPP_STATISTICS + LLAMA_CPP_STATISTICS.replace("draft-simple", "ngram-simple")
    with pytest.raises(SequoiaError, match="draft-simple and ngram-simple"):
        read(kinds, "file")
    counts = read(kinds, "file", "draft-simple")
    assert counts is not None
    assert counts.steps == STEPS


@pytest.mark.parametrize(
    "text",
    [
        "[[0], [1]]",
        '{"model": "d", "num_speculative_tokens": 4}',
        "llama-server -md d.gguf --draft-max 16",
        '{"draft_n": 5}',
        'vllm serve m --speculative-config \'{"model": "/data/spec_decode/draft"}\'',
        "max_draft_len: 3\n",
        "",
    ],
)
def test_other_texts_have_no_counts(text: str) -> None:
    assert read(text, "file") is None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("SpecDecoding metrics: Draft acceptance: 0.5", "found counts of an unknown version"),
        ("vllm:spec_decode_num_drafted 3.0", "found counts of an unknown version"),
        ("llamacpp:spec_decode_num_drafts_total 0", "counted no guesses; is its speculation on"),
        ("vllm:spec_decode_num_drafts_total{ 3.0", "counts of none, expected one"),
        (vllm_metrics().replace(f" {STEPS}", " 0"), "counted no guesses; is its speculation on"),
        ("vllm:spec_decode_draft_acceptance_rate 0.5", "found counts of an unknown version"),
        ("draft acceptance = many", "found counts of an unknown version"),
        (VLLM_LOG + VLLM_LOG.replace(", 0.000,", ",", 1), "chains of 3 and 4 guesses"),
        (VLLM_LOG.replace("0.900, 0.675", "0.675, 0.900"), "position 2, expected 0 to 0.675"),
        (VLLM_LOG.splitlines()[1], "counted no guesses"),
        ('{"acceptance_length_histogram": [7]}', "accepted no guesses; is its"),
        ('{"draft_n_accepted": 9, "draft_n": 99999999, "predicted_n": 99}', "expected at most 100"),
        ('{"acceptance_length_histogram": {"1000000000": 1}}', "counts of an unknown version"),
        (vllm_metrics().replace(f" {STEPS}.0", " 1e999"), "found '1e999', expected a count"),
        ('{"acceptance_length_histogram": "many"}', "found counts of an unknown version"),
        ('{"acceptance_length_histogram": [1e999, 1]}', "found counts of an unknown version"),
        ('{"draft_n_accepted": 1, "draft_n": 1e999, "predicted_n": 9}', "of an unknown version"),
        ('{"draft_n_accepted": 0, "draft_n": 9, "predicted_n": 9}', "accepted no guesses"),
        ('{"draft_n_accepted": 3}', "found counts of an unknown version"),
        ('{"draft_n_accepted": 9, "draft_n": 4, "predicted_n": 99}', "found 9 accepted of 4"),
        ("accept len: 1.00, accept rate: 0.00", "accepted no guesses"),
    ],
)
def test_refuses_counts_that_it_cannot_read(text: str, complaint: str) -> None:
    with pytest.raises(SequoiaError, match=complaint) as caught:
        rates_of(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", range(5))
def test_a_simulated_chain_gives_its_rates_back(seed: int) -> None:
    """Steps drawn from rates by depth, counted as SGLang counts them."""
    generator = np.random.default_rng(seed)
    rates = generator.uniform(0.3, 0.95, 3)
    passed = generator.uniform(size=(20000, 3)) < rates
    accepted = passed.cumprod(axis=1).sum(axis=1)
    histogram = np.bincount(accepted, minlength=4).tolist()
    counts = read(json.dumps({"spec_correct_drafts_histogram": histogram}), "file")
    assert counts is not None
    assert counts.rates("file")[:, 0] == pytest.approx(rates, abs=0.02)
