from __future__ import annotations

import json
from pathlib import Path

import pytest

from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure import dataset, dataset_files
from sequoia_opt.measure.dataset import load_dataset, load_prompts
from sequoia_opt.measure.records import Document


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "has no documents"),
        ('{"prompt": "  "}', "has no documents"),
        ('{"prompt": ', "line 1: not valid JSON"),
        ('{"query": "a"}', "line 1: found .*expected a field `prompt`, `messages`"),
        ("[true]", "line 1: found True, expected text or a record"),
        ("7", "line 1: found 7, expected text or a record"),
        ('{"prompt": 3}', "line 1: prompt: found 3, expected text"),
        ('{"text": null}', "line 1: text: found None, expected text"),
        ('{"turns": []}', r"line 1: turns: found \[\], expected a list of texts"),
        ('{"prompt": ["a"]}', "line 1: prompt: found 'a', expected messages with `role`"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "a message to be answered"),
        ('{"messages": [{"role": "user", "content": [{"type": "image"}]}]}', "a part: found None"),
        ('{"messages": [{"role": "user", "content": 3}]}', "content: found 3, expected text"),
    ],
)
def test_a_dataset_without_any_usable_record_is_refused(
    tmp_path: Path, content: str, complaint: str
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(content)
    with pytest.raises(SequoiaError, match=complaint) as caught:
        load_dataset(path)
    assert str(path) in str(caught.value)


# Lines that cannot be used, and the complaint about each.
UNUSABLE = [
    (b'{"prompt": ', "not valid JSON"),
    (b'{"prompt": "\xff"}', "not UTF-8"),
    (b'{"prompt": 3}', "prompt: found 3"),
    (b"[" * 100_000, "cannot be read as JSON"),
    (b"1" * 5000, "cannot be read as JSON"),
    (b'{"other": 1}', "expected a field"),
    (b'{"prompt": "' + b"x" * 3000 + b'"}', "longer than"),
]


@pytest.mark.parametrize(("line", "complaint"), UNUSABLE)
def test_a_record_that_cannot_be_used_is_named_and_left_out(
    tmp_path: Path, line: bytes, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if complaint == "longer than":
        monkeypatch.setattr(dataset_files, "LONGEST_RECORD", 2048)
    lines = [json.dumps({"prompt": f"p{i}"}).encode() for i in range(12)]
    lines[9] = line
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\n".join(lines))
    notes: list[str] = []
    _, documents = load_dataset(path, notes.append)
    assert [d.prompt for d in documents] == [f"p{i}" for i in range(12) if i != 9]
    assert len(notes) == 1
    assert notes[0].startswith(f"{path}: line 10: ")
    assert complaint in notes[0]
    all_documents = load_prompts(path)
    assert [bool(d.problem) for d in all_documents] == [i == 9 for i in range(12)]
    assert all_documents[9].asked is None


def test_only_the_first_unusable_records_are_named(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"prompt": "a"}\n' + "{\n" * 40)
    notes: list[str] = []
    load_dataset(path, notes.append)
    assert (len(notes), notes[-1][:20]) == (11, "30 more records that")


def test_a_subset_is_spread_over_the_dataset() -> None:
    documents = [Document(str(i), "") for i in range(10)]
    assert [d.prompt for d in dataset.spread_over(documents, 4)] == ["0", "2", "5", "7"]
    assert dataset.spread_over(documents, 99) == documents
