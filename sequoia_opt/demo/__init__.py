"""The bundled pair: two small models, a dataset and prompts, and the names they go by.

README.md in this folder describes them.
"""

from __future__ import annotations

import json
from pathlib import Path

FOLDER = Path(__file__).parent
TARGET_NAME, DRAFT_NAME, DATASET_NAME = "demo-target", "demo-draft", "demo"
DATASET = FOLDER / "held_out.jsonl"
PROMPTS = FOLDER / "prompts.jsonl"
_FOLDERS = {TARGET_NAME: FOLDER / "target", DRAFT_NAME: FOLDER / "draft"}


def resolve(name: str) -> str:
    """The folder of a bundled model by its name; any other folder or hub id as it is."""
    return str(_FOLDERS.get(name, name))


def prompts() -> list[str]:
    """The bundled prompts: beginnings of held-out code."""
    return [json.loads(line)["prompt"] for line in PROMPTS.read_text("utf-8").splitlines()]
