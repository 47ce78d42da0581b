from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lookup_pairs import with_lookup

from sequoia_opt.api import load_pair
from sequoia_opt.engine import corpus as corpora
from sequoia_opt.engine import lookup_pair
from sequoia_opt.engine.corpus import read_corpus
from sequoia_opt.engine.drafters import FINGERPRINT, LookupDrafter
from sequoia_opt.engine.drafters.lookup_index import TextIndex, as_bytes
from sequoia_opt.errors import SequoiaError
from sequoia_opt.files import reading
from sequoia_opt.plan.draft_names import LOOKUP


class LetterTokenizer:
    """A token for each letter; one of them the target does not have."""

    bos_token_id = None

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [999 if letter == "?" else ord(letter) - 96 for letter in text]}


def folder_of(tmp_path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = tmp_path / "texts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "texts"


def test_a_folder_s_texts_come_in_the_order_of_names(tmp_path: Path) -> None:
    files = {
        "b.txt": b"two",
        "a/x.py": b"one",
        ".git/config": b"hidden",
        ".env": b"hidden",
        "picture.png": b"\x89PNG\0\xff",
        "zeros.bin": b"a\0b",
        "c.md": "drei ä".encode(),
    }
    corpus = read_corpus(folder_of(tmp_path, files))
    assert corpus.texts == ["two", "drei ä", "one"]
    assert corpus.document == {"name": "texts", "fingerprint": corpus.fingerprint}


def test_the_fingerprint_is_of_the_texts(tmp_path: Path) -> None:
    first = folder_of(tmp_path / "1", {"a.txt": b"ab", "b.txt": b"c"})
    moved = folder_of(tmp_path / "2", {"x.txt": b"ab", "y.txt": b"c"})
    other = folder_of(tmp_path / "3", {"a.txt": b"a", "b.txt": b"bc"})
    fingerprints = [read_corpus(folder).fingerprint for folder in (first, moved, other)]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
    assert read_corpus(first / "a.txt").name == "a.txt"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "no such file"),
        (b"\xff\xfe\xfa", "not UTF-8 text"),
        (b"a\0b", "found zero bytes"),
        (b"", "found no text"),
    ],
)
def test_a_corpus_that_is_no_text(tmp_path: Path, content: bytes | None, complaint: str) -> None:
    path = tmp_path / "corpus"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SequoiaError, match=complaint) as refusal:
        read_corpus(path)
    assert "\n" not in str(refusal.value)


def test_a_folder_without_text(tmp_path: Path) -> None:
    with pytest.raises(SequoiaError, match="found no text"):
        read_corpus(folder_of(tmp_path, {"a.png": b"\0"}))


def test_a_lookup_looks_into_every_part_of_the_texts(
    tmp_path: Path, make_pair: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In parts of whole lines; a token that the target lacks is left out."""
    monkeypatch.setattr(corpora, "PART", 4)
    pair = replace(with_lookup(make_pair()), tokenizer=LetterTokenizer())
    corpus = read_corpus(folder_of(tmp_path, {"a.txt": b"abc?d", "b.txt": b"xy"}))
    read = lookup_pair.with_lookup(pair, LOOKUP, corpus)
    assert read.drafter.about == {"corpus": corpus.document}
    assert read.fingerprints["draft"] == f"{FINGERPRINT}+{corpus.fingerprint}"
    for context, token in ((1, 2), (3, 4), (24, 25)):
        assert read.drafter.candidates(TextIndex(), as_bytes([context]), 3)[1] == [token]
    assert read.drafter.candidates(TextIndex(), as_bytes([4]), 3) == ([], [])
    assert lookup_pair.with_lookup(pair, "small", None) is pair


def test_what_is_no_file_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    os.mkfifo(tmp_path / "pipe")
    assert read_corpus(tmp_path).texts == ["a"]


def test_a_long_text_in_a_folder_is_refused_and_other_long_files_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MOST_BYTES", 8)
    monkeypatch.setattr(corpora, "MOST_BYTES", 8)
    monkeypatch.setattr(corpora, "BEGINNING", 5)  # which ends within a letter
    folder = folder_of(tmp_path, {"a.txt": b"short", "b.bin": b"\0" * 9, "c.bin": b"\xff" * 9})
    assert read_corpus(folder).texts == ["short"]
    (folder / "d.txt").write_text("äää äää")
    with pytest.raises(
        SequoiaError, match=r"d\.txt: found 0 MiB of text, expected at most 0; split"
    ):
        read_corpus(folder)


@given(st.lists(st.sampled_from(["x", "xx", "\n", "x\n"]), max_size=30), st.integers(1, 6))
def test_parts_are_short_and_end_at_lines_where_they_can(pieces: list[str], part: int) -> None:
    text = "".join(pieces)
    with mock.patch.object(corpora, "PART", part):
        parts = list(corpora._parts(text))
    assert "".join(parts) == text
    assert all(0 < len(one) <= 2 * part for one in parts)
    assert all("\n" not in one[part - 1 : -1] for one in parts)
    assert all(one.endswith("\n") or len(one) == 2 * part for one in parts[:-1])


def test_only_a_lookup_takes_a_corpus(make_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_model("llama")
    with pytest.raises(SequoiaError, match="corpus: found one with the draft"):
        load_pair(folder, folder, "cpu", corpus=tmp_path)


def test_lookup_is_a_reserved_name(
    make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A folder of that name is named as one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lookup").symlink_to(make_model("llama"))
    pair = load_pair(make_model("llama"), "lookup", "cpu")
    assert isinstance(pair.drafter, LookupDrafter)
    assert (pair.draft_name, pair.fingerprints["draft"]) == ("lookup", FINGERPRINT)
    assert load_pair(make_model("llama"), "./lookup", "cpu").drafter.model is not None
