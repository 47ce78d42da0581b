"""The speculative settings that engines accept, as read from the sources that the JSON names."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import yaml

ENGINES: dict[str, Any] = json.loads((Path(__file__).parent / "engine_fields.json").read_text())
TYPES = {"int": int, "str": str, "bool": bool, "float": float}


def check(settings: dict[str, Any], fields: dict[str, Any]) -> None:
    """Whether an engine has each of the settings, with values of its type."""
    for name, value in settings.items():
        expected = fields[name]
        if isinstance(expected, list):
            assert value in expected, name
        elif expected in TYPES:
            assert type(value) is TYPES[expected], name


def vllm(text: str) -> dict[str, Any]:
    """The configuration in vLLM's flag, whose fields it has."""
    flag, config = shlex.split(text)
    assert flag == "--speculative-config"
    settings: dict[str, Any] = json.loads(config)
    check(settings, ENGINES["vllm"]["fields"])
    end = 0  # of the batch sizes before; the first is 1, and ranges do not overlap
    for first, last, guesses in settings.get("num_speculative_tokens_per_batch_size", []):
        assert first == end + 1 <= last
        assert 0 <= guesses <= settings["num_speculative_tokens"]
        end = last
    return settings


def flags(text: str, engine: str) -> dict[str, str]:
    """Flags with one value each, which the engine has."""
    words = shlex.split(text)
    settings = dict(zip(words[::2], words[1::2], strict=True))
    for name, value in settings.items():
        TYPES[ENGINES[engine]["flags"][name]](value)
    return settings


def tensorrt_llm(text: str) -> dict[str, Any]:
    """The configuration in TensorRT-LLM's YAML, whose fields and rules it keeps."""
    settings: dict[str, Any] = yaml.safe_load(text)["speculative_config"]
    fields = ENGINES["tensorrt-llm"]["decoding_types"][settings["decoding_type"]]
    check({k: v for k, v in settings.items() if k != "decoding_type"}, fields)
    length = settings["max_draft_len"]
    assert length > 0
    if settings.get("use_dynamic_tree"):
        most = settings["dynamic_tree_max_topK"] * length
        assert length <= settings["max_total_draft_tokens"] <= most
    if schedule := settings.get("draft_len_schedule"):
        assert schedule[min(schedule)] == length == max(schedule.values())
        assert min(schedule) >= 1
        assert min(schedule.values()) >= 0
    return settings


def sglang_adaptive(text: str) -> dict[int, list[int]]:
    """The steps by batch size in SGLang's adaptive configuration, as its loader checks them."""
    entries = json.loads(text)
    for name, entry in entries.items():
        assert name.isdigit()
        steps = entry["candidate_steps"]
        assert steps
        assert all(type(step) is int and step >= 0 for step in steps)
    return {int(name): entry["candidate_steps"] for name, entry in entries.items()}
