from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from sequoia_opt.measure.dataset import load_dataset, load_prompts
from sequoia_opt.measure.records import Document

USER, SYSTEM = {"role": "user", "content": "Hi."}, {"role": "system", "content": "Be brief."}

ANSWER = {"role": "assistant", "content": "Hello."}

# Records as published datasets have them, and the documents that they become.
FORMS: list[tuple[Any, Document]] = [
    ("def f():", Document("def f():", "")),
    ([1, 5, 9], Document("", "", tokens=(1, 5, 9))),
    ({"input_tokens": [1, 5, 9]}, Document("", "", tokens=(1, 5, 9))),
    ({"prompt_token_ids": [1, 5, 9]}, Document("", "", tokens=(1, 5, 9))),
    ({"prompt": [1, 5, 9]}, Document("", "", tokens=(1, 5, 9))),
    ({"prompt": "a", "completion": None}, Document("a", "")),
    ({"prompt": "a", "canonical_solution": "b"}, Document("a", "b")),
    ({"prompt": None, "text": "a"}, Document("", "a", is_whole=True)),
    ({"turns": ["a", "b"], "category": "writing"}, Document("a", "")),
    ({"instruction": "a", "input": "b", "output": "c"}, Document("a\n\nb", "c")),
    ({"instruction": "a", "input": "", "output": "c"}, Document("a", "c")),
    ({"instruction": "a", "context": "b", "response": "c"}, Document("a\n\nb", "c")),
    ({"question": "a", "answer": "b"}, Document("a", "b")),
    ({"text": "a", "code": "b", "task_id": 1}, Document("a", "b")),
    ({"messages": [SYSTEM, USER]}, Document("", "", messages=(SYSTEM, USER))),
    ({"messages": [SYSTEM, USER, ANSWER]}, Document("", "Hello.", messages=(SYSTEM, USER))),
    (
        {"messages": [USER, ANSWER, USER, ANSWER]},
        Document("", "Hello.", messages=(USER, ANSWER, USER)),
    ),
    ([SYSTEM, USER], Document("", "", messages=(SYSTEM, USER))),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi."}]}]},
        Document("", "", messages=(USER,)),
    ),
    (
        {"id": "x", "conversations": [{"from": "human", "value": "Hi."}]},
        Document("", "", messages=(USER,)),
    ),
    (
        {"conversations": [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Hello."}]},
        Document("", "Hello.", messages=(USER,)),
    ),
    ({"prompt": [USER], "completion": [ANSWER]}, Document("", "Hello.", messages=(USER,))),
    (
        {"custom_id": "r", "body": {"model": "m", "messages": [USER]}},
        Document("", "", messages=(USER,)),
    ),
]


@pytest.mark.parametrize(("record", "document"), FORMS)
def test_records_in_every_published_form(tmp_path: Path, record: Any, document: Document) -> None:
    line = json.dumps(record)
    contents = {
        "lines.jsonl": f"{line}\n{line}\n",
        "array.jsonl": f"[{line}, {line}]\n",
        "pretty.jsonl": json.dumps(record, indent=1) + "\n" + json.dumps(record, indent=1),
        "array.json": json.dumps([record, record], indent=2),
        "table.json": json.dumps({"version": "1", "data": [record, record]}),
        "lines.json": f"{line}\n{line}\n",
        "marked.jsonl": f"\ufeff{line}\n{line}\n",
    }
    if not isinstance(record, dict):
        del contents["table.json"]
    if isinstance(record, list):  # the lines of an indented list are JSON values themselves
        del contents["pretty.jsonl"]
    for name, content in contents.items():
        path = tmp_path / name
        path.write_text(content, "utf-8")
        packed = tmp_path / f"{name}.gz"
        packed.write_bytes(gzip.compress(content.encode()))
        for file in (path, packed):
            assert load_dataset(file) == (name.split(".")[0], [document] * 2), file
    path = tmp_path / "one.json"
    path.write_text(line)
    assert load_dataset(path)[1] == [document]


def test_a_record_keeps_its_fields(tmp_path: Path) -> None:
    path = tmp_path / "humaneval.jsonl"
    record = {"task_id": "X/0", "prompt": "def two():\n", "entry_point": "two"}
    path.write_text(json.dumps(record))
    [document] = load_prompts(path)
    assert document.fields == record
    assert document.asked == "def two():\n"
