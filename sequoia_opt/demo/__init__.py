"""The bundled pair: two small models, a dataset and prompts, and the names they go by.

README.md in this folder describes them.
"""

from __future__ import annotations

import json

from sequoia_opt.demo.pair import DRAFT_NAME, FOLDER, FOLDERS, TARGET_NAME

__all__ = [
    "DATASET",
    "DATASET_NAME",
    "DRAFT_NAME",
    "FOLDER",
    "PROMPTS",
    "TARGET_NAME",
    "prompts",
    "resolve",
]

DATASET_NAME = "demo"
DATASET = FOLDER / "held_out.jsonl"
PROMPTS = FOLDER / "prompts.jsonl"


def resolve(name: str, engine: str = "torch") -> str:
    """The folder or, for llama.cpp, the GGUF file of a bundled model by its name; any other
    model as it is.

    Raises:
        SequoiaError: the file cannot be written, which happens on first use.
    """
    if name in FOLDERS and engine == "llama.cpp":
        from sequoia_opt.demo.gguf import gguf_of

        return str(gguf_of(name))
    return str(FOLDERS.get(name, name))


def prompts() -> list[str]:
    """The bundled prompts: beginnings of held-out code."""
    return [json.loads(line)["prompt"] for line in PROMPTS.read_text("utf-8").splitlines()]
