"""What engines count while they serve: logs, metrics and answers, read as acceptance.

Reads the metrics of vLLM (0.33) and llama.cpp's server (November 2026), the log lines of both and
of SGLang (0.5.23), the answers of SGLang and of llama.cpp's server, and the statistics of ONNX
Runtime GenAI (0.18). Knows these texts. Knows nothing of what follows from the counts: that
is `chain_counts`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.chain_counts import (
    LONGEST_CHAIN,
    ChainCounts,
    of_histogram,
    of_totals,
    pooled,
    to_the_last_guess,
)
from sequoia_opt.plan.export_formats import DRAWING_VERIFIERS

MOST_STEPS = 2**53  # more than any engine counts
_NUMBERS = r"\d+(?:\.\d+)?(?:\s*,\s*\d+(?:\.\d+)?)*"
_METRIC = re.compile(
    r"^(vllm|llamacpp):spec_decode_num_(\w+?)(?:_total)?(?:\{(.*)\})?\s+(\S+)", re.MULTILINE
)
_ENGINES = {"vllm": "vLLM", "llamacpp": "llama.cpp"}  # by the names of their metrics
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_VLLM_LINE = re.compile(r"SpecDecoding metrics:[^\n]*")
_VLLM_RATES = re.compile(rf"Per-position acceptance rate: ({_NUMBERS})")
_VLLM_DRAFTED = re.compile(r"Drafted: (\d+) tokens")
_SGLANG_LINE = re.compile(r"accept len: (\d+\.\d+), accept rate: (\d+\.\d+)")
_STATISTICS = re.compile(
    rf"statistics\s+(\S+):[^\n]*?#calls\(b,g,a\) =\s*\d+\s+\d+\s+(\d+)[^\n]*?"
    rf"#gen tokens =\s*(\d+)[^\n]*?#acc rate/pos = \(({_NUMBERS})\)"
)
_REQUEST = re.compile(
    r"draft acceptance(?: rate)? = [\d.]+ \(\s*(\d+) accepted /\s*(\d+) generated\)"
    r"(?:, mean len =\s*(\d+(?:\.\d+)?))?"
)
_PER_POSITION = re.compile(rf"(?:acc per pos|acceptance rates? per position)\s*= \(({_NUMBERS})\)")
_KNOWN = (
    "vLLM 0.33's metrics or its log line 'SpecDecoding metrics', SGLang 0.5.23's answers or its "
    "log, llama.cpp's metrics, log or answers with timings, or ONNX Runtime GenAI's statistics"
)


def read(text: str, where: str, name: str | None = None) -> ChainCounts | None:
    """The counts in a text; None if it has no marks of any.

    Args:
        where: the text's file, for messages.
        name: the model, or llama.cpp's kind of speculation, if the text has several.

    Raises:
        SequoiaError: it has marks of counts, but is not as a known version writes them; or the
            counts are of several models or chains, or of none.
    """
    if (documents := _documents(text)) is not None:
        return _answers(documents, where)
    if re.search("(?:vllm|llamacpp):spec_decode_num_", text):
        return _metrics(text, where, name)
    if "SpecDecoding metrics" in text:
        return _vllm_log(text, where)
    if "#acc rate/pos" in text or "draft acceptance" in text:
        return _llama_cpp_log(text, where, name)
    if lines := _SGLANG_LINE.findall(text):
        return _sglang_log([(float(length), float(rate)) for length, rate in lines], where)
    if re.search(r"^\w+:spec_decode_|accept (?:len|rate):|#acc tokens", text, re.MULTILINE):
        raise _unknown(where)
    return None


def _unknown(where: str) -> SequoiaError:
    return SequoiaError(f"{where}: found counts of an unknown version, expected {_KNOWN}")


def speculative_totals(text: str, where: str) -> dict[str, dict[str, float]]:
    """Prometheus counters of speculation, summed over a model's engines.

    Returns:
        By model, as far as the metrics name it, and by metric: `drafts`, `draft_tokens`,
        `accepted_tokens`, and `position 0` onwards for accepted tokens by position.

    Raises:
        SequoiaError: a counter's value is no count.
    """
    totals: dict[str, dict[str, float]] = {}
    for _, metric, labels, value in _METRIC.findall(text):
        label = dict(_LABEL.findall(labels))
        counts = totals.setdefault(label.get("model_name", ""), {})
        position = label.get("position", "")
        key = f"position {position}" if metric == "accepted_tokens_per_pos" else metric
        counts[key] = counts.get(key, 0.0) + _number(value, f"{where}: {metric}")
    return totals


def _metrics(text: str, where: str, name: str | None) -> ChainCounts:
    """Counters of one model."""
    totals = speculative_totals(text, where)
    counts = totals[_one(list(totals), name, where)]
    engine = _ENGINES[min(prefix for prefix, *_ in _METRIC.findall(text))]
    steps, drafted = counts.get("drafts", 0.0), counts.get("draft_tokens", 0.0)
    positions = [key for key in counts if key.startswith("position ")]
    in_order = [f"position {position}" for position in range(len(positions))]
    if "drafts" not in counts or set(positions) != set(in_order):
        raise _unknown(where)
    if not steps or not positions:
        raise SequoiaError(f"{where}: {engine} counted no guesses; is its speculation on?")
    reached = np.array([counts[position] for position in in_order]) / steps
    guesses = drafted / steps if drafted else None
    notes = [_VLLM_DRAFTS] if engine == "vLLM" else []
    return ChainCounts(engine, reached, round(steps), guesses, notes=notes)


_VLLM_DRAFTS = (
    "vLLM drafts greedily unless draft_sample_method is probabilistic; above temperature 0 rates "
    "measured so are verifier sequoia's (--verifier sequoia)"
)


def _vllm_log(text: str, where: str) -> ChainCounts:
    """Lines of the log, each weighted by the tokens that it says were drafted."""
    rows, weights = [], []
    for line in _VLLM_LINE.findall(text):
        rates, drafted = _VLLM_RATES.search(line), _VLLM_DRAFTED.search(line)
        if rates is None or drafted is None:
            raise _unknown(where)
        rows.append(_numbers(rates[1]))
        weights.append(float(drafted[1]))
    reached = pooled("vLLM", rows, weights, where)
    steps = round(sum(weights) / len(reached))
    return ChainCounts("vLLM", reached, steps, notes=[_VLLM_DRAFTS])


def _llama_cpp_log(text: str, where: str, name: str | None) -> ChainCounts:
    """The last statistics of a server, which sum up all before; else the lines of each request."""
    statistics = {kind: counts for kind, *counts in _STATISTICS.findall(text)}
    if statistics:
        steps, drafted, rates = statistics[_one(list(statistics), name, where)]
        reached = pooled("llama.cpp", [_numbers(rates)], [float(steps)], where)
        guesses = int(drafted) / int(steps)
        reached = to_the_last_guess(reached, guesses, where)
        return ChainCounts("llama.cpp", reached, int(steps), guesses)
    requests = [(int(a), int(g), float(m or 0)) for a, g, m in _REQUEST.findall(text)]
    positions = [_numbers(rates) for rates in _PER_POSITION.findall(text)]
    if positions and len(positions) == len(requests):
        return _llama_cpp_requests(requests, positions, where)
    accepting = [request for request in requests if request[0]]
    if not accepting or not all(mean > 1 for *_, mean in accepting):
        raise _unknown(where)
    accepted, drafted_there = (sum(request[i] for request in accepting) for i in (0, 1))
    steps_there = sum(accepted / (mean - 1) for accepted, _, mean in accepting)
    # A request of which nothing was accepted has as many guesses in a step as the others.
    drafted_tokens = sum(drafted for _, drafted, _ in requests)
    total_steps = steps_there * drafted_tokens / drafted_there
    return of_totals("llama.cpp", accepted, drafted_tokens, total_steps, where)


def _llama_cpp_requests(
    requests: Sequence[tuple[int, int, float]], positions: Sequence[Sequence[float]], where: str
) -> ChainCounts:
    """Requests with their shares by position, weighted by their steps.

    A step accepts as many guesses on average as the shares sum to. A request of which nothing was
    accepted has as many guesses in a step as the others.

    Args:
        requests: accepted and drafted tokens of each.
    """
    steps = [
        _steps(accepted, shares) for (accepted, *_), shares in zip(requests, positions, strict=True)
    ]
    drafted = [request[1] for request in requests]
    drafted_there = sum(tokens for tokens, count in zip(drafted, steps, strict=True) if count)
    guesses = drafted_there / sum(steps) if drafted_there else float(len(positions[0]))
    weights = [count or tokens / guesses for tokens, count in zip(drafted, steps, strict=True)]
    reached = pooled("llama.cpp", positions, weights, where)
    return ChainCounts("llama.cpp", reached, round(sum(weights)), guesses)


def _steps(accepted: int, shares: Sequence[float]) -> float:
    """The steps in which so many guesses were accepted; 0 if none was."""
    mean = sum(shares)
    return accepted / mean if mean > 0 else 0.0


def _sglang_log(lines: Sequence[tuple[float, float]], where: str) -> ChainCounts:
    """Lines of the log: mean tokens of a step, and the share of all guesses that was accepted.

    Where none was, a step had as many guesses as those of the other lines.
    """
    guesses = [(length - 1) / rate for length, rate in lines if length > 1 and rate > 0]
    if not guesses:
        raise SequoiaError(f"{where}: SGLang accepted no guesses; is its speculation on?")
    accepted = float(np.mean([length - 1 for length, _ in lines]))
    counts = of_totals("SGLang", accepted, float(np.mean(guesses)), 1.0, where)
    return ChainCounts("SGLang", counts.reached, notes=counts.notes)


def _documents(text: str) -> list[Any] | None:
    """The JSON documents of a text, one after another; None if it is not JSON."""
    if not text.lstrip().startswith(("{", "[")):
        return None
    decoder, documents, rest = json.JSONDecoder(), [], text.strip()
    while rest:
        try:
            document, end = decoder.raw_decode(rest)
        except (ValueError, RecursionError):
            return None
        documents.append(document)
        rest = rest[end:].lstrip()
    return documents


def _answers(documents: Sequence[Any], where: str) -> ChainCounts | None:
    """Counts in answers of servers, summed over all of them."""
    parts = [part for document in documents for part in _mappings(document)]
    if statistics := _with_key(parts, "acceptance_length_histogram"):
        histogram = _summed([s["acceptance_length_histogram"] for s in statistics], where)
        guesses = _mean(statistics, "draft_tokens_proposed", "rounds")
        return of_histogram(
            "ONNX Runtime GenAI", histogram, where, guesses, verifier=DRAWING_VERIFIERS[0]
        )
    if answers := _with_key(parts, "spec_correct_drafts_histogram"):
        histogram = _summed([a["spec_correct_drafts_histogram"] for a in answers], where)
        guesses = _mean(answers, "spec_num_proposed_drafts", "spec_verify_ct")
        return of_histogram("SGLang", histogram, where, guesses)
    if timings := _with_key(parts, "draft_n_accepted"):
        return _llama_cpp_timings(timings, where)
    return None


def _llama_cpp_timings(timings: Sequence[Mapping[str, Any]], where: str) -> ChainCounts:
    """Totals of answers: the first token follows from the prompt, each step adds one of its own."""
    names = ("draft_n", "draft_n_accepted", "predicted_n")
    try:
        drafted, accepted, new = (sum(int(t[name]) for t in timings) for name in names)
        if not all(0 <= total < MOST_STEPS for total in (drafted, accepted, new)):
            raise ValueError
    except (KeyError, TypeError, ValueError, OverflowError):
        raise _unknown(where) from None
    steps = new - len(timings) - accepted
    if steps <= 0 or drafted < accepted:
        raise SequoiaError(
            f"{where}: found {accepted} accepted of {drafted} guesses among {new} tokens, "
            "expected fewer accepted than tokens and guesses"
        )
    return of_totals("llama.cpp", accepted, drafted, steps, where)


def _mappings(document: Any) -> list[Mapping[str, Any]]:
    """All mappings in a document."""
    mappings: list[Mapping[str, Any]] = []
    unread = [document]
    while unread:
        value = unread.pop()
        if isinstance(value, dict):
            mappings.append(value)
            unread += value.values()
        elif isinstance(value, list):
            unread += value
    return mappings


def _with_key(parts: Sequence[Mapping[str, Any]], key: str) -> list[Mapping[str, Any]]:
    return [part for part in parts if key in part]


def _summed(histograms: Sequence[Any], where: str) -> list[int]:
    """Histograms added up: lists, or mappings from the number of accepted guesses.

    Raises:
        SequoiaError: one is of another form.
    """
    total: dict[int, int] = {}
    for histogram in histograms:
        try:
            pairs = enumerate(histogram) if isinstance(histogram, list) else histogram.items()
            for accepted, steps in pairs:
                if not 0 <= int(accepted) <= LONGEST_CHAIN or not 0 <= int(steps) < MOST_STEPS:
                    raise ValueError
                total[int(accepted)] = total.get(int(accepted), 0) + int(steps)
        except (TypeError, ValueError, OverflowError, AttributeError):
            raise _unknown(where) from None
    return [total.get(accepted, 0) for accepted in range(max(total, default=0) + 1)]


def _mean(parts: Sequence[Mapping[str, Any]], total: str, count: str) -> float | None:
    """A total over a count, both summed; None if some part lacks them."""
    try:
        counted = sum(int(part[count]) for part in parts)
        return sum(int(part[total]) for part in parts) / counted if counted else None
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _one(names: Sequence[str], name: str | None, where: str) -> str:
    """The one name, or the one that was asked for.

    Raises:
        SequoiaError: there are several, or another.
    """
    if name in names:
        return str(name)
    if name is not None or len(names) != 1:
        listed = " and ".join(names) or "none"
        raise SequoiaError(f"{where}: found counts of {listed}, expected one; choose with --name")
    return names[0]


def _numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < MOST_STEPS:
        raise SequoiaError(f"{where}: found {text!r}, expected a count")
    return value
