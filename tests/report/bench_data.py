"""Small results of `bench` to load and draw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sequoia_opt.report.bench_results import FORMAT, Results

SETTINGS = {
    "format": FORMAT,
    "version": 1,
    "target": "big",
    "draft": "small",
    "dataset": "code",
    "dtype": "float32",
    "compile": [],
    "max_new_tokens": 64,
    "prompts": 4,
    "hardware": {"name": "a machine"},
}


def row(name: str, nodes: int, tokens: float, speedup: float = 1.0) -> dict[str, Any]:
    return {
        "name": name,
        "nodes": nodes,
        "tokens_per_step": tokens,
        "tokens_low": tokens - 0.2,
        "tokens_high": tokens + 0.3,
        "tokens_per_second": 100 * speedup,
        "speedup": speedup,
        "speedup_low": speedup - 0.1,
        "speedup_high": speedup + 0.1,
    }


def loaded(
    path: Path, temperature: float | str, rows: list[dict[str, Any]], **others: Any
) -> Results:
    document = SETTINGS | {"temperature": temperature, "results": rows} | others
    path.write_text(json.dumps(document))
    return Results.load(path)


RACE = [row("plain", 1, 1.0), row("generate", 0, 1.0, 0.6), row("solved tree (9 nodes)", 9, 4, 2.5)]
