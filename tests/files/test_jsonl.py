from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files import jsonl
from sequoia_opt.files.jsonl import Lines, read_lines

VALUES = st.integers() | st.text(max_size=9) | st.none()
DOCUMENTS = st.lists(st.builds(lambda a, b: {"a": a, "b": b}, VALUES, VALUES), max_size=6)
BEGINS = '{"a": '


@given(DOCUMENTS, st.data(), st.integers(1, 40))
def test_cut_off_anywhere_it_resumes_after_the_last_whole_line(
    tmp_path_factory: pytest.TempPathFactory,
    documents: list[dict[str, int | str | None]],
    data: st.DataObject,
    chunk: int,
) -> None:
    path = tmp_path_factory.mktemp("lines") / "file.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl, "CHUNK", chunk)
        with Lines(path, BEGINS) as file:
            for document in documents:
                file.add(document)
        whole = path.read_bytes()
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
        with Lines(path, BEGINS) as file:
            intact = file.read()
            assert intact == documents[: len(intact)]
            for document in documents[len(intact) :]:
                file.add(document)
        assert path.read_bytes().rstrip(b"\n") == whole.rstrip(b"\n")
        assert read_lines(path) == documents


@pytest.mark.parametrize("content", [b"no\n", b"[" * 100_000 + b"\n", b'{"a": 1}\n\xff\n'])
def test_lines_that_are_not_json_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.jsonl"
    path.write_bytes(content)
    with pytest.raises(SequoiaError, match="not valid JSON"):
        read_lines(path)


def test_a_missing_file_or_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SequoiaError, match="cannot be read"):
        read_lines(tmp_path / "none")
    with pytest.raises(SequoiaError, match="cannot be written"):
        Lines(tmp_path, BEGINS)


@pytest.mark.parametrize(
    "content", [b"a note", b"a note\n", b'{"a": 1}\nand a note', b"\n", b'{"b']
)
def test_a_file_with_other_lines_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(SequoiaError, match="do not begin with"):
        Lines(path, BEGINS)
    assert path.read_bytes() == content


def test_a_last_line_that_lacks_only_its_line_end_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}')
    with Lines(path, BEGINS) as file:
        assert file.read() == [{"a": 1}, {"a": 2}]
        file.add({"a": 3})
        file.add({"a": 4})
    assert path.read_text() == '{"a": 1}\n{"a": 2}\n{"a": 3}\n{"a": 4}\n'
