"""Old spellings end with one line that names the new command."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Outcome

from sequoia_opt.cli import moved
from sequoia_opt.cli.app import COMMANDS

OLD_AND_NEW = [
    ("solve --all", "solve-all"),
    ("solve --max-size 8 --all --check", "solve-all --max-size 8 --check"),
    ("solve --check", "solve-all --check"),
    ("solve --sweep context --max-size 8", "sweep context --max-size 8"),
    ("solve --sweep=batch", "sweep batch"),
    ("decode t.json --prompts p.jsonl -o o.jsonl", "complete p.jsonl t.json -o o.jsonl"),
    ("decode --prompts 'my prompts.txt' --chat", "complete 'my prompts.txt' --chat"),
    ("decode t.json --chat --system Short.", "chat t.json --system Short."),
    ("bench --sizes 3,6", "bench-sizes --sizes 3,6"),
    ("bench t.json --calibrate --limit 8", "calibrate t.json --limit 8"),
]


@pytest.mark.parametrize(("old", "new"), OLD_AND_NEW, ids=[old for old, _ in OLD_AND_NEW])
def test_an_old_spelling_names_the_new_command(
    run: Callable[..., Outcome], old: str, new: str
) -> None:
    done = run(*shlex.split(old))
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert done.err.endswith(f"; run `sequoia-opt {new}`\n")
    assert done.err.count("\n") == 1
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    "line",
    [
        ["solve", "--compare"],
        ["decode", "--chat", "--prompt", "x"],
        ["decode", "--prompt-file=x.txt", "--chat"],
        ["decode", "--", "--chat"],
        ["estimate", "--chat"],
        ["complete", "p.jsonl", "--chat"],
        ["solve-all", "--check"],
        [],
    ],
)
def test_other_command_lines_are_let_through(line: list[str]) -> None:
    moved.refuse_old_spelling(line)


def test_every_entry_names_commands_that_exist() -> None:
    for entry in moved.MOVED:
        assert {entry.command, entry.now} <= set(COMMANDS)
