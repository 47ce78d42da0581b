from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer.testing import CliRunner

from sequoia_opt.cli.option_groups import with_option_groups


@dataclass(frozen=True)
class Size:
    width: Annotated[int, typer.Option(help="Width in cells.")] = 2
    names: Annotated[list[str] | None, typer.Option(help="A name.")] = None


def application(calls: list[tuple[Any, ...]]) -> typer.Typer:
    app = typer.Typer(add_completion=False)

    @app.command()
    @with_option_groups
    def draw(title: str, *, size: Size, quiet: bool = False) -> None:
        """Draw it."""
        calls.append((title, size, quiet))

    return app


def test_fields_of_a_group_are_options_with_their_defaults() -> None:
    calls: list[tuple[Any, ...]] = []
    runner, app = CliRunner(), application(calls)
    assert runner.invoke(app, ["a"]).exit_code == 0
    assert runner.invoke(app, ["b", "--width", "5", "--names", "x", "--quiet"]).exit_code == 0
    assert calls == [("a", Size(), False), ("b", Size(5, ["x"]), True)]


def test_fields_of_a_group_are_checked_and_explained() -> None:
    calls: list[tuple[Any, ...]] = []
    runner, app = CliRunner(), application(calls)
    assert runner.invoke(app, ["a", "--width", "wide"]).exit_code == 2
    shown = runner.invoke(app, ["--help"]).output
    assert "Width in cells." in shown
    assert "Draw it." in shown
    assert "--size" not in shown
    assert calls == []
