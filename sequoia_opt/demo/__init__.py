"""The bundled pair: where its weights, dataset and prompts lie, and the names they go by."""

from __future__ import annotations

import json
from pathlib import Path

FOLDER = Path(__file__).parent
TARGET_NAME, DRAFT_NAME, DATASET_NAME = "demo-target", "demo-draft", "demo"
DATASET = FOLDER / "held_out.jsonl"
PROMPTS = FOLDER / "prompts.jsonl"
_FOLDERS = {TARGET_NAME: FOLDER / "target", DRAFT_NAME: FOLDER / "draft"}


def resolve(name: str) -> str:
    """A model's folder or hub id: the bundled pair's names stand for its folders."""
    return str(_FOLDERS.get(name, name))


def prompts() -> list[str]:
    """A few beginnings of held-out code."""
    return [json.loads(line)["prompt"] for line in PROMPTS.read_text("utf-8").splitlines()]
