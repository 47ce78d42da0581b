"""A server's own counts of its guesses, and the settings that it reports.

Reads `/metrics` of vLLM and llama.cpp, `/props` and `/slots` of llama.cpp, and `/server_info` of
SGLang. Knows these documents. Knows nothing of what follows from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sequoia_opt.engine.http_client import json_mapping
from sequoia_opt.measure.check.dialects import Guesses
from sequoia_opt.measure.check.server import Server
from sequoia_opt.plan.engine_counters import speculative_totals

METRICS = "/metrics"
WITH_METRICS = {"vLLM": "vllm:", "llama.cpp": "llamacpp:"}  # how the names of their metrics begin


@dataclass(frozen=True)
class Counters:
    """What `/metrics` says now.

    Attributes:
        guesses: all clients' guesses since the server started.
        positions: how many guesses a step may have; 0 if it does not say.
    """

    guesses: Guesses
    positions: int


@dataclass(frozen=True)
class ReportedSettings:
    """The settings of speculation that a server reports; None where it reports none.

    Attributes:
        kind: its name for the kind of speculation that it was started with; "none" for none.
        is_loaded: whether it can speculate.
        guesses: the most guesses of a step.
        least_guesses: the fewest.
        least_probability: a draft's probability below which it guesses no further.
    """

    kind: str | None = None
    is_loaded: bool | None = None
    guesses: int | None = None
    least_guesses: int | None = None
    least_probability: float | None = None


def counters(server: Server) -> Counters | None:
    """What a server has counted; None if it has no metrics.

    A vLLM that was started without speculation has metrics without a count of guesses.
    """
    prefix = WITH_METRICS.get(server.dialect.name)
    text = server.get(METRICS) if prefix else None
    if prefix is None or text is None or prefix not in text:
        return None
    totals = speculative_totals(text, server.url + METRICS)
    counts = totals.get(server.model) or (next(iter(totals.values())) if len(totals) == 1 else {})
    if totals and not counts:  # of several models, none of which is the one that is asked
        return None
    positions = sum(name.startswith("position ") for name in counts)
    guesses = Guesses(
        *(int(counts.get(n, 0)) for n in ("draft_tokens", "accepted_tokens", "drafts"))
    )
    return Counters(guesses, positions)


def reported_settings(server: Server) -> ReportedSettings:
    """The settings of speculation that a server reports."""
    if server.dialect.name == "llama.cpp":
        return _llama_cpp(server)
    if server.dialect.name == "SGLang":
        return _sglang(json_mapping(server.get("/server_info") or ""))
    count = counters(server)
    return ReportedSettings(guesses=None if count is None else count.positions or None)


def _llama_cpp(server: Server) -> ReportedSettings:
    """`/slots` says what is loaded, and with what the last text was decoded.

    `/props` has numbers in older versions only; the kind that it names is `none` in any case.
    """
    defaults = json_mapping(server.get("/props") or "").get("default_generation_settings")
    parameters = _mapping(_mapping(defaults).get("params", defaults))
    slots = json_mapping('{"slots": ' + (server.get("/slots") or "[]") + "}").get("slots")
    slots = [_mapping(slot) for slot in slots] if isinstance(slots, list) else []
    loaded = [slot.get("speculative") for slot in slots]
    kinds = [_mapping(slot.get("params")).get("speculative.types") for slot in slots]
    kind = next((_kind(names) for names in kinds if isinstance(names, str)), None)
    count = counters(server)
    guesses = _whole(parameters, "speculative.n_max")
    if guesses is None and count is not None and count.positions:
        guesses = count.positions
    probability = parameters.get("speculative.p_min")
    return ReportedSettings(
        kind=kind,
        is_loaded=any(loaded) if loaded and None not in loaded else None,
        guesses=guesses,
        least_guesses=_whole(parameters, "speculative.n_min"),
        least_probability=float(probability) if isinstance(probability, int | float) else None,
    )


def _kind(names: str) -> str:
    """llama.cpp's list of kinds, which begins with `none` where no draft could be loaded."""
    return ",".join(name for name in names.split(",") if name != "none") or "none"


def _sglang(information: Mapping[str, Any]) -> ReportedSettings:
    """The resolved configuration; the verified tokens of a step are its guesses and the root."""
    kind = information.get("speculative_algorithm")
    verified = _whole(information, "speculative_num_draft_tokens")
    return ReportedSettings(
        kind=str(kind).lower() if "speculative_algorithm" in information else None,
        guesses=verified - 1 if kind and verified else None,
    )


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _whole(values: Mapping[str, Any], name: str) -> int | None:
    value = values.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
