from __future__ import annotations

import os
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files import atomic, documents, fields, names
from sequoia_opt.files.fields import Fields

HEAD = {"format": "test", "version": 1}
simple = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(alphabet=st.characters(codec="utf-8", exclude_categories=("Cs", "Cc"))),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(alphabet="abcxyz", min_size=1), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(value=simple, ending=st.sampled_from([".json", ".yaml"]))
def test_round_trip(value: Any, ending: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("files") / f"file{ending}"
    documents.write_document(path, HEAD | {"value": value})
    assert documents.read_document(path, "test", 1)["value"] == value


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\nb:\n- [1, 2,\n  3]\n- []\n- [40]\nc: {d: 2}\n",
        "b:\n- [1]\n- [2]\n",
        "b:\n- [1]\n- [2]",
        "b:\n- [01, 1]\n- [1,]\n- [2]\nc: 1\n",
        "b:\n- [1]\n- x\nc: 1\n",
        "b:\n- [1] \n- [2] # two\n\n- [3]\n",
        "b:\n  - [1]\n  - [2]\n",
        "a:\n  b:\n  - [1]\n",
        "b:\n- [1 2]\n",
        "b:\n- [1]\n- [[2]]\n- [-1, 1.5]\n",
        "- [1]\n- [2]\n",
        "1:\n- [1]\n",
        "yes:\n- [1]\nno:\n- [2]\n",
        "b:\n- [1]\nb: 5\n",
        "b:\n- [1]\na: a table set aside\n",
        "",
    ],
)
def test_tables_are_what_yaml_says(text: str) -> None:
    assert documents._parse_yaml(text) == yaml.safe_load(text)


@given(rows=st.lists(st.lists(st.integers(0, 10**6))), after=simple)
def test_tables_as_written(rows: list[list[int]], after: Any) -> None:
    document = HEAD | {"rows": rows, "after": after}
    assert documents._parse_yaml(documents.to_yaml(document)) == document


