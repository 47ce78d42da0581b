from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure import dataset_files
from sequoia_opt.measure.dataset import load_dataset
from sequoia_opt.measure.records import Document


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


def test_a_text_without_line_ends_is_cut_too(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes(("\ufeff" + "é" * 50_000 + "\r\nend\r\n").encode())
    _, documents = load_dataset(path)
    assert "".join(d.text for d in documents) == "é" * 50_000 + "\r\nend\r\n"
    assert max(len(d.text) for d in documents) <= 2 * dataset_files.PIECE


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"prompt": ["a", "b"], "completion": ["c", None]}), path)
    assert load_dataset(path)[1] == [Document("a", "c"), Document("b", "")]
    path.write_bytes(b"not parquet")
    with pytest.raises(SequoiaError, match=r"rows.parquet: cannot be read"):
        load_dataset(path)


def test_without_its_package_a_format_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_files.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "rows.parquet").write_bytes(b"")
    with pytest.raises(SequoiaError, match="pip install pyarrow"):
        load_dataset(tmp_path / "rows.parquet")
    with pytest.raises(SequoiaError, match=r"some/id: no such file; .* pip install datasets"):
        load_dataset("some/id")


def test_an_endless_line_takes_no_more_memory_than_the_longest_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_files, "LONGEST_RECORD", 2**16)
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "' + b"x" * 2**24 + b'"}\n{"prompt": "b"}\n')
    tracemalloc.start()
    _, documents = load_dataset(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [d.prompt for d in documents] == ["a", "b"]
    assert peak < 2**21


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SequoiaError, match="no such file"):
        load_dataset(tmp_path / "none.jsonl")
    (tmp_path / "data.csv").write_text("a,b")
    with pytest.raises(SequoiaError, match=r"expected a .jsonl, .json, .txt or .parquet file"):
        load_dataset(tmp_path / "data.csv")
    (tmp_path / "latin.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(SequoiaError, match=r"latin.txt: cannot be read"):
        load_dataset(tmp_path / "latin.txt")
