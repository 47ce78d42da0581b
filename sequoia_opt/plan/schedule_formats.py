"""Schedules by batch size, and costs, as serving engines take them.

Knows the settings of vLLM 0.33 (`num_speculative_tokens_per_batch_size`), TensorRT-LLM 1.4.0rc4
(`draft_len_schedule`), SGLang 0.5.23 (`--speculative-adaptive-config`, and the cost table of
`--speculative-dspark-sps-table-path`), and llama.cpp's pull request 17034 (`GGML_BATCH_COSTS`).
Knows nothing of how a schedule is found: that is `schedule`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.documents import rounded
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.export import check_draft, sampling_note
from sequoia_opt.plan.export_formats import (
    FORMATS,
    draft_name,
    lines,
    method_of,
    verifier_of,
    vllm_config,
    vllm_sampling,
    yaml_text,
)
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.schedule import Schedule
from sequoia_opt.plan.solve_options import default_context


@dataclass(frozen=True)
class ScheduleFormat:
    """How one engine is told how many tokens to guess at each batch size.

    Attributes:
        engine: the engine's name.
        write: the text that its user pastes or saves.
        drafts_as: the format of `export_formats.FORMATS` that drafts as this engine does.
        beyond: what it does at batches beyond the largest measured one, where speculation still
            pays.
        needs: what its user has to know or to have besides.
    """

    engine: str
    write: Callable[[Schedule], str]
    drafts_as: str
    beyond: str
    needs: str = ""


@dataclass(frozen=True)
class CostFormat:
    """How one engine is told what its steps cost.

    Attributes:
        engine: the engine's name.
        write: the text that its user saves, from a profile and a context length.
        needs: what its user has to know or to have besides.
    """

    engine: str
    write: Callable[[LatencyProfile, float], str]
    needs: str


def _vllm(schedule: Schedule) -> str:
    metadata = schedule.chain.metadata
    return vllm_config({
        "method": method_of(schedule.chain, "vLLM"),
        "model": draft_name(schedule.chain),
        "num_speculative_tokens": schedule.chain.depth,
        **vllm_sampling(metadata["temperature"], verifier_of(schedule.chain)),
        "num_speculative_tokens_per_batch_size": [
            [stretch.first, stretch.last, stretch.guesses] for stretch in schedule.stretches
        ],
    })  # fmt: skip


def _tensorrt_llm(schedule: Schedule) -> str:
    lengths = ", ".join(f"{s.last}: {s.guesses}" for s in schedule.stretches if s.guesses)
    return lines(
        "speculative_config:",
        f"  decoding_type: {method_of(schedule.chain, 'TensorRT-LLM')}",
        f"  max_draft_len: {schedule.chain.depth}",
        f"  speculative_model: {yaml_text(draft_name(schedule.chain))}",
        f"  draft_len_schedule: {{{lengths}}}",
    )


def _sglang(schedule: Schedule) -> str:
    entries = {
        str(stretch.first): {"candidate_steps": [stretch.guesses]} for stretch in schedule.stretches
    }
    return lines(json.dumps(entries))


def _sglang_costs(profile: LatencyProfile, context: float) -> str:
    """Steps per second by all tokens that a step verifies; of equal numbers the median."""
    seconds: dict[int, list[float]] = {}
    for batch in profile.batches():
        curves = [curve.tokens for curve, _ in profile.target.between(context, batch)]
        measured = sorted(set.intersection(*map(set, curves)))
        for tokens, ms in zip(
            measured, profile.target.at(measured, context, batch).tolist(), strict=True
        ):
            seconds.setdefault(batch * tokens, []).append(ms / 1000)
    totals = sorted(seconds)
    table = {
        "sample_batch_tokens": totals,
        "sample_steps_per_sec": [rounded(1 / np.median(seconds[total]), 4) for total in totals],
        "max_batch_tokens": totals[-1],
    }
    return lines(json.dumps(table))


def _llama_cpp_costs(profile: LatencyProfile, context: float) -> str:
    """A token's share of a forward pass of 1, 2, 3 … tokens, over that of one token."""
    tokens = list(range(1, profile.target.largest() + 1))
    ms = profile.target.at(tokens, context)
    costs = ",".join(f"{cost:.3f}" for cost in ms / np.array(tokens) / ms[0])
    return lines(f'export GGML_BATCH_COSTS="{costs}"')


