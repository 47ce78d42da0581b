from __future__ import annotations

import json
from pathlib import Path

import pytest

from sequoia_opt import demo, load_dataset
from sequoia_opt.demo.corpus import is_held_out


@pytest.mark.parametrize("arguments", [(), (None,), (demo.DATASET_NAME,)])
def test_the_bundled_dataset_is_the_default(arguments: tuple[str | None, ...]) -> None:
    name, documents = load_dataset(*arguments)
    assert name == "demo"
    assert len(documents) >= 20
    assert all(d.prompt and d.text for d in documents)


def test_the_bundled_dataset_is_of_held_out_modules() -> None:
    records = [json.loads(line) for line in demo.DATASET.read_text().splitlines()]
    assert all(is_held_out(record["id"].split(":")[0]) for record in records)


def test_another_dataset_is_read_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": 3}\n')
    notes: list[str] = []
    name, documents = load_dataset(path, notes.append)
    assert (name, [document.prompt for document in documents]) == ("mine", ["a"])
    assert len(notes) == 1
