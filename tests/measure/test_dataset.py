from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure import dataset
from sequoia_opt.measure.dataset import Document, load_dataset, load_prompts


def test_jsonl_with_prompts_and_texts(tmp_path: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    records = [
        {"prompt": "a", "completion": "b", "id": 3},
        {"prompt": "c"},
        {"text": "d é"},
    ]
    path.write_text("\n\n".join(json.dumps(r, ensure_ascii=False) for r in records), "utf-8")
    name, documents = load_dataset(path)
    assert name == "mixed"
    assert documents == [Document("a", "b"), Document("c", ""), Document("", "d é", is_whole=True)]


def test_text_is_cut_at_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    text = "".join(f"line {i}\n" for i in range(3000))
    path.write_text(text)
    _, documents = load_dataset(path)
    assert "".join(d.text for d in documents) == text
    assert len(documents) > 3
    assert all(d.text.endswith("\n") and d.text.startswith("line") for d in documents)


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"prompt": ["a", "b"], "completion": ["c", None]}), path)
    assert load_dataset(path)[1] == [Document("a", "c"), Document("b", "")]
    path.write_bytes(b"not parquet")
    with pytest.raises(SequoiaError, match=r"rows.parquet: cannot be read"):
        load_dataset(path)


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "rows.parquet").write_bytes(b"")
    with pytest.raises(SequoiaError, match="pip install pyarrow"):
        load_dataset(tmp_path / "rows.parquet")
    with pytest.raises(SequoiaError, match=r"some/id: no such file; .* pip install datasets"):
        load_dataset("some/id")


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
def test_a_dataset_that_nothing_of_can_be_used_is_refused(
    tmp_path: Path, content: str, complaint: str
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(content)
    with pytest.raises(SequoiaError, match=complaint) as caught:
        load_dataset(path)
    assert str(path) in str(caught.value)


USER, SYSTEM = {"role": "user", "content": "Hi."}, {"role": "system", "content": "Be brief."}
ANSWER = {"role": "assistant", "content": "Hello."}
# Records as datasets of this trade publish them, and what they ask and answer.
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
def test_records_in_every_form_that_is_published(
    tmp_path: Path, record: Any, document: Document
) -> None:
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
    if isinstance(record, list):  # its own lines, indented, are values too
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


# What a record that is one of many may be, and what is said of it.
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
def test_one_record_that_cannot_be_used_is_named_and_left_out(
    tmp_path: Path, line: bytes, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if complaint == "longer than":
        monkeypatch.setattr(dataset, "LONGEST_RECORD", 2048)
    lines = [json.dumps({"prompt": f"p{i}"}).encode() for i in range(12)]
    lines[9] = line
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\n".join(lines))
    told: list[str] = []
    _, documents = load_dataset(path, told.append)
    assert [d.prompt for d in documents] == [f"p{i}" for i in range(12) if i != 9]
    assert len(told) == 1
    assert told[0].startswith(f"{path}: line 10: ")
    assert complaint in told[0]
    every = load_prompts(path)
    assert [bool(d.problem) for d in every] == [i == 9 for i in range(12)]
    assert every[9].asked is None


def test_many_that_cannot_be_used_are_not_all_named(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"prompt": "a"}\n' + "{\n" * 40)
    told: list[str] = []
    load_dataset(path, told.append)
    assert (len(told), told[-1][:20]) == (11, "30 more records that")


def test_a_line_without_end_takes_no_more_memory_than_a_record_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "LONGEST_RECORD", 2**16)
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "' + b"x" * 2**24 + b'"}\n{"prompt": "b"}\n')
    tracemalloc.start()
    _, documents = load_dataset(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [d.prompt for d in documents] == ["a", "b"]
    assert peak < 2**21


def test_a_text_without_line_ends_is_cut_too(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes(("\ufeff" + "é" * 50_000 + "\r\nend\r\n").encode())
    _, documents = load_dataset(path)
    assert "".join(d.text for d in documents) == "é" * 50_000 + "\r\nend\r\n"
    assert max(len(d.text) for d in documents) <= 2 * dataset.PIECE


def test_refuses_other_files(tmp_path: Path) -> None:
    with pytest.raises(SequoiaError, match="no such file"):
        load_dataset(tmp_path / "none.jsonl")
    (tmp_path / "data.csv").write_text("a,b")
    with pytest.raises(SequoiaError, match=r"expected a .jsonl, .json, .txt or .parquet file"):
        load_dataset(tmp_path / "data.csv")
    (tmp_path / "latin.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(SequoiaError, match=r"latin.txt: cannot be read"):
        load_dataset(tmp_path / "latin.txt")


def test_the_bundled_dataset_is_of_held_out_modules() -> None:
    from sequoia_opt.demo.corpus import is_held_out

    name, documents = load_dataset()
    assert name == "demo"
    assert len(documents) >= 20
    assert all(d.prompt and d.text for d in documents)
    records = [json.loads(line) for line in dataset.demo.DATASET.read_text().splitlines()]
    assert all(is_held_out(record["id"].split(":")[0]) for record in records)


def test_a_part_of_a_dataset_is_spread_over_it() -> None:
    documents = [Document(str(i), "") for i in range(10)]
    assert [d.prompt for d in dataset.spread_over(documents, 4)] == ["0", "2", "5", "7"]
    assert dataset.spread_over(documents, 99) == documents
