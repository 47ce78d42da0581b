"""Modules and functions stay small enough to read from top to bottom."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST_LINES, MOST_FUNCTION_LINES, MOST_PARAMETERS = 400, 100, 15
COMMANDS = ROOT / "sequoia_opt" / "cli"  # a command's options are its parameters


def modules() -> list[Path]:
    return [file for room in ("sequoia_opt", "tests") for file in (ROOT / room).rglob("*.py")]


def functions(file: Path) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            yield node


def test_no_module_is_long() -> None:
    lines = {file.name: len(file.read_text(encoding="utf-8").splitlines()) for file in modules()}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_no_function_is_long() -> None:
    long = {
        f"{file.name}: {function.name}"
        for file in modules()
        for function in functions(file)
        if (function.end_lineno or 0) - function.lineno >= MOST_FUNCTION_LINES
    }
    assert long == set()


def test_no_function_but_a_command_has_many_parameters() -> None:
    many = {
        f"{file.name}: {function.name}"
        for file in modules()
        if file.parent != COMMANDS
        for function in functions(file)
        if len(function.args.args) + len(function.args.kwonlyargs) > MOST_PARAMETERS
    }
    assert many == set()