_ADAPTIVE = (
    "save it, and start SGLang with --speculative-adaptive --speculative-adaptive-config FILE "
    "--speculative-eagle-topk 1 --speculative-num-steps {steps} --speculative-num-draft-tokens "
    "{nodes}; it takes schedules with EAGLE and EAGLE3 only: acceptance and times must be that "
    "head's. With speculation --max-running-requests is 48 unless it is set"
)

SCHEDULES: dict[str, ScheduleFormat] = {
    "vllm": ScheduleFormat(
        "vLLM",
        _vllm,
        "vllm",
        "keeps to the last number",
        "vLLM drops the schedule with data parallelism",
    ),
    "tensorrt-llm": ScheduleFormat(
        "TensorRT-LLM",
        _tensorrt_llm,
        "tensorrt-llm",
        "does not speculate",
        "its keys are the largest batch sizes of each length; before pull request 10860 of 2026 "
        "they were the smallest. A request that outlives a time without speculation may have "
        "fewer guesses accepted (TensorRT-LLM 16888)",
    ),
    "sglang": ScheduleFormat(
        "SGLang", _sglang, "sglang-dynamic", "keeps to the last number", _ADAPTIVE
    ),
}

COSTS: dict[str, CostFormat] = {
    "sglang-costs": CostFormat(
        "SGLang",
        _sglang_costs,
        "for --speculative-dspark-sps-table-path, which SGLang reads with DSpark drafts; these are "
        "the target's times",
    ),
    "llama.cpp-costs": CostFormat(
        "llama.cpp",
        _llama_cpp_costs,
        "for builds of llama.cpp with its pull request 17034, which is not merged",
    ),
}


def export_schedule(schedule: Schedule, to: str) -> tuple[str, list[str]]:
    """The schedule as an engine takes it, and notes for the engine's user.

    Args:
        to: one of `SCHEDULES`.

    Raises:
        SequoiaError: speculation pays at no batch size, or the engine does not take the draft.
    """
    form = SCHEDULES[to]
    chain, last = schedule.chain, len(schedule.guesses)
    if chain.size == 1:
        raise SequoiaError(
            f"speculation does not pay at any batch from 1 to {last}: leave {form.engine}'s off"
        )
    check_draft(chain, FORMATS[form.drafts_as])
    notes = [stops_note(schedule)]
    if schedule.stops is None:
        notes.append(f"beyond batch {last}, which was not measured, {form.engine} {form.beyond}")
    between = [batch for batch in range(1, last + 1) if batch not in schedule.measured]
    if between:
        measured = ", ".join(map(str, schedule.measured))
        notes.append(f"measured at batches {measured}; interpolated in between")
    if form.needs:
        notes.append(form.needs.format(steps=chain.depth, nodes=chain.size))
    if note := sampling_note(chain, FORMATS[form.drafts_as]):
        notes.append(note)
    return form.write(schedule), notes


def export_costs(
    profile: LatencyProfile,
    acceptance: Acceptance,
    context: Mapping[float, float] | None,
    to: str,
) -> tuple[str, list[str]]:
    """What steps cost, as an engine takes it, and notes for the engine's user.

    Args:
        context: weights of context lengths, of which their mean is taken; None for that of the
            acceptance measurement.
        to: one of `COSTS`.

    Raises:
        SequoiaError: the profile lacks the context at some batch, or has times of whole rounds.
    """
    if profile.extra.get("rounds") == "served":
        raise SequoiaError(
            "the profile's times are of whole rounds, draft passes included, but this is a table "
            "of the target's forward passes; import or measure those"
        )
    weights = context or {default_context(profile, acceptance, 1): 1.0}
    mean = sum(length * weight for length, weight in weights.items()) / sum(weights.values())
    form = COSTS[to]
    return form.write(profile, mean), [f"for {mean:.0f} cached tokens", form.needs]


def stops_note(schedule: Schedule) -> str:
    """From which batch size on speculation does not pay, one line."""
    last, (low, high) = len(schedule.guesses), schedule.stops_between
    if schedule.stops is None:
        return f"speculation pays up to batch {last}, the largest that was measured"
    ends = f"{low} to {high}" if high <= last else f"from {low} on"
    known = "" if low == high else f" (95% interval: {ends})"
    return f"speculation stops paying at batch {schedule.stops}{known}"
