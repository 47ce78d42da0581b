from __future__ import annotations

import json
from pathlib import Path

import pytest

from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure import dataset
from sequoia_opt.measure.dataset import Document, load_dataset


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
        ('{"prompt": "a"}\n{"prompt": ', "line 2: not valid JSON"),
        ('{"question": "a"}', "line 1: found .*expected a field `prompt` or `text`"),
        ("[1]", r"line 1: found \[1\]"),
        ('{"prompt": 3}', "line 1: found 3, expected text"),
        ('{"text": null}', "line 1: found None, expected text"),
    ],
)
def test_refuses_malformed_files(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(content)
    with pytest.raises(SequoiaError, match=complaint) as caught:
        load_dataset(path)
    assert str(path) in str(caught.value)


def test_refuses_other_files(tmp_path: Path) -> None:
    with pytest.raises(SequoiaError, match="no such file"):
        load_dataset(tmp_path / "none.jsonl")
    (tmp_path / "data.csv").write_text("a,b")
    with pytest.raises(SequoiaError, match=r"expected a .jsonl, .txt or .parquet file"):
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
