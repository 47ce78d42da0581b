from __future__ import annotations

import json
from pathlib import Path

import pytest

from sequoia_opt.cli.completions import Completions
from sequoia_opt.errors import SequoiaError

PROMPTS = ["one", "two", "drei\n\u2028", "four"]
SETTINGS = {"seed": 0, "stop": ["\n"]}


def fill(path: Path, count: int) -> bytes:
    with Completions(path, PROMPTS, SETTINGS) as file:
        for prompt in PROMPTS[file.done : file.done + count]:
            file.add_completion(prompt, {"completion": prompt.upper()})
    return path.read_bytes()


def test_cut_off_anywhere_and_taken_up_it_is_the_same_file(tmp_path: Path) -> None:
    whole = fill(tmp_path / "whole.jsonl", 4)
    assert [json.loads(line)["prompt"] for line in whole.splitlines()] == PROMPTS
    for length in range(len(whole) + 1):
        path = tmp_path / "cut.jsonl"
        path.write_bytes(whole[:length])
        assert fill(path, 4).rstrip() == whole.rstrip()


def test_what_was_there_is_not_done_again(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    fill(path, 3)
    with Completions(path, PROMPTS, SETTINGS) as file:
        assert file.done == 3


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b'{"prompt": "two"}\n', "line 1: is of another prompt"),
        (b'{"prompt": "one"}', "line 1: is of another seed"),
        (b'{"prompt": \n', "line 1: not valid JSON"),
        (b"a note", "do not begin with"),
        (b'{"prompt": "one", "seed": 1}\n', "line 1: is of another seed"),
    ],
)
def test_a_file_of_something_else_is_left_alone(
    tmp_path: Path, content: bytes, complaint: str
) -> None:
    path = tmp_path / "other.jsonl"
    path.write_bytes(content)
    with pytest.raises(SequoiaError, match=complaint):
        Completions(path, PROMPTS, SETTINGS)
    assert path.read_bytes() == content


def test_more_completions_than_prompts_are_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "more.jsonl"
    fill(path, 4)
    with pytest.raises(SequoiaError, match="found 4 completions of 1 prompts"):
        Completions(path, PROMPTS[:1], SETTINGS)


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SequoiaError, match="cannot be written"):
        Completions(tmp_path, PROMPTS, SETTINGS)
