from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
import yaml

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files import documents
from sequoia_opt.files.plain_data import DEEPEST

HEAD = {"format": "test", "version": 1}


@pytest.mark.parametrize("number", ["Infinity", "NaN", "-Infinity", "1e999"])
def test_numbers_that_no_json_file_can_hold_are_refused(number: str, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(f'{{"format": "f", "version": 1, "more": {number}}}')
    with pytest.raises(SequoiaError, match=r"not valid JSON.*expected a finite one"):
        documents.read_document(path, "f", 1)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("more: .inf", "expected a finite one"),
        ("more: !!set {a, b}", "expected text, a number"),
        ("more: !!binary aGVsbG8=", "expected text, a number"),
        ("a: &a {x: *a}", "found an alias of a part inside this part itself"),
        ("a: &a [[*a]]", "found an alias of a part inside this part itself"),
    ],
)
def test_values_that_json_cannot_hold_are_refused(
    text: str, complaint: str, tmp_path: Path
) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(f"format: test\nversion: 1\n{text}\n")
    with pytest.raises(SequoiaError, match=f"f.yaml: not valid YAML.*{complaint}"):
        documents.read_document(path, "test", 1)


def test_lone_surrogates_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text('{"format": "f", "version": 1, "name": "\\ud800"}')
    with pytest.raises(SequoiaError, match="not valid JSON"):
        documents.read_document(path, "f", 1)


def test_aliases_are_read_as_pyyaml_writes_them(tmp_path: Path) -> None:
    """Its dumpers write a list that occurs twice once, and an alias."""
    tokens = [1, 2, 4]
    document = HEAD | {"a": {"tokens": tokens}, "b": [{"tokens": tokens}, {"tokens": tokens}]}
    path = tmp_path / "f.yaml"
    path.write_text(yaml.safe_dump(document))
    assert "*id001" in path.read_text()
    loaded = documents.read_document(path, "test", 1)
    assert loaded == document
    loaded["a"]["tokens"].append(8)  # a separate copy at each alias
    assert loaded["b"] == document["b"]
    documents.write_document(path, loaded)
    assert documents.read_document(path, "test", 1) == loaded


def bomb(levels: int, wide: int = 10) -> list[str]:
    """Lines whose aliases expand to wide ** levels zeros."""
    return ["l0: &l0 [0, 0, 0]"] + [
        f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * wide)}]" for n in range(1, levels)
    ]


def merging(levels: int) -> list[str]:
    """Lines that merge 3 ** levels fields."""
    return ["m0: &m0 {a: 1, b: 2}"] + [
        f"m{n}: &m{n}\n  <<: [{', '.join([f'*m{n - 1}'] * 3)}]" for n in range(1, levels)
    ]


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (bomb(10), "its aliases expand to more than 1000000 values"),
        (bomb(400), "its aliases expand to more than 1000000 values"),  # no float is as large
        (bomb(20, 3), "its aliases expand to more than 1000000 values"),
        (merging(60), "its merge keys expand to more than 1000000 fields"),
    ],
)
def test_aliases_of_aliases_do_not_explode(
    lines: list[str], complaint: str, tmp_path: Path
) -> None:
    """They are refused before they are expanded, as the memory use shows."""
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join(["format: test", "version: 1", *lines]))
    tracemalloc.start()
    try:
        with pytest.raises(SequoiaError, match=complaint):
            documents.read_document(path, "test", 1)
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()


def test_few_aliases_of_many_values_are_read(tmp_path: Path) -> None:
    """The limit is on what aliases add, not on the file's length."""
    path = tmp_path / "f.yaml"
    path.write_text("\n".join(["format: test", "version: 1", *bomb(5)]))
    assert len(documents.read_document(path, "test", 1)["l4"]) == 10
    merged = "format: test\nversion: 1\na: &a {x: 1}\nb: {<<: *a, y: 2}\n"
    path.write_text(merged)
    assert documents.read_document(path, "test", 1)["b"] == {"x": 1, "y": 2}


@pytest.mark.parametrize("ending", ["json", "yaml"])
@pytest.mark.parametrize("depth", [DEEPEST + 1, 900, 100_000])
def test_deep_nesting_is_refused(tmp_path: Path, ending: str, depth: int) -> None:
    if ending == "yaml" and depth > 10_000:
        pytest.skip("takes long")
    path = tmp_path / f"t.{ending}"
    path.write_text('{"format": "f", "version": 1, "x": ' + "[" * depth + "]" * depth + "}")
    with pytest.raises(SequoiaError, match="more than 100 nested lists and mappings"):
        documents.read_document(path, "f", 1)
    path.write_text('{"format": "f", "version": 1, "x": ' + "[" * 90 + "]" * 90 + "}")
    documents.write_document(path, documents.read_document(path, "f", 1))