def test_errors_behind_a_table_keep_their_line(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text("a:\n- [1,\n  2]\n- [3]\nb: [\n")
    with pytest.raises(SequoiaError, match="line 6"):
        documents.read_document(path, "test", 1)


def test_numpy_values_become_plain() -> None:
    value = {"a": np.float64(1.5), "b": np.arange(3), "c": (1, np.int64(2)), "d": Path("x")}
    assert documents.plain(value) == {"a": 1.5, "b": [0, 1, 2], "c": [1, 2], "d": "x"}


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.yaml"
    documents.write_document(path, HEAD | {"value": 1})

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(SequoiaError, match="No space left"):
        documents.write_document(path, HEAD | {"value": 2})
    assert documents.read_document(path, "test", 1)["value"] == 1
    assert os.listdir(tmp_path) == ["file.yaml"]


def test_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.json"
    documents.write_document(path, HEAD | {"value": 1})

    def interrupt(source: str, destination: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        documents.write_document(path, HEAD | {"value": 2})
    assert documents.read_document(path, "test", 1)["value"] == 1
    assert os.listdir(tmp_path) == ["file.json"]


def test_unwritable_places_are_found_beforehand(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("a file, not a folder")
    with pytest.raises(SequoiaError, match="cannot be written"):
        atomic.check_writable(tmp_path / "plain" / "file.yaml")
    with pytest.raises(SequoiaError, match="is a folder"):
        atomic.check_writable(tmp_path)
    atomic.check_writable(tmp_path / "new" / "file.yaml")
    assert list((tmp_path / "new").iterdir()) == []


def test_numbers_that_yaml_reads_as_text_are_coerced() -> None:
    document = yaml.safe_load("small: 1e-5\nlist: [1e-5, 2]\n")
    assert document["small"] == "1e-5"
    fields = Fields(document, "here")
    assert fields.number("small") == 1e-5
    assert fields.numbers("list").tolist() == [1e-5, 2]


@pytest.mark.parametrize("text", [".nan", ".inf", "[]", "true", "abc", "null", "1e999", "{a: 1}"])
def test_only_finite_numbers_pass(text: str) -> None:
    fields = Fields(yaml.safe_load(f"value: {text}"), "there")
    with pytest.raises(SequoiaError, match=r"there: value: found .*expected a number"):
        fields.number("value")
    with pytest.raises(SequoiaError, match="there: missing: missing, expected a number"):
        fields.number("missing")


def test_yaml_is_loaded_safely(tmp_path: Path) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text("format: !!python/object/apply:os.system [true]\n")
    with pytest.raises(SequoiaError, match="not valid YAML"):
        documents.read_document(path, "test", 1)


@given(st.text())
def test_names_never_leave_their_folder(name: str) -> None:
    safe = names.safe_name(name)
    assert safe
    assert Path(safe).name == safe
    assert safe not in (".", "..")


@pytest.mark.parametrize("number", ["Infinity", "NaN", "-Infinity", "1e999"])
def test_numbers_that_no_json_file_can_hold_are_refused(number: str, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(f'{{"format": "f", "version": 1, "more": {number}}}')
    with pytest.raises(SequoiaError, match=r"not valid JSON.*expected a finite one"):
        documents.read_document(path, "f", 1)


def test_numbers_that_nothing_can_count_are_refused() -> None:
    fields = Fields({"many": 10**30, "list": [1, 10**400]}, "file")
    with pytest.raises(SequoiaError, match=r"many: found 1000.*at most"):
        fields.integer("many")
    with pytest.raises(SequoiaError, match=r"list\[1\]: found 1000.*at most"):
        fields.integers("list")


def test_dates_are_text(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text("format: test\nversion: 1\nwhen: 2024-01-01\n")
    document = documents.read_document(path, "test", 1)
    assert document["when"] == "2024-01-01"
    documents.write_document(tmp_path / "f.json", document)


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
def test_what_could_not_be_written_again_is_refused(
    text: str, complaint: str, tmp_path: Path
) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(f"format: test\nversion: 1\n{text}\n")
    with pytest.raises(SequoiaError, match=f"f.yaml: not valid YAML.*{complaint}"):
        documents.read_document(path, "test", 1)


def test_aliases_are_read_as_pyyaml_writes_them(tmp_path: Path) -> None:
    """Its dumpers write a list that is there twice once, and an alias."""
    tokens = [1, 2, 4]
    document = HEAD | {"a": {"tokens": tokens}, "b": [{"tokens": tokens}, {"tokens": tokens}]}
    path = tmp_path / "f.yaml"
    path.write_text(yaml.safe_dump(document))
    assert "*id001" in path.read_text()
    found = documents.read_document(path, "test", 1)
    assert found == document
    found["a"]["tokens"].append(8)  # each place has its own
    assert found["b"] == document["b"]
    documents.write_document(path, found)
    assert documents.read_document(path, "test", 1) == found


def bomb(levels: int, wide: int = 10) -> list[str]:
    """Lines that stand for wide ** levels zeros."""
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
        (bomb(10), "its aliases stand for more than 1000000 values"),
        (bomb(400), "its aliases stand for more than 1000000 values"),  # no float is as large
        (bomb(20, 3), "its aliases stand for more than 1000000 values"),
        (merging(60), "its merge keys stand for more than 1000000 fields"),
    ],
)
def test_aliases_of_aliases_do_not_explode(
    lines: list[str], complaint: str, tmp_path: Path
) -> None:
    """Refused before they are spelled out, by the memory that it takes."""
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
    """What is bounded is what aliases add, not how long a file is."""
    path = tmp_path / "f.yaml"
    path.write_text("\n".join(["format: test", "version: 1", *bomb(5)]))
    assert len(documents.read_document(path, "test", 1)["l4"]) == 10
    merged = "format: test\nversion: 1\na: &a {x: 1}\nb: {<<: *a, y: 2}\n"
    path.write_text(merged)
    assert documents.read_document(path, "test", 1)["b"] == {"x": 1, "y": 2}


def test_short_forms_are_short() -> None:
    nested: list[object] = [0]
    for _ in range(60):
        nested = [nested, nested]
    assert len(fields.shown(nested)) <= 60


def test_half_characters_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text('{"format": "f", "version": 1, "name": "\\ud800"}')
    with pytest.raises(SequoiaError, match="not valid JSON"):
        documents.read_document(path, "f", 1)


def test_a_link_goes_on_being_one(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("{}")
    (tmp_path / "link.json").symlink_to("real.json")
    atomic.write_text(tmp_path / "link.json", "new")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real.json").read_text() == "new"


def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    atomic.check_writable(pipe)
    atomic.write_text(pipe, "through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert pipe.is_fifo()
    atomic.write_text("/dev/null", "nowhere")
    assert Path("/dev/null").is_char_device()


def test_what_comes_through_a_pipe_is_read_once_and_kept(tmp_path: Path) -> None:
    """A profile is parsed, and then its fingerprint is taken."""
    pipe = tmp_path / "p.json"
    os.mkfifo(pipe)
    content = b'{"format": "f", "version": 1}'
    writer = threading.Thread(target=lambda: pipe.write_bytes(content))
    writer.start()
    document = documents.read_document(pipe, "f", 1)
    writer.join()
    assert documents.read_document(pipe, "f", 1) == document
    plain = tmp_path / "plain.json"
    plain.write_bytes(content)
    assert names.content_fingerprint(pipe) == names.content_fingerprint(plain)
    plain.write_bytes(content + b" ")  # of a file, what is there now
    assert names.content_fingerprint(pipe) != names.content_fingerprint(plain)


def test_what_never_ends_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MOST_BYTES", 2**20)
    with pytest.raises(SequoiaError, match="larger than 1 MiB"):
        documents.read_text("/dev/zero")


@pytest.mark.parametrize("ending", ["json", "yaml"])
@pytest.mark.parametrize("depth", [documents.DEEPEST + 1, 900, 100_000])
def test_what_is_too_deep_is_refused(tmp_path: Path, ending: str, depth: int) -> None:
    if ending == "yaml" and depth > 10_000:
        pytest.skip("takes long")
    path = tmp_path / f"t.{ending}"
    path.write_text('{"format": "f", "version": 1, "x": ' + "[" * depth + "]" * depth + "}")
    with pytest.raises(SequoiaError, match="more than 100 lists and mappings in one another"):
        documents.read_document(path, "f", 1)
    path.write_text('{"format": "f", "version": 1, "x": ' + "[" * 90 + "]" * 90 + "}")
    documents.write_document(path, documents.read_document(path, "f", 1))


@pytest.mark.parametrize("name", ["loop", "n" * 300, "nul\0", "file/below"])
def test_paths_that_cannot_be_are_refused_in_a_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    path = tmp_path / name
    for attempt in (
        lambda: documents.read_text(path),
        lambda: atomic.write_text(path, "new"),
        lambda: atomic.check_writable(path),
    ):
        with pytest.raises(SequoiaError, match=r"cannot be (read|written)|no such file") as said:
            attempt()
        assert "Errno" not in str(said.value)
    assert (tmp_path / "loop").is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "loop"]


def test_a_read_only_file_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.json"
    path.write_text("old")
    path.chmod(0o444)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as for all but root
    for attempt in (
        lambda: atomic.write_text(path, "new"),
        lambda: atomic.check_writable(path),
    ):
        with pytest.raises(SequoiaError, match=r"cannot be written .Permission denied"):
            attempt()
    assert path.read_text() == "old"


def test_names_that_are_no_text_are_spelt_out(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff.yaml")
    for ending in ("json", "yaml"):
        path = tmp_path / f"t.{ending}"
        documents.write_document(path, {"format": "f", "version": 1, "file": name, "p": Path(name)})
        read = documents.read_document(path, "f", 1)
        assert read["file"] == read["p"] == r"\udcff.yaml"


def test_long_names_are_cut_and_stay_apart() -> None:
    assert names.safe_name("a" * 220) == "a" * 220
    first, second = names.safe_name("é" * 200 + "a"), names.safe_name("é" * 200 + "b")
    assert first != second
    assert len(first.encode()) <= 220
    assert names.short_name(os.fsdecode(b"\xff" * 300))


def test_a_dataset_is_no_document(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "x"}\n')
    with pytest.raises(SequoiaError, match=r"found a file of lines.* `decode` with --prompts"):
        documents.read_document(path, "sequoia-opt/tree", 1)
