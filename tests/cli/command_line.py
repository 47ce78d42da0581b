"""A command line, what came of it, and what it needs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SMALL = ["--tokens", "1,2,4,8,16", "--contexts", "16,64", "--repeats", "5"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@dataclass
class Outcome:
    code: int
    out: str
    err: str


def write(name: str, text: str) -> Path:
    """A file in the working folder."""
    path = Path(name)
    path.write_text(text)
    return path


def add_chat_template(models: Sequence[str], template: str = CHAT_TEMPLATE) -> None:
    """Give a template to models that options name; see the fixture `models`."""
    for folder in models[1::2]:
        path = Path(folder) / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))


def refusal(done: Outcome) -> str:
    """The one error that a command ended with, and its hints, in one line."""
    assert done.code == 1
    assert len([line for line in done.err.splitlines() if line.startswith("error: ")]) == 1
    return " ".join(done.err.split())
